"""A grant is judged by what its GPU's driver held when it was made: all of it, and nothing that came up since."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.vram_grants import Grants, Sample
from engine.limits import Limits

A, B = 1, 2  # processes


def lease(number: int, pid: int, nbytes: int, at: float, state: str = "held", device: str = "cuda:0") -> dict[str, Any]:
    left = at + 5 if state == "draining" else 0.0
    return {
        "lease": number, "pid": pid, "nbytes": nbytes, "granted_s": at, "left_s": left, "state": state, "device": device
    }  # fmt: skip


def report(*leases: dict[str, Any], over: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"leases": leases, "over": over, "last_lease": max(one["lease"] for one in (*leases, *over))}


def judged(*leases: dict[str, Any], before: Sample, after: Sample, **limits: Any) -> tuple[int, int]:
    """How many of these grants were too much for a GPU of 10 bytes, and for its ceiling."""
    grants = Grants([Limits("cuda:0", 10, **limits)], known_s=2.0)
    grants.sample(0, before)
    grants.judge(report(*leases))
    grants.sample(0, after)
    for _ in range(2):  # each is judged once
        grants.judge(report(*leases))
    return grants.counts["overcommitted"], grants.counts["above_ceiling"]


def there(at: float, *held: tuple[int, int], lagging: int = 0, foreign: int = 0) -> Sample:
    return Sample(at, dict(held), lagging, foreign)


@pytest.mark.parametrize(
    ("more", "broken"), [(0, 0), (1, 1)], ids=["all of the GPU", "a byte more"]
)  # fmt: skip
@pytest.mark.parametrize(
    ("earlier", "state"),
    [
        (lease(1, A, 6, 1.0), Sample(9.9, {})),  # granted, and not taken
        (lease(1, A, 2, 1.0), Sample(9.9, {A: 6})),  # taken beyond the lease
        (lease(1, A, 6, 1.0, "draining"), Sample(9.9, {}, lagging=6)),  # left by the dead
        (lease(1, A, 6, 1.0, "held", "cuda:1"), Sample(9.9, {}, foreign=6)),  # outsiders'
        (lease(1, A, 6, 1.0, "draining"), Sample(9.9, {A: 6})),  # of one that has no lease any more and lives
    ],
    ids=["promised", "held beyond", "draining", "foreign", "without a lease"],
)
def test_whatever_lies_there_or_may_yet_counts(earlier: dict[str, Any], state: Sample, more: int, broken: int) -> None:
    new = lease(2, B, 4 + more, 10.0)
    assert judged(earlier, new, before=state, after=replace(state, at=10.1)) == (broken, broken)


def test_a_ceiling_is_lower_and_where_gpus_are_shared_it_is_this_node_s_own() -> None:
    states = {"before": there(9.9, foreign=5), "after": there(10.1, foreign=5)}
    new = lease(1, A, 4, 10.0)
    assert judged(new, **states, ceiling_bytes=8) == (0, 1)
    assert judged(new, **states, ceiling_bytes=8, ceiling_is_own=True) == (0, 0)
    assert judged(lease(1, A, 9, 10.0), **states, ceiling_bytes=8, ceiling_is_own=True) == (1, 1)


def test_what_came_up_within_the_age_of_a_reading_is_not_held_against_it() -> None:
    both = lease(1, A, 4, 1.0), lease(2, B, 5, 10.0)
    assert judged(*both, before=there(9.0, (A, 4)), after=there(10.1, (A, 9), foreign=5)) == (0, 0)
    assert judged(*both, before=there(9.0, (A, 6)), after=there(10.1, (A, 6))) == (1, 1)
    assert judged(*both, before=there(7.0, (A, 4)), after=there(10.1, (A, 6))) == (1, 1), "of a reading so old it knew"


def test_what_is_granted_later_is_not_counted_against_it_before() -> None:
    later = lease(3, 3, 9, 10.05)
    grants = Grants([Limits("cuda:0", 10)], known_s=2.0)
    grants.sample(0, there(10.02))
    grants.judge(report(lease(1, A, 5, 10.0), later))
    assert grants.counts["overcommitted"] == 0
    grants.sample(0, there(10.1))
    grants.judge(report(lease(1, A, 5, 10.0), later))
    assert grants.counts["overcommitted"] == 1


def test_each_lease_is_judged_once_whatever_its_number() -> None:
    grants = Grants([Limits("cuda:0", 10)], known_s=2.0)
    for number in range(1, 40):
        grants.sample(0, there(number - 0.1))
        grants.sample(0, there(number + 0.1))
        grants.judge(report(lease(number, number, 11, float(number))))
        grants.judge(report(lease(number, number, 11, float(number))))
    assert grants.judged == grants.counts["overcommitted"] == 39


def test_a_grant_that_is_over_before_the_report_is_judged_and_counts_while_it_was_there() -> None:
    grants = Grants([Limits("cuda:0", 10)], known_s=2.0)
    grants.sample(0, there(10.02))
    short = {**lease(2, B, 6, 9.5, "released"), "left_s": 10.03}
    gone = {**lease(1, B, 6, 9.0, "released"), "left_s": 9.4}
    grants.judge(report(lease(3, A, 5, 10.0), over=(gone, short)))
    assert grants.counts["overcommitted"] == 1, "the third was too much beside the second"
    assert grants.judged == grants.granted == 3


def test_what_is_not_judged_is_missed_and_what_is_on_no_gpu_is_not() -> None:
    grants = Grants([Limits("cuda:0", 10)], known_s=2.0)
    grants.sample(0, there(10.02))
    grants.judge(report(lease(1, A, 5, 10.0), lease(2, A, 5, 10.0, device="cpu"), lease(3, A, 5, 10.05)))
    assert (grants.granted, grants.judged) == (2, 1), "the last one after the sample"
    grants.judge({**report(lease(3, A, 5, 10.05)), "last_lease": 5})
    assert (grants.granted, grants.judged) == (4, 1), "4 and 5 were never told"
    grants.judge({})
    assert (grants.granted, grants.judged) == (4, 1)
