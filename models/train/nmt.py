"""Trains the demo translator: a small transformer of the M2M100 layout, between any two of the book's languages.

The phrase book is a parallel corpus, so a sentence gives twelve examples, one a direction. The task is small: the
network has to learn the templates, the fillers, and that any filler goes into any slot. It never sees the held-out
combinations; whether it has learned the book or only its sentences shows on those.

*Pieces.* The SentencePiece model is written, not trained: one piece for each word as the book has it and in small
letters, one for each Chinese character and mark, and for anything else letters and bytes. Nothing is normalised.
Every word is one piece, so the network never has to spell; a word outside the book goes in as letters, of which it
has learned nothing.

*What recognition delivers* is not always clean. A part of the sources lacks its capitals or marks, is damaged as
``phrasebook.damage`` does it, or is two sentences at once; the targets are always right.

*Strays.* A beam search follows wrong beginnings beside the right one, and stops when enough of them have ended. A
network that has only seen right beginnings goes on after a skipped word as if nothing had happened, so the wrong texts
are the shorter ones, end first, and one of them is taken. Here the decoder's input is often given a token too many, and
what is wanted after it is what was wanted before it: every wrong beginning ends later than the right one. For the same
reason labels are not smoothed: that would make an end in mid-sentence as likely as any other error.

*Format.* Encoder and decoder are pre-norm with ReLU, embeddings are shared by both and by the output and multiplied by
the square root of their size, positions are sines and cosines, and the decoder is started by ``</s>`` and the target
language's token. That is what CTranslate2 makes of an M2M100, so ``export`` only has to lay the weights out.

Same seed and same number of threads, same weights on the same machine; elsewhere sums are rounded differently.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import phrasebook
from models.clockwork import unigram
from models.clockwork.unigram import SPACE
from models.train import program
from models.train.loop import Descent, descend, grouped, padded

SIZE, HEADS, HIDDEN, LAYERS = 128, 4, 512, 2  # layers: of the encoder, and of the decoder
POSITIONS = 1026
DROPOUT = 0.1
BATCH = 128
DESCENT = Descent(steps=1500, rate=2e-3)
PAIRS = 0.06  # share of examples that are two sentences
ROUGH = 0.35  # share of sources that are not clean
STRAYS = (0, 0, 1, 2)  # tokens too many in the decoder's input, each as often
DIRECTIONS = list(itertools.permutations(phrasebook.LANGUAGES, 2))

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
PAD, END = SPECIALS.index("<pad>"), SPECIALS.index("</s>")
IGNORED = -100  # a target that does not count
_WORD = re.compile(r"(¿?)(.+?)([.,?!]*)")
_HALF_WIDTH = str.maketrans("，？！。", ",?!.")


def train(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Train and write the CTranslate2 folder ``out`` (int8, with ``sentencepiece.bpe.model``); return it.

    ``quick``: a few small steps, to see that it runs.
    """
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of_book()
    model = Translator(len(vocabulary.tokens))
    examples = batches(vocabulary, random.Random(seed), 8 if quick else BATCH)
    descend(model, replace(DESCENT, steps=4) if quick else DESCENT, lambda _: loss_of(model, next(examples)), "nmt")
    return export(model, vocabulary, Path(out))


def loss_of(model: Translator, batch: Batch) -> Tensor:
    logits = model(batch.source, batch.target)
    return functional.cross_entropy(logits.flatten(0, 1), batch.wanted.flatten(), ignore_index=IGNORED)


