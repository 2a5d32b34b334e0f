"""Outcomes leave in index order whatever the stages do; and one session may use every instance."""

from __future__ import annotations

import os
import time

import pytest

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, wait_until

SPREAD = {name: {"sigma": 0.6, "seed": 11} for name in ("asr", "repair", "nmt", "tts")}
TWO = {name: {"instances": 2} for name in SPREAD}
SLEEPS = {"asr": 8.0, "repair": 1.0, "nmt": 8.0, "tts": 1.0}


def play(node: Node, count: int, window: int = 64) -> list:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t", window=window) as session:
        for index in range(count):
            session.submit(marks.make("t", index, 2000))
        outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    return outcomes


def test_one_session_on_two_instances_of_each_stage_comes_back_in_order() -> None:
    with Node(config(SLEEPS, options=SPREAD, stages=TWO)) as node:
        outcomes = play(node, 120)
        wait_until(lambda: node.stats()["gateway"]["held_max"] >= 3)
    assert_in_order(outcomes)
    assert len(outcomes) == 120


def test_the_order_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DRAGOMAN_TEST_HOOKS", "gateway.reorder=bypass")
    with Node(config(SLEEPS, options=SPREAD, stages=TWO)) as node:
        marks, received = Marks(), []
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(60):
                session.submit(marks.make("t", index, 2000))
            received = [o.index for o in session.outcomes(timeout_s=30)]
    assert received != sorted(received)


def test_two_result_slots_window_eight_and_a_failing_first_index_do_not_deadlock() -> None:
    block = 65_536
    cues = {"tts": [{"index": 0, "action": "fail", "attempt": n, "retry": True} for n in (1, 2)]}
    settings = config(2.0, out_bytes=block, cues=cues, rings={"tts": 2 * block}, deadlines={"retry_delay_s": 1.0})
    with Node(settings) as node:
        begun = time.monotonic()
        outcomes = play(node, 8, window=8)
        elapsed = time.monotonic() - begun
        wait_until(lambda: node.stats()["completed_requests"] == 8)
        slots = node.stats()["slots"]["tts@cpu/0"]
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * 8
    assert 1.4 < elapsed < 5.0, "index 0 waits half a second and one second; the others must not add to it"
    assert slots["free"] == slots["blocks"] == 2 and slots["pinned"] == 0


def test_a_thousand_submits_before_the_first_read() -> None:
    with Node(config(0.5, out_bytes=2000)) as node:
        outcomes = play(node, 1000, window=8)
    assert_in_order(outcomes)
    assert {o.outcome for o in outcomes} == {"ok"} and len(outcomes) == 1000
