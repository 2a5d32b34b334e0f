"""Stages: one model family a file. A stage knows its model and nothing of the engine.

Installed packages bring more kinds under the entry-point group ``dragoman.stages`` (docs/extending.md).
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.base import Stage

GROUP = "dragoman.stages"
KINDS = {
    "asr": "stages.asr:AsrStage",
    "repair": "stages.repair:RepairStage",
    "nmt": "stages.nmt:NmtStage",
    "tts": "stages.tts:TtsStage",
    "simulated": "stages.simulated:SimulatedStage",
}


def kinds() -> tuple[str, ...]:
    """All kinds that there are, our own first."""
    return (*KINDS, *sorted(entry.name for entry in entry_points(group=GROUP) if entry.name not in KINDS))


def find(kind: str) -> type[Stage]:
    """The class that runs stages of this kind. Raises KeyError: the kinds there are, or why it fails."""
    if kind in KINDS:
        module, _, name = KINDS[kind].partition(":")
        return getattr(importlib.import_module(module), name)
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in installed:
        raise KeyError(f"no stage of kind {kind!r}; there are {', '.join(kinds())}")
    try:
        return installed[kind].load()  # type: ignore[no-any-return]
    except Exception as error:  # whatever a stranger's module does
        raise KeyError(f"kind {kind!r} is installed and cannot be used: {error!r}") from error
