"""Dragoman: a node that translates speech on this machine's GPUs. Importing this needs nothing of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.client import Client
    from engine.leasing import Lease
    from engine.node import Node
    from engine.outcome import Busy, NodeGone, Outcome, Rejected, SessionClosed
    from ipc.errors import DragomanError

__all__ = [
    "Busy", "Client", "DragomanError", "Lease", "Node", "NodeGone", "Outcome", "Rejected", "SessionClosed",
    "__version__",
]  # fmt: skip
__version__ = "0.1.0"

_HOMES = {
    "Client": "engine.client",
    "Lease": "engine.leasing",
    "Node": "engine.node",
    "DragomanError": "ipc.errors",
    **dict.fromkeys(("Busy", "NodeGone", "Outcome", "Rejected", "SessionClosed"), "engine.outcome"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
