"""Which blocks of a ring are taken: runs of consecutive blocks, next-fit, given back in any order.

Pure and private to whoever grants the ring's slots (the gateway for its own ring, the scheduler for every worker's):
the table is never in shared memory and nobody else reads it.

States of a block: free, taken, and the same two inside a *reservation*. Small slots could keep a large one from ever
finding a run, so a request that has waited may reserve the emptiest stretch of its size: blocks that come free there
are kept for it.
"""

from __future__ import annotations

FREE, TAKEN, RESERVED_FREE, RESERVED_TAKEN = b"\x00", b"\x01", b"\x02", b"\x03"
_RELEASE = {1: 0, 3: 2}


class Blocks:
    """Allocation table of ``count`` blocks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._table = bytearray(count)
        self._cursor = 0
        self._runs: dict[int, int] = {}  # start -> length
        self._reservation: tuple[int, int] | None = None

    def take(self, length: int) -> int | None:
        """First block of a run of ``length`` free blocks after the last one taken, or None."""
        run = FREE * length
        start = self._table.find(run, self._cursor)
        if start < 0:
            start = self._table.find(run, 0, min(self.count, self._cursor + length - 1))
        if start < 0:
            return None
        self._mark(start, length, TAKEN)
        return start

    def take_at(self, start: int, length: int) -> None:
        """Take this very run. Raises ValueError when a block of it is taken."""
        if self._table[start : start + length] != FREE * length:
            raise ValueError(f"blocks {start} to {start + length - 1} are not all free")
        self._mark(start, length, TAKEN)

    def give(self, start: int) -> None:
        """Give a whole run back. Raises KeyError when no run starts there."""
        length = self._runs.pop(start)
        for block in range(start, start + length):
            self._table[block] = _RELEASE[self._table[block]]

    def shrink(self, start: int, length: int) -> None:
        """Keep only the first ``length`` (at least 1) blocks of a run; the tail is free at once."""
        length = max(1, length)
        for block in range(start + length, start + self._runs[start]):
            self._table[block] = _RELEASE[self._table[block]]
        self._runs[start] = min(length, self._runs[start])

    def reserve(self, length: int) -> None:
        """Keep the stretch of ``length`` blocks with the fewest taken ones for ``take_reserved``. One at a time."""
        self.unreserve()
        if length > self.count:
            return
        taken = [0]
        for state in self._table:
            taken.append(taken[-1] + state)
        start = min(range(self.count - length + 1), key=lambda i: taken[i + length] - taken[i])
        for block in range(start, start + length):
            self._table[block] += 2
        self._reservation = (start, length)

    def unreserve(self) -> None:
        """Drop the reservation; its free blocks are anybody's again."""
        if self._reservation is None:
            return
        start, length = self._reservation
        self._reservation = None
        for block in range(start, start + length):
            self._table[block] -= 2

    def take_reserved(self) -> int | None:
        """Take the reserved stretch if all of it has come free; the reservation ends with it."""
        if self._reservation is None:
            return None
        start, length = self._reservation
        if self._table[start : start + length] != RESERVED_FREE * length:
            return None
        self.unreserve()
        self._mark(start, length, TAKEN)
        return start

    @property
    def reserved(self) -> int:
        """Length of the reservation in blocks (0: none)."""
        return self._reservation[1] if self._reservation else 0

    @property
    def free(self) -> int:
        """Blocks that are not taken."""
        return self.count - sum(self._runs.values())

    @property
    def runs(self) -> dict[int, int]:
        """Runs taken now: first block -> length (a copy)."""
        return dict(self._runs)

    def _mark(self, start: int, length: int, state: bytes) -> None:
        self._table[start : start + length] = state * length
        self._runs[start] = length
        self._cursor = (start + length) % self.count

    def check(self) -> None:
        """Invariant: the table says taken exactly where a run lies, and runs do not overlap."""
        expected = bytearray(self.count)
        for start, length in self._runs.items():
            for block in range(start, start + length):
                assert not expected[block], f"block {block} is in two runs"
                expected[block] = 1
        if self._reservation is not None:
            start, length = self._reservation
            for block in range(start, start + length):
                expected[block] += 2
        assert expected == self._table, "table and runs disagree"
