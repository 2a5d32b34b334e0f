"""Whoever waits for a node hears which stage waits, for what, and the order that ends it."""

from __future__ import annotations

from typing import Any

from engine import held_up


def stats(**changed: Any) -> dict[str, Any]:
    row = {"waiting": 1, "loaded": 0, "why": "cpu is drained", **changed}
    return {"scheduler": {"stages": {"asr": row, "nmt": {"waiting": 0, "loaded": 0, "why": "cpu is drained"}}}}


def test_a_drained_device_is_told_with_the_order_that_ends_it() -> None:
    said = "stage asr waits: cpu is drained (run_node.py ctl resume cpu lets it be used)"
    assert list(held_up.lines(stats())) == [said]


def test_another_reason_is_told_as_it_is() -> None:
    assert list(held_up.lines(stats(why="it needs 6 GiB"))) == ["stage asr waits: it needs 6 GiB"]


def test_what_works_or_has_nothing_to_do_waits_for_nothing() -> None:
    for changed in ({"loaded": 1}, {"waiting": 0}, {"why": ""}):
        assert not list(held_up.lines(stats(**changed)))
    assert not list(held_up.lines({}))
