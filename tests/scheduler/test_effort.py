"""What an utterance takes of a stage: a line between "as long as the speech is" and "always the same"."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.effort import Effort

LENGTHS = st.lists(st.floats(0.1, 60.0), min_size=1, max_size=60)


def learnt(*seen: tuple[float, float]) -> Effort:
    found = Effort()
    for speech_s, run_s in seen:
        found.learn(speech_s, run_s)
    return found


def test_before_anything_was_seen_speech_is_what_it_costs() -> None:
    assert Effort().cost(3.0) == 3.0 and Effort().of(3.0) == 0.0


def test_where_runs_have_one_length_whatever_the_speech_all_cost_the_same() -> None:
    found = learnt(*[(0.1, 0.03), (5.0, 0.03)] * 100)
    assert found.cost(0.1) == pytest.approx(found.cost(5.0), rel=0.01)


def test_where_runs_are_as_long_as_the_speech_so_is_the_cost() -> None:
    found = learnt(*[(0.5, 0.05), (5.0, 0.5)] * 100)
    assert found.cost(5.0) == pytest.approx(10 * found.cost(0.5), rel=0.05)


def test_between_them_it_is_a_line() -> None:
    found = learnt(*[(1.0, 0.2 + 0.1), (9.0, 0.2 + 0.9), (5.0, 0.2 + 0.5)] * 100)
    assert [found.of(speech_s) for speech_s in (1.0, 5.0, 9.0)] == pytest.approx([0.3, 0.7, 1.1], rel=0.01)


def test_lengths_that_are_all_alike_tell_of_others_by_proportion() -> None:
    assert learnt(*[(2.0, 0.4)] * 10).of(1.0) == pytest.approx(0.2)


def test_who_says_little_pays_for_it_also_where_long_runs_take_more_than_their_part() -> None:
    found = learnt(*[(5.0, 0.1), (10.0, 1.1)] * 50)
    assert found.cost(1.0) == pytest.approx(1.0) and found.cost(10.0) == pytest.approx(10.0)


@given(LENGTHS, st.floats(0.0, 2.0), st.floats(0.001, 2.0), st.floats(0.1, 60.0))
def test_more_speech_never_costs_less_and_the_mean_costs_its_length(
    lengths: list[float], level: float, slope: float, speech_s: float
) -> None:
    found = learnt(*((one, level + slope * one) for one in lengths))
    assert found.cost(speech_s) <= found.cost(speech_s + 1.0) + 1e-9
    assert found.cost(found.speech) == pytest.approx(found.speech, rel=1e-6)
