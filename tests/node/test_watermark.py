"""Nobody ever gets somebody else's bytes: marks survive kills, cancels, expiries and rings that wrap."""

from __future__ import annotations

import os
import signal

import pytest

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until

BLOCK = 65_536
SAMPLES = 40_000  # 80,000 bytes: two blocks
SMALL = {"gateway": 16 * BLOCK, "tts": 4 * BLOCK}
SHORT = {"node": {"max_utterance_s": 5.0, "window": 16}, "rings": SMALL}


def play(node: Node, sessions: int, count: int, *, cancel_every: int = 0, expire_every: int = 0) -> tuple[dict, Marks]:
    marks, got = Marks(), {}
    with node.client() as client:
        open_ = {f"s{n}": client.session(source="en", target="de", tag=f"s{n}") for n in range(sessions)}
        for index in range(count):
            for tag, session in open_.items():
                short = bool(expire_every) and index % expire_every == 1
                session.submit(marks.make(tag, index, SAMPLES), budget_s=0.015 if short else None)
                if cancel_every and index % cancel_every == 2:
                    session.cancel(index)
        for tag, session in open_.items():
            got[tag] = list(session.outcomes(timeout_s=60))
    for tag, outcomes in got.items():
        for outcome in outcomes:
            marks.compare(tag, outcome)
    return got, marks


def test_rings_so_small_that_they_wrap_many_times() -> None:
    with Node(config(1.0, out_bytes=100_000, **SHORT)) as node:
        got, marks = play(node, sessions=3, count=60)
        wait_until(lambda: all(ring["pinned"] == 0 for ring in node.stats()["slots"].values()))
    assert sum(len(o) for o in got.values()) * 2 * BLOCK >= 10 * SMALL["gateway"], "the rings did not wrap ten times"
    for outcomes in got.values():
        assert_in_order(outcomes)
        assert {o.outcome for o in outcomes} == {"ok"}
    assert not marks.mixed_up


def test_marks_survive_kills_cancels_and_expiries() -> None:
    cues = {
        "asr": [{"index": n, "action": "kill", "attempt": 1, "session": "s0"} for n in (5, 20)],
        "tts": [{"index": n, "action": "kill", "attempt": 1, "session": "s1"} for n in (9, 30)],
    }
    with Node(config(2.0, out_bytes=100_000, cues=cues, **SHORT)) as node:
        got, marks = play(node, sessions=3, count=40, cancel_every=7, expire_every=9)
    seen = {o.code for outcomes in got.values() for o in outcomes}
    assert {"cancelled", "expired"} <= seen, f"the run was too kind: {seen}"
    for outcomes in got.values():
        assert_in_order(outcomes)
        assert len(outcomes) == 40
    assert not marks.mixed_up


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With slots freed one pin too early, a gateway that is slow to copy finds others' bytes, and the marks show it."""
    monkeypatch.setitem(os.environ, "DRAGOMAN_TEST_HOOKS", "scheduler.slots=free_early")
    slow = config({"tts": 40.0}, out_bytes=100_000, deadlines={"silent_s": 20.0}, **SHORT)
    with Node(slow) as node:
        gateway = process_of(node, "gateway")["pid"]
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t", window=16) as session:
            for index in range(12):
                session.submit(marks.make("t", index, SAMPLES))
            outcomes = [next(session.outcomes(timeout_s=30))]
            kill(gateway, signal.SIGSTOP)
            wait_until(lambda: node.stats()["total_requests"] > 4 and node.stats()["active"] == 0)
            kill(gateway, signal.SIGCONT)
            outcomes += session.outcomes(timeout_s=30)
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert marks.mixed_up or any(o.outcome != "ok" for o in outcomes)
