"""Ski rental: whoever waits pays at most twice what the best would have, who had known what comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.swaps import leaves_at, turn_ends

TIMES = st.floats(0, 1000)


def test_one_that_waits_does_so_as_long_as_both_loads_take() -> None:
    assert leaves_at(100.0, [100.0], 8.0) == 108.0


def test_what_waits_counts_together() -> None:
    assert leaves_at(100.0, [99.0, 100.0, 101.0], 6.0) == 102.0


def test_nobody_waits_for_one_that_has_rested_for_so_long_or_was_never_measured() -> None:
    assert leaves_at(90.0, [100.0], 8.0) == 98.0
    assert leaves_at(100.0, [100.0], 0.0) == 100.0


@given(TIMES, st.lists(TIMES, min_size=1), TIMES)
def test_together_they_have_waited_for_no_more_than_a_swap_when_it_leaves(
    rested_at: float, queued: list[float], cost_s: float
) -> None:
    at = leaves_at(rested_at, queued, cost_s)
    assert sum(at - since for since in queued) <= cost_s + 1e-6 * (1 + len(queued))
    assert at <= rested_at + cost_s


@given(TIMES, TIMES, TIMES, st.lists(TIMES))
def test_a_turn_lasts_as_long_as_a_swap_except_for_a_deadline_and_never_longer(
    since: float, turn_s: float, cost_s: float, latest: list[float]
) -> None:
    ends = turn_ends(since, turn_s, cost_s, latest)
    assert since + turn_s <= ends <= since + max(turn_s, cost_s)
    assert ends == since + max(turn_s, cost_s) or ends in latest
    assert not any(since + turn_s <= at < ends for at in latest), "whoever can be in time is"
