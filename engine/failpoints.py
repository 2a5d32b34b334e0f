"""Failpoints: named steps of an utterance's life at which a process dies on purpose, to test what survives that.

Off in production, where each costs one look at an empty table. ``DRAGOMAN_TEST_HOOKS=gateway.copied=kill@3`` arms one:
the process dies the third time it gets there, in its first life. ``kill@3#2``: in its second, ``kill@3*``: in every
life; ``kill@3:tts``: only the workers of that stage. The other ways are ``segv``, ``abrt``, ``stop`` (SIGSTOP: it
hangs) and ``exit``. With ``failpoints.file=PATH`` a process also reads a file of them, one ``POINT=SPEC`` a line, when
it starts and whenever it is sent SIGUSR1; all are armed anew then. The node says loudly which hooks are in force.
``docs/operations.md`` lists the points.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import logs
from ipc.errors import ConfigError

FILE = "failpoints.file"
POINTS: dict[str, str] = {
    "gateway.read": "a client's frame has been read, nothing is decided",
    "gateway.writing": "half of an utterance's samples lie in shared memory",
    "gateway.written": "an utterance's samples lie in shared memory, nobody knows of them",
    "gateway.posted": "the scheduler has been sent this turn's messages, clients nothing yet",
    "gateway.heard": "the scheduler's messages have been read, nothing is decided",
    "gateway.copied": "a result is copied out, its slot not given back, its client not told",
    "gateway.told": "a client has been sent its messages",
    "gateway.restoring": "a new gateway has been told a part of what it should know",
    "scheduler.read": "messages have been read, nothing is decided",
    "scheduler.decided": "everything is decided, nobody has been told",
    "scheduler.sent": "the workers have been sent their runs, the gateway nothing",
    "scheduler.told": "everybody has been told",
    "worker.granted": "the lease is granted, nothing is loaded",
    "worker.loaded": "the model is loaded, nobody knows",
    "worker.received": "a run has been received",
    "worker.writing": "half of a result lies in shared memory",
    "worker.ran": "the run is over and its result written, nobody knows",
    "worker.done": "the scheduler has been sent the result",
    "worker.released": "a model did not load, the arbiter does not know that its lease is over",
    "worker.stopping": "told to stop, the model is not yet closed",
    "arbiter.asked": "a worker's question has been read",
    "arbiter.written": "the grant is in the journal, the worker does not know",
    "arbiter.told": "the worker has been sent its lease",
}
SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "abrt": signal.SIGABRT, "stop": signal.SIGSTOP}
_WAYS = (*SIGNALS, "exit")
_GRAMMAR = f"the ways: {', '.join(_WAYS)}; kill@3:tts, kill@3#2 and kill@3* are in docs/operations.md"
SWITCHES = {"gateway.reorder": "bypass", "scheduler.slots": "free_early"}  # safeguards that tests switch off
_SPEC = re.compile(rf"({'|'.join(_WAYS)})@([1-9]\d*)(?::([\w-]+))?(\*|#\d+)?")


@dataclass
class Armed:
    """A failpoint that is on: how to die, and after how many more visits."""

    way: str
    left: int

    def reach(self) -> None:
        self.left -= 1
        if self.left == 0:
            if self.way == "exit":
                os._exit(70)
            signal.raise_signal(SIGNALS[self.way])


_armed: dict[str, Armed] = {}


def check(hooks: Mapping[str, str]) -> None:
    """Raises ConfigError for a hook that nobody knows, or that says nothing sensible.

    A role (``asr@cpu/0``) is taken as it is: tests put other modules in the place of the node's, which have their own.
    """
    for name, spec in hooks.items():
        if "@" in name:
            continue
        if name in POINTS and not _SPEC.fullmatch(spec):
            raise ConfigError(f"failpoint {name} is {spec!r}", f"write WAY@COUNT, as in kill@3 ({_GRAMMAR})")
        if name == FILE and not os.access(spec, os.R_OK):
            raise ConfigError(f"{FILE} is {spec!r}, which cannot be read", "make the file first; it may be empty")
        if name in SWITCHES and spec != SWITCHES[name]:
            raise ConfigError(f"test hook {name} is {spec!r}", f"write {name}={SWITCHES[name]}")
        if name not in (*POINTS, *SWITCHES, FILE):
            close = difflib.get_close_matches(name, (*POINTS, *SWITCHES, FILE), n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no test hook {name!r}", f"{meant}docs/operations.md lists them")


def arm(hooks: Mapping[str, str], role: str, incarnation: int) -> None:
    """Switch on what the hooks name for this life of this role, now and, with a file, on every SIGUSR1."""

    def read(*_: object) -> None:
        _armed.clear()
        try:
            _armed.update(_meant({**hooks, **_from_file(hooks.get(FILE))}, role, incarnation))
        except ConfigError as error:
            logs.get().error("%s; nothing is armed", error)
        for name, armed in _armed.items():
            logs.get().warning("failpoint %s is armed: %s at the %dth time from now", name, armed.way, armed.left)

    read()
    if FILE in hooks:
        signal.signal(signal.SIGUSR1, read)


def _from_file(path: str | None) -> dict[str, str]:
    """The failpoints in a file. Raises ConfigError."""
    try:
        lines = Path(path).read_text().splitlines() if path else []
    except OSError as error:
        raise ConfigError(f"{FILE} cannot be read: {error.strerror}", "make the file; it may be empty") from error
    pairs = dict(line.strip().partition("=")[::2] for line in lines if line.strip() and not line.startswith("#"))
    check(pairs)
    return pairs


def _meant(hooks: Mapping[str, str], role: str, incarnation: int) -> dict[str, Armed]:
    """Those of the failpoints that are meant for this life of this role."""
    meant = {}
    kind = "worker" if "@" in role else role
    for name, spec in hooks.items():
        match = _SPEC.fullmatch(spec)
        if name not in POINTS or not name.startswith(f"{kind}.") or match is None:
            continue
        way, count, stage, life = match.groups()
        mine = stage is None or role.partition("@")[0] == stage
        if mine and (life or "#1") in ("*", f"#{incarnation}"):
            meant[name] = Armed(way, int(count))
    return meant


def reach(name: str) -> None:
    """This process is at the point of that name."""
    if _armed and (armed := _armed.get(name)) is not None:
        armed.reach()


def inside(name: str) -> Callable[[], None] | None:
    """What to call in the middle of something that is usually done in one piece; None unless that point is armed."""
    return _armed[name].reach if name in _armed else None
