"""How long utterances stay: a mean for each priority and weight, which no single one turns over."""

from __future__ import annotations

import pytest

from engine.gateway.ledger import USUAL, Part
from engine.gateway.stays import Stays


def test_the_first_is_all_that_is_known_and_of_others_nothing() -> None:
    made = Stays()
    made.ended(USUAL, 10.0)
    assert made.usual_s(USUAL) == 10.0
    assert made.usual_s(Part(USUAL.rank, 2)) is None


def test_one_short_stay_among_many_long_ones_changes_little_and_many_all() -> None:
    made = Stays()
    for _ in range(20):
        made.ended(USUAL, 10.0)
    made.ended(USUAL, 0.0)
    assert 5.0 < made.usual_s(USUAL) < 10.0
    for _ in range(20):
        made.ended(USUAL, 0.0)
    assert made.usual_s(USUAL) == pytest.approx(0.0, abs=0.1)
