"""A device without room for all models: they take turns, and every utterance ends well all the same."""

from __future__ import annotations

import pytest

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until

SETTLED = {"settle_s": 0.5, "turn_s": 0.5}


def turns(max_models: int, **rest) -> dict:
    """Four simulated stages on a device that takes fewer models than that."""
    rest.setdefault("deadlines", SETTLED)
    return config(sleep_ms=5.0, devices={"max_models": max_models}, **rest)


def carry(node: Node, count: int, pipeline: str = "full") -> list:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t", pipeline=pipeline) as session:
        for index in range(count):
            session.submit(marks.make("t", index))
        outcomes = list(session.outcomes(timeout_s=60))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    return outcomes


@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_models", [1, 2, 3])
def test_models_that_have_no_room_together_take_turns(max_models: int) -> None:
    with Node(turns(max_models)) as node:
        stats = node.stats()
        assert "models take turns" in stats["mode_reason"], "the node says so from the start"
        assert stats["mode"] == ("turns" if max_models == 1 else "pipelined")
        assert stats["health"]["ready"]
        outcomes = carry(node, 30)
        stats = node.stats()
        assert len(stats["arbiter"]["leases"]) <= max_models
        assert stats["deaths"] == [], "leaving for others is no death"
    assert {o.outcome for o in outcomes} == {"ok"}


def test_a_node_with_room_for_all_moves_nobody() -> None:
    with Node(config()) as node:
        carry(node, 10)
        assert node.stats()["scheduler"]["parked"] == 0


@pytest.mark.timeout(120)
def test_a_stage_whose_work_never_ends_cannot_keep_others_out() -> None:
    """One session transcribes without a pause; the other's translations get their turn all the same."""
    with Node(turns(1)) as node, node.client() as busy, node.client() as other:
        marks = Marks()
        with (
            busy.session(source="en", tag="b", pipeline="transcribe") as endless,
            other.session(source="en", target="de", tag="t") as session,
        ):
            for index in range(3):
                session.submit(marks.make("t", index))
            outcomes = []
            number = 0
            while len(outcomes) < 3:
                endless.submit(marks.make("b", number))
                number += 1
                outcomes += list(session.core.ended)
                session.core.ended.clear()
                other.pump()
                assert number < 5000
            assert {o.outcome for o in outcomes} == {"ok"}
            assert {o.outcome for o in endless.outcomes(timeout_s=30)} == {"ok"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", ["scheduler", "arbiter", "gateway"])
def test_turns_go_on_when_who_arranges_them_dies(victim: str) -> None:
    with Node(turns(2)) as node:
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(30):
                session.submit(marks.make("t", index))
                if index == 15:
                    kill(process_of(node, victim)["pid"])
            outcomes = list(session.outcomes(timeout_s=60))
        assert [death["role"] for death in node.stats()["deaths"]] == [victim]
    assert_in_order(outcomes)
    assert {o.outcome for o in outcomes} == {"ok"}


def test_a_pinned_model_stays() -> None:
    with Node(turns(2, stages={"asr": {"pinned": True}})) as node:
        before = process_of(node, "asr@cpu/0")["incarnation"]
        carry(node, 10)
        assert process_of(node, "asr@cpu/0")["incarnation"] == before
        assert node.stats()["scheduler"]["parked"] > 0


def test_a_model_that_nobody_has_needed_for_a_while_leaves_and_comes_back() -> None:
    with Node(config(stages={"tts": {"keep_alive_s": 0.3}})) as node:
        wait_until(lambda: node.stats()["scheduler"]["stages"]["tts"]["parked"] == 1)
        wait_until(lambda: not [x for x in node.stats()["arbiter"]["leases"] if x["worker"].startswith("tts")])
        assert node.stats()["health"]["ready"], "a stage that rests is well"
        assert {o.outcome for o in carry(node, 3)} == {"ok"}
