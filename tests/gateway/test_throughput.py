"""How fast utterances leave: a mean of the newest ends, over the time in which there was enough to do."""

from __future__ import annotations

import pytest

from engine.gateway.throughput import Throughput


def test_what_was_told_serves_until_enough_have_ended() -> None:
    made = Throughput()
    for _ in range(5):
        assert made.per_s(7.0) == 7.0
        made.worked(0.5)
        made.ended(places=4)
    assert made.per_s(7.0) == pytest.approx(2.0)


def test_ends_without_any_time_are_no_pace() -> None:
    made = Throughput()
    for _ in range(100):
        made.ended(places=4)
    assert made.per_s(7.0) == 7.0


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_ends_that_come_in_batches_are_no_faster_for_it(batch: int) -> None:
    made = Throughput()
    for _ in range(100):
        made.worked(1.0)
        for _ in range(batch):
            made.ended(places=2 * batch)
        found = made.per_s(0.0)
    assert found == pytest.approx(batch, rel=0.15)


def test_another_pace_is_known_after_the_node_was_filled_a_few_times() -> None:
    made = Throughput()
    for interval_s in [1.0] * 200 + [0.1] * 100:
        made.worked(interval_s)
        made.ended(places=10)
    assert made.per_s(0.0) == pytest.approx(10.0, rel=0.06)
