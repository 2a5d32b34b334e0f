"""Requests that would do with any of several devices, to find those that fit into so much room. Pure.

There may be a thousand of them, and each device asks whenever something has changed there: so by size, and no walk.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from operator import itemgetter

from engine.arbiter.lease import Lease

_size, _place = itemgetter(0), itemgetter(1)


class Among:
    """Those that wait."""

    def __init__(self) -> None:
        self._names: dict[Lease, tuple[str, ...]] = {}
        self._keys: dict[Lease, tuple[int, int]] = {}  # its bytes, its place in the order of their coming
        self._sized: list[tuple[int, int, Lease]] = []  # the same, by bytes
        self._places = 0

    def __contains__(self, lease: Lease) -> bool:
        return lease in self._names

    def add(self, lease: Lease, names: tuple[str, ...]) -> None:
        self._places += 1
        self._names[lease], self._keys[lease] = names, (lease.nbytes, self._places)
        insort(self._sized, (lease.nbytes, self._places, lease))

    def discard(self, lease: Lease) -> None:
        if (key := self._keys.pop(lease, None)) is not None:
            del self._names[lease]
            del self._sized[bisect_left(self._sized, key)]  # a key goes before what begins with it

    def names(self, lease: Lease) -> tuple[str, ...]:
        """The devices that would do; none where it has named one."""
        return self._names.get(lease, ())

    def fitting(self, room: int) -> list[Lease]:
        """Those that need so much at most, in the order in which they came."""
        found = self._sized[: bisect_right(self._sized, room, key=_size)]
        return [lease for _, _, lease in sorted(found, key=_place)]

    def check(self) -> None:
        """Invariants: two views of the same requests."""
        assert self._names.keys() == self._keys.keys() == {lease for _, _, lease in self._sized}
        assert self._sized == sorted(self._sized, key=itemgetter(0, 1)), "out of order"
        for lease in self._names:
            assert lease.state.value == "requested", "one that has a device looks for one"
