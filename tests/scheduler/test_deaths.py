"""Deaths of workers: who is suspect and for how long, what is charged, and what a dead one's last words still do."""

from __future__ import annotations

from typing import Any

from ipc.messages import Condemn, Here, Loaded, Loading, Silent
from tests.scheduler.world import DEADLINES, World, text_stage


def started(*stages: Any, **fields: Any) -> World:
    world = World(*stages, **fields)
    world.start_all()
    world.open()
    return world


def kill_and_restart(world: World, role: str, times: int = 1) -> None:
    for _ in range(times):
        world.kill(role)
        world.start(role)


# ---------------------------------------------------------------- poison


def test_the_first_death_and_two_more_are_no_poison():
    """The first one makes it suspect and costs nothing; of those while it runs alone it may cause two."""
    world = started(text_stage("a"))
    world.admit(0)
    kill_and_restart(world, "a@cpu/0", 3)
    assert not world.outcomes
    world.run_everything()
    assert world.ended() == {("s", 0): "ok"}


def test_the_third_charge_is_poison():
    world = started(text_stage("a"))
    world.admit(0)
    kill_and_restart(world, "a@cpu/0", 4)
    assert world.ended() == {("s", 0): "error(poison)"}
    assert "3 times while it ran alone" in world.outcomes[0].outcome.error


def test_what_was_charged_at_one_stage_is_forgiven_at_the_next():
    world = started(text_stage("a"), text_stage("b"))
    world.admit(0)
    kill_and_restart(world, "a@cpu/0", 3)
    world.done(world.peer("a@cpu/0"))
    kill_and_restart(world, "b@cpu/0", 3)
    world.run_everything()
    assert world.ended() == {("s", 0): "ok"}


def test_who_was_suspect_at_one_stage_is_batched_with_others_at_the_next():
    world = started(text_stage("a"), text_stage("b", max_batch=2), send_ahead=0)
    for index in range(3):
        world.admit(index)
    world.done(world.peer("a@cpu/0"))  # keeps b busy
    kill_and_restart(world, "a@cpu/0")
    for _ in range(2):
        world.done(world.peer("a@cpu/0"))
    world.done(world.peer("b@cpu/0"))
    (batch,) = world.core.book.workers["b@cpu/0"].batches
    assert sorted(batch.jobs.values()) == [("s", 1), ("s", 2)]


# ---------------------------------------------------------------- lives


def test_late_words_of_a_dead_worker_begin_nothing():
    world = started(text_stage("a"))
    dead = world.peer("a@cpu/0")
    world.kill("a@cpu/0")
    world.core.handle(dead, Loaded(""), world.now)
    world.admit(0)
    assert not world.board[dead], "a run was sent to a process that is no more"


def test_what_is_known_of_lives_does_not_grow_with_them():
    world = started(text_stage("a"))
    world.admit(0)
    for _ in range(20):
        world.kill("a@cpu/0")
        world.core.handle("supervisor", Silent("a@cpu/0", world.lives["a@cpu/0"] + 1, "loading"), world.now)
        world.start("a@cpu/0")
    fleet = world.core.fleet
    assert fleet.find(world.peer("a@cpu/0")) is not None
    assert len(fleet._by_peer) == 1 and not fleet.watchdog._awaited


# ---------------------------------------------------------------- a pause of the whole node


def pause(world: World, seconds: float) -> None:
    """Nobody ran for so long. Then somebody else has a run that is soon over its limit, so that all are looked at."""
    world.now += seconds
    world.core.fleet.watchdog.forgive(seconds)
    world.open("quick", pipeline=("quick",))
    world.admit(0, "quick", budget_ms=100_000)
    world.advance(0.2)
    assert [c.worker for c in world.messages(Condemn, "supervisor")] == ["quick@cpu/0"]


def test_a_run_has_as_much_more_time_as_the_node_was_stopped():
    world = World(text_stage("a", timeout_base_s=5.0), text_stage("quick", timeout_base_s=0.1))
    world.start_all()
    world.open()
    world.admit(0, budget_ms=100_000)
    world.advance(4.0)
    pause(world, 30.0)
    world.advance(0.7)
    assert len(world.messages(Condemn, "supervisor")) == 1
    world.advance(0.2)
    assert world.messages(Condemn, "supervisor")[-1].worker == "a@cpu/0"


def test_a_load_has_as_much_more_time_as_the_node_was_stopped():
    world = World(text_stage("a"), text_stage("quick", timeout_base_s=0.1))
    world.start("quick@cpu/0")
    for message in (Here(), Loading()):
        world.core.handle("a@cpu/0#1", message, world.now)
    world.advance(DEADLINES.load_timeout_s - 1.0)
    pause(world, 30.0)
    world.advance(0.7)
    assert len(world.messages(Condemn, "supervisor")) == 1
    world.advance(0.2)
    assert world.messages(Condemn, "supervisor")[-1].worker == "a@cpu/0"
