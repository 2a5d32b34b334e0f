"""Extra workers of a stage: whole nodes whose recognition is slow, on a stand-in GPU and on the CPU.

What the node promises: one more works while work piles up and there is room, it leaves first when anybody wants the
memory, and by itself when there is nothing to do; every utterance ends well, and nobody else ever has to leave for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.leasing import Lease
from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

pytestmark = pytest.mark.timeout(120)
on_gpu = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

RUN = 100 * MIB
VRAM = {"asr": 2 * GIB, "repair": GIB // 2, "nmt": GIB // 2, "tts": GIB // 2}
NEEDS = {name: nbytes + RUN + CONTEXT for name, nbytes in VRAM.items()}
QUICK = {"settle_s": 2.0, "turn_s": 60.0}
REGULAR, EXTRA = "asr@{}/0", "asr@{}/1"
SLOW_MS = {"asr": 40.0}
MANY = 120  # utterances: nearly five seconds of recognition by one worker


def slow(device: str = "cuda:0", promote_s: float = 1.0, **stages: dict[str, Any]) -> dict[str, Any]:
    """Recognition takes 40 ms an utterance, and may have a second worker, which leaves when idle for ``promote_s``."""
    sizes = {} if device == "cpu" else VRAM
    own: dict[str, dict[str, Any]] = {name: {"devices": [device], **stages.get(name, {})} for name in VRAM}
    for name in sizes:
        own[name]["estimate_bytes"] = NEEDS[name]
    own["asr"]["max_instances"] = 2
    options = {name: {"vram_bytes": nbytes, "vram_run_bytes": RUN} for name, nbytes in sizes.items()}
    return config(SLOW_MS, options=options, stages=own, deadlines=QUICK | {"promote_s": promote_s})


def room_for(extra_bytes: int) -> int:
    """Size of a GPU that holds all regular workers, and so much beside them when they are there."""
    return round((sum(NEEDS.values()) + extra_bytes) / 0.9) + 64 * MIB


def carry(node: Node, count: int, then: Callable[[int], None] = lambda index: None, pipeline: str = "full") -> int:
    """So many utterances, all of which end well; returns how many workers of recognition were seen at most."""
    marks, outcomes, most = Marks(), [], 0
    device = next(iter(instances(node)))
    with node.client() as client, client.session(source="en", target="de", tag="t", pipeline=pipeline) as session:
        for index in range(count):
            session.submit(marks.make("t", index))
        for outcome in session.outcomes(timeout_s=60):
            marks.compare("t", outcome)
            outcomes.append(outcome)
            if outcome.index % 10 == 0:
                most = max(most, instances(node)[device]["running"])
            then(outcome.index)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * count
    return most


def instances(node: Node) -> dict[str, dict[str, Any]]:
    """By device, as soon as there is a scheduler that says so."""
    stages = wait_until(lambda: node.stats()["scheduler"].get("stages"))
    return stages["asr"]["instances"]


def running(node: Node, device: str = "cuda:0") -> int:
    return instances(node)[device]["running"]


def leased(node: Node) -> set[str]:
    """Whose leases are alive; the book may wait for a part of what the dead had."""
    return {row["worker"].partition("#")[0] for row in node.stats()["leases"] if row["state"] in ("granted", "held")}


def lives(node: Node) -> dict[str, int]:
    return {row["role"]: row["incarnation"] for row in node.stats()["processes"]}


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=on_gpu), "cpu"])
def test_a_backlog_brings_a_second_worker_that_leaves_when_it_is_done(
    device: str,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(room_for(NEEDS["asr"]), context_bytes=CONTEXT), lag_s=0.1) if device != "cpu" else None
    with Node(slow(device)) as node:
        before = lives(node)
        assert instances(node)[device] == {"running": 1, "min": 1, "max": 2, "why": ""}
        assert EXTRA.format(device) not in leased(node)
        assert carry(node, MANY) == 2
        assert node.stats()["scheduler"]["workers"][EXTRA.format(device)]["utterances"] > 0
        wait_until(lambda: running(node, device) == 1)
        wait_until(lambda: EXTRA.format(device) not in leased(node))
        assert "idle for 1 s" in instances(node)[device]["why"]
        after = wait_until(lambda: (found := lives(node)).keys() == before.keys() and found)
        assert {role for role in before if before[role] != after[role]} == {EXTRA.format(device)}
        assert node.stats()["deaths"] == [] and node.stats()["scheduler"]["parked"] == 1
    assert driver is None or driver.get(0, "out_of_memory") == 0


@on_gpu
def test_without_room_for_it_there_is_none(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    driver = gpus(Gpu(room_for(NEEDS["asr"] // 2), context_bytes=CONTEXT), lag_s=0.1)
    with Node(slow()) as node:
        assert node.stats()["placement"]["verdict"] == "all resident"
        before = lives(node)
        assert carry(node, MANY) == 1
        assert instances(node)["cuda:0"]["why"] == "", "and none was called"
        assert lives(node) == before
    assert driver.get(0, "out_of_memory") == 0


@on_gpu
def test_it_leaves_for_a_program_that_takes_a_lease_and_stays_away(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    driver = gpus(Gpu(room_for(NEEDS["asr"]), context_bytes=CONTEXT), lag_s=0.1)
    with Node(slow(promote_s=20.0)) as node:
        before = lives(node)
        leases: list[Lease] = []

        def lease(index: int) -> None:
            if not leases and running(node) == 2:
                taken = Lease(NEEDS["asr"], "cuda:0", wait_s=30.0, ctl_endpoint=node.ctl_endpoint)
                leases.append(taken.acquire())
                wait_until(lambda: running(node) == 1 and EXTRA.format("cuda:0") not in leased(node))
            elif leases:
                assert EXTRA.format("cuda:0") not in leased(node)

        assert carry(node, MANY, lease) == 2
        assert leases and "needs its memory" in instances(node)["cuda:0"]["why"]
        leases[0].release()
        after = wait_until(lambda: (found := lives(node)).keys() == before.keys() and found)
        assert {role for role in before if before[role] != after[role]} == {EXTRA.format("cuda:0")}
        assert node.stats()["deaths"] == []
    assert driver.get(0, "out_of_memory") == 0


@on_gpu
def test_it_leaves_for_another_model_that_comes_back(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    """There was room for both, until another program took it."""
    driver = gpus(Gpu(room_for(NEEDS["asr"]), context_bytes=CONTEXT), lag_s=0.1)
    with Node(slow(promote_s=20.0, tts={"keep_alive_s": 0.2})) as node:
        wait_until(lambda: not [role for role in leased(node) if role.startswith("tts")])
        translated: list[int] = []

        def squeeze(index: int) -> None:
            if not translated and running(node) == 2:
                driver.set_foreign(0, NEEDS["tts"] + len(VRAM) * RUN)
                wait_until(lambda: node.stats()["arbiter"]["devices"]["cuda:0"]["grantable_bytes"] < NEEDS["tts"])
                translated.append(carry(node, 3))

        assert carry(node, MANY, squeeze, "transcribe") == 2
        assert translated, "a second worker came"
        assert "needs its memory" in instances(node)["cuda:0"]["why"]
        changed = {role for role, life in lives(node).items() if life > 1}
        assert changed == {EXTRA.format("cuda:0"), "tts@cuda:0/0"} and node.stats()["deaths"] == []
    assert driver.get(0, "out_of_memory") == 0


@on_gpu
@pytest.mark.parametrize("victim", ["scheduler", "arbiter", "gateway", EXTRA.format("cuda:0")])
def test_nothing_is_lost_when_it_or_who_called_it_dies(victim: str, gpus: Callable[..., Driver]) -> None:  # noqa: F811
    driver = gpus(Gpu(room_for(NEEDS["asr"]), context_bytes=CONTEXT), lag_s=0.1)
    with Node(slow()) as node:
        killed: list[int] = []

        def harm(index: int) -> None:
            if not killed and running(node) == 2:
                killed.append(process_of(node, EXTRA.format("cuda:0"))["incarnation"])
                kill(process_of(node, victim)["pid"])

        assert carry(node, MANY, harm) == 2
        assert killed and {death["role"] for death in node.stats()["deaths"]} == {victim}
        wait_until(lambda: running(node) == 1)
        wait_until(lambda: EXTRA.format("cuda:0") not in leased(node))
        assert process_of(node, REGULAR.format("cuda:0"))["incarnation"] == 1
    assert driver.get(0, "out_of_memory") == 0
