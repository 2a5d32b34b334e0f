"""The queue in front of one stage: priority, then fairness between sessions, then index order. Pure.

**Sessions** of one priority share a stage by what their utterances take of it (``effort``), not by their number, so
that neither a flood nor long utterances starve anybody: start-time fair queueing (Goyal, Vin, Cheng 1996). A session's
turn has a start tag; the lowest goes first; taking an utterance of ``cost`` moves the tag by cost / weight. The
level's virtual time is the tag of what a worker has begun last: what was sent ahead and waits there has not had its
turn yet, and who comes meanwhile may be before it. One whose tag that time has passed has had less than its part: it
begins at that time, and what it missed is its *credit*, up to ``CREDIT`` mean utterances. As long as that lasts its
tag stays, so that it says several in a row before it has to take turns with a flood. (Borrowed virtual time, as of
Duda and Cheriton 1999, but earned.)

**Ageing.** A session of which nothing was taken for ``age_s`` goes one priority up, and another one after as long
again, until its next utterance is taken. There all such guests together are as one session more, in the order of their
coming: so each gets one in a while however busy its betters are, and however many guests there are, no better waits
for more than its turn.

**Index order.** Within a session the lowest index goes first, always: "to the back" never means behind its own later
indices.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.scheduler.jobs import Key
from engine.scheduler.pace import mean_of

LEVELS = ("high", "normal", "low")
RANK = {name: rank for rank, name in enumerate(LEVELS)}
CREDIT = 6  # a burst of somebody who speaks; shares of a full node are seldom larger
FORGET = 1024  # most sessions without work whose tags are kept


class Place(NamedTuple):
    """Where an utterance stood, or stands, in the order of its queue; the least is first."""

    level: int
    tag: float


@dataclass(slots=True, eq=False)
class _Turn:
    """A session with work here. ``start``: its tag at its own level; ``entry``: which entry of a level is its.

    ``credit``: what it may take before its tag moves, as costs by weight.
    """

    session: str
    own: int
    weight: float
    start: float
    credit: float
    indices: list[int] = field(default_factory=list)  # a heap
    level: int = 0
    entry: int = 0


class StageQueue:
    """Keys of the jobs that wait for one stage. Times in seconds of the monotonic clock."""

    def __init__(self, age_s: float = 30.0) -> None:
        self.age_s = age_s
        self.waiting: dict[Key, float] = {}  # every job -> its cost
        self._mean = 0.0  # cost of an utterance, over about 25
        self.place = Place(len(LEVELS), 0.0)  # of the first that was picked last
        self._turns: dict[str, _Turn] = {}
        self._levels: list[list[tuple[float, int, _Turn]]] = [[] for _ in LEVELS]  # heaps
        self._times = [0.0 for _ in LEVELS]  # virtual
        self._guests = [0.0 for _ in LEVELS]  # tag of the next one that comes there by age
        self._aging: list[deque[tuple[float, int, _Turn]]] = [deque() for _ in LEVELS]  # since when, by time
        self._latest = [0.0 for _ in LEVELS]  # tag that anybody has come to
        self._idle: dict[str, tuple[float, float]] = {}  # where sessions without work go on, and with what credit
        self._entries = itertools.count(1)

    def push(self, key: Key, priority: str, now: float, cost: float = 1.0, weight: float = 1.0) -> None:
        """Add a job. Pushing one twice is an error of the caller (AssertionError)."""
        assert key not in self.waiting, f"{key} is queued already"
        self.waiting[key] = cost
        self._mean = mean_of(self._mean, cost / weight)
        turn = self._turns.get(key[0])
        if turn is None:
            own = RANK[priority]
            turn = self._turns[key[0]] = _Turn(key[0], own, weight, *self._idle.pop(key[0], (self._times[own], 0.0)))
            self._catch_up(turn)
            self._enter(turn, own, turn.start, now)
        heapq.heappush(turn.indices, key[1])

    def remove(self, key: Key) -> None:
        """Take a job out, if it is there."""
        self.waiting.pop(key, None)  # its index is dropped from the heap when it comes up

    def pick(self, most: int, eligible: Callable[[Key], bool], now: float) -> list[Key]:
        """Take up to ``most`` eligible jobs, in order. A session whose lowest index is not eligible waits.

        ``begun`` is to be told the ``place`` of this when a worker begins it.
        """
        self._age(now)
        picked: list[Key] = []
        for level, entries in enumerate(self._levels):
            passed_over = []
            while entries and len(picked) < most:
                tag, entry, turn = heapq.heappop(entries)
                if turn.entry != entry or not self._is_waiting(turn):
                    continue
                key = turn.session, turn.indices[0]
                if eligible(key):
                    if not picked:
                        self.place = Place(level, tag)
                    picked.append(key)
                    self._take(turn, key, now)
                elif key in self.waiting:
                    passed_over.append((tag, entry, turn))
                else:  # it has ended instead: the session's next one may be
                    heapq.heappush(entries, (tag, entry, turn))
            for passed in passed_over:
                heapq.heappush(entries, passed)
        return picked

    def begun(self, place: Place) -> None:
        """What was picked there has begun."""
        self._times[place.level] = max(self._times[place.level], place.tag)

    def first(self, now: float) -> tuple[Place, Key] | None:
        """Who is before all others, eligible or not."""
        self._age(now)
        for level, entries in enumerate(self._levels):
            while entries:
                tag, entry, turn = entries[0]
                if turn.entry == entry and self._is_waiting(turn):
                    return Place(level, tag), (turn.session, turn.indices[0])
                heapq.heappop(entries)
        return None

    def _enter(self, turn: _Turn, level: int, tag: float, now: float) -> None:
        turn.level, turn.entry = level, next(self._entries)
        heapq.heappush(self._levels[level], (tag, turn.entry, turn))
        if level:
            self._aging[level].append((now, turn.entry, turn))

    def _catch_up(self, turn: _Turn) -> None:
        """What the virtual time has passed it by is its credit."""
        if (missed := self._times[turn.own] - turn.start) > 0:
            turn.start += missed
            turn.credit = min(CREDIT * self._mean, turn.credit + missed)

    def _take(self, turn: _Turn, key: Key, now: float) -> None:
        heapq.heappop(turn.indices)
        self._catch_up(turn)
        cost = self.waiting.pop(key) / turn.weight
        paid = min(turn.credit, cost)
        turn.credit -= paid
        turn.start += cost - paid
        self._latest[turn.own] = max(self._latest[turn.own], turn.start)
        turn.entry = 0
        if self._is_waiting(turn):
            self._enter(turn, turn.own, turn.start, now)

    def _is_waiting(self, turn: _Turn) -> bool:
        """Whether the session has work; if not, its turn is over."""
        indices = turn.indices
        while indices and (turn.session, indices[0]) not in self.waiting:
            heapq.heappop(indices)
        if indices:
            return True
        if self._turns.pop(turn.session, None) is not None:
            turn.entry = 0
            self._idle[turn.session] = turn.start, turn.credit
            if len(self._idle) > FORGET:  # each is worth a burst at most
                del self._idle[next(iter(self._idle))]
            if not self._turns:  # what was taken while nobody else wanted any is no debt
                self._times = [max(ours) for ours in zip(self._times, self._latest, strict=True)]
        return False

    def _age(self, now: float) -> None:
        for level in range(1, len(LEVELS)):
            aging = self._aging[level]
            while aging and (aging[0][1] != aging[0][2].entry or now - aging[0][0] >= self.age_s):
                _, entry, turn = aging.popleft()
                if turn.entry == entry and self._is_waiting(turn):
                    tag = max(self._times[level - 1], self._guests[level - 1])
                    self._guests[level - 1] = tag + self._mean
                    self._enter(turn, level - 1, tag, now)

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.waiting)

    def check(self) -> None:
        """Invariants: every waiting job stands in its session's turn, and every turn in its level."""
        for session, index in self.waiting:
            assert self._turns[session].indices.count(index) >= 1, f"{(session, index)} is lost"
        for turn in self._turns.values():
            assert any(entry == turn.entry for _, entry, _ in self._levels[turn.level]), f"{turn.session} has no turn"
