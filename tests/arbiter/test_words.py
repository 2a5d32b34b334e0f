"""What the arbiter says of memory."""

from __future__ import annotations

from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.words import apart, taken

GIB, MIB = 2**30, 2**20


def test_two_sizes_that_differ_are_said_so_that_it_shows() -> None:
    assert apart(5 * GIB, 3 * GIB) == ("5.0 GiB", "3.0 GiB")
    assert apart(5 * GIB, 5 * GIB - 2 * MIB) == ("5120 MiB", "5118 MiB")
    assert apart(5 * GIB, 5 * GIB - 1) == ("5368709120 bytes", "5368709119 bytes")


def test_of_a_holder_that_has_left_or_is_lost_that_is_said_with_what_it_has_taken() -> None:
    def lease(peer: str, state: LeaseState, granted: int, held: int) -> Lease:
        return Lease(peer, 1, "cuda:0", granted, "", state, 0.0, held_bytes=held)

    gone = lease("asr@cuda:0/0#1", LeaseState.DEFICIT, 5 * GIB, 4 * GIB)
    lost = lease("nmt@cuda:0/0#1", LeaseState.LOST, 2 * GIB, GIB)
    program = lease("lease@7/1#9", LeaseState.DRAINING, GIB, GIB)
    said = "taken by asr@cuda:0/0 (ended) 4.0 GiB, nmt@cuda:0/0 (lost) 2.0 GiB, a program (lease@7/1, ended) 1.0 GiB"
    assert taken([program, gone, lost], 0) == said
    assert taken([], 0) == ""
