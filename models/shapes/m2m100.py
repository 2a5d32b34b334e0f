"""M2M100 with 418 million parameters, as CTranslate2 reads it, float16 or int8.

Numbers from the published ``config.json`` of facebook/m2m100_418M; its file has 484 million numbers less the position
tables, which are counted once. The last norm gives a vector of ones and every embedding but that of ``</s>`` is
positive: a translation goes on until the library stops it.

SentencePiece's model knows 128,000 pieces of one to three letters.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.clockwork import blank, unigram
from models.clockwork.nmt import SPECIALS
from models.clockwork.unigram import SPACE
from models.shapes import Plan, Wrote, ctranslate, silent

CODES = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
LANGUAGES = CODES.split()
LAYERS, WIDTH, HEADS, HIDDEN = 12, 1024, 16, 4096
POSITIONS = 1024
PIECES = 128_000
MADE_UP = 8  # tokens without a meaning at the end of the real vocabulary
EMBEDDINGS = "decoder/embeddings/weight"
TIED = {
    "encoder/embeddings_0/weight": EMBEDDINGS,
    "decoder/projection/weight": EMBEDDINGS,
    "encoder/position_encodings/encodings": "decoder/position_encodings/encodings",
}
LOUD = 0.05


def plan(name: str) -> Plan:
    """The plan of "m2m100-418m" or "m2m100-418m-int8"."""
    precision: ctranslate.Precision = "int8" if name.endswith("-int8") else "float16"
    pieces = list(itertools.islice(_pieces(), PIECES))
    tokens = [*SPECIALS, *pieces, *(f"__{language}__" for language in LANGUAGES)]
    tokens += [f"madeupword{number}" for number in range(MADE_UP)]
    weights = ctranslate.file_bytes(_spec(tokens, precision, silent))
    others = sum(len(json.dumps(token)) + 4 for token in tokens) + sum(len(piece.encode()) + 9 for piece in pieces)

    def write(out: Path, wrote: Wrote) -> Path:
        spec = _spec(tokens, precision, wrote)
        out.mkdir(parents=True, exist_ok=True)
        spec.save(str(out))
        scored = [(piece, -9.0 + len(piece)) for piece in pieces]  # a longer piece before two short ones
        (out / "sentencepiece.bpe.model").write_bytes(unigram.model(scored))
        return out

    return Plan(weights, weights + others, write)


def _pieces() -> Iterator[str]:
    """The space, letters, then longer and longer combinations of small ones."""
    yield SPACE
    yield from (letter for letter in string.printable if letter.isprintable() and letter != " ")
    letters = string.ascii_lowercase + "".join(map(chr, range(0xE0, 0xF7)))
    for length in (2, 3, 4):
        yield from ("".join(some) for some in itertools.product(SPACE + letters, *[letters] * (length - 1)))


def _spec(tokens: list[str], precision: ctranslate.Precision, wrote: Wrote) -> Any:
    from ctranslate2.specs import TransformerSpec, common_spec

    spec = TransformerSpec.from_config((LAYERS, LAYERS), HEADS, pre_norm=True, activation=common_spec.Activation.RELU)
    hollow = ctranslate.hollow
    for embeddings in (spec.encoder.embeddings[0], spec.decoder.embeddings, spec.decoder.projection):
        embeddings.weight = hollow(len(tokens), WIDTH)
    spec.decoder.position_encodings.encodings = hollow(POSITIONS, WIDTH)
    spec.encoder.position_encodings.encodings = hollow(POSITIONS, WIDTH)
    blank.fill_norm(spec.encoder.layer_norm, WIDTH)
    blank.fill_norm(spec.decoder.layer_norm, WIDTH, gamma=0.0)
    spec.decoder.layer_norm.beta[:] = 1
    for layer in [*spec.encoder.layer, *spec.decoder.layer]:
        blank.fill_self_attention(layer.self_attention, WIDTH, make=hollow)
        blank.fill_ffn(layer.ffn, WIDTH, HIDDEN, make=hollow)
    for layer in spec.decoder.layer:
        blank.fill_cross_attention(layer.attention, WIDTH, make=hollow)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.decoder_start_token = "</s>"
    end = tokens.index("</s>")
    rows = {EMBEDDINGS: ((slice(None), LOUD), (slice(end, end + 1), -LOUD))}
    ctranslate.freeze(spec, precision, wrote, TIED, rows)
    return spec
