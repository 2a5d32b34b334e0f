"""Which worker each built-in policy prefers."""

from __future__ import annotations

import pytest

from engine import policies
from engine.policies import Candidate, Earliest, LeastQueue, RoundRobin


def worker(role: str, **fields: float | str) -> Candidate:
    known = {"device": "cuda:0", "batches": 0, "items": 0, "mean_s": 1.0, "free_in_s": 0.0, "given_at": 0.0,
             "on_device": 0}  # fmt: skip
    return Candidate(role, **{**known, **fields})  # type: ignore[arg-type]


def test_earliest_weighs_what_is_on_board_against_speed() -> None:
    slow, fast = worker("slow", mean_s=3.0), worker("fast", mean_s=1.0, free_in_s=1.0)
    assert list(Earliest().order("a", [slow, fast])) == ["fast", "slow"]
    busier = worker("fast", mean_s=1.0, free_in_s=2.5)
    assert list(Earliest().order("a", [slow, busier])) == ["slow", "fast"]


def test_earliest_tries_who_has_not_been_measured() -> None:
    assert Earliest().order("a", [worker("known"), worker("new", mean_s=0.0)])[0] == "new"


def test_what_is_nearly_as_early_goes_to_the_less_busy_device_and_then_to_who_had_less() -> None:
    first = worker("a", mean_s=1.01, on_device=3)
    other = worker("b", mean_s=1.05, on_device=1)
    assert Earliest().order("a", [first, other])[0] == "b"
    assert Earliest().order("a", [worker("a", items=9), worker("b", items=8)])[0] == "b"


def test_least_queue_looks_at_the_device_and_not_at_speed() -> None:
    near = worker("near", mean_s=0.1, on_device=4)
    far = worker("far", mean_s=9.0, on_device=2)
    assert LeastQueue().order("a", [near, far])[0] == "far"


def test_round_robin_goes_by_who_had_its_last_batch_first() -> None:
    found = RoundRobin().order("a", [worker("a", given_at=3.0), worker("b", given_at=1.0), worker("c", given_at=2.0)])
    assert list(found) == ["b", "c", "a"]


def test_a_name_that_nobody_has_is_told_with_those_that_there_are() -> None:
    with pytest.raises(LookupError, match="no placement 'best'; there are earliest, least_queue, round_robin"):
        policies.find("best")
