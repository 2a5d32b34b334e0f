"""Piper voices on disk: a graph ``NAME.onnx`` and ``NAME.onnx.json`` beside it, which says how to make its input.

Looked at before anything is loaded: what a voice lacks is one line that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.base import StageError
from stages.faults import not_a

GET_ONE = "docs/models.md says where to get one (a stand-in: run_node.py models synthesize tts --out DIR)"
FIRST_BYTES = [
    bytes([tag]) for tag in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)
]  # fields of an ONNX model
ESPEAK_LANGUAGES = {"cmn": "zh", "nb": "no"}  # where espeak-ng's code is not the one everybody else uses


@dataclass(frozen=True)
class VoiceFiles:
    """One voice on disk: the graph, what its JSON says, and the language it speaks.

    ``language``: the bare code ("en"); ``locale``: with region ("en-us"), or the same as ``language``.
    """

    onnx: Path
    config: Mapping[str, Any]
    language: str
    locale: str


def find_voices(model: str) -> list[VoiceFiles]:
    """The voices at ``model`` (a ``.onnx`` file or a folder), in the order of their names.

    Raises StageError("bad_model") when there is none, or one lacks its JSON or needs a download to phonemize.
    """
    path = Path(model)
    if not model or not path.exists():
        raise StageError("bad_model", f"no voices at {model!r}: a .onnx file or a folder of them is needed; {GET_ONE}")
    found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if not found:
        raise StageError("bad_model", f"{model} holds no .onnx files; {GET_ONE}")
    return [_read_voice(onnx) for onnx in found]


def _read_voice(onnx: Path) -> VoiceFiles:
    described = Path(f"{onnx}.json")
    try:
        config = json.loads(described.read_text(encoding="utf-8"))
        for key in ("num_symbols", "num_speakers", "phoneme_id_map"):
            config[key]
        espeak, _rate = config["espeak"]["voice"], int(config["audio"]["sample_rate"])
    except FileNotFoundError:
        raise StageError("bad_model", f"{onnx} has no {described.name} beside it; {GET_ONE}") from None
    except (OSError, ValueError) as error:
        raise StageError("bad_model", f"cannot read {described}: {error}") from error
    except (KeyError, TypeError) as error:
        raise StageError("bad_model", f"{described} is not a Piper voice's description: no {error}") from error
    kind = config.get("phoneme_type", "espeak")
    if kind not in ("espeak", "text"):
        raise StageError("bad_model", f"{onnx} wants phonemes of type {kind!r}, which need a download")
    with onnx.open("rb") as graph:
        if graph.read(1) not in FIRST_BYTES:
            raise not_a(onnx, f"an ONNX graph; {GET_ONE}")
    language, locale = _language_of(config, str(espeak), onnx.name)
    return VoiceFiles(onnx, config, language, locale)


def _language_of(config: Mapping[str, Any], espeak: str, file_name: str) -> tuple[str, str]:
    """(language, locale) from what the description says, best first: its language, espeak-ng's voice, its name."""
    said = config.get("language") or {}
    code = said.get("code") or espeak or re.split(r"[-.]", file_name)[0]
    locale = str(code).replace("_", "-").lower()
    language = locale.split("-")[0]
    return ESPEAK_LANGUAGES.get(language, language), locale
