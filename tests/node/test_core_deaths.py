"""The death of scheduler, gateway or arbiter costs time: no outcome is lost, doubled or out of order."""

from __future__ import annotations

import importlib.util
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, identities, kill, process_of, wait_until

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_client.py"
COUNT = 40
CORES = ("scheduler", "gateway", "arbiter")


def carry(node: Node, victims: tuple[str, ...], count: int = COUNT, after: int = 5) -> list:
    """Submit ``count`` utterances; each victim is killed once ``after`` more outcomes have come."""
    marks, outcomes, left = Marks(), [], list(victims)
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
            if left and index % (count // (len(victims) + 1)) == after:
                kill(process_of(node, left.pop(0))["pid"])
        outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not left and not marks.mixed_up
    return outcomes


@pytest.mark.parametrize("victim", CORES)
def test_killing_it_under_load_loses_nothing_and_restarts_nobody_else(victim: str) -> None:
    with Node(config(sleep_ms=10.0)) as node:
        before = identities(node)
        outcomes = carry(node, (victim,))
        wait_until(lambda: victim in identities(node) and identities(node)[victim] != before[victim])
        after = identities(node)
    assert_in_order(outcomes)
    assert [(o.outcome, o.code) for o in outcomes] == [("ok", "")] * COUNT
    assert {role for role in before if before[role] != after[role]} == {victim}


@pytest.mark.parametrize("victims", [("scheduler", "gateway"), ("gateway", "scheduler")])
def test_one_after_the_other_they_are_each_other_s_memory(victims: tuple[str, ...]) -> None:
    with Node(config(sleep_ms=15.0)) as node:
        outcomes = carry(node, victims, count=120)
        again = carry(node, ())
    assert_in_order(outcomes)
    assert {o.outcome for o in outcomes} == {"ok"} and {o.outcome for o in again} == {"ok"}


def test_results_that_nobody_had_read_are_made_again_by_the_last_stage_alone() -> None:
    with Node(config(sleep_ms=1.0)) as node:
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(8):
                session.submit(marks.make("t", index))
            wait_until(lambda: node.stats()["scheduler"]["completed"] == 8)  # and none acknowledged: we do not read
            kill(process_of(node, "gateway")["pid"])
            outcomes = list(session.outcomes(timeout_s=30))
            runs = {role: row["utterances"] for role, row in node.stats()["scheduler"]["workers"].items()}
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert_in_order(outcomes)
    assert {o.outcome for o in outcomes} == {"ok"} and not marks.mixed_up
    assert runs["asr@cpu/0"] == 8 and 8 <= runs["tts@cpu/0"] <= 16


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", ["gateway", "scheduler"])
def test_very_much_is_handed_over_as_well_as_little(victim: str) -> None:
    """More than a link's frame, and more than one read, takes."""
    sessions, each = 30, 8
    with Node(config(sleep_ms=1.0, out_bytes=4_000)) as node, ExitStack() as ends:
        marks, open_ = Marks(), []
        for number in range(sessions):
            client = ends.enter_context(node.client())
            session = client.session(source="en", target="de", tag=f"t{number}")
            for index in range(each):
                session.submit(marks.make(f"t{number}", index))
            open_.append(session)
        wait_until(lambda: node.stats()["scheduler"]["completed"] == sessions * each)  # and none acknowledged
        kill(process_of(node, victim)["pid"])
        for session in open_:
            outcomes = list(session.outcomes(timeout_s=30))
            assert [(o.index, o.outcome) for o in outcomes] == [(index, "ok") for index in range(each)]
            for outcome in outcomes:
                marks.compare(session.tag, outcome)
        assert not marks.mixed_up
        wait_until(lambda: [death["role"] for death in node.stats()["deaths"]] == [victim])
        wait_until(lambda: node.stats()["health"]["ready"])
        for session in open_:
            session.submit(marks.make(session.tag, each))
        for session in open_:
            assert [(o.index, o.outcome) for o in session.outcomes(timeout_s=30)] == [(each, "ok")]


def test_a_node_without_its_optional_stage_goes_on_without_it_after_the_scheduler_s_death() -> None:
    broken = {"repair": [{"index": -1, "action": "bad_model", "text": "broken file"}]}
    with Node(config(cues=broken, stages={"repair": {"required": False}})) as node:
        kill(process_of(node, "scheduler")["pid"])
        wait_until(lambda: node.stats()["scheduler"].get("handed_over") and node.stats()["health"]["ready"])
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(3):
                session.submit(marks.make("t", index), budget_s=10.0)
            outcomes = list(session.outcomes(timeout_s=30))
    assert [(o.outcome, o.code) for o in outcomes] == [("ok", "")] * 3


@pytest.mark.timeout(120)
def test_a_stopped_worker_does_not_keep_a_new_scheduler_from_using_the_memory() -> None:
    """Until it has spoken or died nobody knows what it uses; it is ended in the time that a run has."""
    limits = {"asr": {"instances": 2, "timeout_base_s": 1.0, "timeout_per_audio": 0.0}}
    rings = {"gateway": 128 * 65_536}
    with Node(config(stages=limits, deadlines={"silent_s": 1.0}, rings=rings)) as node:
        wait_until(lambda: node.stats()["scheduler"]["workers"]["asr@cpu/1"]["state"] == "loaded")
        kill(process_of(node, "asr@cpu/1")["pid"], signal.SIGSTOP)
        kill(process_of(node, "scheduler")["pid"])
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(200):  # more than the ring holds
                session.submit(marks.make("t", index))
            outcomes = list(session.outcomes(timeout_s=30))
        assert [death["role"] for death in node.stats()["deaths"]] == ["scheduler", "asr@cpu/1"]
    assert {o.outcome for o in outcomes} == {"ok"}


def test_when_both_die_at_once_the_client_library_submits_again_what_has_no_outcome() -> None:
    with Node(config(sleep_ms=15.0)) as node:
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(60):
                session.submit(marks.make("t", index))
                if index == 25:
                    for victim in ("scheduler", "gateway"):
                        kill(process_of(node, victim)["pid"])
            outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert_in_order(outcomes)
    assert {o.outcome for o in outcomes} == {"ok"} and not marks.mixed_up


def test_a_slot_that_a_worker_reads_outlives_its_session_and_the_gateway() -> None:
    """Sessions of the next gateway have other ids, so nobody gives back a slot that is not his."""
    with Node(config(sleep_ms={"asr": 1500.0}, node={"window": 8})) as node:
        marks = Marks()
        with node.client() as client:
            with client.session(source="en", target="de", tag="s") as session:
                session.submit(marks.make("s", 0))
                wait_until(lambda: node.stats()["scheduler"]["workers"]["asr@cpu/0"]["on_board"] == 1)
                session.cancel(0)
                assert [o.code for o in session.outcomes(timeout_s=10)] == ["cancelled"]
                first = session.id
        kill(process_of(node, "gateway")["pid"])
        with node.client() as client, client.session(source="en", target="de", tag="s") as session:
            for index in range(2):
                session.submit(marks.make("s", index))
            outcomes = list(session.outcomes(timeout_s=30))
            assert session.id != first
        for outcome in outcomes:
            marks.compare("s", outcome)
        assert [o.outcome for o in outcomes] == ["ok", "ok"] and not marks.mixed_up
        wait_until(lambda: node.stats()["gateway"]["ring"]["free"] == node.stats()["gateway"]["ring"]["blocks"])


@pytest.mark.parametrize("hook", ["gateway.copied=kill@6", "scheduler.decided=kill@20"])
def test_a_death_while_the_node_drains_loses_nothing_either(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", hook)
    with Node(config(sleep_ms=300.0, deadlines={"drain_s": 15.0, "flush_s": 3.0})) as node:
        marks = Marks()
        client = node.client()
        client.start()
        session = client.session(source="en", target="de", tag="t")
        for index in range(6):
            session.submit(marks.make("t", index))
        wait_until(lambda: node.stats()["scheduler"]["total"] == 6)
        os.kill(node.pid, signal.SIGTERM)
        outcomes = list(session.outcomes(timeout_s=30))
        assert [(o.index, o.outcome, o.code) for o in outcomes] == [(index, "ok", "") for index in range(6)]
        client.close()
        assert node.wait(20.0) == 0


@pytest.mark.parametrize("nth", [1, 2])
def test_the_plain_client_asks_again_for_a_session_that_died_with_the_gateway(
    nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"gateway.read=kill@{nth}")
    marks = Marks()
    utterances = [marks.make("t", index).tobytes() for index in range(5)]
    with Node(config()) as node:
        heard = [m["index"] for m, _ in plain_client().translate(node.endpoint, utterances, source="en", target="de")]
        assert len(node.stats()["deaths"]) == 1
    assert heard == list(range(5))


def test_the_documented_plain_client_notices_nothing_either() -> None:
    """Scheduler, then gateway, while it alone puts the node under load."""
    marks = Marks()
    utterances = [marks.make("t", index).tobytes() for index in range(150)]
    with Node(config(sleep_ms=15.0)) as node:
        victims, heard = ["scheduler", "gateway"], []
        for message, samples in plain_client().translate(node.endpoint, utterances, source="en", target="de"):
            heard.append((message["index"], message["outcome"], message["texts"]["asr"], samples is not None))
            if victims and len(heard) % 40 == 20:
                kill(process_of(node, victims.pop(0))["pid"])
    assert not victims
    assert heard == [(index, "ok", marks.sent["t", index], True) for index in range(150)]


def plain_client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_client", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_node_ends_when_the_budget_of_one_it_cannot_do_without_is_spent() -> None:
    with Node(config(node={"restart_budget": 1})) as node:
        first = process_of(node, "arbiter")["pid"]
        kill(first)
        second = wait_until(lambda: next((r["pid"] for r in node.stats()["processes"]
                                          if r["role"] == "arbiter" and r["pid"] != first), 0))  # fmt: skip
        kill(second)
        assert node.wait(10.0) == 1
