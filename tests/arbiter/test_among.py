"""Requests that would do with several devices are found by their size, in the order in which they came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.arbiter.among import Among
from engine.arbiter.lease import Lease, LeaseState

NAMES = ("cuda:0", "cuda:1")


def request(number: int, nbytes: int) -> Lease:
    return Lease(f"lease@{number}/1#1", number, "cuda:0", nbytes, "m", LeaseState.REQUESTED, 0.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=30), st.integers(-1, 10))
def test_those_that_fit_come_in_their_order_and_who_has_gone_does_not(them: list[tuple[int, bool]], room: int) -> None:
    among, stay = Among(), []
    for number, (nbytes, goes) in enumerate(them):
        lease = request(number, nbytes)
        among.add(lease, NAMES)
        if goes:
            among.discard(lease)
            among.discard(lease)  # of whom nothing is known, nothing is forgotten
        else:
            stay.append(lease)
        among.check()
    assert among.fitting(room) == [lease for lease in stay if lease.nbytes <= room]
    assert all(lease in among and among.names(lease) == NAMES for lease in stay)
    assert among.names(request(99, 1)) == ()
