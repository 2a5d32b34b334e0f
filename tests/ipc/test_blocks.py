"""No block is ever in two slots, none gets lost, and a large slot cannot be starved by small ones."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from ipc.blocks import Blocks

SIZE = 24


class Allocation(RuleBasedStateMachine):
    """Random takes, returns, shrinks and reservations against a set of block numbers."""

    runs = Bundle("runs")

    @initialize()
    def start(self):
        self.blocks = Blocks(SIZE)
        self.taken: dict[int, int] = {}
        self.kept: range | None = None

    def occupied(self):
        return {block for start, length in self.taken.items() for block in range(start, start + length)}

    def longest_free(self):
        """Longest run of blocks that anybody may take."""
        closed = self.occupied() | set(self.kept or ())
        longest = here = 0
        for block in range(SIZE):
            here = 0 if block in closed else here + 1
            longest = max(longest, here)
        return longest

    def grant(self, start, length):
        run = set(range(start, start + length))
        assert start >= 0 and start + length <= SIZE, "a slot lies within the ring"
        assert not run & self.occupied(), "a slot overlaps another"
        self.taken[start] = length
        return start

    @rule(target=runs, length=st.integers(1, SIZE))
    def take(self, length):
        possible = self.longest_free() >= length
        start = self.blocks.take(length)
        assert (start is not None) == possible, "a slot is refused exactly when no run is long enough"
        if start is None:
            return -1
        assert not set(range(start, start + length)) & set(self.kept or ()), "a reserved block was given away"
        return self.grant(start, length)

    @rule(start=consumes(runs))
    def give(self, start):
        if start in self.taken:
            del self.taken[start]
            self.blocks.give(start)

    @rule(start=runs, length=st.integers(0, SIZE))
    def shrink(self, start, length):
        if start in self.taken:
            self.blocks.shrink(start, length)
            self.taken[start] = min(self.taken[start], max(1, length))

    @rule(length=st.integers(1, SIZE + 2))
    def reserve(self, length):
        self.blocks.reserve(length)
        assert self.blocks.reserved == (length if length <= SIZE else 0)
        self.kept = None
        if self.blocks.reserved:
            self.kept = self.find_kept(length)

    def find_kept(self, length):
        start = self.blocks._reservation[0]
        crowd = [len(set(range(s, s + length)) & self.occupied()) for s in range(SIZE - length + 1)]
        assert crowd[start] == min(crowd), "not the emptiest stretch was reserved"
        return range(start, start + length)

    @rule()
    def unreserve(self):
        self.blocks.unreserve()
        self.kept = None

    @precondition(lambda self: self.kept is not None)
    @rule(target=runs)
    def take_reserved(self):
        clear = not set(self.kept) & self.occupied()
        start = self.blocks.take_reserved()
        assert (start is not None) == clear, "the stretch is given when all of it has come free, and not before"
        if start is None:
            return -1
        assert start == self.kept.start
        length, self.kept = len(self.kept), None
        return self.grant(start, length)

    @invariant()
    def books_agree(self):
        if hasattr(self, "blocks"):
            self.blocks.check()
            assert self.blocks.runs == self.taken
            assert self.blocks.free == SIZE - len(self.occupied())

    def teardown(self):
        if not hasattr(self, "blocks"):
            return
        for start in list(self.taken):
            self.blocks.give(start)
        self.blocks.unreserve()
        assert self.blocks.take(SIZE) == 0, "everything given back is one free ring again"


TestAllocation = Allocation.TestCase
TestAllocation.settings = settings(max_examples=150, stateful_step_count=40)


def test_slots_are_taken_one_after_the_other_before_the_ring_is_reused():
    blocks = Blocks(4)
    first = blocks.take(1)
    blocks.give(first)
    assert [blocks.take(1) for _ in range(3)] == [1, 2, 3], "a slot just freed is the last to be used again"


def test_one_second_and_ten_minutes_live_in_the_same_ring():
    blocks = Blocks(300)
    assert blocks.take(1) == 0
    assert blocks.take(293) == 1
    assert blocks.take(7) is None


def test_a_slot_in_the_middle_can_go_first():
    blocks = Blocks(6)
    starts = [blocks.take(2) for _ in range(3)]
    blocks.give(starts[1])
    assert blocks.take(2) == starts[1]


def test_small_slots_cannot_starve_a_large_one():
    blocks = Blocks(8)
    small = [blocks.take(1) for _ in range(8)]
    blocks.reserve(4)
    for _ in range(20):  # small ones come and go, and the large one still gets its stretch
        if (large := blocks.take_reserved()) is not None:
            break
        blocks.give(small.pop(0))
        if (again := blocks.take(1)) is not None:
            small.append(again)
    assert large is not None
    blocks.check()


def test_a_run_that_is_not_taken_cannot_be_given():
    blocks = Blocks(4)
    blocks.take(2)
    with pytest.raises(KeyError):
        blocks.give(1)
    blocks.check()
