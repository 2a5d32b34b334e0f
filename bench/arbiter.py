"""bench arbiter: how long the book of leases takes to decide, with many requests waiting.

The real book over GPUs of 80 GiB, without processes, with the limits and waits of a node that configures none: models
come, load, and leave, whoever waits is served or expires, and others come in its place. A *decision* is the call into
the book that ends in a grant. Half of those that ask are programs outside the node, each with a size of its own, the
others are forty models of the node's, of three priorities; but a book takes no more programs while it has 1,000 leases
and requests (``programs_N``: how many wait in the mean). Time passes so fast that some expire. Medians, since what else
runs on this machine would be in a mean.

Twice: in a line in front of one GPU, where everybody names it (``named``), and in those in front of four, where
programs would do with any (``mixed``). ``decision_us_N`` is the longer of the two, with N waiting in all.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from statistics import mean, median, quantiles

from bench import command
from bench.report import Goal, Report, at_least
from engine.arbiter.events import Action, Event, FromWorker, Send, Waits
from engine.arbiter.lease import EXTERNAL
from engine.arbiter.leases import Leases
from engine.arbiter.line import PRIORITIES
from engine.arbiter.room import Limits, Reading
from ipc.messages import Denied, Granted, LeaseRequest, Release, Settled

GPU, GIB = "cuda:0", 2**30
GPUS = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
TOTAL = 80 * GIB
LENGTHS = (1, 10, 100, 1000, 10_000)
GOALS = {1000: Goal(at_most=50.0)}
STEP_S = 0.25  # between two events at most, as between two readings of a driver
ARRIVALS = 8  # for each that waits, during one patience: so many could come


class Bench:
    """A book with lines of constant length in all, and the true devices beside it.

    Of one device everybody names it; of several, programs name none.
    """

    def __init__(self, waiting: int, seed: int, devices: Sequence[str] = (GPU,)) -> None:
        self._random = random.Random(seed)
        self._devices = devices
        waits = Waits()
        self.book = Leases([Limits(name, TOTAL) for name in devices], waits)
        self._step_s = min(STEP_S, waits.lease_wait_s / (ARRIVALS * waiting * (1 + len(devices))))
        self.now = 1.0
        self._numbers = itertools.count(1)
        self._sizes: dict[str, int] = {}  # by peer, of those that wait
        self._held: dict[str, tuple[str, int, int]] = {}  # peer -> device, lease, bytes
        self._waiting = waiting
        self._programs = 0  # of those that wait
        self.programs: list[int] = []  # that waited, at each decision
        self.decisions_us: list[float] = []
        self.other_us: list[float] = []

    def decide(self, count: int) -> None:
        """Let ``count`` requests be served."""
        while len(self._sizes) < self._waiting:
            self._come()
        self.programs.clear()
        self.decisions_us.clear()
        self.other_us.clear()
        while len(self.decisions_us) < count:
            self._leave()
            while len(self._sizes) < self._waiting:
                self._come()

    def _used(self, device: str) -> int:
        return sum(nbytes for where, _, nbytes in self._held.values() if where == device)

    def _come(self) -> None:
        number, device = next(self._numbers), self._random.choice(self._devices)
        among: Sequence[str] = ()
        if self._random.random() < 0.5:
            peer, model, nbytes = f"lease@{number}/1#1", "a program", self._random.randrange(GIB, 12 * GIB)
            if len(self._devices) > 1:
                device, among = "", self._devices
        else:
            kind = self._random.randrange(40)
            peer, model, nbytes = f"stage{kind}@{device}/{number}#1", f"model {kind}", (2 + kind % 8) * GIB
        self._sizes[peer] = nbytes
        self._programs += peer.startswith(EXTERNAL)
        priority = self._random.choice(list(PRIORITIES))
        request = LeaseRequest(number, peer, device, nbytes, model, priority=priority, among=tuple(among))
        self._read_all()
        self._feed(FromWorker(peer, request))

    def _forget(self, peer: str) -> int:
        """It waits no more; returns the bytes it has waited for."""
        self._programs -= peer.startswith(EXTERNAL)
        return self._sizes.pop(peer)

    def _leave(self) -> None:
        if peer := next(iter(self._held), ""):
            _, lease, _ = self._held.pop(peer)
            self._feed(FromWorker(peer, Release(lease)))
        self._read_all()

    def _read_all(self) -> None:
        """So often that no reading is too old."""
        for device in self._devices:
            self._read(device)

    def _read(self, device: str) -> None:
        self._feed(Reading(device, TOTAL, TOTAL - self._used(device), self.now + self._step_s))

    def _feed(self, event: Event) -> None:
        self.now += self._step_s
        begun = time.perf_counter_ns()
        actions = self.book.handle(event, self.now)
        taken_us = (time.perf_counter_ns() - begun) / 1000
        granted = [one for one in actions if isinstance(one, Send) and isinstance(one.message, Granted)]
        (self.decisions_us if granted else self.other_us).append(taken_us)
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, Denied):
                self._forget(action.peer)
        if granted:
            self.programs.append(self._programs)
            self._load(granted)

    def _load(self, granted: Sequence[Action]) -> None:
        for action in granted:
            assert isinstance(action, Send) and isinstance(action.message, Granted)
            device, lease = action.message.device, action.message.lease
            self._held[action.peer] = device, lease, self._forget(action.peer)
            if not action.peer.startswith(EXTERNAL):
                self._feed(FromWorker(action.peer, Settled(lease, action.message.nbytes)))
            self._read(device)


def measure(lengths: Sequence[int], decisions: int, seed: int) -> Report:
    report = Report("arbiter")
    for length in lengths:
        timed = {}
        for kind, devices in (("named", (GPU,)), ("mixed", GPUS)):
            timed[kind] = Bench(length, seed, devices)
            timed[kind].decide(decisions)
        worst = max(timed.values(), key=lambda one: median(one.decisions_us))
        report.add(f"decision_us_{length}", median(worst.decisions_us), "µs", GOALS.get(length))
        for kind, bench in timed.items():
            report.add(f"decision_{kind}_us_{length}", median(bench.decisions_us), "µs")
        report.add(f"decision_p99_us_{length}", quantiles(worst.decisions_us, n=100)[98], "µs")
        report.add(f"other_us_{length}", median(worst.other_us), "µs")
        report.add(f"programs_{length}", mean(worst.programs), "requests")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.parser(
        "arbiter", (__doc__ or "").partition("\n")[0], done=command.STRICT, wrong="a decision takes too long (--strict)"
    )
    parser.add_argument("--waiting", type=at_least(1), nargs="*", default=list(LENGTHS), help="lengths of the line")
    parser.add_argument("--decisions", type=at_least(10), default=2000, help="grants to be timed at each length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--strict", action="store_true", help="a goal that is missed is a failure")
    args = parser.parse_args(argv)
    report = measure(args.waiting, args.decisions, args.seed)
    report.show(args.json)
    return report.code(strict=args.strict)
