"""A device that is lost, a worker that cannot be killed, a context server that all share: what the supervisor does."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from engine.boot import WorkerPlan
from engine.exits import PARKED
from engine.supervisor.events import Exited, StopAsked, Tick, Warn
from engine.supervisor.lifecycle import Lifecycle, Phase
from engine.supervisor.orders import Orders
from engine.supervisor.roster import Post, Roster, Signal, Spawn, State
from ipc.errors import DragomanError
from ipc.messages import Alive, Condemn, Gone, Quarantine, Ready, Report, Serving
from tests.supervisor.test_lifecycle import LIMITS, World, health, stage_row

ON_0, ALSO_0, ON_1 = "asr@cuda:0/0", "nmt@cuda:0/0", "asr@cuda:1/0"
LOST = Quarantine("cuda:0", "GPU is lost")
WHY = "cuda:0 is quarantined: GPU is lost"


class Gpus(World):
    """A node with workers on two GPUs, that serves."""

    def __init__(self, shared: tuple[str, ...] = (), restart_budget: int = 5) -> None:
        self.now = 0.0
        roles = ("arbiter", "scheduler", "gateway", ON_0, ALSO_0, ON_1)
        self.life = Lifecycle(Roster(roles, LIMITS, restart_budget), {}, LIMITS, (), shared=shared)
        self.do(Tick())
        for role in roles:
            self.say(role, Alive("loaded" if "@" in role else "running"))
        self.serving()
        self.say("scheduler", Report({"stages": {"asr": stage_row()}}))

    def serving(self) -> World:
        self.say("scheduler", Ready("pipelined", ""))
        self.say("gateway", Serving(("ipc://client",)))
        return self

    def state(self, role: str) -> State:
        return self.life.roster[role].state

    def news(self, to: str) -> list[Gone]:
        return [a.message for a in self.actions if isinstance(a, Post) and a.role == to and isinstance(a.message, Gone)]

    def signalled(self, actions: list[Any] | None = None) -> list[tuple[str, int]]:
        found = self.actions if actions is None else actions
        return [(a.role, a.number) for a in found if isinstance(a, Signal)]

    def said(self) -> list[str]:
        return [a.text for a in self.actions if isinstance(a, Warn)]

    def spawned(self) -> list[str]:
        return [a.role for a in self.do(Tick()) if isinstance(a, Spawn)]


def test_workers_of_a_lost_device_are_ended_for_good_and_nobody_else() -> None:
    world = Gpus()
    world.say("arbiter", LOST)
    assert world.signalled() == [(ON_0, signal.SIGKILL), (ALSO_0, signal.SIGKILL)]  # no stacks of who did nothing wrong
    world.do(Exited(ON_0, -9))
    for peer in ("scheduler", "arbiter"):
        (gone,) = world.news(peer)
        assert (gone.role, gone.final, gone.reason) == (ON_0, True, WHY)
    assert world.state(ON_0) is State.SPENT and world.spawned() == [] and world.state(ON_1) is State.UP
    assert world.life.phase is Phase.SERVING
    told = health(world)
    assert told["ready"] and WHY in told["notes"][0] and "nvidia-smi --gpu-reset" in told["notes"][0]


def test_the_same_loss_told_again_is_no_news() -> None:
    world = Gpus()
    world.say("arbiter", LOST)
    assert not world.say("arbiter", LOST)


def test_one_that_was_about_to_come_back_does_not() -> None:
    world = Gpus()
    world.do(Exited(ON_0, -9))
    assert world.state(ON_0) is State.WAITING
    world.say("arbiter", LOST)
    (gone,) = world.news("scheduler")
    assert (gone.role, gone.incarnation, gone.final, gone.reason) == (ON_0, 1, True, WHY)
    assert world.spawned() == []


@pytest.mark.parametrize("code", [PARKED, 0, -6])
def test_however_a_worker_there_ends_no_other_follows(code: int) -> None:
    world = Gpus()
    world.say("arbiter", LOST)
    world.do(Exited(ALSO_0, code))
    assert world.state(ALSO_0) is State.SPENT and world.news("scheduler")[0].final


def test_a_new_scheduler_is_told_of_the_dead_and_of_the_unkillable() -> None:
    world = Gpus()
    world.say("arbiter", LOST)
    world.do(Exited(ON_0, -6))
    world.wait(LIMITS.abort_s + LIMITS.stuck_s + 1)
    assert world.state(ALSO_0) is State.STUCK
    for role in ("scheduler", "arbiter"):
        world.do(Exited(role, -9))
        world.do(Tick())
        world.say(role, Alive("running"))
        stuck = [gone for gone in world.news(role) if gone.stuck]
        assert [(gone.role, gone.incarnation, gone.final) for gone in stuck] == [(ALSO_0, 1, True)]


def test_what_cannot_be_killed_is_said_and_comes_back_when_it_has_ended_after_all() -> None:
    world = Gpus()
    world.say("scheduler", Condemn(ON_0, 1, "hung"))
    actions = world.wait(LIMITS.abort_s + LIMITS.stuck_s + 1)
    assert world.signalled(actions) == [(ON_0, signal.SIGKILL)] and world.state(ON_0) is State.STUCK
    told = [a.message for a in actions if isinstance(a, Post) and isinstance(a.message, Gone)]
    assert [(gone.stuck, gone.final) for gone in told] == [(True, True)] * 2  # to the scheduler and to the arbiter
    assert "cannot be killed" in health(world)["notes"][0]
    world.do(Exited(ON_0, -9))
    assert world.news("scheduler") == [] and [gone.stuck for gone in world.news("arbiter")] == [False]
    assert world.spawned() == [ON_0] and not health(world)["notes"]


def test_a_stuck_worker_does_not_hold_up_the_stop() -> None:
    world = Gpus()
    world.say("scheduler", Condemn(ON_0, 1, "hung"))
    world.wait(LIMITS.abort_s + LIMITS.stuck_s + 1)
    world.do(StopAsked(at_once=True))
    assert (ON_0, signal.SIGKILL) not in world.signalled()
    for role in ("arbiter", "scheduler", "gateway", ALSO_0, ON_1):
        world.do(Exited(role, -9))
    assert world.life.phase is Phase.ENDED


def test_a_fault_under_a_shared_context_server_is_a_fault_of_all_there_and_charged_to_one() -> None:
    world = Gpus(shared=("cuda:0",), restart_budget=1)
    world.do(Exited(ON_0, -11))
    assert world.signalled() == [(ALSO_0, signal.SIGKILL)] and world.state(ON_1) is State.UP
    world.do(Exited(ALSO_0, -9))
    (gone,) = world.news("scheduler")
    assert not gone.final and "share one context server (MPS)" in gone.reason
    assert world.signalled() == []  # its end is nobody's fault
    assert world.spawned() == [ON_0, ALSO_0]
    assert len(world.life.roster[ON_0].restarts) == 1 and not world.life.roster[ALSO_0].restarts


def test_who_leaves_as_it_was_told_breaks_nobody() -> None:
    world = Gpus(shared=("cuda:0",))
    world.do(Exited(ON_0, PARKED))
    assert world.signalled() == []


def test_without_a_shared_server_a_fault_is_one_worker_s() -> None:
    world = Gpus()
    world.do(Exited(ON_0, -11))
    assert world.signalled() == []


def test_the_way_back_is_a_restart_but_for_a_device_that_is_lost() -> None:
    world = Gpus(restart_budget=0)
    rows = {
        "asr": stage_row(workers=2, lost=1, lost_why="killed"),
        "nmt": stage_row(workers=1, lost=1, loaded=0, lost_why="x"),
    }
    world.do(Exited(ON_1, -9))
    assert "it stays away: run_node.py ctl restart asr tries again" in world.said()[-1]
    world.say("scheduler", Report({"stages": rows}))
    assert health(world)["stages"]["asr"]["note"].endswith(": killed; run_node.py ctl restart asr tries again")
    world.say("arbiter", LOST)
    world.do(Exited(ALSO_0, -6))
    assert "it stays away: reset it (nvidia-smi --gpu-reset)" in world.said()[-1]
    world.say("scheduler", Report({"stages": rows}))
    assert health(world)["reason"].endswith(
        "stage nmt: x; reset it (nvidia-smi --gpu-reset), then start the node again"
    )


def test_a_lost_device_that_is_drained_no_more_is_not_said_to_be_used_again() -> None:
    world = Gpus()
    world.life.orders = Orders([WorkerPlan(ON_0, "asr", "cuda:0")], {}, ["cuda:0"])
    world.life.order("drain", "cuda:0", world.now)
    used = world.life.order("resume", "cuda:0", world.now)
    assert used.roles == [ON_0] and not used.lost
    world.life.order("drain", "cuda:0", world.now)
    world.say("arbiter", LOST)
    order = world.life.order("resume", "cuda:0", world.now)
    assert not order.roles and not world.life.orders.drained
    assert order.lost.startswith("GPU is lost; reset it (nvidia-smi --gpu-reset)")


def test_no_operator_restarts_what_a_lost_device_has_ended() -> None:
    world = Gpus()
    homes = ((role, *role.partition("/")[0].split("@")) for role in (ON_0, ALSO_0, ON_1))
    world.life.orders = Orders([WorkerPlan(*home) for home in homes], {}, ("cuda:0", "cuda:1"))
    world.say("arbiter", LOST)
    world.do(Exited(ON_0, -6))
    with pytest.raises(DragomanError, match="cannot start: cuda:0 is quarantined"):
        world.life.order("restart", ON_0, world.now)
    with pytest.raises(DragomanError, match="cannot load: cuda:0 is quarantined: GPU is lost; reset it"):
        world.life.order("load", "nmt", world.now)
    assert world.life.order("restart", "asr", world.now).roles == [ON_1]  # of the stage what can be
    assert world.state(ON_0) is State.SPENT
