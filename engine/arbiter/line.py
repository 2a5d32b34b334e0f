"""Who waits for memory of one device: in what order, and for how much longer. Pure.

Order: whoever came first, where a request of priority *high* counts as come earlier, and one of *low* as come later, by
``AGEING`` of the patience that the node's own requests have. So a high one passes those that wait, and none is passed
for ever: waiting is worth as much as a priority.

Smaller requests pass one that lacks room, until it has waited for long enough: the node's own for ``PASSING`` of their
patience, programs outside the node for all but the last of theirs. Who then holds the others back does so for half of
``lease_wait_s`` at most, since then it is served or its patience is over; and no program holds back what is behind it
once one of the node's own has reached its limit. So programs, however many and for however long they wait, cost a
request of the node's that much and not its memory.

Patience stands still while somebody loads there (``run``, ``stop``): all ends of it are on a clock that does. Only who
was passed pays for the load of the one that did, when that is over, until nobody may pass it any more: so loads one
after the other keep nobody waiting for ever. Ranks are in the caller's time, which no load stops.

A device may have a thousand programs waiting for it, so each question costs a few searches in sorted lists: by rank, by
size, by the end of their patience, by when nobody may pass them any more. The line is walked along only where so many
may not be passed that one of them is soon met.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from operator import attrgetter
from typing import Any

from engine.arbiter.lease import Lease

AGEING = 0.5  # of the node's lease_wait_s: what a priority is worth
PASSING = 0.5  # of the node's lease_wait_s: a request of the node's own that has waited so long lets nobody pass
HOLDING = 0.5  # of its patience, or of the node's lease_wait_s: the last part, in which a program's lets nobody pass
PRIORITIES = {"high": -AGEING, "normal": 0.0, "low": AGEING}

NEAR = 32  # so many at the head of a list are looked at one by one, before all that fit are, or the line is

Model = tuple[str, str]  # Lease.kind_of_model
PROGRAMS: Model = ("", "")  # all of them, which have no model


_rank: Callable[[Lease], tuple[float, float]] = attrgetter("rank")
_size: Callable[[Lease], int] = attrgetter("nbytes")
_end: Callable[[Lease], float] = attrgetter("patient_until")
_limit: Callable[[Lease], float] = attrgetter("passed_until")


def _kind(lease: Lease) -> Model:
    return PROGRAMS if lease.external else lease.kind_of_model


class Line:
    """The line in front of one device. ``wait_s``: the patience of the node's own requests."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._clock = 0.0  # how far it had come when it last stopped
        self._since: float | None = None  # the caller's time when it was last started; None: it stands
        self._loading: tuple[float, float] | None = None  # the rank of who loads
        self._stopped = 0.0  # the caller's time when that began
        self._ranked: list[Lease] = []  # by rank
        self._sized: list[Lease] = []  # by size
        self._ranks: list[tuple[float, float]] = []  # of ``_sized``, for a search without looking at each lease
        self._kinds: dict[Model, list[Lease]] = {}  # of each model, by rank
        self._ending: list[Lease] = []  # by the end of their patience
        self._own: list[Lease] = []  # of the node, by when nobody may pass them any more
        self._outside: list[Lease] = []  # of programs, likewise
        self._places = 0.0

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._ranked)

    @property
    def head(self) -> Lease | None:
        return self._ranked[0] if self._ranked else None

    def own(self, count: int) -> list[Lease]:
        """So many of the node's, by when nobody may pass them any more."""
        return self._own[:count]

    def position(self, lease: Lease) -> int:
        """How many stand before it."""
        return bisect_left(self._ranked, lease.rank, key=_rank)

    # ------------------------------------------------------------ coming and going

    def add(self, lease: Lease, now: float, wait_s: float | None) -> None:
        """``wait_s``: its patience; None: as the node's own."""
        clock = self.clock(now)
        wait_s = self._wait_s if wait_s is None else wait_s
        lease.patient_until = clock + wait_s
        holding_s = HOLDING * min(wait_s, self._wait_s) if lease.external else (1 - PASSING) * self._wait_s
        lease.passed_until = lease.patient_until - holding_s
        self._places += 1  # two that came at once keep the order they came in
        # By when it first asked: who comes from another device's line has waited there.
        lease.rank = lease.since + PRIORITIES[lease.priority] * self._wait_s, self._places
        insort(self._ranked, lease, key=_rank)
        insort(self._kinds.setdefault(_kind(lease), []), lease, key=_rank)
        insort(self._ending, lease, key=_end)
        place = bisect_right(self._sized, lease.nbytes, key=_size)
        self._sized.insert(place, lease)
        self._ranks.insert(place, lease.rank)
        insort(self._outside if lease.external else self._own, lease, key=_limit)

    def remove(self, lease: Lease) -> None:
        del self._ranked[self.position(lease)]
        for line, key in ((self._ending, _end), (self._outside if lease.external else self._own, _limit)):
            del line[_place(line, lease, bisect_left(line, key(lease), key=key))]
        place = _place(self._sized, lease, bisect_left(self._sized, lease.nbytes, key=_size))
        del self._sized[place], self._ranks[place]
        kind = self._kinds[_kind(lease)]
        del kind[bisect_left(kind, lease.rank, key=_rank)]
        if not kind:
            del self._kinds[_kind(lease)]

    # ------------------------------------------------------------ whose turn it is

    def first(self, room: int, models: Collection[Model] | None, before: Lease | None) -> Lease | None:
        """The first that fits into ``room`` bytes, of those before ``before``.

        ``models``: the only ones that may come to the device, for there is no place for others; None: any may.
        """
        fitting = bisect_right(self._sized, room, key=_size)
        if not fitting:
            return None
        if models is not None:
            kinds = [self._kinds[kind] for kind in (PROGRAMS, *models) if kind in self._kinds]
            firsts = [next((one for one in kind if one.nbytes <= room), None) for kind in kinds]
            found = min((one for one in firsts if one is not None), default=None, key=_rank)
        else:
            found = next((one for one in islice(self._ranked, NEAR) if one.nbytes <= room), None)
            found = found or self._sized[self._ranks.index(min(self._ranks[:fitting]))]
        return None if found is None or (before is not None and found.rank > before.rank) else found

    def elder(self, room: int, models: Collection[Model] | None, now: float) -> Lease | None:
        """Of those that lack room, and may not be passed any more, the first in the line: so none of them is passed.

        The node's own before programs; those hold nobody back while one of the node's own may not be passed.
        """
        clock = self.clock(now)
        if models is not None:
            present = [one for kind in models for one in self._kinds.get(kind, ())]
            if late := [one for one in present if one.passed_until <= clock and one.nbytes > room]:
                return min(late, key=_rank)
        if self._own and self._own[0].passed_until <= clock:
            return self._first_late(room, clock, external=False) if models is None else None
        if self._outside and self._outside[0].passed_until <= clock:
            return self._first_late(room, clock, external=True)
        return None

    def _first_late(self, room: int, clock: float, *, external: bool) -> Lease | None:
        late = self._outside if external else self._own
        count = bisect_right(late, clock, 0, min(len(late), NEAR + 1), key=_limit)
        if count <= NEAR:
            return min((one for one in islice(late, count) if one.nbytes > room), default=None, key=_rank)
        for lease in self._ranked:
            if lease.passed_until <= clock and lease.external == external and lease.nbytes > room:
                return lease
        return None

    def spent(self, now: float) -> list[Lease]:
        """Those whose patience is at its end."""
        return self._ending[: bisect_right(self._ending, self.clock(now), key=_end)]

    # ------------------------------------------------------------ the clock

    def clock(self, now: float) -> float:
        return self._clock + (0.0 if self._since is None else now - self._since)

    def run(self, now: float) -> None:
        """Nobody loads (any more)."""
        if self._since is None:
            if self._loading is not None:
                self._charge(self._loading, now)
            self._since, self._loading = now, None

    def stop(self, now: float, loader: Lease) -> None:
        """This one, who stood here, loads now."""
        if self._since is not None or self._loading is None:
            self._clock, self._since = self.clock(now), None
            self._loading, self._stopped = loader.rank, now

    def _charge(self, rank: tuple[float, float], now: float) -> None:
        """Of those that one of this rank has passed, the time of its load, as far as they may be passed."""
        passed = self._ranked[: bisect_left(self._ranked, rank, key=_rank)]
        for lease in passed:
            taken_s = min(now - max(self._stopped, lease.since), lease.passed_until - self._clock)
            if taken_s > 0:
                lease.patient_until -= taken_s
                lease.passed_until -= taken_s
        if passed:
            self._ending.sort(key=_end)
            self._own.sort(key=_limit)
            self._outside.sort(key=_limit)

    def patience(self, lease: Lease, now: float) -> float:
        """Seconds of it that are left."""
        return lease.patient_until - self.clock(now)

    def due_in(self, now: float) -> float | None:
        """Seconds until somebody's patience ends, or nobody may pass it any more; None: never, or the clock stands."""
        if self._since is None or not self._ranked:
            return None
        clock = self.clock(now)
        dues = [self._ending[0].patient_until - clock]
        for line in (self._own, self._outside):
            young = bisect_right(line, clock, key=_limit)
            dues += [one.passed_until - clock for one in line[young : young + 1]]
        return max(0.0, min(dues))

    def check(self) -> None:
        """Invariants: several views of the same line, each in its order."""
        assert len(self._ranked) == len(self._sized) == len(self._ranks) == len(self._ending), "the line is torn"
        assert (
            {id(one) for one in self._ranked} == {id(one) for one in self._sized} == {id(one) for one in self._ending}
        )
        for external, line in ((False, self._own), (True, self._outside)):
            assert {id(one) for one in self._ranked if one.external == external} == {id(one) for one in line}
        assert [one.rank for one in self._sized] == self._ranks
        kinds = [one for kind in self._kinds.values() for one in kind]
        assert {id(one) for one in self._ranked} == {id(one) for one in kinds} and len(kinds) == len(self._ranked)
        assert all(_kind(one) == name for name, kind in self._kinds.items() for one in kind) and all(
            self._kinds.values()
        )
        views: list[tuple[list[Lease], Callable[[Lease], Any]]] = [(self._ranked, _rank), (self._sized, _size)]
        views += [(kind, _rank) for kind in self._kinds.values()]
        for line, key in (*views, (self._ending, _end), (self._own, _limit), (self._outside, _limit)):
            keys = [key(one) for one in line]
            assert keys == sorted(keys), "the line is out of order"


def _place(line: list[Lease], lease: Lease, start: int) -> int:
    while line[start] is not lease:
        start += 1
    return start
