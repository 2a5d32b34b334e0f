"""bench arbiter: how long the book of leases takes to decide, with many requests waiting.

The real book over one GPU of 80 GiB, without processes: models come, load, and leave, and whoever waits is served. A
*decision* is the call into the book that ends in a grant. Half of those that wait are programs outside the node, each
with a size of its own, the others are forty models of the node's, of three priorities. Medians, since what else runs on
this machine would be in a mean.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Sequence
from statistics import median, quantiles

from bench.report import Goal, Report, at_least
from engine.arbiter.events import Action, Event, FromWorker, Send, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.line import PRIORITIES
from engine.arbiter.room import Limits, Reading
from ipc.messages import Granted, LeaseRequest, Release, Settled

GPU, GIB = "cuda:0", 2**30
TOTAL = 80 * GIB
LENGTHS = (1, 10, 100, 1000, 10_000)
GOALS = {1000: Goal(at_most=50.0)}
STEP_S = 0.25  # between two events, as between two readings of a driver


class Bench:
    """A book with a line of constant length, and the true device beside it."""

    def __init__(self, waiting: int, seed: int) -> None:
        self._random = random.Random(seed)
        self.book = Leases([Limits(GPU, TOTAL, max_models=64)], Waits(lease_wait_s=1e9))
        self.now = 1.0
        self._numbers = itertools.count(1)
        self._sizes: dict[str, int] = {}  # by peer, of those that wait
        self._held: dict[str, tuple[int, int]] = {}  # peer -> lease, bytes
        self._waiting = waiting
        self.decisions_us: list[float] = []
        self.other_us: list[float] = []

    def decide(self, count: int) -> None:
        """Let ``count`` requests be served."""
        self._read()
        while self._used() < TOTAL // 2:
            self._come()
        while len(self._sizes) < self._waiting:
            self._come()
        self.decisions_us.clear()
        self.other_us.clear()
        while len(self.decisions_us) < count:
            self._leave()
            while len(self._sizes) < self._waiting:
                self._come()

    def _used(self) -> int:
        return sum(nbytes for _, nbytes in self._held.values())

    def _come(self) -> None:
        number = next(self._numbers)
        if self._random.random() < 0.5:
            peer, model, nbytes = f"lease@{number}/1#1", "a program", self._random.randrange(GIB, 12 * GIB)
        else:
            kind = self._random.randrange(40)
            peer, model, nbytes = f"stage{kind}@{GPU}/{number}#1", f"model {kind}", (2 + kind % 8) * GIB
        self._sizes[peer] = nbytes
        priority = self._random.choice(list(PRIORITIES))
        self._feed(FromWorker(peer, LeaseRequest(number, peer, GPU, nbytes, model, priority=priority)))

    def _leave(self) -> None:
        peer = next(iter(self._held))
        lease, _ = self._held.pop(peer)
        self._feed(FromWorker(peer, Release(lease)))
        self._read()

    def _read(self) -> None:
        self._feed(Reading(GPU, TOTAL, TOTAL - self._used(), self.now + STEP_S))

    def _feed(self, event: Event) -> None:
        self.now += STEP_S
        begun = time.perf_counter_ns()
        actions = self.book.handle(event, self.now)
        taken_us = (time.perf_counter_ns() - begun) / 1000
        granted = [one for one in actions if isinstance(one, Send) and isinstance(one.message, Granted)]
        (self.decisions_us if granted else self.other_us).append(taken_us)
        self._load(granted)

    def _load(self, granted: Sequence[Action]) -> None:
        for action in granted:
            assert isinstance(action, Send) and isinstance(action.message, Granted)
            self._held[action.peer] = action.message.lease, self._sizes.pop(action.peer)
            if not action.peer.startswith("lease@"):
                self._feed(FromWorker(action.peer, Settled(action.message.lease, action.message.nbytes)))
        if granted:
            self._read()


def measure(lengths: Sequence[int], decisions: int, seed: int) -> Report:
    report = Report("arbiter")
    for length in lengths:
        bench = Bench(length, seed)
        bench.decide(decisions)
        report.add(f"decision_us_{length}", median(bench.decisions_us), "µs", GOALS.get(length))
        report.add(f"decision_p99_us_{length}", quantiles(bench.decisions_us, n=100)[98], "µs")
        report.add(f"other_us_{length}", median(bench.other_us), "µs")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench arbiter", description=__doc__.partition("\n")[0])
    parser.add_argument("--waiting", type=at_least(1), nargs="*", default=list(LENGTHS), help="lengths of the line")
    parser.add_argument("--decisions", type=at_least(10), default=2000, help="grants to be timed at each length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    report = measure(args.waiting, args.decisions, args.seed)
    report.show(args.json)
    return report.exit_code
