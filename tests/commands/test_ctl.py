"""``ctl --wait``: when an order is carried out, by the node's statistics."""

from __future__ import annotations

from typing import Any

import pytest

from engine.commands.ctl import done_words, undone, words


def stats(
    pending: list[str], leases: tuple[str, ...] = (), *, life: int = 2, died: tuple[int, ...] = (), **phases: str
) -> dict[str, Any]:
    """``phases``: by the number of asr's worker, each in this ``life``. ``leases``: their holders. ``died``: lives of
    the first worker that did not end as planned."""
    rows = [{"role": f"asr@cpu/{n[1:]}", "phase": phase, "incarnation": life} for n, phase in phases.items()]
    held = [{"worker": holder, "state": "held"} for holder in leases]
    deaths = [{"role": "asr@cpu/0", "incarnation": life} for life in died]
    return {"operators": {"pending": pending}, "processes": rows, "leases": held, "deaths": deaths}


NOBODY = stats([])


def test_a_load_is_done_when_each_of_its_workers_has_its_model() -> None:
    answer = {"verb": "load", "workers": ["asr@cpu/0", "asr@cpu/1"]}
    assert undone(stats([], _0="loaded", _1="loading"), answer, NOBODY) == ["asr@cpu/1"]
    assert undone(stats([], _0="loaded"), answer, NOBODY) == ["asr@cpu/1"], "it has no process"
    assert undone(stats([], _0="loaded", _1="loaded"), answer, NOBODY) == []


def test_a_load_is_done_too_when_the_model_has_left_again_and_not_when_its_worker_died() -> None:
    answer, before = {"verb": "load", "workers": ["asr@cpu/0"]}, stats([], _0="empty")
    again = stats([], life=3, _0="empty")
    assert undone(again, answer, before) == []
    assert done_words(answer, again) == "loaded: asr@cpu/0; left again already (keep_alive_s): asr@cpu/0"
    assert undone(stats([], life=3, died=(2,), _0="empty"), answer, before) == ["asr@cpu/0"]


@pytest.mark.parametrize("verb", ["drain", "unload", "restart"])
def test_another_order_is_done_when_none_of_its_workers_is_on_its_way(verb: str) -> None:
    answer = {"verb": verb, "workers": ["asr@cpu/0"]}
    assert undone(stats(["asr@cpu/0", "asr@cpu/1"], _0="loaded"), answer, NOBODY) == ["asr@cpu/0"]
    assert undone(stats(["asr@cpu/1"], _0="empty"), answer, NOBODY) == []


def test_a_restart_is_done_when_the_next_process_has_its_model_again() -> None:
    answer = {"verb": "restart", "workers": ["asr@cpu/0"]}
    assert undone(stats([], _0="loading"), answer, stats([], _0="loaded")) == ["asr@cpu/0"]
    assert undone(stats([], _0="loaded"), answer, stats([], _0="loaded")) == []
    assert undone(stats([], _0="empty"), answer, stats([], _0="empty")) == [], "it had none before"


def test_a_drain_is_done_when_the_memory_is_back() -> None:
    answer = {"verb": "drain", "target": "cpu", "workers": ["asr@cpu/0"]}
    assert undone(stats([], ("asr@cpu/0#1",), _0="empty"), answer, NOBODY) == ["asr@cpu/0"]
    assert undone(stats([], ("asr@cuda:0/0#1", "lease@77/1#0"), _0="empty"), answer, NOBODY) == []


def test_a_drain_of_a_lost_device_is_done_when_no_worker_lives_there() -> None:
    answer = {"verb": "drain", "target": "cpu", "workers": ["asr@cpu/0"]}
    lost = {"quarantined": {"cpu": "it has fallen off the bus"}}
    assert undone({**stats(["asr@cpu/0"], _0="running"), **lost}, answer, NOBODY) == ["asr@cpu/0"]
    gone = {**stats(["asr@cpu/0"], ("asr@cpu/0#1",)), **lost}
    assert undone(gone, answer, NOBODY) == []
    assert "which is lost" in done_words(answer, gone)


def test_a_lost_device_that_is_resumed_is_said_to_grant_nothing() -> None:
    answer = {"verb": "resume", "target": "cuda:1", "workers": [], "lost": "GPU is lost; reset it"}
    assert words(answer) == "cuda:1 is drained no more, but it is lost and grants nothing: GPU is lost; reset it"
    assert words({"verb": "resume", "target": "cpu", "workers": ["asr@cpu/0"]}) == "cpu is used again: asr@cpu/0"


def test_an_unload_is_done_when_the_memory_is_back_even_if_the_next_life_has_loaded() -> None:
    answer = {"verb": "unload", "workers": ["asr@cpu/0"]}
    assert undone(stats([], ("asr@cpu/0#1",), _0="loaded"), answer, NOBODY) == ["asr@cpu/0"]
    assert undone(stats([], ("asr@cpu/0#2",), _0="loaded"), answer, NOBODY) == []
