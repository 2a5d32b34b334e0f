"""Promises about the node's life: ready by message, the right death ends it, it stops in order and leaves nobody."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.config import DeadlinesSection
from engine.exits import BOOT_FAILED, PARKED, UNCAUGHT
from engine.supervisor.events import Announce, End, Exited, Heard, HostGone, NotSpawned, Say, StopAsked, Tick, Warn
from engine.supervisor.health import judge
from engine.supervisor.lifecycle import COUNT_S, MOVES, Lifecycle, Phase
from engine.supervisor.roster import LIVING, Post, Roster, Signal, Spawn, State
from ipc.errors import IllegalMove
from ipc.messages import (
    Alive,
    Condemn,
    Drain,
    Drained,
    Failing,
    Flushed,
    Gone,
    Quarantine,
    Ready,
    Report,
    Serve,
    Serving,
    Stop,
    Up,
)  # fmt: skip

LIMITS = DeadlinesSection()
WORKER, OTHER = "asr@cpu/0", "nmt@cpu/0"
ROLES = ("arbiter", "scheduler", "gateway", WORKER, OTHER)


class World:
    """A lifecycle, and what came out of it."""

    def __init__(self, may_fail: tuple[str, ...] = (), restart_budget: int = 5, shared: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        roster = Roster(ROLES, LIMITS, restart_budget)
        self.life = Lifecycle(roster, {"scheduler": "ipc://s"}, LIMITS, may_fail, shared=shared)
        self.actions = self.do(Tick())

    def do(self, event: Any, after: float = 0.0) -> list[Any]:
        self.now += after
        self.actions = self.life.handle(event, self.now)
        self.life.check()
        return self.actions

    def say(self, role: str, message: Any) -> list[Any]:
        return self.do(Heard(role, self.life.roster[role].incarnation, message))

    def posted(self, kind: type) -> list[str]:
        return [a.role for a in self.actions if isinstance(a, Post) and isinstance(a.message, kind)]

    def serving(self) -> World:
        for role in ROLES:
            self.say(role, Alive("loaded" if "@" in role else "running"))
        self.say("scheduler", Ready("pipelined", "why not"))
        self.say("scheduler", Report({}))
        self.say("gateway", Serving(("ipc://client",)))
        return self

    def wait(self, seconds: float) -> list[Any]:
        """Let time pass tick by tick; everybody who lives keeps saying so."""
        actions: list[Any] = []
        for _ in range(round(seconds / LIMITS.heartbeat_s)):
            self.now += LIMITS.heartbeat_s
            for record in self.life.roster.hearing():
                actions += self.life.handle(Heard(record.role, record.incarnation, Alive()), self.now)
            actions += self.do(Tick())
        return actions


def health(world: World) -> dict[str, Any]:
    return judge(world.life, LIMITS, world.now)


def stage_row(**changes: Any) -> dict[str, Any]:
    return {"absent": "", "optional": False, "loaded": 1, "why": "", "stalled_s": 0.0, "stall_limit_s": 25.0, **changes}


@pytest.mark.parametrize(
    ("row", "ready", "reason"),
    [
        ({}, True, ""),
        ({"loaded": 0, "why": "needs 3 GB, there are 2"}, False, "stage nmt: needs 3 GB, there are 2"),
        ({"loaded": 0}, False, "stage nmt: no worker has its model yet"),
        ({"stalled_s": 26.0}, False, "stage nmt: has work and made no progress for 26 s"),
        ({"stalled_s": 24.0}, True, ""),
        ({"loaded": 0, "absent": "not installed"}, True, ""),
        ({"loaded": 0, "optional": True}, True, ""),
    ],
)
def test_health_comes_from_progress(row: dict[str, Any], ready: bool, reason: str) -> None:
    world = World().serving()
    world.say("scheduler", Report({"stages": {"nmt": stage_row(**row)}}))
    assert (health(world)["ready"], health(world)["reason"]) == (ready, reason)
    world.now += 10
    assert not health(world)["ready"], "nobody has been heard for so long"


@pytest.mark.parametrize("start", Phase)
@pytest.mark.parametrize("end", Phase)
def test_a_phase_that_does_not_follow_is_refused(start: Phase, end: Phase) -> None:
    world = World()
    world.life.phase = start
    if end in MOVES[start]:
        world.life._move(end)
        assert world.life.phase is end
    else:
        with pytest.raises(IllegalMove):
            world.life._move(end)
        assert world.life.phase is start


def test_a_newcomer_learns_who_is_there_and_they_learn_of_it() -> None:
    world = World()
    world.say("scheduler", Alive("started"))
    assert world.say("gateway", Alive("started")) == [
        Post("gateway", 1, Up("scheduler", 1, "ipc://s")),
        Post("scheduler", 1, Up("gateway", 1, "")),
    ]
    assert world.say("gateway", Alive("started")) == []


def test_ready_serve_serving_and_only_then_ready() -> None:
    world = World()
    for role in ROLES:
        world.say(role, Alive("started"))
    world.say("scheduler", Report({}))
    world.say("scheduler", Ready("serial", "as configured"))
    assert world.posted(Serve) == ["gateway"] and world.life.phase is Phase.STARTING
    assert world.say("gateway", Serving(("ipc://x",))) == [Announce(("ipc://x",), "serial", "as configured")]
    assert world.life.phase is Phase.SERVING and health(world)["ready"]


def test_a_gateway_that_comes_last_is_told_to_serve_all_the_same() -> None:
    world = World()
    world.say("scheduler", Alive("started"))
    world.say("scheduler", Ready("pipelined", ""))
    assert world.posted(Serve) == []
    world.say("gateway", Alive("started"))
    assert world.posted(Serve) == ["gateway"]
    world.say("gateway", Alive("started"))
    assert world.posted(Serve) == []


def test_a_dead_worker_is_announced_and_comes_back() -> None:
    world = World().serving()
    world.do(Exited(WORKER, -9))
    gone = [a.message for a in world.actions if isinstance(a, Post)]
    assert [(g.role, g.incarnation, g.final) for g in gone] == [(WORKER, 1, False)] * 2
    assert world.posted(Gone) == ["scheduler", "arbiter"]
    assert health(world)["ready"], "a stage is judged by its own report, not by a process"
    assert Spawn(WORKER, 2) in world.do(Tick())
    world.say(WORKER, Alive("started"))
    assert set(world.posted(Up)) == set(ROLES)


def test_a_worker_whose_budget_is_spent_is_gone_for_good_and_the_node_goes_on() -> None:
    world = World(restart_budget=1).serving()
    for life in (1, 2):
        world.do(Exited(WORKER, -9))
        final = [a.message.final for a in world.actions if isinstance(a, Post)]
        assert final == [life == 2] * 2
        world.do(Tick())
        if life == 1:
            world.say(WORKER, Alive("loaded"))
    assert world.life.phase is Phase.SERVING
    assert world.life.roster[WORKER].state is State.SPENT


@pytest.mark.parametrize("role", ["scheduler", "gateway", "arbiter"])
def test_every_process_comes_back_and_is_told_what_it_missed(role: str) -> None:
    world = World().serving()
    world.do(Exited(WORKER, -9))
    world.do(Tick())
    world.say(WORKER, Alive("loaded"))
    world.do(Exited(role, -11))
    assert world.life.phase is Phase.SERVING and f"{role} is not up" in health(world)["reason"]
    assert Spawn(role, 2) in world.do(Tick())
    world.say(role, Alive("started"))
    told = [a.message for a in world.actions if isinstance(a, Post) and a.role == role]
    assert {up.role for up in told if isinstance(up, Up)} == set(ROLES) - {role}
    gone = [(g.role, g.incarnation) for g in told if isinstance(g, Gone)]
    assert gone == ([(WORKER, 1), (OTHER, 0)] if role == "arbiter" else [])
    assert [type(m) for m in told if isinstance(m, Serve)] == ([] if role == "arbiter" else [Serve])
    news = {
        a.role for a in world.actions if isinstance(a, Post) and isinstance(a.message, Up) and a.message.role == role
    }
    assert news == set(ROLES) - {role}
    world.say(role, Serving(("ipc://client",)) if role == "gateway" else Report({}))
    assert health(world)["ready"]


def test_a_new_scheduler_is_told_of_a_worker_that_is_dead_and_will_come_back() -> None:
    """Else it would wait for the word of one that cannot speak."""
    world = World().serving()
    world.do(Exited(WORKER, -9))
    world.life.roster[WORKER].due = world.now + 60.0  # it is backing off
    world.do(Exited("scheduler", -9))
    world.do(Tick())
    world.say("scheduler", Alive("started"))
    gone = [a.message for a in world.actions if isinstance(a, Post) and isinstance(a.message, Gone)]
    assert [(g.role, g.incarnation, g.final) for g in gone] == [(WORKER, 1, False)]


def test_an_exception_before_the_first_word_of_a_later_life_is_no_reason_to_give_up_at_once() -> None:
    world = World().serving()
    world.do(Exited("scheduler", -9))
    world.do(Tick())
    world.do(Exited("scheduler", UNCAUGHT))  # a machine short of memory for a moment
    assert world.life.phase is Phase.SERVING
    world.wait(1.0)
    world.do(Exited("scheduler", UNCAUGHT))
    assert world.life.phase is Phase.STOPPING


def test_a_new_scheduler_is_told_which_workers_will_never_come() -> None:
    world = World(restart_budget=1).serving()
    for _ in range(2):
        world.do(Exited(WORKER, -9))
        world.do(Tick(), after=1.0)
    assert world.life.roster[WORKER].state is State.SPENT
    world.do(Exited("scheduler", -9))
    world.do(Tick())
    world.say("scheduler", Alive("started"))
    assert [a.message.role for a in world.actions if isinstance(a, Post) and isinstance(a.message, Gone)] == [WORKER]


@pytest.mark.parametrize("role", ["scheduler", "gateway"])
def test_who_comes_back_while_the_node_drains_is_told_how_long_it_has(role: str) -> None:
    world = World().serving()
    world.do(StopAsked())
    world.do(Exited(role, -9), after=2.0)
    world.do(Tick())
    world.say(role, Alive("started"))
    (drain,) = [a.message for a in world.actions if isinstance(a, Post) and isinstance(a.message, Drain)]
    assert drain.budget_ms == round(1000 * (LIMITS.drain_s - 2.0))


@pytest.mark.parametrize("role", ["scheduler", "gateway", "arbiter"])
def test_a_core_process_whose_budget_is_spent_ends_the_node_with_one_line(role: str) -> None:
    world = World(restart_budget=1).serving()
    world.do(Exited(role, -9))
    world.do(Tick())
    world.do(Exited(role, -11))
    assert set(world.posted(Stop)) == {WORKER, OTHER}
    end = stop_everything(world)
    assert end.code == 1
    assert role in end.line and "signal 11" in end.line and "\n" not in end.line


@pytest.mark.parametrize("code", [BOOT_FAILED, 1])
def test_a_worker_that_cannot_boot_ends_the_start_with_its_last_words(code: int) -> None:
    world = World()
    world.do(Exited(WORKER, code, "the model file is broken"))
    end = stop_everything(world)
    assert end.code == 1 and WORKER in end.line and "the model file is broken" in end.line


def test_a_stage_the_node_can_do_without_may_fail_to_boot() -> None:
    world = World(may_fail=(WORKER,))
    world.say("scheduler", Alive("started"))
    world.do(Exited(WORKER, BOOT_FAILED, "no such file"))
    assert world.life.phase is Phase.STARTING
    assert [a.message.final for a in world.actions if isinstance(a, Post)] == [True]


def test_the_scheduler_s_failing_ends_the_start_with_its_line() -> None:
    world = World()
    world.say("scheduler", Alive("started"))
    world.say("scheduler", Failing("asr: no tokenizer.json in /models/x"))
    assert stop_everything(world) == End(1, "asr: no tokenizer.json in /models/x")


def test_a_model_that_is_none_ends_the_start_as_a_wrong_configuration() -> None:
    world = World()
    world.say("scheduler", Alive("started"))
    world.say("scheduler", Failing("stages.nmt.model cannot be used: it is none", configuration=True))
    assert stop_everything(world) == End(78, "stages.nmt.model cannot be used: it is none")


def test_condemned_by_the_scheduler() -> None:
    world = World().serving()
    world.say("scheduler", Condemn(WORKER, 7, "an earlier life"))
    assert not any(isinstance(a, Signal) for a in world.actions)
    world.say("scheduler", Condemn(WORKER, 1, "run over its limit"))
    assert Signal(WORKER, signal.SIGABRT) in world.actions
    world.say("scheduler", Condemn(WORKER, 1, "again"))
    assert not any(isinstance(a, Signal) for a in world.actions)
    world.do(Exited(WORKER, -6))
    assert "run over its limit" in [a.message.reason for a in world.actions if isinstance(a, Post)]


def said(world: World) -> list[str]:
    return [a.text for a in world.actions if isinstance(a, Say)]


def test_a_scheduler_that_does_not_count_holds_up_the_word_but_for_a_moment() -> None:
    world = World().serving()
    world.do(StopAsked())
    assert not said(world) and world.life.next_due(world.now) <= world.now + COUNT_S
    world.now += COUNT_S
    world.do(Tick())
    assert said(world) == ["draining: 0 in flight; a second signal stops at once"]


def test_a_node_that_has_drained_before_it_was_counted_says_so_too_and_one_that_is_killed_does_not() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("gateway", Flushed())
    world.say("scheduler", Drained())
    assert said(world) == ["draining: 0 in flight; a second signal stops at once"]
    world = World().serving()
    world.do(StopAsked())
    world.do(StopAsked())
    assert not said(world) and not world.life.is_counting


def test_the_first_signal_drains_and_says_how_many_are_in_flight() -> None:
    world = World().serving()
    world.say("scheduler", Report({"active": 1, "queued": 1}))
    world.do(StopAsked())
    assert world.posted(Drain) == ["gateway", "scheduler"]
    assert world.life.is_counting and not said(world)
    world.say("scheduler", Report({"active": 3, "queued": 4}))
    assert said(world) == ["draining: 7 in flight; a second signal stops at once"]
    world.say("scheduler", Report({"active": 3, "queued": 3}))
    assert not world.life.is_counting and not said(world)
    world.say("scheduler", Drained())
    assert world.life.phase is Phase.DRAINING
    world.say("gateway", Flushed())
    assert world.posted(Stop) == [WORKER, OTHER]


def test_the_order_is_workers_scheduler_gateway_arbiter() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("scheduler", Drained())
    world.say("gateway", Flushed())
    order = [world.posted(Stop)]
    for role in (OTHER, WORKER, "scheduler", "gateway"):
        world.do(Exited(role, 0))
        order.append(world.posted(Stop))
    assert order == [[WORKER, OTHER], [], ["scheduler"], ["gateway"], ["arbiter"]]
    assert world.do(Exited("arbiter", 0)) == [End(0, "")]


def test_a_drain_that_takes_too_long_is_ended_by_its_deadlines() -> None:
    world = World().serving()
    world.do(StopAsked())
    actions = world.wait(LIMITS.drain_s + LIMITS.flush_s + 2)
    assert [a.role for a in actions if isinstance(a, Post) and isinstance(a.message, Stop)] == [WORKER, OTHER]


def test_the_next_scheduler_has_what_is_left_of_the_time_though_the_one_before_had_nothing_left_to_do() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("scheduler", Drained())  # the gateway has not read that the node stops, and admits one more
    world.do(Exited("scheduler", -9), after=1.0)
    world.do(Tick(), after=1.0)
    world.say("scheduler", Alive("running"))
    (drain,) = [a.message for a in world.actions if isinstance(a, Post) and isinstance(a.message, Drain)]
    assert drain.budget_ms == 1000 * (LIMITS.drain_s - 2)


def restart_gateway(world: World) -> None:
    world.do(Exited("gateway", -9))
    world.do(Tick())
    world.say("gateway", Alive("running"))


def test_a_stopping_node_whose_gateway_dies_waits_for_what_the_scheduler_makes_once_more() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("scheduler", Drained())  # all had ended; but results died with the gateway
    restart_gateway(world)
    world.say("gateway", Flushed())
    assert world.life.phase is Phase.DRAINING
    world.say("scheduler", Drained())
    assert world.life.phase is Phase.STOPPING


def test_that_a_gateway_had_flushed_before_it_died_says_nothing_of_the_next_one() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("gateway", Flushed())
    restart_gateway(world)
    world.say("scheduler", Drained())
    assert world.life.phase is Phase.DRAINING
    world.say("gateway", Flushed())
    assert world.life.phase is Phase.STOPPING


def test_who_does_not_obey_stop_is_killed() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.say("scheduler", Drained())
    world.say("gateway", Flushed())
    world.do(Exited(OTHER, 0))
    actions = world.wait(LIMITS.stop_s + 1)
    assert [a for a in actions if isinstance(a, Signal)] == [Signal(WORKER, signal.SIGKILL)]
    world.do(Exited(WORKER, -9))
    assert world.posted(Stop) == ["scheduler"]


def test_the_second_signal_kills_everything_at_once() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.do(StopAsked())
    assert world.actions == [Signal(role, signal.SIGKILL) for role in ROLES]
    for role in ROLES:
        world.do(Exited(role, -9))
    assert [a for a in world.actions if isinstance(a, End)] == [End(130, "")]


def test_the_host_s_death_kills_everything_at_once() -> None:
    world = World().serving()
    assert world.do(HostGone()) == [Signal(role, signal.SIGKILL) for role in ROLES]


def test_a_stop_before_anything_was_served_needs_no_drain() -> None:
    world = World()
    world.say(WORKER, Alive("loading"))
    world.do(StopAsked())
    assert world.posted(Stop) == [WORKER] and Signal(OTHER, signal.SIGKILL) in world.actions
    assert stop_everything(world) == End(0, "")


def test_at_the_stop_only_an_end_that_nobody_wanted_is_a_warning() -> None:
    def warned(world: World, role: str, code: int) -> bool:
        return any(isinstance(a, Warn) for a in world.do(Exited(role, code)))

    world = World().serving()
    world.do(Exited(OTHER, PARKED))
    world.do(Tick())
    assert world.life.roster[OTHER].state is State.STARTING, "its next life has not spoken yet"
    world.do(StopAsked())
    world.say("gateway", Flushed())
    world.say("scheduler", Drained())
    assert Signal(OTHER, signal.SIGKILL) in world.actions
    assert not warned(world, OTHER, -9), "it was killed since it could not be asked"
    assert not warned(world, WORKER, PARKED), "it was leaving when it was told to stop"
    assert warned(world, "scheduler", -11)


def test_a_process_that_even_sigkill_does_not_end_does_not_hold_up_the_stop() -> None:
    world = World().serving()
    world.do(StopAsked())
    world.do(StopAsked())
    for role in ROLES[1:]:
        world.do(Exited(role, -9))
    actions = world.wait(LIMITS.stop_s + 1)
    assert End(130, "") in actions


def test_no_process_is_started_while_the_node_stops() -> None:
    world = World().serving()
    world.do(Exited(WORKER, -9))
    world.do(StopAsked())
    world.do(StopAsked())
    assert not any(isinstance(a, Spawn) for a in world.wait(5))


def test_a_process_that_could_not_be_started_is_tried_again() -> None:
    world = World()
    world.do(NotSpawned(WORKER, "Resource temporarily unavailable"))
    assert Spawn(WORKER, 2) in world.wait(1)


def stop_everything(world: World) -> End:
    """Obey every Stop and every signal until the end."""
    while True:
        for action in world.actions:
            if isinstance(action, End):
                return action
        stopping = [r.role for r in world.life.roster if r.state in (State.STOPPING, State.KILLED, State.CONDEMNED)]
        assert stopping, "nobody is asked to stop and the node has not ended"
        world.do(Exited(stopping[0], 0))


class AnyLife(RuleBasedStateMachine):
    """Whatever happens in whatever order: the tables hold, and once asked to stop the node ends with nobody left."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(restart_budget=2, shared=("cpu",))
        self.ended = False

    def act(self, actions: list[Any]) -> None:
        for action in actions:
            assert not self.ended, f"{action} after the end"
            if isinstance(action, Post):
                assert self.world.life.roster[action.role].incarnation == action.incarnation
            self.ended = self.ended or isinstance(action, End)

    @precondition(lambda self: not self.ended)
    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.act(self.world.do(Tick(), seconds))

    @precondition(lambda self: not self.ended)
    @rule(
        role=st.sampled_from(ROLES),
        message=st.sampled_from([
            Alive("started"), Alive("loaded"), Report({"active": 1}), Ready("pipelined", ""), Failing("no model"),
            Condemn(WORKER, 1, "hung"), Condemn(OTHER, 2, "hung"), Drained(), Serving(("ipc://x",)), Flushed(),
            Quarantine("cpu", "lost"),
        ]),
        incarnation=st.integers(1, 3),
    )  # fmt: skip
    def a_process_speaks(self, role: str, message: Any, incarnation: int) -> None:
        self.act(self.world.do(Heard(role, incarnation, message)))

    @precondition(lambda self: not self.ended)
    @rule(role=st.sampled_from(ROLES), code=st.sampled_from([0, 1, 3, -6, -9, -11]))
    def a_process_dies(self, role: str, code: int) -> None:
        if self.world.life.roster[role].state in LIVING:
            self.act(self.world.do(Exited(role, code)))

    @precondition(lambda self: not self.ended)
    @rule(at_once=st.booleans())
    def stop_is_asked(self, at_once: bool) -> None:
        self.act(self.world.do(StopAsked(at_once)))

    @rule()
    def an_operator_looks(self) -> None:
        self.world.life.snapshot()
        self.world.life.roster.snapshot(self.world.now)
        assert self.ended or self.world.life.next_due(self.world.now) > self.world.now - LIMITS.heartbeat_s - 70

    @invariant()
    def nobody_is_left_at_the_end(self) -> None:
        self.world.life.check()

    def teardown(self) -> None:
        for _ in range(2):
            if not self.ended:
                self.act(self.world.do(StopAsked()))
        for role in ROLES:
            if not self.ended and self.world.life.roster[role].state in LIVING:
                self.act(self.world.do(Exited(role, -9)))
        if not self.ended:
            self.act(self.world.do(Tick()))
        assert self.ended


TestAnyLife = AnyLife.TestCase
