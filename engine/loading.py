"""Waiting for a node's models: ready is a node when each stage has one worker, and here are all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

ALL_LOADED_S = 5.0  # how long a private node may take from ready to all workers loaded
LOOK_S = 0.05


def wait_for_all(stats: Callable[[], Mapping[str, Any]], limit_s: float = ALL_LOADED_S) -> None:
    """Wait, not for long, until every worker has its model.

    A node is ready when each stage has one worker. Models are loaded one after the other, and a run beside a model that
    loads is slow: a command that has its node for itself does better to begin a moment later.
    """
    until, pause = time.monotonic() + limit_s, threading.Event()
    while any(still_loading(process) for process in stats()["processes"]) and time.monotonic() < until:
        pause.wait(LOOK_S)


def still_loading(process: Mapping[str, Any]) -> bool:
    """Whether an entry of the process table is a worker that will have its model soon (an empty one stands by)."""
    return "@" in process["role"] and not process["phase"].startswith(("loaded", "running", "empty"))
