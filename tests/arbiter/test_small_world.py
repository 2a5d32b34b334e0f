"""Every history of a small world: three holders, five blocks of memory, and all orders in which things can happen.

Breadth first over the states that the book and the truth beside it can come into, each tried once. In every one of them
nothing is promised twice; and from every one of them, when holders finish what they began and the driver shows what is
there, everybody who asked gets an answer, what fits is granted, and the book ends empty: no deadlock.

In the last of them somebody else takes blocks when he pleases, and the driver lists who has how much: never is such a
block taken for one that a holder may yet have.
``DRAGOMAN_TEST_DEPTH`` searches deeper (each step costs about three times as long).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from engine.arbiter.events import FromWorker, Send, Tick, Waits
from engine.arbiter.lease import LeaseState
from engine.arbiter.leases import Leases
from engine.arbiter.room import Limits, Reading
from ipc.messages import Denied, Gone, Granted, LeaseRequest, Release, Settled

GPU, TOTAL, STEP_S = "gpu", 5, 1.0
GAME, MOST_FOREIGN = 9, 2  # his process, and how much he takes
DEPTH = int(os.environ.get("DRAGOMAN_TEST_DEPTH", "7"))
WAITS = Waits(lease_wait_s=4.0, settle_s=2.0, unreadable_s=2.5, grace_s=1.0)


@dataclass
class Holder:
    role: str
    nbytes: int
    phase: str = "new"  # new -> asked -> loading -> holding -> gone; asked -> denied
    lease: int = 0
    allocated: int = 0

    @property
    def peer(self) -> str:
        return f"{self.role}#1"


@dataclass
class World:
    """The book, and what is really there."""

    holders: list[Holder]
    max_models: int = 5
    lists: bool = False
    now: float = 10.0
    lagging: int = 0  # bytes of the gone that the driver still shows
    foreign: int = 0
    foreign_read: int = 0  # in the newest reading
    book: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.book = Leases([Limits(GPU, TOTAL, safety_margin=0.0, max_models=self.max_models)], WAITS)
        self.book._devices[GPU].lists_us = self.lists  # it has listed somebody of ours before
        self.do("read", 0)

    # ------------------------------------------------------------ what may happen

    def moves(self) -> Iterator[tuple[str, int]]:
        for number, holder in enumerate(self.holders):
            if holder.phase == "new":
                yield "ask", number
            if holder.phase == "loading" or (self.lists and holder.phase == "holding" and not holder.allocated):
                yield "fill", number
            if holder.phase == "loading":
                yield "settle", number
                yield "fail", number
            if holder.phase == "holding":
                yield "release", number
            if holder.phase in ("asked", "loading", "holding"):
                yield "die", number
        yield "read", 0
        yield "wait", 0
        if self.lagging:
            yield "show", 0
        if self.lists and self.foreign < MOST_FOREIGN and self.used < TOTAL:
            yield "take", 0
        if self.foreign:
            yield "give", 0

    def do(self, name: str, number: int) -> None:
        holder = self.holders[number]
        match name:
            case "ask":
                holder.phase = "asked"
                request = LeaseRequest(number + 1, holder.role, GPU, holder.nbytes, pid=number + 1)
                self.feed(FromWorker(holder.peer, request))
            case "fill":
                self.fill(holder)
            case "settle":
                self.fill(holder)
                holder.phase = "holding"
                self.feed(FromWorker(holder.peer, Settled(holder.lease, holder.nbytes)))
            case "fail":
                self.leave(holder)
                self.feed(FromWorker(holder.peer, Settled(holder.lease, ok=False)))
            case "release":
                self.leave(holder)
                self.feed(FromWorker(holder.peer, Release(holder.lease)))
            case "die":
                self.leave(holder)
                self.feed(Gone(holder.role, 1, "killed"))
            case "read":
                self.foreign_read = self.foreign
                listed = {number + 1: one.allocated for number, one in enumerate(self.holders)} | {GAME: self.foreign}
                listed = {pid: nbytes for pid, nbytes in listed.items() if nbytes}
                processes = listed if self.lists else None
                self.feed(Reading(GPU, TOTAL, TOTAL - self.used, self.now + 0.0005, processes))
            case "show":
                self.lagging = 0
            case "take":
                self.foreign += 1
            case "give":
                self.foreign -= 1
            case "wait":
                self.now += STEP_S
                self.feed(Tick())

    @property
    def used(self) -> int:
        return self.lagging + self.foreign + sum(one.allocated for one in self.holders)

    def fill(self, holder: Holder) -> None:
        """It takes what it was granted, as far as others have left it that."""
        holder.allocated += min(holder.nbytes - holder.allocated, TOTAL - self.used)

    def leave(self, holder: Holder) -> None:
        self.lagging += holder.allocated
        holder.phase, holder.allocated = "gone", 0

    def feed(self, event) -> None:
        self.now += 0.001  # a reading is later than what was said before it
        for action in self.book.handle(event, self.now):
            if not isinstance(action, Send):
                continue
            holder = next(one for one in self.holders if one.peer == action.peer)
            if isinstance(action.message, Granted):
                assert holder.phase == "asked", f"{holder} is granted what it did not ask for"
                holder.lease = action.message.lease
                holder.phase = "holding" if holder.role.startswith("lease@") else "loading"
                self.judge()
            elif isinstance(action.message, Denied):
                assert holder.phase == "asked"
                holder.phase = "denied"

    def judge(self) -> None:
        """What was granted fits beside all that is there, and all that was granted before."""
        there = [one for one in self.holders if one.phase in ("loading", "holding")]
        granted = sum(max(one.nbytes, one.allocated) for one in there)
        assert granted + self.lagging + self.foreign_read <= TOTAL, "promised twice"
        assert sum(one.phase == "loading" for one in there) <= 1, "two loads at once"
        assert sum(not one.role.startswith("lease@") for one in there) <= self.max_models

    # ------------------------------------------------------------ looking at it

    def key(self) -> tuple:
        """What distinguishes it from others: no absolute times, no numbers of leases."""
        leases = [
            (one.peer, one.state, one.held_bytes, one.settled_at is not None and one.settled_at >= self.read_at,
             round(self.now - one.since) if one.state is LeaseState.DRAINING else 0, one.leaving_bytes,
             one.state is LeaseState.DRAINING and one.left_at >= self.read_at)
            for one in self.book._present[GPU]
        ]  # fmt: skip
        line = self.book._lines.in_front_of(GPU)
        waiting = [(one.peer, round(line.patience(one, self.now))) for one in line]
        memory = self.book._devices[GPU]
        figures = (
            memory.reading.free_bytes,
            memory.foreign_bytes,
            memory.missing_bytes,
            memory._lasting_bytes,
            memory._strangers_bytes,
            min(3, round(self.now - self.read_at)),
        )
        holders = tuple((one.phase, one.allocated) for one in self.holders)
        return holders, self.lagging, self.foreign, self.foreign_read, tuple(leases), tuple(waiting), figures

    @property
    def read_at(self) -> float:
        reading = self.book._devices[GPU].reading
        assert reading is not None
        return reading.taken_at

    def finish(self) -> None:
        """All go on as they should: whoever loads settles, whoever holds leaves; none asks anew."""
        self.foreign = 0
        for _ in range(8 * len(self.holders)):
            self.lagging = 0
            self.do("read", 0)
            self.served()
            for number, holder in enumerate(self.holders):
                if holder.phase == "loading":
                    self.do("settle", number)
                    break
                if holder.phase == "holding":
                    self.do("release", number)
                    break
            else:
                if not any(one.phase == "asked" for one in self.holders):
                    break
            self.do("wait", 0)
        self.do("wait", 0)
        self.do("read", 0)
        self.book.check()
        assert all(one.phase in ("new", "gone", "denied") for one in self.holders), self.holders
        report = self.book.snapshot(self.now)
        assert report["leases"] == [] and report["waiting"] == [], "something is left"
        assert report["devices"][GPU]["grantable_bytes"] == TOTAL

    def served(self) -> None:
        """With true figures and nobody loading, nobody stands first in line whom the room would do for."""
        if any(one.phase == "loading" for one in self.holders):
            return
        head = self.book._lines.in_front_of(GPU).head
        if head is not None and not head.external:
            taken = sum(one.nbytes for one in self.holders if one.phase == "holding")
            models = sum(one.phase == "holding" and not one.role.startswith("lease@") for one in self.holders)
            assert taken + head.nbytes > TOTAL or models >= self.max_models, f"{head.peer} waits for nothing"


@pytest.mark.parametrize(
    ("sizes", "max_models", "lists"),
    [
        ((3, 2, 1), 5, False),
        ((4, 4, 2), 5, False),
        ((5, 1, 1), 5, False),
        ((2, 2, 2), 2, False),
        ((2, 2, 5), 5, False),
        ((2, 2, 1), 5, True),
    ],
    ids=str,
)
def test_no_history_promises_twice_and_none_ends_in_a_deadlock(
    sizes: tuple[int, int, int], max_models: int, lists: bool
) -> None:
    first, second, third = sizes
    start = World(
        [Holder("asr@gpu/0", first), Holder("nmt@gpu/0", second), Holder("lease@7/1", third)], max_models, lists
    )
    frontier: list[tuple[bytes, list[str]]] = [(pickle.dumps(start), [])]
    seen = {start.key()}
    for _ in range(DEPTH):
        reached = []
        for state, way in frontier:
            for move in pickle.loads(state).moves():
                world, here = pickle.loads(state), [*way, " ".join(map(str, move))]
                try:
                    world.do(*move)
                    world.book.check()
                    if (key := world.key()) in seen:
                        continue
                    seen.add(key)
                    reached.append((pickle.dumps(world), here))
                    world.finish()
                except AssertionError as error:
                    raise AssertionError(f"{error}, after {', '.join(here)}") from error
        frontier = reached
    assert len(seen) > 500, "a search that found nothing to try shows nothing"
