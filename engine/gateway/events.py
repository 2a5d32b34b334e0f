"""What the gateway's core is told, and what it wants done. Plain data.

Messages of the scheduler (``Capacity``, ``JobAccepted``, ``Free``, ``Progress``) are events as they are. ``TurnEnd``
closes each turn of the shell's loop: what can wait for its end (outcomes, notices, timers, riding messages) happens
then, so that a client gets at most one frame a turn where that is possible.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.messages import Outcome, Ref

Samples = Any  # bytes, or another buffer that has a length in bytes


class _Event(msgspec.Struct, frozen=True):
    """Made in one call of compiled code, which a NamedTuple is not."""


# ---------------------------------------------------------------- in


class Arrived(_Event, frozen=True):
    """One frame of a client: its messages in order; a ``Rejected`` stands where one did not decode."""

    client: bytes
    messages: tuple[Any, ...]
    payload: Samples | None = None


class JobEnded(_Event, frozen=True):
    """A job's end with its result already copied out of the worker's ring (``ticket`` 0: there was none)."""

    outcome: Outcome
    payload: Samples | None = None
    ticket: int = 0


class ClientLost(_Event, frozen=True):
    """A send failed: nobody is at this address any more."""

    client: bytes


class DrainNode(_Event, frozen=True):
    """The node stops: take nothing new, let what runs end within ``budget_s``."""

    budget_s: float


class LeaveNow(_Event, frozen=True):
    """The process is about to end, whatever has been said or not."""


class NewEpoch(_Event, frozen=True):
    """There is a new life of the scheduler, and a link to it on which nothing but ``Here`` has been said."""


class TurnEnd(_Event, frozen=True):
    """Everything that had arrived is handled."""


# ---------------------------------------------------------------- out


class Tell(_Event, frozen=True):
    """Send ``message`` to a client, an ``Outcome`` with its samples."""

    client: bytes
    message: Any
    payload: Samples | None = None


class Post(_Event, frozen=True):
    """Put ``message`` into this turn's frame for the scheduler."""

    message: Any


class Write(_Event, frozen=True):
    """Copy ``payload`` into the gateway's ring, where ``ref`` says."""

    ref: Ref
    payload: Samples


class Note(_Event, frozen=True):
    """A log line: level (debug, info, warning), text."""

    level: str
    text: str


class AllFlushed(_Event, frozen=True):
    """After ``DrainNode``: every outcome is acknowledged, or the time for that is over."""
