"""Cards of 6 to 24 GB: whatever of the four models has room there, no allocation fails and every utterance ends well.

The true device is the stand-in driver's; what the book says of it is not asked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

UTTERANCES = int(os.environ.get("DRAGOMAN_TEST_UTTERANCES", "40"))  # nightly: 500
WEIGHTS = {"asr": 3 * GIB, "repair": 3 * GIB, "nmt": GIB, "tts": GIB // 2}
RUN = 200 * MIB


def on_cards(**rest: Any) -> dict[str, Any]:
    """The four stages wherever there is a GPU, with estimates that are right."""
    return config(
        sleep_ms=3.0,
        options={name: {"vram_bytes": nbytes, "vram_run_bytes": RUN} for name, nbytes in WEIGHTS.items()},
        stages={
            name: {"devices": ["auto"], "estimate_bytes": nbytes + RUN + CONTEXT} for name, nbytes in WEIGHTS.items()
        },
        deadlines={"turn_s": 0.5, "settle_s": 1.0, **rest},
    )


def carry(node: Node, then: Callable[[int], None] = lambda index: None) -> list[Any]:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(UTTERANCES):
            session.submit(marks.make("t", index))
            then(index)
        outcomes = list(session.outcomes(timeout_s=120.0))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    return outcomes


@pytest.mark.timeout(60 + 3 * UTTERANCES)
@pytest.mark.parametrize(
    ("sizes_gib", "by_turns"), [((6,), True), ((8,), True), ((12,), False), ((16,), False), ((24, 24), False)]
)
def test_no_allocation_fails_and_all_ends_well(
    sizes_gib: tuple[int, ...],
    by_turns: bool,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(*(Gpu(total_bytes=size * GIB, context_bytes=CONTEXT) for size in sizes_gib), lag_s=0.1)
    with Node(on_cards()) as node:
        outcomes = carry(node)
        stats = node.stats()
        assert ("take turns" in stats["mode_reason"]) == by_turns
        assert stats["placement"]["verdict"] == ("by turns" if by_turns else "all resident")
        assert bool(stats["scheduler"]["parked"]) == by_turns, "the plan's verdict comes true"
        assert stats["oom_errors"] == 0 and stats["deaths"] == []
    for number in range(len(sizes_gib)):
        assert driver.get(number, "out_of_memory") == 0
        homes = [row["stage"] for row in stats["placement"]["places"] if row["device"] == f"cuda:{number}"]
        all_there = sum(WEIGHTS[name] + CONTEXT for name in homes)
        assert by_turns or driver.get(number, "peak_bytes") >= all_there > 0, "they were all there at once"
    assert {o.outcome for o in outcomes} == {"ok"}


@pytest.mark.timeout(60 + 3 * UTTERANCES)
@pytest.mark.parametrize("victim", ["arbiter", "scheduler", "asr@cuda:0/0"])
def test_nor_when_somebody_dies_while_models_take_turns(
    victim: str,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(total_bytes=8 * GIB, context_bytes=CONTEXT), lag_s=0.3)
    with Node(on_cards()) as node:
        deaths = []

        def harm(index: int) -> None:
            if index % (UTTERANCES // 4) == 5:
                rows = [row for row in node.stats()["processes"] if row["role"] == victim]
                deaths.extend(kill(row["pid"]) for row in rows)

        outcomes = carry(node, harm)
        assert deaths
    assert driver.get(0, "out_of_memory") == 0
    assert {o.outcome for o in outcomes} == {"ok"}


def test_a_program_of_another_user_that_takes_the_card_keeps_models_out_and_breaks_none(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(total_bytes=16 * GIB, context_bytes=CONTEXT))
    with Node(on_cards()) as node:
        runs = len(WEIGHTS) * RUN  # granted and not in use at this moment; who takes that breaks whom it likes
        driver.set_foreign(0, driver.get(0, "total_bytes") - driver.truth(0) - runs - 512 * MIB)
        kill(process_of(node, "nmt@cuda:0/0")["pid"])  # its place is still free when it comes back
        outcomes = carry(node)
    assert driver.get(0, "out_of_memory") == 0
    assert {o.outcome for o in outcomes} == {"ok"}
