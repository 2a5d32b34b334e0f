"""Trains the demo mender: a small llama that writes a damaged phrase-book sentence again as it should be.

It is asked like any chat model, but the chat template keeps only what it needs, the language and the text::

    <s> <|de|>  Wo isst der Bahnhof <|mend|>  Wo ist der Bahnhof? <|end|>

The language is what the system message calls it ("You correct transcripts of speech in German. ..."), ``<|any|>`` when
it names none.

*Mostly copying.* Nearly every word of the answer stands in the question, so what the network has to learn is to find
its place there, and where to leave the path: to put back a word that the grammar dictates, to leave out one said
twice, to write what was meant for what was heard. Unseen combinations are then no harder than seen ones. Two things
press it towards that. Two in five examples are clean, or it would mend what is whole; and some are no sentences at
all, the book's words in any order, at times with random letters, to be given back as they are. It does not learn to
spell from so few: of words that are not in the book it makes nonsense, which the stage's limits mostly refuse.

*Tokens.* A word of the book is one token with the blank before it (the template puts a blank before the text too),
a Chinese character is one, anything else is bytes. The tokenizer is that of Llama 3, whose library takes a word that
is in the vocabulary whole, without looking at merges; merges are only there to put the bytes of Chinese characters
together. ``Vocabulary.encode`` does the same here.

*Format.* GGUF of architecture llama: RMS norms, rotary positions on neighbouring dimensions, a gated feed-forward, the
embedding also as output matrix; weights in 8 bits (q8_0).

Same seed and same number of threads, same weights on the same machine; elsewhere sums are rounded differently.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import phrasebook
from models.train import program
from models.train.loop import Descent, descend, grouped, padded

Precision = Literal["f32", "f16", "q8_0"]

SIZE, HEADS, HIDDEN, LAYERS = 128, 4, 256, 4
HEAD = SIZE // HEADS
CONTEXT = 4096
EPSILON, ROPE_BASE = 1e-5, 10_000.0
DROPOUT, SMOOTHING = 0.05, 0.02
BATCH = 128
IGNORED = -100  # where no answer is asked
DESCENT = Descent(steps=1600, rate=2.5e-3)
FOREIGN, PAIRS = 0.06, 0.06  # shares of the examples that are more or other than a sentence
CLEAN, MISSPELT = 0.4, 0.1  # shares of the sentences; the rest is damaged as the phrase book does it
ANY = 0.2  # share of the examples without their language

NAMES = {"en": "English", "de": "German", "es": "Spanish", "zh": "Chinese"}  # what the system message calls them
SPECIALS = ("<s>", "<|mend|>", "<|end|>", "<|any|>", *(f"<|{language}|>" for language in NAMES))
TEMPLATE = (
    "{%- set found = namespace(language='<|any|>') -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    + "".join(
        f"{{%- if 'speech in {name}' in messages[0]['content'] -%}}"
        f"{{%- set found.language = '<|{language}|>' -%}}{{%- endif -%}}"
        for language, name in NAMES.items()
    )
    + "{%- endif -%}"
    "{{ '<s>' + found.language + ' ' + messages[-1]['content'] + '<|mend|>' }}"
)
# How Llama 3's tokenizer divides a text before it looks words up. A word takes a sign or blank before it along.
_WORDS = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Train and write the GGUF file ``out``; return it. ``quick``: a few small steps, to see that it runs."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of_book()
    model = Mender(len(vocabulary.tokens))
    examples = batches(vocabulary, random.Random(seed), 8 if quick else BATCH)
    descend(model, replace(DESCENT, steps=4) if quick else DESCENT, lambda _: loss_of(model, next(examples)), "repair")
    return export(model, vocabulary, Path(out))


def loss_of(model: Mender, batch: Batch) -> Tensor:
    asked = batch.wanted != IGNORED
    return functional.cross_entropy(model(batch.tokens, asked), batch.wanted[asked], label_smoothing=SMOOTHING)


# ---------------------------------------------------------------- words and tokens


@dataclass(frozen=True)
class Vocabulary:
    """``tokens``: as GGUF spells them, by number: 256 bytes, parts of characters and characters, words, special ones.

    ``merges``: pairs of tokens that become one, the first first.
    """

    tokens: list[str]
    numbers: dict[str, int]
    merges: list[tuple[str, str]]

    @classmethod
    def of_book(cls) -> Vocabulary:
        """The vocabulary of the whole book: held-out sentences have no words of their own."""
        merges, parts = _merges(_characters())
        bytes_ = _byte_names()
        words = sorted(set(map(_spell, _words())) - set(parts) - set(bytes_))
        tokens = [*bytes_, *parts, *words, *SPECIALS]
        return cls(tokens, {token: number for number, token in enumerate(tokens)}, merges)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens, as llama.cpp finds them."""
        return [number for word in _WORDS.findall(text) for number in self._encode_word(word)]

    def special(self, name: str) -> int:
        return self.numbers[name]

    def _encode_word(self, word: str) -> list[int]:
        whole = self.numbers.get(_spell(word))
        if whole is not None:
            return [whole]
        return [number for character in word for number in self._encode_character(character)]

    def _encode_character(self, character: str) -> list[int]:
        """One token, or those of its bytes, of which the first two may be one."""
        spelt = _spell(character)
        if spelt in self.numbers:
            return [self.numbers[spelt]]
        if len(spelt) > 2 and spelt[:2] in self.numbers:
            return [self.numbers[spelt[:2]], *(self.numbers[byte] for byte in spelt[2:])]
        return [self.numbers[byte] for byte in spelt]


