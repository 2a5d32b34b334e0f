"""Out of memory all the same, with whole nodes on the stand-in driver: what is tried, what it costs, what is told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine import ctl
from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

pytestmark = [pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc"),
              pytest.mark.timeout(120)]  # fmt: skip
NEVER_S = 1000.0
STAGES = ("asr", "repair", "nmt", "tts")
Gpus = Callable[..., Driver]


def node_config(stage: dict[str, Any], options: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """nmt on the GPUs, the other stages on the CPU."""
    rest = {"retry_delay_s": NEVER_S, "oom_hold_s": 0.05, "budget_base_s": 300.0, **rest}
    return config(
        sleep_ms=2.0, stages={"nmt": {"devices": ["auto"], **stage}}, options={"nmt": options}, deadlines=rest
    )


def carry(node: Node, count: int, then: Callable[[int], None] = lambda index: None) -> list[Any]:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
            then(index)
        outcomes = list(session.outcomes(timeout_s=60.0))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    return outcomes


def steps(outcome: Any) -> list[tuple[str, str]]:
    return [(record["device"], record["state"]) for record in outcome.stages if record["stage"] == "nmt"]


def test_a_batch_is_halved_inside_the_lease_and_costs_no_retry(gpus: Gpus) -> None:  # noqa: F811
    """Its estimate is for one item; there is memory for two."""
    driver = gpus(Gpu(2 * GIB, context_bytes=CONTEXT))
    stage = {"max_batch": 4, "min_batch": 4, "max_delay_ms": 5000.0, "estimate_bytes": GIB}
    with Node(node_config(stage, {"vram_bytes": 500 * MIB, "vram_run_bytes": 500 * MIB})) as node:
        pid = process_of(node, "nmt@cuda:0/0")["pid"]
        outcomes = carry(node, 4)
        stats = wait_until(lambda: (s := node.stats()) and s["oom"].get("run", 0) and s)
        assert process_of(node, "nmt@cuda:0/0")["pid"] == pid
        assert stats["scheduler"]["retries"] == 0 and stats["oom"]["run"] == 1
    assert driver.get(0, "out_of_memory") == 1
    assert [o.outcome for o in outcomes] == ["ok"] * 4


def test_another_gpu_with_room_is_tried_at_once(gpus: Gpus) -> None:  # noqa: F811
    """The wait for a whole try would be longer than this test."""
    driver = gpus(Gpu(2 * GIB, context_bytes=CONTEXT), Gpu(4 * GIB, context_bytes=CONTEXT))
    with Node(node_config({"estimate_bytes": GIB}, {"vram_bytes": 500 * MIB, "vram_run_bytes": GIB})) as node:
        driver.set_foreign(0, GIB)
        outcomes = carry(node, 4)
        assert node.stats()["health"]["ready"]
    assert [o.outcome for o in outcomes] == ["ok"] * 4
    tried = [steps(outcome) for outcome in outcomes]
    assert [("cuda:0", "retrying"), ("cuda:1", "completed")] in tried
    assert all(way[-1] == ("cuda:1", "completed") for way in tried)


def test_whole_tries_go_on_until_there_is_memory(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(Gpu(2 * GIB, context_bytes=CONTEXT))
    options = {"vram_bytes": 500 * MIB, "vram_run_bytes": GIB}
    with Node(node_config({"estimate_bytes": GIB}, options, retry_delay_s=1.0)) as node:
        driver.set_foreign(0, GIB)
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            session.submit(marks.make("t", 0))
            wait_until(lambda: node.stats()["oom"].get("run", 0) >= 2)
            wait_until(lambda: len([x for x in node.stats()["arbiter"]["waiting"] if "nmt" in x["worker"]]) == 1)
            driver.set_foreign(0, 0)
            (outcome,) = session.outcomes(timeout_s=60.0)
        assert outcome.outcome == "ok" and steps(outcome)[-1] == ("cuda:0", "completed")


def test_and_then_it_is_no_vram_with_the_reason_while_the_worker_lives(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(Gpu(2 * GIB, context_bytes=CONTEXT))
    options = {"vram_bytes": 500 * MIB, "vram_run_bytes": GIB}
    with Node(node_config({"estimate_bytes": GIB}, options, retry_delay_s=0.1)) as node:
        pid = process_of(node, "nmt@cuda:0/0")["pid"]
        driver.set_foreign(0, GIB)
        (outcome,) = carry(node, 1)
        assert (outcome.outcome, outcome.code) == ("error", "no_vram") and "out of memory" in outcome.error
        assert "nmt@cuda:0/0 asked for" in outcome.error
        assert len(steps(outcome)) == 4, "once, and three whole tries"
        driver.set_foreign(0, 0)
        assert [o.outcome for o in carry(node, 3)] == ["ok"] * 3
        assert process_of(node, "nmt@cuda:0/0")["pid"] == pid


def test_a_larger_lease_is_held_for_a_model_that_needs_more_than_was_thought(gpus: Gpus) -> None:  # noqa: F811
    """What it lacks is then granted to nobody else."""
    driver = gpus(Gpu(4 * GIB, context_bytes=CONTEXT))
    options = {"vram_bytes": 500 * MIB, "vram_run_bytes": GIB}
    with Node(node_config({"estimate_bytes": GIB}, options, retry_delay_s=1.0)) as node:
        driver.set_foreign(0, 4 * GIB - driver.truth(0) - 512 * MIB)
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            session.submit(marks.make("t", 0))
            wait_until(lambda: node.stats()["oom"].get("run", 0) >= 1)
            driver.set_foreign(0, 0)
            (outcome,) = session.outcomes(timeout_s=60.0)
        assert outcome.outcome == "ok"
        leases = wait_until(lambda: (found := [x for x in node.stats()["leases"]
                                               if "nmt" in x["worker"]]) and len(found) > 1 and found)  # fmt: skip
        assert [lease["nbytes"] for lease in leases][:2] == [GIB, GIB // 4]
        assert {lease["state"] for lease in leases} == {"held"}


def leases_of(node: Node, role: str) -> list[int]:
    return [row["nbytes"] for row in node.stats()["leases"] if row["worker"].startswith(role)]


def test_what_a_passing_shortage_had_it_lease_besides_is_given_back(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(Gpu(4 * GIB, context_bytes=CONTEXT))
    options = {"vram_bytes": 500 * MIB, "vram_run_bytes": GIB}
    with Node(node_config({"estimate_bytes": 2 * GIB}, options, retry_delay_s=1.0, oom_window_s=2.0)) as node:
        driver.set_foreign(0, 4 * GIB - driver.truth(0) - 512 * MIB)
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            session.submit(marks.make("t", 0))
            wait_until(lambda: node.stats()["oom"].get("run", 0) >= 1)
            driver.set_foreign(0, 0)
            wait_until(lambda: leases_of(node, "nmt") == [2 * GIB, GIB // 2])
            (outcome,) = session.outcomes(timeout_s=60.0)
        assert outcome.outcome == "ok"
        wait_until(lambda: carry(node, 1) and leases_of(node, "nmt") == [2 * GIB])


def test_a_model_that_takes_more_than_it_leased_is_named_and_leases_that_the_next_time(gpus: Gpus) -> None:  # noqa: F811
    gpus(Gpu(8 * GIB, context_bytes=CONTEXT))
    with Node(node_config({"estimate_bytes": GIB}, {"vram_bytes": 3 * GIB})) as node:
        true = 3 * GIB + CONTEXT
        wait_until(lambda: node.stats()["arbiter"]["devices"]["cuda:0"]["over_lease_bytes"] == true - GIB)
        (said,) = [line for line in ctl.ask(node.ctl_endpoint, "log")["lines"] if "were granted" in line]
        assert "WARNING" in said and "nmt@cuda:0/0 has 3.3 GiB on cuda:0, 1.0 GiB were granted" in said
        ctl.ask(node.ctl_endpoint, "restart", target="nmt@cuda:0/0")
        wait_until(lambda: leases_of(node, "nmt") == [true])
        assert [o.outcome for o in carry(node, 2)] == ["ok"] * 2


def test_a_load_that_runs_out_is_another_process_the_next_time_and_leaves_nothing_behind(gpus: Gpus) -> None:  # noqa: F811
    """Its memory is there, but in pieces too small for it."""
    driver = gpus(Gpu(4 * GIB, context_bytes=CONTEXT))
    options = {"vram_bytes": GIB, "vram_run_bytes": 100 * MIB}
    with Node(node_config({"estimate_bytes": 2 * GIB}, options, retry_delay_s=0.3)) as node:
        driver.set(0, largest_block_bytes=512 * MIB)
        ctl.ask(node.ctl_endpoint, "restart", target="nmt@cuda:0/0")
        stats = wait_until(lambda: (s := node.stats()) and s["oom"].get("load", 0) >= 2 and s)
        why = stats["scheduler"]["workers"]["nmt@cuda:0/0"]["waiting_for"]
        assert re.search(r"load of nmt@cuda:0/0: 2\.\d GiB granted, [34]\.\d GiB were free then", why), (
            "needed and there"
        )
        assert stats["deaths"] == [] and stats["oom_errors"] == stats["oom"]["load"]
        wait_until(lambda: driver.truth(0) == 0)
        driver.set(0, largest_block_bytes=0)
        wait_until(lambda: [row for row in node.stats()["processes"]
                            if row["role"] == "nmt@cuda:0/0" and row["phase"] == "loaded"])  # fmt: skip
        assert [o.outcome for o in carry(node, 3)] == ["ok"] * 3


def test_a_sticky_cuda_error_costs_a_process_and_no_utterance_but_the_one_it_comes_of(gpus: Gpus) -> None:  # noqa: F811
    gpus(Gpu(4 * GIB, context_bytes=CONTEXT))
    cues = [{"index": 3, "action": "sticky", "attempt": 1}, {"index": 6, "action": "sticky", "attempt": 0}]
    options = {"vram_bytes": GIB, "cues": cues}
    with Node(node_config({"estimate_bytes": 2 * GIB, "max_batch": 2}, options)) as node:
        outcomes = carry(node, 10)
        deaths = node.stats()["deaths"]
        assert {death["role"] for death in deaths} == {"nmt@cuda:0/0"}
        assert all("illegal memory access" in death["reason"] for death in deaths)
        wait_until(lambda: node.stats()["health"]["ready"])
    ended = {o.index: o.outcome + (f"({o.code})" if o.code else "") for o in outcomes}
    assert ended.pop(6) == "error(poison)"
    assert set(ended.values()) == {"ok"} and len(ended) == 9
