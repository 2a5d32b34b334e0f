"""What bench chaos does to the processes of a node: who, how, and in which order. A deck of cards, drawn from one seed.

Each card is a kind of process and a way to harm it:

* ``signal``: SIGKILL, SIGSEGV or SIGABRT, at any moment; of the arbiter together with a worker, which needs it;
* ``point``: at a named step of an utterance's life (``engine.failpoints``), armed while the node runs. The steps of a
  model's loading come by only when a worker starts: one is killed, and it, or the arbiter, dies once more on the way
  back (a *pair* of kills);
* ``hang``: SIGSTOP, until the node itself ends it;
* ``freeze``: SIGSTOP for a while, and on: nobody may be harmed, so this is no kill.

A deck holds each card several times, so that a minute has nearly all of them and an hour has all of them often.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.failpoints import POINTS, SIGNALS
from ipc.errors import DragomanError

KINDS = ("worker", "scheduler", "gateway", "arbiter")
DECK = {"signal": 4, "point": 3, "hang": 1, "freeze": 1}  # way -> cards of each kind
FATAL = ("kill", "segv", "abrt")
FREEZE_S = (0.1, 0.8)  # shorter than any limit on silence
REACH_S = 3.0  # an armed point is reached within this, or the process is killed where it is
HANG_S = 15.0  # a process that hangs is ended within this
LOADING = ("worker.granted", "worker.loaded", "arbiter.asked", "arbiter.written", "arbiter.told")
ELSEWHERE = ("gateway.restoring", "worker.released", "worker.stopping")  # not under load: tests/node/test_failpoints.py
UNDER_LOAD = {
    kind: [p for p in POINTS if p.startswith(f"{kind}.") and p not in (*LOADING, *ELSEWHERE)] for kind in KINDS
}
WRITERS = ("tts",)  # stages whose results lie in shared memory
ONLY = ("asr", "repair", "tts", "echo")  # stages with one worker


@dataclass(frozen=True)
class Kill:
    """One death that was caused: who, when (monotonic), how. ``exact``: its moment is known to the millisecond."""

    role: str
    incarnation: int
    at: float
    how: str
    exact: bool = True
    hung_s: float = 0.0

    @property
    def kind(self) -> str:
        return kind_of(self.role)


def kind_of(role: str) -> str:
    return "worker" if "@" in role else role


def cards(chance: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, way) without end."""
    while True:
        deck = [(kind, way) for kind in KINDS for way, count in DECK.items() for _ in range(count)]
        chance.shuffle(deck)
        yield from deck


class Faults:
    """Harms processes. ``rows()``: the node's own account of them. ``file``: where it reads failpoints."""

    def __init__(self, rows: Callable[[], list[dict[str, Any]]], file: Path, chance: random.Random) -> None:
        self._rows = rows
        self._file = file
        self._chance = chance
        self.freezes = 0

    def play(self, kind: str, way: str) -> list[Kill]:
        """Do what a card says; the kills that it was (one, a pair, or none)."""
        if way == "freeze":
            return self._freeze(self._pick(kind))
        if way == "signal" and kind == "arbiter":  # with a worker, which cannot come back without it
            arbiter, worker = self._pick(kind), self._pick("worker", ONLY)
            return [self._signal(arbiter), self._signal(worker)]
        if way == "signal":
            return [self._signal(self._pick(kind))]
        if way == "hang":
            return [self._hang(self._pick(kind))]
        loading = [point for point in LOADING if point.startswith(kind)]
        point = self._chance.choice([*UNDER_LOAD[kind], *loading])
        if point in loading:
            return self._while_loading(kind, point)
        writing = point == "worker.writing"
        return [self._at_point(self._pick(kind, WRITERS if writing else ()), point)]

    def _pick(self, kind: str, stages: tuple[str, ...] = ()) -> dict[str, Any]:
        rows = [row for row in self._rows() if kind_of(row["role"]) == kind]
        return self._chance.choice([r for r in rows if not stages or r["role"].partition("@")[0] in stages])

    def _signal(self, row: dict[str, Any]) -> Kill:
        how = SIGNALS[self._chance.choice(FATAL)]
        kill = Kill(row["role"], row["incarnation"], time.monotonic(), how.name)
        os.kill(row["pid"], how)
        return kill

    def _freeze(self, row: dict[str, Any]) -> list[Kill]:
        os.kill(row["pid"], signal.SIGSTOP)
        time.sleep(self._chance.uniform(*FREEZE_S))
        os.kill(row["pid"], signal.SIGCONT)
        self.freezes += 1
        return []

    def _hang(self, row: dict[str, Any]) -> Kill:
        begun, died = time.monotonic(), watch(row["pid"])
        os.kill(row["pid"], signal.SIGSTOP)
        if not died(HANG_S):
            raise DragomanError(f"{row['role']} hangs, and the node has not ended it within {HANG_S:g} s")
        at = time.monotonic()
        return Kill(row["role"], row["incarnation"], at, "hang", exact=False, hung_s=at - begun)

    def _at_point(self, row: dict[str, Any], point: str) -> Kill:
        """Arm a point in a running process, and wait until it has died there."""
        died = watch(row["pid"])
        way = self._chance.choice(FATAL)
        self._file.write_text(f"{point}={way}@{self._chance.randint(1, 4)}*\n")
        os.kill(row["pid"], signal.SIGUSR1)
        how = f"{way} at {point}"
        if not died(REACH_S):
            os.kill(row["pid"], signal.SIGKILL)
            how = f"{point} not reached"
        self._file.write_text("")
        return Kill(row["role"], row["incarnation"], time.monotonic(), how, exact=False)

    def _while_loading(self, kind: str, point: str) -> list[Kill]:
        """Kill a worker; while it comes back, it or the arbiter dies at a step of that."""
        worker = self._pick("worker")
        stage, life = worker["role"].partition("@")[0], worker["incarnation"] + 1
        if kind == "worker":
            self._file.write_text(f"{point}=kill@1:{stage}#{life}\n")
            first = self._signal(worker)
            second = Kill(worker["role"], life, time.monotonic(), f"kill at {point}", exact=False)
            self._await(lambda: any(r["role"] == worker["role"] and r["incarnation"] > life for r in self._rows()))
        else:
            arbiter = self._pick("arbiter")
            died = watch(arbiter["pid"])
            self._file.write_text(f"{point}=kill@1*\n")
            os.kill(arbiter["pid"], signal.SIGUSR1)
            first = self._signal(worker)
            if not died(REACH_S):
                os.kill(arbiter["pid"], signal.SIGKILL)
            second = Kill(
                "arbiter", arbiter["incarnation"], time.monotonic(), f"kill at {point}", exact=False
            )  # fmt: skip
        self._file.write_text("")
        return [first, second]

    def _await(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + HANG_S
        while not holds():
            if time.monotonic() > end:
                raise DragomanError(f"a worker that was killed did not start again within {HANG_S:g} s")
            time.sleep(0.005)


def watch(pid: int) -> Callable[[float], bool]:
    """What waits, at most so many seconds, for the death of this process; tells whether it has died."""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)

    def died(seconds: float) -> bool:
        try:
            return bool(poll.poll(1000 * seconds))
        finally:
            os.close(fd)

    return died
