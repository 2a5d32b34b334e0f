"""What the gateway's core is told, and what it wants done. Plain data.

Messages of the scheduler (``Capacity``, ``JobAccepted``, ``Free``, ``Progress``) are events as they are. ``TurnEnd``
closes each turn of the shell's loop: what can wait for its end (outcomes, notices, timers, riding messages) happens
then, so that a client gets at most one frame a turn where that is possible.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ipc.messages import Outcome, Ref

# ---------------------------------------------------------------- in


class Arrived(NamedTuple):
    """One frame of a client: its messages in order; a ``Rejected`` stands where one did not decode."""

    client: bytes
    messages: tuple[Any, ...]
    payload: bytes | None = None


class JobEnded(NamedTuple):
    """A job's end with its result already copied out of the worker's ring (``ticket`` 0: there was none)."""

    outcome: Outcome
    payload: bytes | None = None
    ticket: int = 0


class ClientLost(NamedTuple):
    """A send failed: nobody is at this address any more."""

    client: bytes


class DrainNode(NamedTuple):
    """The node stops: take nothing new, let what runs end within ``budget_s``."""

    budget_s: float


class TurnEnd(NamedTuple):
    """Everything that had arrived is handled."""


# ---------------------------------------------------------------- out


class Tell(NamedTuple):
    """Send ``message`` to a client, an ``Outcome`` with its samples."""

    client: bytes
    message: Any
    payload: bytes | None = None


class Post(NamedTuple):
    """Put ``message`` into this turn's frame for the scheduler."""

    message: Any


class Write(NamedTuple):
    """Copy ``payload`` into the gateway's ring, where ``ref`` says."""

    ref: Ref
    payload: bytes


class Note(NamedTuple):
    """A log line: level (debug, info, warning), text."""

    level: str
    text: str


class AllFlushed(NamedTuple):
    """After ``DrainNode``: every outcome is acknowledged, or the time for that is over."""
