"""Who waits for memory of one device: in what order, and for how much longer. Pure.

Order: whoever came first, where a request of priority *high* counts as come earlier, and one of *low* as come later, by
``AGEING`` of the patience that the node's own requests have. So a high one passes those that wait, and none is passed
for ever: waiting is worth as much as a priority.

Patience runs for all of them or for none: it stands still while somebody loads there (``run``, ``stop``). All times in
here are on that clock, in seconds; only the clock's own start is kept in the caller's time.

A device may have a thousand programs waiting for it, so each question costs a few searches in sorted lists, and no walk
along the line: by rank, by size, by the end of their patience.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator

from engine.arbiter.lease import Lease

AGEING = 0.5  # of the node's lease_wait_s: what a priority is worth
PASSING = 0.5  # of the node's lease_wait_s: a request of the node's own that has waited so long lets nobody pass
PRIORITIES = {"high": -AGEING, "normal": 0.0, "low": AGEING}

Model = tuple[str, str]  # Lease.kind_of_model


def _rank(lease: Lease) -> tuple[float, float]:
    return lease.rank


def _size(lease: Lease) -> int:
    return lease.nbytes


def _end(lease: Lease) -> float:
    return lease.patient_until


class Line:
    """The line in front of one device. ``wait_s``: the patience of the node's own requests."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._clock = 0.0  # how far it had come when it last stopped
        self._since: float | None = None  # the caller's time when it was last started; None: it stands
        self._ranked: list[Lease] = []  # by rank
        self._sized: list[Lease] = []  # by size
        self._ranks: list[tuple[float, float]] = []  # of ``_sized``, for a search without looking at each lease
        self._ending: list[Lease] = []  # by the end of their patience
        self._own: list[Lease] = []  # of the node, by the end of their patience: they alone hold others back
        self._places = 0.0

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._ranked)

    @property
    def head(self) -> Lease | None:
        return self._ranked[0] if self._ranked else None

    def position(self, lease: Lease) -> int:
        """How many stand before it."""
        return bisect_left(self._ranked, lease.rank, key=_rank)

    # ------------------------------------------------------------ coming and going

    def add(self, lease: Lease, now: float, wait_s: float | None) -> None:
        """``wait_s``: its patience; None: as the node's own."""
        clock = self.clock(now)
        lease.patient_until = clock + (self._wait_s if wait_s is None else wait_s)
        self._places += 1  # two that came at once keep the order they came in
        lease.rank = clock + PRIORITIES[lease.priority] * self._wait_s, self._places
        insort(self._ranked, lease, key=_rank)
        insort(self._ending, lease, key=_end)
        place = bisect_right(self._sized, lease.nbytes, key=_size)
        self._sized.insert(place, lease)
        self._ranks.insert(place, lease.rank)
        if not lease.external:
            insort(self._own, lease, key=_end)

    def remove(self, lease: Lease) -> None:
        del self._ranked[self.position(lease)]
        for line in (self._ending, self._own):
            if line is self._ending or not lease.external:
                del line[_place(line, lease, bisect_left(line, lease.patient_until, key=_end))]
        place = _place(self._sized, lease, bisect_left(self._sized, lease.nbytes, key=_size))
        del self._sized[place], self._ranks[place]

    # ------------------------------------------------------------ whose turn it is

    def first(self, room: int, models: Collection[Model] | None, before: Lease | None) -> Lease | None:
        """The first that fits into ``room`` bytes, of those before ``before``.

        ``models``: the only ones that may come to the device, for there is no place for others; None: any may.
        """
        fitting = bisect_right(self._sized, room, key=_size)
        if not fitting:
            return None
        if models is not None:
            allowed = [one for one in self._sized[:fitting] if one.external or one.kind_of_model in models]
            found = min(allowed, default=None, key=_rank)
        else:
            found = self._sized[self._ranks.index(min(self._ranks[:fitting]))]
        return None if found is None or (before is not None and found.rank > before.rank) else found

    def elder(self, room: int, models: Collection[Model] | None, now: float) -> Lease | None:
        """Of the node's own that lack room, and may not be passed any more, the one whose patience ends first."""
        clock = self.clock(now)
        for lease in self._own:
            if clock < self._passed_until(lease):
                return None
            if lease.nbytes > room and (models is None or lease.kind_of_model in models):
                return lease
        return None

    def spent(self, now: float) -> list[Lease]:
        """Those whose patience is at its end."""
        return self._ending[: bisect_right(self._ending, self.clock(now), key=_end)]

    # ------------------------------------------------------------ the clock

    def clock(self, now: float) -> float:
        return self._clock + (0.0 if self._since is None else now - self._since)

    def run(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def stop(self, now: float) -> None:
        self._clock, self._since = self.clock(now), None

    def patience(self, lease: Lease, now: float) -> float:
        """Seconds of it that are left."""
        return lease.patient_until - self.clock(now)

    def due_in(self, now: float) -> float | None:
        """Seconds until somebody's patience ends, or nobody may pass it any more; None: never, or the clock stands."""
        if self._since is None or not self._ranked:
            return None
        clock = self.clock(now)
        dues = [self._ending[0].patient_until - clock]
        young = bisect_right(self._own, clock, key=self._passed_until)
        dues += [self._passed_until(one) - clock for one in self._own[young : young + 1]]
        return max(0.0, min(dues))

    def _passed_until(self, lease: Lease) -> float:
        return lease.patient_until - (1 - PASSING) * self._wait_s

    def check(self) -> None:
        """Invariants: four views of the same line, each in its order."""
        assert len(self._ranked) == len(self._sized) == len(self._ranks) == len(self._ending), "the line is torn"
        assert (
            {id(one) for one in self._ranked} == {id(one) for one in self._sized} == {id(one) for one in self._ending}
        )
        assert {id(one) for one in self._ranked if not one.external} == {id(one) for one in self._own}
        assert [one.rank for one in self._sized] == self._ranks
        for line, key in ((self._ranked, _rank), (self._sized, _size), (self._ending, _end), (self._own, _end)):
            keys = [key(one) for one in line]  # type: ignore[operator]
            assert keys == sorted(keys), "the line is out of order"


def _place(line: list[Lease], lease: Lease, start: int) -> int:
    while line[start] is not lease:
        start += 1
    return start
