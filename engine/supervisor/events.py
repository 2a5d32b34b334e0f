"""What the supervisor's core is told, and what it wants done beyond its processes. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# ---------------------------------------------------------------- events


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Spawned:
    role: str
    pid: int
    start_time: int


@dataclass(frozen=True)
class NotSpawned:
    role: str
    reason: str


@dataclass(frozen=True)
class Heard:
    """A message of a process to the supervisor."""

    role: str
    incarnation: int
    message: Any


@dataclass(frozen=True)
class Exited:
    """A process is dead. ``code``: exit status, or minus the signal's number; ``words``: the last line it wrote."""

    role: str
    code: int
    words: str = ""


@dataclass(frozen=True)
class StopAsked:
    """A signal, or an operator. The first drains, the second stops at once, and so does ``at_once``."""

    at_once: bool = False


@dataclass(frozen=True)
class HostGone:
    """The process that embeds this node is dead."""


Event = Tick | Spawned | NotSpawned | Heard | Exited | StopAsked | HostGone


# ---------------------------------------------------------------- actions besides the roster's


@dataclass(frozen=True)
class Say:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Warn:
    """A line for the log."""

    text: str


@dataclass(frozen=True)
class Announce:
    """The node is ready."""

    endpoints: tuple[str, ...]
    mode: str
    mode_reason: str


@dataclass(frozen=True)
class End:
    """Everything is dead: leave with this code, after this line on standard error ("" when all went well)."""

    code: int
    line: str
