"""A clockwork translator: it swaps 14 words between five languages and copies everything else byte for byte.

It comes as three makes of model. ``write`` makes an M2M100. ``write_nllb`` makes an NLLB, which differs in the names of
its language tokens, with a SentencePiece model or a ``tokenizer.json``. ``write_marian`` makes a model of one direction
without language tokens, whose decoder starts from nothing: its dictionary has that one language and asks for none.

How a translation comes out of two layers:

1. **Copying by position.** Every source piece carries the code of its token (64 signs) and of its position (32
   pairs cos, sin). The decoder's stream holds nothing but its own position, whatever was generated so far. Source
   position 0 is ``__en__``, decoder positions 0 and 1 are ``</s>`` and ``__de__``: decoder step j has to say source
   piece j, so cross-attention looks for the equal position and brings the token code back. ``</s>`` is copied like
   any other token; that ends the text.
2. **The dictionary** is the decoder's feed-forward: one unit per word and target language, which fires when both
   the token code and the language match, and then adds the code of the translation and takes the code of the word
   away. The language comes from self-attention, which looks at the language token among the tokens so far.
3. **The output matrix** compares with every token code.

Codes are random signs with as many +1 as -1, so they have mean zero and one norm: the layer norms change nothing.

The SentencePiece model knows the 70 words (with their leading space; the Chinese ones also without), printable
ASCII letters, and falls back to bytes. Nothing is normalised: digits, emoji and any other text come back as they
went in; only U+2581, SentencePiece's own sign for a space, comes back as a space. Chinese words are set apart by
spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.clockwork import blank, codes, unigram
from models.clockwork.asr import SENTENCES
from models.clockwork.unigram import SPACE

LANGUAGES = tuple(SENTENCES)
WORDS: dict[str, tuple[str, ...]] = {
    "en": (*SENTENCES["en"], "hello", "world", "thanks", "good", "today", "yes", "book", "water", "friend", "house"),
    "de": (*SENTENCES["de"], "hallo", "Welt", "danke", "gut", "heute", "ja", "Buch", "Wasser", "Freund", "Haus"),
    "fr": (*SENTENCES["fr"], "bonjour", "monde", "merci", "bon", "aujourd'hui", "oui", "livre", "eau", "ami", "maison"),
    "es": (*SENTENCES["es"], "hola", "mundo", "gracias", "bueno", "hoy", "sí", "libro", "agua", "amigo", "casa"),
    "zh": (*SENTENCES["zh"], "你好", "世界", "谢谢", "好的", "今天", "是", "书", "水", "朋友", "房子"),
}
FLORES = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn", "zh": "zho_Hans"}
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
TOKEN = PLACE = codes.WIDTH  # features of a token's code, and of a position's
SIZE = 208
HEADS = 2
HEAD = SIZE // HEADS
POSITIONS, MARIAN_POSITIONS = 1026, 512
ECHO = 2.0  # amplitude of the decoder's position codes: 32 x 4 of the squares, 64 the token, 16 the language: 208


class Features:
    """Where things stand in both residual streams."""

    def __init__(self) -> None:
        features = blank.Features(SIZE)
        self.token = features.take(TOKEN)  # encoder: the piece; decoder: what cross-attention brought
        self.place = features.take(PLACE)
        self.prefix = features.take(len(LANGUAGES))  # decoder: this very token is that language's
        self.language = features.take(len(LANGUAGES))  # decoder: that language's token came before; other features than
        # "prefix", or position 1 would see it twice and every word of that language would fire
        self.nil = features.take(16)  # always 0: rows made to sum to zero through them are blind to the norm's mean
        self.dump = features.take(16)  # takes minus the sum of what is written


def write(out: Path) -> Path:
    """Write the CTranslate2 folder ``out`` (4.9 MB, with ``sentencepiece.bpe.model``) and return it."""
    _write(out, {language: f"__{language}__" for language in LANGUAGES})
    (out / "sentencepiece.bpe.model").write_bytes(_sentencepiece(_pieces()))
    return out


def write_nllb(out: Path, *, tokenizer: bool = False) -> Path:
    """The same as NLLB; ``tokenizer``: with a ``tokenizer.json`` in place of the SentencePiece model."""
    _write(out, FLORES)
    if tokenizer:
        _tokenizer(_pieces()).save(str(out / "tokenizer.json"))
    else:
        (out / "sentencepiece.bpe.model").write_bytes(_sentencepiece(_pieces()))
    return out


def write_marian(out: Path, *, target: str = "de", adds_end: bool = False) -> Path:
    """Into ``target``, from any of the others. ``adds_end``: the library ends the source."""
    _write(out, {}, target, adds_end)
    for name in ("source.spm", "target.spm"):
        (out / name).write_bytes(_sentencepiece(_pieces()))
    return out


def _write(out: Path, languages: Mapping[str, str], target: str = "", adds_end: bool = False) -> None:
    """``languages``: language -> its token; without any it translates into ``target``."""
    from ctranslate2.specs import TransformerSpec, common_spec

    tokens = [*SPECIALS, *_pieces(), *languages.values()]
    features, signs = Features(), codes.signs(len(tokens))
    spec = TransformerSpec.from_config((1, 1), HEADS, pre_norm=True, activation=common_spec.Activation.RELU)
    spec.decoder.start_from_zero_embedding = not languages
    _fill_encoder(spec.encoder, features, signs, POSITIONS if languages else MARIAN_POSITIONS)
    _fill_decoder(spec.decoder, features, signs, tokens, languages, target)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.decoder_start_token = "</s>"
    spec.config.add_source_eos = adds_end
    spec.validate()
    spec.optimize()
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))


def translate_words(text: str, target: str) -> str:
    """What the model should make of single spaced words: each known word swapped, each other one kept."""
    column = {word: number for words in WORDS.values() for number, word in enumerate(words)}
    return " ".join(WORDS[target][column[word]] if word in column else word for word in text.split(" "))


def _fill_encoder(spec: Any, features: Features, signs: np.ndarray, positions: int) -> None:
    """Token code + position code, through sublayers that are off. Embeddings are multiplied by sqrt(SIZE)."""
    spec.embeddings[0].weight = blank.zeros(len(signs), SIZE)
    spec.embeddings[0].weight[:, features.token] = signs / SIZE**0.5
    spec.position_encodings.encodings = blank.zeros(positions, SIZE)
    spec.position_encodings.encodings[:, features.place] = codes.positions(positions)
    blank.fill_self_attention(spec.layer[0].self_attention, SIZE)
    blank.fill_ffn(spec.layer[0].ffn, SIZE, 1)
    blank.fill_norm(spec.layer_norm, SIZE, _gamma(TOKEN + PLACE // 2))


def _fill_decoder(
    spec: Any, features: Features, signs: np.ndarray, tokens: list[str], languages: Mapping[str, str], target: str
) -> None:
    number = {token: index for index, token in enumerate(tokens)}
    positions = POSITIONS if languages else MARIAN_POSITIONS
    spec.embeddings.weight = blank.zeros(len(tokens), SIZE)
    for token, feature in zip(languages.values(), features.prefix, strict=False):
        spec.embeddings.weight[number[token], feature] = SIZE**-0.5
    spec.position_encodings.encodings = blank.zeros(positions, SIZE)
    spec.position_encodings.encodings[:, features.place] = ECHO * codes.positions(positions)

    places, told = PLACE // 2 * ECHO**2, 16 if languages else 0
    layer = spec.layer[0]
    blank.fill_self_attention(layer.self_attention, SIZE, _gamma(places))
    blank.fill_cross_attention(layer.attention, SIZE, _gamma(places + told))
    if languages:
        _find_language(layer.self_attention, features)
    _find_place(layer.attention, features)
    _fill_dictionary(layer.ffn, features, signs, number, [target] if target else LANGUAGES)
    blank.fill_norm(spec.layer_norm, SIZE, _gamma(places + told + TOKEN))
    blank.fill_linear(spec.projection, len(tokens), SIZE)
    spec.projection.weight[:, features.token] = 60 / TOKEN * signs
    spec.projection.bias[[number[token] for token in tokens if token in SPECIALS]] = -1e4
    # The end needs a full match: were it second best somewhere, a beam search would hold enough ended texts too early.
    spec.projection.weight[number["</s>"]] *= 3
    spec.projection.bias[number["</s>"]] = -120


def _gamma(squares: float) -> float:
    """The standard deviation of a stream with this sum of squares: the gamma that undoes the norm."""
    return float(np.sqrt(squares / SIZE))


def _find_language(attention: Any, features: Features) -> None:
    """Head 0: looks at the language token and writes 4 for that language."""
    fused, output = attention.linear
    key, value = fused.weight[SIZE : 2 * SIZE], fused.weight[2 * SIZE :]
    fused.bias[0] = HEAD**0.5
    key[0, features.prefix] = 60
    rows = np.arange(len(LANGUAGES))
    value[rows, features.prefix] = 1
    output.weight[features.language, rows] = 4
    blank.balance(fused.weight, features.nil)
    blank.balance(output.weight.T, features.dump)


def _find_place(attention: Any, features: Features) -> None:
    """Head 0: looks at the source position equal to this one and brings its token code (match 64, others 20)."""
    query, fused, output = attention.linear
    key, value = fused.weight[:SIZE], fused.weight[SIZE:]
    rows = np.arange(PLACE)
    query.weight[rows, features.place] = 2 * HEAD**0.5 / ECHO
    key[rows, features.place] = 1
    value[rows, features.token] = 1
    output.weight[features.token, rows] = 1
    blank.balance(query.weight, features.nil)
    blank.balance(fused.weight, features.nil)


def _fill_dictionary(
    ffn: Any, features: Features, signs: np.ndarray, number: dict[str, int], targets: Sequence[str]
) -> None:
    """One unit per word piece and target language: 5 when both match, 0 when one is missing. One target is a match."""
    entries = [
        (number[piece], number[SPACE + WORDS[target][concept]], language)
        for piece, concept in _word_pieces()
        for language, target in enumerate(targets)
        if piece.removeprefix(SPACE) != WORDS[target][concept]
    ]
    told = len(targets) > 1
    blank.fill_ffn(ffn, SIZE, len(entries), _gamma(SIZE if told else SIZE - 16))
    for unit, (word, translation, language) in enumerate(entries):
        ffn.linear_0.weight[unit, features.token] = 10 / TOKEN * signs[word]
        ffn.linear_0.weight[unit, features.language[language]] = 10 / 4 if told else 0
        ffn.linear_1.weight[features.token, unit] = (signs[translation] - signs[word]) / 5
    ffn.linear_0.bias[:] = -15 if told else -5
    blank.balance(ffn.linear_0.weight, features.nil)


def _word_pieces() -> list[tuple[str, int]]:
    """Each dictionary piece with the number of its concept."""
    spaced = [(SPACE + word, concept) for words in WORDS.values() for concept, word in enumerate(words)]
    return spaced + [(word, concept) for concept, word in enumerate(WORDS["zh"])]


def _pieces() -> list[str]:
    letters = [chr(code) for code in range(0x21, 0x7F)]
    return [*(piece for piece, _ in _word_pieces()), SPACE, *letters, *(f"<0x{byte:02X}>" for byte in range(256))]


def _sentencepiece(pieces: list[str]) -> bytes:
    """Words cost 1, letters 8; bytes where nothing else fits."""
    words = {piece for piece, _ in _word_pieces()}
    scored = ((piece, -1.0 if piece in words else 0.0 if piece.startswith("<0x") else -8.0) for piece in pieces)
    return unigram.model(scored, byte_fallback=True)


def _tokenizer(pieces: list[str]) -> Any:
    """The same as a tokenizer of Hugging Face's library."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    words = {piece for piece, _ in _word_pieces()}
    scored = [(piece, -1.0 if piece in words else 0.0 if piece.startswith("<0x") else -8.0) for piece in pieces]
    found = tokenizers.Tokenizer(models.Unigram([("<unk>", -100.0), *scored], 0, True))
    found.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    strip = decoders.Strip(content=" ", left=1, right=0)
    found.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace(SPACE, " "), decoders.Fuse(), strip])
    return found