# ---------------------------------------------------------------- words and pieces


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` in the order of their numbers; ``pieces``: those of them that SentencePiece knows, and its file."""

    tokens: list[str]
    numbers: dict[str, int]
    processor: Any
    file: bytes

    @classmethod
    def of_book(cls) -> Vocabulary:
        """The vocabulary of the whole book: held-out sentences have no words of their own."""
        import sentencepiece

        words, letters = book_words(), book_letters()
        file = sentencepiece_file(words, letters)
        languages = [f"__{language}__" for language in phrasebook.LANGUAGES]
        tokens = [*SPECIALS, *words, *letters, *_byte_pieces(), *languages]
        processor = sentencepiece.SentencePieceProcessor(model_proto=file)
        return cls(tokens, {token: number for number, token in enumerate(tokens)}, processor, file)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's pieces."""
        return [self.numbers[piece] for piece in self.processor.encode(text, out_type=str)]

    def language(self, code: str) -> int:
        return self.numbers[f"__{code}__"]


def book_words() -> list[str]:
    """The book's words as pieces, with the blank before them, and as they sound wrong; sorted."""
    found: set[str] = set()
    for language in ("en", "de", "es"):
        for sentence in phrasebook.sentences():
            for word in sentence.texts[language].split():
                found |= _pieces(word) | _pieces(word.lower())
        for heard in phrasebook.HOMOPHONES[language].values():
            found |= {form for word in heard for form in (SPACE + word, SPACE + word.capitalize())}
    return sorted(found)


def _pieces(word: str) -> set[str]:
    """A word as one piece; behind an opening question mark, which then has the blank, without it."""
    match = _WORD.fullmatch(word)
    assert match is not None
    opening, bare, _ = match.groups()
    return {SPACE + opening, bare, SPACE + bare} if opening else {SPACE + bare}


def book_letters() -> list[str]:
    """Single characters as pieces: the blank, printable ASCII, and all others of the book; sorted."""
    texts = [text for sentence in phrasebook.sentences() for text in sentence.texts.values()]
    texts += [word for heard in phrasebook.HOMOPHONES.values() for words in heard.values() for word in words]
    ascii_letters = {chr(code) for code in range(0x21, 0x7F)}
    others = {letter for text in texts for letter in text + text.lower()}
    return [SPACE, *sorted((ascii_letters | others) - {" "})]


def _byte_pieces() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_file(words: Sequence[str], letters: Sequence[str]) -> bytes:
    """A SentencePiece unigram model that normalises nothing: words cost 1, letters 8, bytes where nothing else fits."""
    scored = [*((word, -1.0) for word in words), *((letter, -8.0) for letter in letters)]
    return unigram.model([*scored, *((piece, 0.0) for piece in _byte_pieces())], byte_fallback=True)


# ---------------------------------------------------------------- examples


@dataclass(frozen=True)
class Batch:
    """int64 [batch, tokens]: ``source``; ``target``, what the decoder is given; ``wanted``, its answers, -100: any."""

    source: Tensor
    target: Tensor
    wanted: Tensor


def batches(vocabulary: Vocabulary, chance: random.Random, size: int) -> Iterator[Batch]:
    """Random examples of the training sentences without end, those of like length together."""
    known = [sentence.texts for sentence in phrasebook.taught()]
    rows = grouped(lambda: _example(known, vocabulary, chance), lambda row: len(row[0]) + len(row[1]), size, chance)
    return map(_batch, rows)


Example = tuple[list[int], list[int], list[int]]


def _example(known: Sequence[dict[str, str]], vocabulary: Vocabulary, chance: random.Random) -> Example:
    """Source, decoder input and wanted output of one or two sentences in a random direction, as numbers."""
    source, target = chance.choice(DIRECTIONS)
    chosen = chance.choices(known, k=2 if chance.random() < PAIRS else 1)
    text = _join([_roughen(texts[source], source, chance) for texts in chosen], source)
    translation = vocabulary.encode(_join([texts[target] for texts in chosen], target))
    given = [END, vocabulary.language(target), *translation]
    wanted = [IGNORED, *translation, END]
    for _ in range(chance.choice(STRAYS)):
        others = translation, vocabulary.encode(chance.choice(known)[chance.choice(phrasebook.LANGUAGES)])
        _stray(given, wanted, chance.choice(chance.choice(others)), chance)
    return [vocabulary.language(source), *vocabulary.encode(text), END], given, wanted


def _stray(given: list[int], wanted: list[int], token: int, chance: random.Random) -> None:
    """Put a token too many somewhere behind the language; after it the same is wanted as before it."""
    at = chance.randint(2, len(given))
    if token != wanted[at - 1]:  # the right one is none too many
        given.insert(at, token)
        wanted.insert(at, wanted[at - 1])


def _join(texts: Sequence[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(texts)


def _roughen(text: str, language: str, chance: random.Random) -> str:
    """The text as recognition might deliver it; most often as it is."""
    if chance.random() > ROUGH:
        return text
    ways = (
        lambda: text.rstrip(phrasebook.PUNCTUATION),
        lambda: text[0].lower() + text[1:],
        lambda: text.translate(_HALF_WIDTH),
        lambda: text.lower().strip(phrasebook.PUNCTUATION),
        lambda: phrasebook.damage(text, language, chance),
        lambda: phrasebook.damage(text, language, chance),
    )
    return chance.choice(ways)()


def _batch(examples: Sequence[Example]) -> Batch:
    sources, targets, wanted = zip(*examples, strict=True)
    return Batch(padded(sources, PAD), padded(targets, PAD), padded(wanted, IGNORED))


# ---------------------------------------------------------------- the network


class Attention(nn.Module):
    """Multi-head attention behind its norm: queries from the stream, keys and values from it or from a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.query = nn.Linear(SIZE, SIZE)
        self.key_value = nn.Linear(SIZE, 2 * SIZE)
        self.output = nn.Linear(SIZE, SIZE)

    def forward(self, stream: Tensor, memory: Tensor | None, mask: Tensor) -> Tensor:
        """[batch, n, SIZE] to the same; ``mask``: true where the n queries may look, [batch or 1, 1, n or 1, m]."""
        normed = self.norm(stream)
        key, value = self.key_value(normed if memory is None else memory).chunk(2, dim=-1)
        heads = [_split(rows) for rows in (self.query(normed), key, value)]
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return stream + functional.dropout(self.output(mixed.transpose(1, 2).flatten(2)), DROPOUT, self.training)


def _split(rows: Tensor) -> Tensor:
    """[batch, n, SIZE] to [batch, HEADS, n, SIZE / HEADS]."""
    return rows.unflatten(-1, (HEADS, SIZE // HEADS)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers behind their norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.inner = nn.Linear(SIZE, HIDDEN)
        self.outer = nn.Linear(HIDDEN, SIZE)

    def forward(self, stream: Tensor) -> Tensor:
        inner = functional.relu(self.inner(self.norm(stream)))
        return stream + functional.dropout(self.outer(inner), DROPOUT, self.training)


class Layer(nn.Module):
    """Self-attention, in the decoder attention to the encoder's memory, feed-forward."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.own = Attention()
        self.cross = Attention() if decodes else None
        self.feed = FeedForward()

    def forward(self, stream: Tensor, mask: Tensor, memory: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        stream = self.own(stream, None, mask)
        if self.cross is not None and memory_mask is not None:
            stream = self.cross(stream, memory, memory_mask)
        return self.feed(stream)


class Stack(nn.Module):
    """Layers and the norm that ends them: the encoder or the decoder."""

    def __init__(self, decodes: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(decodes) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(SIZE)

    def forward(
        self, stream: Tensor, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        for layer in self.layers:
            stream = layer(stream, mask, memory, memory_mask)
        return self.norm(stream)


class Translator(nn.Module):
    """The whole network over ``tokens`` tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, SIZE)
        nn.init.normal_(self.embedding.weight, std=SIZE**-0.5)
        self.encoder, self.decoder = Stack(decodes=False), Stack(decodes=True)
        self.register_buffer("places", torch.from_numpy(positions()))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [batch, pieces, tokens] for int64 [batch, pieces] of source and decoder input."""
        seen = (source != PAD)[:, None, None, :]
        memory = self.encoder(self._embed(source), seen)
        past = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).tril()[None, None]
        return functional.linear(self.decoder(self._embed(target), past, memory, seen), self.embedding.weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        stream = self.embedding(tokens) * SIZE**0.5 + self.places[: tokens.shape[1]]
        return functional.dropout(stream, DROPOUT, self.training)


def positions() -> np.ndarray:
    """The position table, float32 [POSITIONS, SIZE]: sines, then cosines, of wave lengths from 2 pi to 20,000 pi."""
    half = SIZE // 2
    speeds = np.exp(-math.log(10_000) * np.arange(half) / (half - 1))
    angles = np.arange(POSITIONS)[:, None] * speeds
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- the file


def export(model: Translator, vocabulary: Vocabulary, out: Path) -> Path:
    """Write the CTranslate2 folder with 8-bit weights and the SentencePiece model beside it."""
    from ctranslate2.specs import TransformerSpec, common_spec

    spec = TransformerSpec.from_config((LAYERS, LAYERS), HEADS, pre_norm=True, activation=common_spec.Activation.RELU)
    embedding = model.embedding.weight
    for ours, theirs in ((model.encoder, spec.encoder), (model.decoder, spec.decoder)):
        table = theirs.embeddings[0] if isinstance(theirs.embeddings, list) else theirs.embeddings
        table.weight = _copy(embedding)
        theirs.position_encodings.encodings = positions()
        _fill_norm(theirs.layer_norm, ours.norm)
        for layer, layer_spec in zip(ours.layers, theirs.layer, strict=True):
            _fill_layer(layer_spec, layer)
    spec.decoder.projection.weight = _copy(embedding)
    spec.register_source_vocabulary(vocabulary.tokens)
    spec.register_target_vocabulary(vocabulary.tokens)
    spec.config.decoder_start_token = "</s>"
    spec.validate()
    spec.optimize(quantization="int8")
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))
    (out / "sentencepiece.bpe.model").write_bytes(vocabulary.file)
    return out


def _fill_layer(spec: Any, layer: Layer) -> None:
    """CTranslate2 keeps queries, keys and values in one matrix, in cross-attention keys and values."""
    own = layer.own
    _fill_norm(spec.self_attention.layer_norm, own.norm)
    _fill_linear(spec.self_attention.linear[0], own.query, own.key_value)
    _fill_linear(spec.self_attention.linear[1], own.output)
    if layer.cross is not None:
        _fill_norm(spec.attention.layer_norm, layer.cross.norm)
        for part, linear in zip(
            spec.attention.linear, (layer.cross.query, layer.cross.key_value, layer.cross.output), strict=True
        ):
            _fill_linear(part, linear)
    _fill_norm(spec.ffn.layer_norm, layer.feed.norm)
    _fill_linear(spec.ffn.linear_0, layer.feed.inner)
    _fill_linear(spec.ffn.linear_1, layer.feed.outer)


def _fill_linear(spec: Any, *linears: nn.Linear) -> None:
    spec.weight = np.concatenate([_copy(linear.weight) for linear in linears])
    spec.bias = np.concatenate([_copy(linear.bias) for linear in linears])


def _fill_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _copy(norm.weight), _copy(norm.bias)


def _copy(weights: Tensor) -> np.ndarray:
    """An own array: quantisation scales arrays in place."""
    return weights.detach().numpy().copy()


if __name__ == "__main__":
    program.run(train, __doc__, "nmt")
