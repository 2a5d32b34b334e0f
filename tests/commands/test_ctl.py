"""``ctl --wait``: when an order is carried out, by the node's statistics."""

from __future__ import annotations

from typing import Any

import pytest

from engine.commands.ctl import undone


def stats(pending: list[str], **phases: str) -> dict[str, Any]:
    """``phases``: by the number of asr's worker."""
    rows = [{"role": f"asr@cpu/{number[1:]}", "phase": phase} for number, phase in phases.items()]
    return {"operators": {"pending": pending}, "processes": rows}


def test_a_load_is_done_when_each_of_its_workers_has_its_model() -> None:
    answer = {"verb": "load", "workers": ["asr@cpu/0", "asr@cpu/1"]}
    assert undone(stats([], _0="loaded", _1="loading"), answer) == ["asr@cpu/1"]
    assert undone(stats([], _0="loaded"), answer) == ["asr@cpu/1"], "it has no process"
    assert undone(stats([], _0="loaded", _1="loaded"), answer) == []


@pytest.mark.parametrize("verb", ["drain", "unload", "restart"])
def test_another_order_is_done_when_none_of_its_workers_is_on_its_way(verb: str) -> None:
    answer = {"verb": verb, "workers": ["asr@cpu/0"]}
    assert undone(stats(["asr@cpu/0", "asr@cpu/1"], _0="loaded"), answer) == ["asr@cpu/0"]
    assert undone(stats(["asr@cpu/1"], _0="empty"), answer) == []
