"""What the node says of its rate: that of the stages which utterances pass, whatever the others could do."""

from __future__ import annotations

import pytest

from engine.scheduler.pace import StagePace, capacity

ONE_EACH = {"asr": 1, "nmt": 1}


def pace(mean_s: float, done: int, now: float = 0.0) -> StagePace:
    found = StagePace()
    for _ in range(done):
        found.measure(0.0, mean_s, now)
    return found


def test_a_stage_that_nobody_passes_does_not_hide_the_rate() -> None:
    """Only the first stage's pipeline is used: that the other was never measured is no reason to say nothing."""
    paces = {"asr": pace(0.3, 1), "nmt": StagePace()}
    assert capacity(paces, ONE_EACH, 10, 0.0, ["asr"]) == (10, pytest.approx(1 / 0.3))


def test_while_one_is_in_a_stage_that_was_never_measured_nothing_is_known() -> None:
    paces = {"asr": pace(0.001, 10), "nmt": StagePace()}
    assert capacity(paces, ONE_EACH, 10, 0.0, ["nmt"]) == (10, 0.0)
    assert capacity({"asr": StagePace(), "nmt": StagePace()}, ONE_EACH, 10, 0.0) == (10, 0.0)


@pytest.mark.parametrize(("passed", "rate"), [(100, 2.5), (50, 5.0), (10, 20.0), (1, 20.0)])
def test_a_slow_stage_holds_up_as_many_as_pass_it(passed: int, rate: float) -> None:
    paces = {"asr": pace(0.05, 100), "nmt": pace(0.4, passed)}
    assert capacity(paces, ONE_EACH, 10, 0.0) == (10, pytest.approx(rate))


def test_what_was_passed_long_ago_is_not_passed_now() -> None:
    paces = {"asr": pace(0.05, 100, now=600.0), "nmt": pace(0.4, 100)}
    assert capacity(paces, ONE_EACH, 10, 600.0) == (10, pytest.approx(20.0))


def test_when_nobody_has_spoken_for_long_any_stage_may_be_passed() -> None:
    paces = {"asr": pace(0.05, 100), "nmt": pace(0.4, 10)}
    assert capacity(paces, ONE_EACH, 10, 3600.0) == (10, pytest.approx(2.5))
