"""A worker's death costs time and nothing else: no client notices, no other process changes."""

from __future__ import annotations

import pytest

from engine.node import Node
from tests.node.rehearsal import STAGES, Marks, assert_in_order, config, identities, kill, process_of, wait_until

HELD = 3  # the index at which the stage holds still until it is killed


def run(node: Node, count: int, on_progress=None) -> tuple[list, Marks]:
    marks = Marks()
    with node.client() as client:
        with client.session(source="en", target="de", tag="t", on_progress=on_progress) as session:
            for index in range(count):
                session.submit(marks.make("t", index))
            outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("t", outcome)
    return outcomes, marks


@pytest.mark.parametrize("stage", STAGES)
def test_killing_a_worker_while_it_processes_loses_nothing(stage: str) -> None:
    with Node(config(cues={stage: [{"index": HELD, "action": "hang", "attempt": 1}]})) as node:
        before = identities(node)
        killed = []

        def watch(progress) -> None:
            held = progress.stage == stage and progress.index == HELD and progress.state == "processing"
            if held and not killed:
                killed.append(process_of(node, f"{stage}@cpu/0")["pid"])
                kill(killed[0])

        outcomes, marks = run(node, 12, watch)
        after = identities(node)
    assert killed, "the stage never said that it was processing"
    assert [o.outcome for o in outcomes] == ["ok"] * 12 and not marks.mixed_up
    assert_in_order(outcomes)
    attempts = [record["attempt"] for record in outcomes[HELD].stages if record["stage"] == stage]
    assert max(attempts) >= 2
    victim = f"{stage}@cpu/0"
    assert before[victim] != after[victim]
    assert {r: p for r, p in before.items() if r != victim} == {r: p for r, p in after.items() if r != victim}


def test_killing_a_worker_with_a_batch_sent_ahead_runs_both_again() -> None:
    with Node(config(cues={"nmt": [{"index": 0, "action": "hang", "attempt": 1}]})) as node:
        before, marks = identities(node), Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(6):
                session.submit(marks.make("t", index))
            wait_until(lambda: node.stats()["scheduler"]["workers"]["nmt@cpu/0"]["on_board"] == 2)
            kill(process_of(node, "nmt@cpu/0")["pid"])
            outcomes = list(session.outcomes(timeout_s=30))
        after = identities(node)
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * 6 and not marks.mixed_up
    attempts = [max(r["attempt"] for r in o.stages if r["stage"] == "nmt") for o in outcomes]
    assert attempts == [2, 2, 1, 1, 1, 1], "the one that ran and the one sent ahead, and no other"
    assert {role for role in before if before[role] != after[role]} == {"nmt@cpu/0"}


@pytest.mark.parametrize("action", ["segv", "exit"])
def test_any_other_death_is_a_death(action: str) -> None:
    with Node(config(cues={"repair": [{"index": 2, "action": action, "attempt": 1}]})) as node:
        outcomes, _ = run(node, 5)
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * 5


def test_when_all_workers_and_the_arbiter_die_at_once_nothing_is_lost() -> None:
    with Node(config(sleep_ms=10.0)) as node:
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(20):
                session.submit(marks.make("t", index))
                if index == 8:
                    for role, (pid, _) in identities(node).items():
                        if "@" in role or role == "arbiter":
                            kill(pid)
            outcomes = list(session.outcomes(timeout_s=30))
        assert len(node.stats()["deaths"]) == len(STAGES) + 1
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * 20 and not marks.mixed_up


def test_a_hung_worker_is_killed_at_its_time_out_and_its_job_runs_again() -> None:
    cues = {"asr": [{"index": 1, "action": "hang", "attempt": 1}]}
    with Node(config(cues=cues, stages={"asr": {"timeout_base_s": 0.5, "timeout_per_audio": 0.0}})) as node:
        outcomes, _ = run(node, 4)
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * 4
    assert any("hung" in r.get("reason", "") for r in outcomes[1].stages)


def test_utterances_that_kill_every_worker_end_as_poison_and_their_neighbours_do_not() -> None:
    """With the default restart budget: these deaths are the utterances' doing, not the worker's."""
    cues = {"asr": [{"index": index, "action": "kill", "attempt": 0} for index in (1, 3)]}
    with Node(config(cues=cues)) as node:
        outcomes, _ = run(node, 6)
        again, _ = run(node, 1)
    assert_in_order(outcomes)
    assert [o.code or o.outcome for o in outcomes] == ["ok", "poison", "ok", "poison", "ok", "ok"]
    assert [o.outcome for o in again] == ["ok"]


@pytest.mark.timeout(120)
def test_many_that_kill_their_worker_do_not_starve_their_neighbours() -> None:
    """With the waits of a node as it is shipped: a worker that has loaded comes back at once, whatever ends it."""
    guilty, innocent = 6, 6
    cues = {"asr": [{"index": index, "action": "segv", "attempt": 0} for index in range(guilty)]}
    with Node(config(cues=cues, deadlines={"heartbeat_s": 0.5, "backoff_first_s": 0.1})) as node:
        outcomes, _ = run(node, guilty + innocent)
    assert [o.code or o.outcome for o in outcomes] == ["poison"] * guilty + ["ok"] * innocent


@pytest.mark.parametrize("action", ["bad_model", "kill"])
def test_the_node_starts_without_an_optional_stage_that_cannot_load(action: str) -> None:
    broken = {"repair": [{"index": -1, "action": action, "text": "broken file"}]}
    with Node(config(cues=broken, stages={"repair": {"required": False}}, node={"restart_budget": 2})) as node:
        outcomes, _ = run(node, 3)
    assert [o.outcome for o in outcomes] == ["ok"] * 3
    skipped = {r["reason"] for o in outcomes for r in o.stages if r["stage"] == "repair" and r["state"] == "skipped"}
    assert len(skipped) == 1 and next(iter(skipped))
