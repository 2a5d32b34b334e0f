"""The journal: whoever is killed while writing leaves the state before it or the new one, and never anything else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.arbiter.journal import HEADER_BYTES, Journal
from ipc import memory

HALF = 96


@pytest.fixture
def fds():
    """Makes memfds of two halves with the given content, and closes them."""
    made: list[int] = []

    def make(content: bytes = b"", nbytes: int = 2 * HALF) -> int:
        made.append(memory.create("journal", nbytes))
        os.pwrite(made[-1], content, 0)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def written(fd: int, *states: bytes) -> Journal:
    journal = Journal(fd)
    for state in states:
        assert journal.write(state)
    return journal


def after_writing(fd: int, before: bytes, state: bytes) -> bytes:
    """The memory when this state has been written over that content."""
    os.pwrite(fd, before, 0)
    written(fd, state)
    return content(fd)


def cut_short(before: bytes, after: bytes):
    """The memory after a write was cut short, at every byte."""
    for cut in range(len(before) + 1):
        yield after[:cut] + before[cut:]


def test_nothing_is_read_where_nothing_was_written(fds):
    assert Journal(fds()).read() is None


@pytest.mark.parametrize("states", [[b"one"], [b"one", b"two"], [b"one", b"", b"three", b"4"]])
def test_the_next_life_reads_what_was_written_last(fds, states):
    fd = fds()
    written(fd, *states)
    assert Journal(fd).read() == states[-1]


def test_each_life_goes_on_from_the_last(fds):
    fd = fds()
    for life in range(5):
        state = b"state of life %d" % life
        written(fd, state)
        assert Journal(fd).read() == state


@pytest.mark.parametrize("earlier", range(5))
def test_a_write_cut_short_anywhere_leaves_the_state_before_or_the_new_one(fds, earlier):
    states = [b"a rather long first state", b"second", b"the third one", b"fourth, and longer again", b"last"]
    fd = fds()
    journal = written(fd, *states[:earlier])
    before = content(fd)
    journal.write(states[earlier])
    old, new = (states[earlier - 1] if earlier else None), states[earlier]
    torn = fds()
    found = []
    for left in cut_short(before, content(fd)):
        os.pwrite(torn, left, 0)
        found.append(Journal(torn).read())
        assert found[-1] in (old, new), left
        written(torn, b"the life after")  # writes over the torn half, not over the good one
        assert Journal(torn).read() == b"the life after"
    assert old in found and new in found


@given(
    old=st.binary(max_size=40),
    new=st.binary(max_size=40),
    third=st.binary(max_size=40),
    bits=st.integers(0, 4**HALF - 1),
)
def test_whichever_bytes_of_a_write_are_in_place(old, new, third, bits):
    fd = memory.create("journal", 2 * HALF)
    try:
        journal = written(fd, third, old)
        before = content(fd)
        journal.write(new)
        pairs = enumerate(zip(before, content(fd), strict=True))
        os.pwrite(fd, bytes(b if bits >> index & 1 else a for index, (a, b) in pairs), 0)
        assert Journal(fd).read() in (old, new)
    finally:
        os.close(fd)


def test_a_write_cut_short_twice_in_a_row_goes_over_the_torn_half_and_leaves_the_good_one(fds):
    fd = fds()
    written(fd, b"first", b"good")
    good = content(fd)
    torn = fds()
    for once in cut_short(good, after_writing(torn, good, b"torn once")):
        os.pwrite(torn, once, 0)
        if Journal(torn).read() != b"good":
            continue
        for again in cut_short(once, after_writing(torn, once, b"torn again")):
            os.pwrite(torn, again, 0)
            assert Journal(torn).read() in (b"good", b"torn again")


def test_the_same_state_is_not_written_again(fds):
    fd = fds()
    journal = written(fd, b"one", b"two")
    before = content(fd)
    assert journal.write(b"two")
    assert content(fd) == before
    written(fd, b"two")  # nor by the next life
    assert content(fd) == before


def test_a_state_too_large_is_refused_and_counted_and_the_earlier_one_stays(fds):
    fd = fds()
    journal = written(fd, b"small")
    assert journal.most_bytes == HALF - HEADER_BYTES
    assert not journal.write(bytes(journal.most_bytes + 1))
    assert journal.too_large == 1
    assert Journal(fd).read() == b"small"


def test_states_that_just_fit_do_not_reach_into_each_others_half(fds):
    fd = fds()
    most = HALF - HEADER_BYTES
    written(fd, b"a" * most, b"b" * most, b"c" * most)
    assert Journal(fd).read() == b"c" * most
    os.pwrite(fd, b"\0", 2 * HALF - 1)  # the third lies in the second half
    assert Journal(fd).read() == b"b" * most


def test_without_memory_nothing_is_kept():
    journal = Journal(-1)
    assert journal.write(b"anything")
    assert journal.read() is None


def test_memory_that_cannot_be_written_is_an_error_and_not_a_shrug(fds):
    read_only = memory.reopen_read_only(fds())
    with pytest.raises(OSError):
        Journal(read_only).write(b"one")
    os.close(read_only)
