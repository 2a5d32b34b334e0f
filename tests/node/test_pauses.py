"""Stopped processes, a paused node, a starved machine: nobody is killed who only had no time, and no order is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from engine.node import Node
from tests.node.living import state
from tests.node.rehearsal import STAGES, Marks, assert_in_order, config, identities, process_of, wait_until

BURNERS = 50


def carry(node: Node, count: int, then=lambda index: None) -> list:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
            then(index)
        outcomes = list(session.outcomes(timeout_s=60))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert_in_order(outcomes)
    assert not marks.mixed_up
    return outcomes


def test_a_node_that_was_paused_as_a_whole_wakes_up_in_peace() -> None:
    """Longer than any limit on silence, and than a run may take."""
    limits = {name: {"timeout_base_s": 1.0, "timeout_per_audio": 0.0} for name in STAGES}
    with Node(config(sleep_ms=100.0, deadlines={"silent_s": 1.0}, stages=limits)) as node:
        before = identities(node)
        pids = [node.pid, *(pid for pid, _ in before.values())]

        def pause(index: int) -> None:
            if index == 6:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(3.0)
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)

        outcomes = carry(node, 12, pause)
        time.sleep(1.5)  # whoever is to be condemned would be by now
        assert node.stats()["deaths"] == [] and identities(node) == before
    assert {o.outcome for o in outcomes} == {"ok"}


@pytest.mark.parametrize("point", ["scheduler.read", "scheduler.decided"])
def test_nor_does_it_matter_where_the_scheduler_stands_when_the_node_is_paused(
    point: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not only in its waiting, but with news read, or decided upon, and an old clock in mind."""
    points = tmp_path / "points"
    points.touch()
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"failpoints.file={points}")
    limits = {name: {"timeout_base_s": 1.0, "timeout_per_audio": 0.0} for name in STAGES}
    with Node(config(sleep_ms=100.0, deadlines={"silent_s": 1.5}, stages=limits)) as node:
        before = identities(node)
        pids = [node.pid, *(pid for pid, _ in before.values())]
        points.write_text(f"{point}=stop@6")
        os.kill(before["scheduler"][0], signal.SIGUSR1)
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            marks = Marks()
            for index in range(12):
                session.submit(marks.make("t", index))
                client.pump(0.02)
                if state(before["scheduler"][0]) == "T":
                    break
            wait_until(lambda: state(before["scheduler"][0]) == "T")
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(3.0)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            outcomes = list(session.outcomes(timeout_s=60))
        time.sleep(1.5)  # whoever is to be condemned would be by now
        assert node.stats()["deaths"] == [] and identities(node) == before
    assert {o.outcome for o in outcomes} == {"ok"}


@pytest.mark.parametrize("stage", ["asr", "tts"])
def test_a_worker_that_was_stopped_and_goes_on_changes_nothing(stage: str) -> None:
    """Its run is over its limit, so it is condemned and replaced. In the other test it wakes in time, and works on."""
    with Node(config(sleep_ms=20.0, stages={stage: {"timeout_base_s": 0.5, "timeout_per_audio": 0.0}},
                     deadlines={"abort_s": 1.0})) as node:  # fmt: skip
        pid = process_of(node, f"{stage}@cpu/0")["pid"]

        def stop(index: int) -> None:
            if index == 3:
                os.kill(pid, signal.SIGSTOP)

        outcomes = carry(node, 10, stop)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        dead = [death["role"] for death in node.stats()["deaths"]]
    assert dead == [f"{stage}@cpu/0"]
    assert {o.outcome for o in outcomes} == {"ok"}


@pytest.mark.parametrize("stage", ["asr", "tts"])
def test_a_worker_that_was_stopped_for_a_while_works_on(stage: str) -> None:
    with Node(config(sleep_ms=20.0)) as node:
        before = identities(node)

        def freeze(index: int) -> None:
            if index == 3:
                os.kill(before[f"{stage}@cpu/0"][0], signal.SIGSTOP)
                time.sleep(1.0)
                os.kill(before[f"{stage}@cpu/0"][0], signal.SIGCONT)

        outcomes = carry(node, 10, freeze)
        assert identities(node) == before
    assert {o.outcome for o in outcomes} == {"ok"}


def test_a_worker_that_hangs_is_replaced_in_time_also_when_the_scheduler_dies_meanwhile() -> None:
    limits = {name: {"timeout_base_s": 1.0, "timeout_per_audio": 0.0} for name in STAGES}
    deadlines = {"silent_s": 0.5, "heartbeat_s": 0.1, "abort_s": 0.2, "load_timeout_s": 300.0}
    with Node(config(sleep_ms=20.0, stages=limits, deadlines=deadlines)) as node:
        before = identities(node)

        def harm(index: int) -> None:
            if index == 3:
                os.kill(before["nmt@cpu/0"][0], signal.SIGSTOP)
                os.kill(before["scheduler"][0], signal.SIGKILL)

        outcomes = carry(node, 10, harm)  # within the deadline of the utterances, which is 30 s
        assert [death["role"] for death in node.stats()["deaths"]] == ["scheduler", "nmt@cpu/0"]
    assert {o.outcome for o in outcomes} == {"ok"}


def test_runs_and_loads_longer_than_silence_may_be_are_nobody_s_fault() -> None:
    """Also when the scheduler dies meanwhile, and the new one has never heard of them."""
    limits = {"silent_s": 0.6, "heartbeat_s": 0.1}
    with Node(config(sleep_ms={"asr": 1800.0}, deadlines=limits)) as node:
        before = identities(node)

        def kill_scheduler(index: int) -> None:
            if index == 1:
                time.sleep(0.3)  # a run is under way
                os.kill(before["scheduler"][0], signal.SIGKILL)

        outcomes = carry(node, 3, kill_scheduler)
        assert [death["role"] for death in node.stats()["deaths"]] == ["scheduler"]
    assert {o.outcome for o in outcomes} == {"ok"}


def test_while_the_supervisor_is_stopped_utterances_go_on_and_when_it_goes_on_nobody_is_killed() -> None:
    with Node(config(deadlines={"silent_s": 0.5, "heartbeat_s": 0.1})) as node:
        before = identities(node)
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            os.kill(node.pid, signal.SIGSTOP)
            try:
                marks = Marks()
                outcomes = []
                for index in range(10):  # for longer than anybody may be silent
                    session.submit(marks.make("t", index))
                    outcomes += session.outcomes(timeout_s=10)
                    time.sleep(0.2)
            finally:
                os.kill(node.pid, signal.SIGCONT)
        assert [o.outcome for o in outcomes] == ["ok"] * 10
        time.sleep(1.0)  # whoever is to be condemned would be by now
        assert identities(node) == before and node.stats()["deaths"] == []


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Programs that want all the processor there is."""
    running = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.mark.timeout(120)
def test_fifty_programs_that_burn_the_processor_kill_nobody() -> None:
    with Node(config(sleep_ms=2.0, deadlines={"heartbeat_s": 0.5})) as node:
        before = identities(node)
        with burners(BURNERS):
            outcomes = carry(node, 10)
            time.sleep(5.0)  # longer than a process may be silent
        wait_until(lambda: node.stats()["health"]["ready"])
        assert identities(node) == before and node.stats()["deaths"] == []
    assert {o.outcome for o in outcomes} == {"ok"}
