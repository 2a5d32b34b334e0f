"""Whisper as faster-whisper reads it: CTranslate2, float16.

Numbers from the published ``config.json`` of openai/whisper-small and openai/whisper-large-v3 (layers, widths, heads,
mel bands, vocabulary). Sizes: ``model.bin`` of Systran/faster-whisper-small and Systran/faster-whisper-large-v3.

The decoder's last norm gives a vector of ones, the embeddings (which are also the output matrix) are positive for
text and negative for everything else: it says one piece of text until the library stops it, never a time or an end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models.clockwork import blank, whisper_files
from models.shapes import Plan, Wrote, ctranslate, filling, silent

# In the order of their tokens; the last came with large-v3.
CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
LANGUAGES = CODES.split()
MERGES = 50_000
EMBEDDINGS = "decoder/embeddings/weight"
LOUD = 0.05


@dataclass(frozen=True)
class Whisper:
    """One size: layers on each side, width, attention heads of 64, mel bands, languages."""

    layers: int
    width: int
    heads: int
    mels: int
    languages: int


SIZES = {
    "whisper-small": Whisper(layers=12, width=768, heads=12, mels=80, languages=99),
    "whisper-large-v3": Whisper(layers=32, width=1280, heads=20, mels=128, languages=100),
}


class Vocabulary(whisper_files.Vocabulary):
    """As many tokens as the real one (51,865, or 51,866 with 100 languages), over made-up merges."""

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        return filling.merges(whisper_files.byte_letters(), MERGES)


def plan(name: str) -> Plan:
    """The plan of one of ``SIZES``."""
    size = SIZES[name]
    vocabulary = Vocabulary((), LANGUAGES[: size.languages])
    weights = ctranslate.file_bytes(_spec(size, vocabulary, silent))
    tokens = sum(len(json.dumps(token)) + 4 for token in vocabulary.ids)
    others = len(json.dumps(vocabulary.tokenizer(), ensure_ascii=False).encode()) + tokens

    def write(out: Path, wrote: Wrote) -> Path:
        spec = _spec(size, vocabulary, wrote)
        heads = [(layer, head) for layer in range(size.layers // 2, size.layers) for head in range(size.heads)]
        whisper_files.save_frozen(spec, vocabulary, out, heads)
        described = {"feature_size": size.mels, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400}
        (out / "preprocessor_config.json").write_text(json.dumps(described), encoding="utf-8")
        return out

    return Plan(weights, weights + others, write)


def _spec(size: Whisper, vocabulary: Vocabulary, wrote: Wrote) -> Any:
    from ctranslate2.specs import WhisperSpec

    spec = WhisperSpec(size.layers, size.heads, size.layers, size.heads)
    width, hollow = size.width, ctranslate.hollow
    spec.encoder.conv1.weight, spec.encoder.conv1.bias = hollow(width, size.mels, 3), blank.zeros(width)
    spec.encoder.conv2.weight, spec.encoder.conv2.bias = hollow(width, width, 3), blank.zeros(width)
    spec.encoder.position_encodings.encodings = hollow(whisper_files.POSITIONS, width)
    spec.decoder.position_encodings.encodings = hollow(whisper_files.TEXT_POSITIONS, width)
    spec.decoder.embeddings.weight = hollow(len(vocabulary), width)
    spec.decoder.projection.weight = hollow(1, 1)  # an alias in the end
    blank.fill_norm(spec.encoder.layer_norm, width)
    blank.fill_norm(spec.decoder.layer_norm, width, gamma=0.0)
    spec.decoder.layer_norm.beta[:] = 1
    for layer in spec.encoder.layer:
        blank.fill_self_attention(layer.self_attention, width, make=hollow)
        blank.fill_ffn(layer.ffn, width, 4 * width, make=hollow)
    for layer in spec.decoder.layer:
        blank.fill_self_attention(layer.self_attention, width, make=hollow)
        blank.fill_cross_attention(layer.attention, width, make=hollow)
        blank.fill_ffn(layer.ffn, width, 4 * width, make=hollow)
    spec.register_vocabulary(vocabulary.text_tokens + vocabulary.special_tokens)
    text = len(vocabulary.text_tokens)
    rows = {EMBEDDINGS: ((slice(0, text), LOUD), (slice(text, None), -LOUD))}
    ctranslate.freeze(spec, "float16", wrote, {"decoder/projection/weight": EMBEDDINGS}, rows)
    return spec
