"""Stages without room degrade and come back: whole nodes on a stand-in GPU that another program shares.

What the node promises: every utterance ends well, whoever did it worse than asked for says so, and when the other
program has left, so has the degradation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc"),
    pytest.mark.timeout(120),
]

RUN = 100 * MIB
VRAM = {"asr": GIB // 2, "repair": 4 * GIB, "nmt": GIB // 2, "tts": GIB // 2}
QUICK = {"lease_wait_s": 0.5, "promote_s": 0.5, "settle_s": 2.0, "turn_s": 0.5}
ON_THE_CPU = "repair: on the cpu, its own device has no room"


def needs(nbytes: int) -> int:
    return nbytes + RUN + CONTEXT


def on_a_gpu(stages: dict[str, dict[str, Any]] | None = None, vram: dict[str, int] | None = None) -> dict[str, Any]:
    """Four stages on one GPU, with estimates that are right."""
    sizes = VRAM | (vram or {})
    return config(
        options={name: {"vram_bytes": nbytes, "vram_run_bytes": RUN} for name, nbytes in sizes.items()},
        stages={
            name: {"devices": ["cuda:0"], "estimate_bytes": needs(nbytes), **(stages or {}).get(name, {})}
            for name, nbytes in sizes.items()
        },
        deadlines=QUICK,
    )


def smaller(nbytes: int) -> dict[str, Any]:
    """A variant that takes so much."""
    return {"options": {"vram_bytes": nbytes}, "estimate_bytes": needs(nbytes)}


def carry(node: Node, count: int, then: Callable[[int], None] = lambda index: None) -> list[Any]:
    """So many utterances, all of which end well; how they were degraded."""
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
            then(index)
        outcomes = list(session.outcomes(timeout_s=60))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    assert [o.outcome for o in outcomes] == ["ok"] * count
    return [o.degraded for o in outcomes]


def worker(node: Node, role: str) -> dict[str, Any]:
    return node.stats()["scheduler"]["workers"][role]


def is_back(node: Node, role: str, variant: int = 0) -> bool:
    row = worker(node, role)
    return row["state"] == "loaded" and row["variant"] == variant


def test_repair_goes_to_the_cpu_and_back_to_the_gpu_when_the_other_program_has_left(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(context_bytes=CONTEXT), lag_s=0.1)
    driver.set_foreign(0, 4 * GIB)
    with Node(on_a_gpu({"repair": {"cpu_fallback": True}})) as node:
        placed = node.stats()["placement"]
        assert placed["waits"][0]["stage"] == "repair", "the plan says who waits for whom"
        assert set(carry(node, 10)) == {ON_THE_CPU}
        assert "repair@cpu/0" in node.stats()["scheduler"]["stages"]["repair"]["degraded"]
        driver.set_foreign(0, 0)
        wait_until(lambda: is_back(node, "repair@cuda:0/0"))
        wait_until(lambda: not node.stats()["scheduler"]["stages"]["repair"]["degraded"])
        assert set(carry(node, 10)) == {""}
        stats = node.stats()
        assert stats["scheduler"]["promoted"] == 1 and stats["deaths"] == [] and stats["oom_errors"] == 0
    assert driver.get(0, "out_of_memory") == 0


@pytest.mark.parametrize("victim", ["arbiter", "scheduler"])
def test_nothing_is_lost_when_who_arranges_it_dies(
    victim: str,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(context_bytes=CONTEXT), lag_s=0.1)
    driver.set_foreign(0, 4 * GIB)
    with Node(on_a_gpu({"repair": {"cpu_fallback": True}})) as node:

        def harm(index: int) -> None:
            if index in (5, 25):
                kill(process_of(node, victim)["pid"])
            if index == 15:
                driver.set_foreign(0, 0)
                wait_until(lambda: is_back(node, "repair@cuda:0/0"))

        said = carry(node, 40, harm)
        assert said[0] == ON_THE_CPU and said[-1] == ""
        assert {death["role"] for death in node.stats()["deaths"]} == {victim}
    assert driver.get(0, "out_of_memory") == 0


def test_a_smaller_variant_serves_until_there_is_room_for_the_whole_model(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(context_bytes=CONTEXT), lag_s=0.1)
    driver.set_foreign(0, 3840 * MIB)
    with Node(on_a_gpu({"repair": {"variants": [smaller(GIB // 2)]}})) as node:
        assert node.stats()["placement"]["verdict"] == "all resident when quantised"
        assert set(carry(node, 10)) == {f"repair: with vram_bytes={GIB // 2}"}
        driver.set_foreign(0, 0)
        wait_until(lambda: is_back(node, "repair@cuda:0/0"))
        assert set(carry(node, 10)) == {""}
        assert node.stats()["deaths"] == []
    assert driver.get(0, "out_of_memory") == 0


def test_a_load_that_finds_too_little_is_followed_by_a_smaller_variant(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    """Its estimate was wrong, and the promise of its variant is kept by a new process."""
    gpus(Gpu(context_bytes=CONTEXT), lag_s=0.1)
    wrong = {"estimate_bytes": GIB, "variants": [smaller(GIB)]}
    with Node(on_a_gpu({"nmt": wrong}, vram={"nmt": 20 * GIB, "repair": GIB})) as node:
        assert set(carry(node, 5)) == {f"nmt: with vram_bytes={GIB}"}
        assert process_of(node, "nmt@cuda:0/0")["incarnation"] == 2 and node.stats()["deaths"] == []


def test_models_that_fit_together_only_when_some_are_smaller_begin_so(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(context_bytes=CONTEXT), lag_s=0.1)
    with Node(on_a_gpu({"nmt": {"variants": [smaller(GIB)]}}, vram={"nmt": 2 * GIB, "repair": 3 * GIB})) as node:
        stats = node.stats()
        assert stats["placement"]["text"] == f"all resident when quantised: nmt with vram_bytes={GIB}"
        assert set(carry(node, 10)) == {f"nmt: with vram_bytes={GIB}"}
        assert node.stats()["scheduler"]["parked"] == 0, "and nobody leaves for anybody"
    assert driver.get(0, "out_of_memory") == 0
