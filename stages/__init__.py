"""Stages: one model family a file. A stage knows its model and nothing of the engine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.base import Stage

KINDS = {
    "asr": "stages.asr:AsrStage",
    "repair": "stages.repair:RepairStage",
    "nmt": "stages.nmt:NmtStage",
    "tts": "stages.tts:TtsStage",
    "simulated": "stages.simulated:SimulatedStage",
}


def find(kind: str) -> type[Stage]:
    """The class that runs stages of this kind. Raises KeyError with the kinds there are."""
    if kind not in KINDS:
        raise KeyError(f"no stage of kind {kind!r}; there are {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
