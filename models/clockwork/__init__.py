"""Clockwork models: hand-set weights in the real file formats, for the unmodified libraries.

A trained model is large, has to be fetched and says what it likes. Random weights say nothing at all:
a Whisper with them returns no segment, and every later stage is skipped. A clockwork model is a third
way: each weight is set by hand so that the network computes one small known function, exactly. The files
are a few megabytes, take a fraction of a second to write, need no training and no network, and are
byte-equal every time, so tests make them instead of keeping them.

========== ==================================================== =========================
kind       what it does                                         what ``synthesize`` gives
========== ==================================================== =========================
asr        a fixed sentence per language where there is sound   a folder (faster-whisper)
asr-tones  reads digits sent as tones                           a folder (faster-whisper)
nmt        swaps a few words, copies everything else            a folder (CTranslate2)
nmt-nllb   the same as an NLLB model                            a folder (CTranslate2)
nmt-marian the same into German alone, as a Marian model        a folder (CTranslate2)
repair     copies its input, ``_`` becomes a space              a ``.gguf`` file
tts        one tone per phoneme                                 a folder of Piper voices
========== ==================================================== =========================
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

KINDS: dict[str, str] = {
    "asr": "models.clockwork.asr:write",
    "asr-tones": "models.clockwork.tones:write",
    "nmt": "models.clockwork.nmt:write",
    "nmt-nllb": "models.clockwork.nmt:write_nllb",
    "nmt-marian": "models.clockwork.nmt:write_marian",
    "repair": "models.clockwork.repair:write",
    "tts": "models.clockwork.tts:write",
}


def synthesize(kind: str, out: Path, **options: Any) -> Path:
    """Write the clockwork model ``kind`` to ``out`` and return the path that a stage's ``model`` takes.

    ``options`` go to that kind's ``write`` (``always_on=True`` for asr). Only the library of that
    one kind is imported. Raises ValueError for an unknown kind, ImportError if its library is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"no clockwork model {kind!r}: use one of {', '.join(KINDS)}")
    module, function = KINDS[kind].split(":")
    path: Path = getattr(import_module(module), function)(out, **options)
    return path