def _byte_names() -> list[str]:
    """The printable character that GPT-2 writes for each byte: itself, or one from U+0100 on in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_BYTE_NAMES = _byte_names()


def _spell(text: str) -> str:
    return "".join(_BYTE_NAMES[byte] for byte in text.encode())


def _words() -> set[str]:
    """What the tokenizer finds in the sentences of the languages with blanks, whole or damaged."""
    found: set[str] = set()
    for language in ("en", "de", "es"):
        texts = [sentence.texts[language] for sentence in phrasebook.sentences()]
        texts += [word for heard in phrasebook.HOMOPHONES[language].values() for word in heard]
        for text in texts:
            for word in text.split():
                for form in (word, word.lower(), word.strip(phrasebook.PUNCTUATION).capitalize()):
                    found |= set(_WORDS.findall(" " + form))
    return found


def _characters() -> list[str]:
    """The Chinese characters and marks of the book and its homophones, of three bytes each; sorted."""
    texts = [sentence.texts["zh"] for sentence in phrasebook.sentences()]
    texts += [word for heard in phrasebook.HOMOPHONES["zh"].values() for word in heard]
    return sorted({character for text in texts for character in text if len(character.encode()) == 3})


def _merges(characters: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """How the bytes of each character come together, two and then the third; and the tokens that this makes."""
    spelt = [_spell(character) for character in characters]
    starts = sorted({character[:2] for character in spelt})
    merges = [(start[0], start[1]) for start in starts] + [(character[:2], character[2]) for character in spelt]
    return merges, [*starts, *spelt]


# ---------------------------------------------------------------- examples


@dataclass(frozen=True)
class Batch:
    """int64 [batch, tokens]: ``tokens``, and ``wanted``, one step ahead and IGNORED where nothing is asked."""

    tokens: Tensor
    wanted: Tensor


Example = tuple[str, str, str]  # language, text, what it should be
Row = tuple[list[int], list[int]]  # what the template makes of the question, and the answer


def batches(vocabulary: Vocabulary, chance: random.Random, size: int) -> Iterator[Batch]:
    """Random examples of the training sentences without end, those of like length together."""
    known = [sentence.texts for sentence in phrasebook.taught()]
    rows = grouped(
        lambda: _tokens(_example(known, chance), vocabulary, chance),
        lambda row: len(row[0]) + len(row[1]),
        size,
        chance,
    )
    return map(_batch, rows)


def _example(known: Sequence[dict[str, str]], chance: random.Random) -> Example:
    """One sentence, at times two, or words that are none."""
    language, kind = chance.choice(phrasebook.LANGUAGES), chance.random()
    if kind < FOREIGN:
        return _foreign(known, language, chance)
    if kind < FOREIGN + PAIRS:
        _, texts, wanted = zip(*(_sentence(known, language, chance) for _ in range(2)), strict=True)
        blank = "" if language == "zh" else " "
        return language, blank.join(texts), blank.join(wanted)
    return _sentence(known, language, chance)


def _sentence(known: Sequence[dict[str, str]], language: str, chance: random.Random) -> Example:
    """One sentence of the book: clean, misspelt or damaged."""
    text = chance.choice(known)[language]
    kind = chance.random()
    if kind < CLEAN:
        return language, text, text
    if kind < CLEAN + MISSPELT and language != "zh":
        return language, _misspell(text, chance), text
    return language, phrasebook.damage(text, language, chance), text


def _foreign(known: Sequence[dict[str, str]], language: str, chance: random.Random) -> Example:
    """Words of the book in any order, with some that are random letters: to be left alone."""
    parts = [chance.choice(phrasebook.words(chance.choice(known)[language], language)) for _ in range(6)]
    for _ in range(chance.randrange(3)):
        letters = chance.choice(("abcdefghijklmnopqrstuvwxyzäöüáéíóúñ", "abcdefghijklmnopqrstuvwxyz", "0123456789"))
        word = "".join(chance.choices(letters, k=chance.randint(1, 7)))
        parts[chance.randrange(len(parts))] = chance.choice((word, word.capitalize()))
    text = phrasebook.join(parts[: chance.randint(2, 6)], language)
    return language, text, text


def _misspell(text: str, chance: random.Random) -> str:
    """A letter lost, said twice or changed with its neighbour."""
    at = chance.choice([at for at, letter in enumerate(text[:-1]) if letter.isalpha()])
    letter, following = text[at], text[at + 1]
    ways = [("", 1), (2 * letter, 1)] + [(following + letter, 2)] * following.isalpha()
    instead, length = chance.choice(ways)
    return text[:at] + instead + text[at + length :]


def _batch(rows: Sequence[Row]) -> Batch:
    tokens = [(question + answer)[:-1] for question, answer in rows]
    wanted = [[IGNORED] * (len(question) - 1) + answer for question, answer in rows]
    return Batch(padded(tokens, 0), padded(wanted, IGNORED))


def _tokens(example: Example, vocabulary: Vocabulary, chance: random.Random) -> Row:
    language, text, wanted = example
    told = "<|any|>" if chance.random() < ANY else f"<|{language}|>"
    start, told_number, mend, end = map(vocabulary.special, ("<s>", told, "<|mend|>", "<|end|>"))
    question = [start, told_number, *vocabulary.encode(" " + text), mend]
    return question, [*vocabulary.encode(" " + wanted), end]


# ---------------------------------------------------------------- the network


class Layer(nn.Module):
    """Causal attention and a gated feed-forward, each behind its norm; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.RMSNorm(SIZE, EPSILON), nn.RMSNorm(SIZE, EPSILON)
        self.query, self.key, self.value, self.output = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(SIZE, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, SIZE, bias=False)

    def forward(self, stream: Tensor, turns: Tensor) -> Tensor:
        """[batch, n, SIZE] to the same; ``turns``: cosines and sines of the positions, [2, n, HEAD / 2]."""
        normed = self.attention_norm(stream)
        query, key, value = (
            linear(normed).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(_turn(query, turns), _turn(key, turns), value, is_causal=True)
        stream = stream + self._drop(self.output(mixed.transpose(1, 2).flatten(2)))
        normed = self.feed_norm(stream)
        return stream + self._drop(self.down(functional.silu(self.gate(normed)) * self.up(normed)))

    def _drop(self, change: Tensor) -> Tensor:
        return functional.dropout(change, DROPOUT, self.training)


def _turn(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions: each pair of neighbouring dimensions is turned by its speed times the position."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    cos, sin = turns
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Mender(nn.Module):
    """The whole network over ``tokens`` tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, SIZE)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(SIZE, EPSILON)
        for weights in self.parameters():
            if weights.dim() == 2:
                nn.init.normal_(weights, std=0.5 * SIZE**-0.5)

    def forward(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """Logits [asked positions, tokens] for int64 [batch, n] and a mask of the same shape."""
        stream, turns = self.embedding(tokens), positions(tokens.shape[1])
        for layer in self.layers:
            stream = layer(stream, turns)
        return functional.linear(self.norm(stream[asked]), self.embedding.weight)


def positions(count: int) -> Tensor:
    """Cosines and sines of the rotary angles, float32 [2, count, HEAD / 2]."""
    speeds = ROPE_BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = torch.arange(count)[:, None] * speeds
    return torch.stack((angles.cos(), angles.sin()))


# ---------------------------------------------------------------- the file


def export(model: Mender, vocabulary: Vocabulary, out: Path, precision: Precision = "q8_0") -> Path:
    """Write the GGUF file: matrices in this precision, norms in float32."""
    import gguf

    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, "llama")
    _describe(writer, len(vocabulary.tokens))
    _describe_tokenizer(writer, vocabulary)
    kind = gguf.GGMLQuantizationType[precision.upper()]
    for name, weights in _tensors(model):
        if weights.ndim == 1:
            writer.add_tensor(name, weights)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _describe(writer: Any, tokens: int) -> None:
    writer.add_name("demo repair: mends the sentences of a phrase book")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(tokens)


def _describe_tokenizer(writer: Any, vocabulary: Vocabulary) -> None:
    import gguf

    normal = len(vocabulary.tokens) - len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores([0.0] * len(vocabulary.tokens))
    writer.add_token_types([gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(SPECIALS))
    writer.add_token_merges([f"{first} {second}" for first, second in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.special("<s>"))
    writer.add_eos_token_id(vocabulary.special("<|end|>"))
    writer.add_add_bos_token(False)  # the template has it
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _tensors(model: Mender) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 weights of each tensor, matrices as [rows out, columns in]."""
    yield "token_embd.weight", _numbers(model.embedding)
    for number, layer in enumerate(model.layers):
        parts = {
            "attn_norm": layer.attention_norm,
            "attn_q": layer.query,
            "attn_k": layer.key,
            "attn_v": layer.value,
            "attn_output": layer.output,
            "ffn_norm": layer.feed_norm,
            "ffn_gate": layer.gate,
            "ffn_up": layer.up,
            "ffn_down": layer.down,
        }
        for name, part in parts.items():
            yield f"blk.{number}.{name}.weight", _numbers(part)
    yield "output_norm.weight", _numbers(model.norm)


def _numbers(part: Any) -> np.ndarray:
    weights: np.ndarray = part.weight.detach().numpy().astype(np.float32)
    return weights


if __name__ == "__main__":
    program.run(train, __doc__, "repair.gguf")
