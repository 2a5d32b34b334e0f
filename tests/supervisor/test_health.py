"""Health comes from what is done, never from a process's being there."""

from __future__ import annotations

from typing import Any

import pytest

from engine.supervisor.events import Exited, Tick
from ipc.messages import Alive, Report, Serving
from tests.supervisor.test_lifecycle import World, health, stage_row


def serving(**report: Any) -> World:
    world = World().serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row()}, **report}))
    assert report or health(world)["ready"]
    return world


def test_a_stage_whose_runs_all_fail_is_not_well_and_one_that_works_again_is() -> None:
    world = serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(failed_in_row=12, last_failure="CUDA error")}}))
    told = health(world)
    assert not told["ready"] and "its last 12 runs failed, the last one with: CUDA error" in told["reason"]
    world.say("scheduler", Report({"stages": {"nmt": stage_row(failed_in_row=3)}}))
    assert health(world)["ready"]


def test_a_model_that_comes_back_from_its_rest_is_well_and_one_that_comes_for_another_reason_is_not() -> None:
    world = serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(loaded=0, called=1)}}))
    assert health(world)["ready"]
    world.say("scheduler", Report({"stages": {"nmt": stage_row(loaded=0, called=1, stalled_s=1000.0)}}))
    assert "made no progress for 1000 s" in health(world)["reason"]
    world.say("scheduler", Report({"stages": {"nmt": stage_row(loaded=0)}}))
    assert not health(world)["ready"]


@pytest.mark.parametrize("phase", ["started", "waiting for its endpoints"])
def test_a_gateway_that_does_not_serve_is_no_health(phase: str) -> None:
    world = serving()
    world.do(Exited("gateway", -9))
    world.do(Tick())
    world.say("gateway", Alive(phase))
    assert health(world)["reason"] == f"gateway does not serve yet ({phase})"
    world.say("gateway", Serving(("ipc://client",)))
    assert health(world)["ready"]


def test_a_scheduler_that_has_told_nothing_yet_is_no_health() -> None:
    world = serving()
    world.do(Exited("scheduler", -9))
    world.do(Tick())
    world.say("scheduler", Alive("running"))
    assert "not reported yet" in health(world)["reason"]
    world.say("scheduler", Report({"stages": {"nmt": stage_row()}}))
    assert health(world)["ready"]


def test_memory_that_stays_unknown_is_no_health_and_names_who_does_not_speak() -> None:
    unknown = {"gateway": ["asr@cpu/0"]}
    assert health(serving(slots_unknown=unknown, slots_unknown_s=1.0))["ready"]
    told = health(serving(slots_unknown=unknown, slots_unknown_s=30.0))
    assert not told["ready"] and "asr@cpu/0 has not said what it uses" in told["reason"]


def test_a_worker_that_will_not_come_back_is_told_although_its_stage_is_well() -> None:
    world = serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(workers=2, lost=1, lost_why="killed")}}))
    told = health(world)
    assert told["ready"] and told["stages"]["nmt"]["note"].startswith(
        "1 of 2 workers will not come back by themselves: killed;"
    )


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"loaded": 0, "parked": 1}, "0 of 2 workers have their model, 1 comes back when there is work"),
        ({"loaded": 0, "parked": 2}, "0 of 2 workers have their model, 2 come back when there is work"),
        ({"loaded": 1, "parked": 1, "lost": 1}, "1 of 2 workers have their model, 1 comes back when there is work"),
    ],
)
def test_workers_without_their_model_are_counted_as_they_are(row: dict[str, int], note: str) -> None:
    world = serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(workers=2, **row)}}))
    assert health(world)["stages"]["nmt"]["note"].endswith(note)


@pytest.mark.parametrize("row", [{"coming": "nmt@cpu/0 loads its model"}, {"why": "needs 3 GB, there are 2"}])
def test_a_stage_between_workers_is_put_down_to_the_one_that_can_come_and_not_to_the_lost_one(
    row: dict[str, str],
) -> None:
    world = serving()
    lost = {"loaded": 0, "workers": 2, "lost": 1, "lost_why": "cuda:1 is quarantined"}
    world.say("scheduler", Report({"stages": {"nmt": stage_row(**lost, **row)}}))
    told = health(world)
    assert told["reason"] == f"stage nmt: {next(iter(row.values()))}"
    assert told["stages"]["nmt"]["note"].startswith("1 of 2 workers will not come back by themselves: cuda:1 is quar")
    world.say("scheduler", Report({"stages": {"nmt": stage_row(**lost)}}))
    assert health(world)["reason"].startswith("stage nmt: cuda:1 is quarantined; ")


def test_a_stage_whose_only_worker_was_lost_while_its_model_was_away_is_not_well() -> None:
    world = serving()
    world.say(
        "scheduler", Report({"stages": {"nmt": stage_row(loaded=0, workers=1, lost=1, parked=0, lost_why="lost")}})
    )
    told = health(world)
    assert not told["ready"] and "stage nmt: lost; " in told["reason"]


def test_a_stage_all_of_whose_devices_are_drained_waits_for_an_operator() -> None:
    world = serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(loaded=0, workers=1, parked=1)}}))
    assert "when there is work" in health(world)["stages"]["nmt"]["note"]
    world.life.orders.drained.add("cpu")
    note = "its work waits, operators have drained cpu: run_node.py ctl resume cpu"
    assert health(world)["stages"]["nmt"]["note"] == note


@pytest.mark.parametrize(("age_ms", "told"), [(-1, False), (1900.0, False), (2100.0, True)])
def test_a_device_that_cannot_be_read_is_told_although_the_node_serves(age_ms: float, told: bool) -> None:
    world = serving()
    world.say("arbiter", Report({"devices": {"cuda:0": {"snapshot_age_ms": age_ms}, "cpu": {"snapshot_age_ms": 9.0}}}))
    world.now += 0.9  # until the next report
    seen = health(world)
    assert seen["ready"]
    assert [note.partition(",")[0] for note in seen["notes"]] == ["device cuda:0 cannot be read"] * told
    assert seen["unreadable"] == ["cuda:0"] * told
    assert not told or "for 3 s" in seen["notes"][0]
