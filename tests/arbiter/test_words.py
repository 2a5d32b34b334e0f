"""What the arbiter says of memory."""

from __future__ import annotations

from engine.arbiter.words import apart

GIB, MIB = 2**30, 2**20


def test_two_sizes_that_differ_are_said_so_that_it_shows() -> None:
    assert apart(5 * GIB, 3 * GIB) == ("5.0 GiB", "3.0 GiB")
    assert apart(5 * GIB, 5 * GIB - 2 * MIB) == ("5120 MiB", "5118 MiB")
    assert apart(5 * GIB, 5 * GIB - 1) == ("5368709120 bytes", "5368709119 bytes")
