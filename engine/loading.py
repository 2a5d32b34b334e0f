"""Waiting for a node's models: ready is a node when each stage has one worker, and here are all of them.

``words`` says how far a node is that is not ready yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ALL_LOADED_S = 5.0  # how long a private node may take from ready to all workers loaded
LOOK_S = 0.05
TOLD = LOADING, WAITING, NOT_BEGUN, LOADED = ("loading", "waiting for memory:", "not begun:", "loaded:")
PHASES = {  # how a worker's heartbeat begins, the furthest first -> what is said of its stage
    "loaded": LOADED, "running": LOADED, "loading": LOADING, "waiting": WAITING, "": NOT_BEGUN,
}  # fmt: skip


def wait_for_all(stats: Callable[[], Mapping[str, Any]], limit_s: float = ALL_LOADED_S) -> None:
    """Wait, not for long, until every worker has its model.

    A node is ready when each stage has one worker. Models are loaded one after the other, and a run beside a model that
    loads is slow: a command that has its node for itself does better to begin a moment later.
    """
    until, pause = time.monotonic() + limit_s, threading.Event()
    while any(still_loading(process) for process in stats()["processes"]) and time.monotonic() < until:
        pause.wait(LOOK_S)


def words(processes: Iterable[Mapping[str, Any]]) -> str:
    """How far a node's stages are: ``loading asr, nmt; waiting for memory: tts; loaded: repair``; "" when all are."""
    phases: dict[str, list[str]] = {}
    for process in processes:
        stage, sign, _ = process["role"].partition("@")
        if sign:
            phases.setdefault(stage, []).append(process["phase"])
    found = {stage: _furthest(seen) for stage, seen in phases.items()}
    told = {text: [stage for stage in found if found[stage] == text] for text in TOLD}
    pending = set(found.values()) != {LOADED}
    return "; ".join(f"{text} {', '.join(members)}" for text, members in told.items() if members and pending)


def _furthest(phases: Iterable[str]) -> str:
    """What one stage is doing, in words: what its worker does that is nearest to having its model."""
    for phase, text in PHASES.items():
        if any(seen.startswith(phase) for seen in phases):
            return text
    return PHASES[""]


def still_loading(process: Mapping[str, Any]) -> bool:
    """Whether an entry of the process table is a worker that will have its model soon (an empty one stands by)."""
    return "@" in process["role"] and not process["phase"].startswith(("loaded", "running", "empty"))
