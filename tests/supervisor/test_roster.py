"""Promises about processes: condemned ones die in two steps, silent ones are noticed, restarts have a budget."""

from __future__ import annotations

import signal

import pytest

from engine.config import DeadlinesSection
from engine.exits import BOOT_FAILED
from engine.supervisor.roster import MOVES, Post, Record, Roster, Signal, Spawn, State
from ipc.errors import IllegalMove
from ipc.messages import Silent

LIMITS = DeadlinesSection()
WORKER = "asr@cpu/0"


def roster(*roles: str, restart_budget: int = 5) -> Roster:
    made = Roster(roles or ("scheduler", WORKER), LIMITS, restart_budget)
    made.tick(0.0)
    return made


def up(made: Roster, role: str, now: float = 0.0, phase: str = "loaded") -> None:
    made.heard(role, made[role].incarnation, now, phase)


@pytest.mark.parametrize("start", State)
@pytest.mark.parametrize("end", State)
def test_a_move_that_is_not_in_the_table_is_refused_and_changes_nothing(start: State, end: State) -> None:
    record = Record(WORKER, state=start)
    if end in MOVES[start]:
        record.move(end)
        assert record.state is end
    else:
        with pytest.raises(IllegalMove, match=WORKER):
            record.move(end)
        assert record.state is start


def test_all_processes_are_started_at_once() -> None:
    made = Roster(("scheduler", WORKER), LIMITS, 5)
    assert made.tick(0.0) == [Spawn("scheduler", 1), Spawn(WORKER, 1)]
    assert made.tick(0.1) == []


def test_a_condemned_process_dumps_its_stacks_and_is_killed_a_second_later() -> None:
    made = roster()
    up(made, WORKER)
    assert made.condemn(WORKER, "hung", 0.1) == Signal(WORKER, signal.SIGABRT)
    assert made.tick(1.0) == []
    assert made.tick(1.1) == [Signal(WORKER, signal.SIGKILL)]
    assert made.tick(1.2) == []


def test_a_process_that_never_speaks_is_condemned() -> None:
    made = roster("gateway")
    assert [a for t in range(1, 60) for a in made.tick(float(t) / 2)] == []
    made = roster("gateway")
    actions = [a for t in range(1, 122) for a in made.tick(t / 2)]
    assert actions[0] == Signal("gateway", signal.SIGABRT)


def test_a_silent_worker_is_reported_and_not_touched() -> None:
    made = roster()
    up(made, WORKER)
    actions = []
    for t in range(1, 14):
        up(made, "scheduler", t / 2)
        actions += made.tick(t / 2)
    silent = [Post("scheduler", 1, Silent(WORKER, 1, "loaded", told_at)) for told_at in (3.0, 6.0)]
    assert actions == silent  # said again, because what it was busy with may have ended


def test_any_other_silent_process_is_condemned() -> None:
    made = roster("scheduler", "gateway")
    up(made, "gateway")
    actions = []
    for t in range(1, 8):
        up(made, "scheduler", t / 2)
        actions += made.tick(t / 2)
    assert actions == [Signal("gateway", signal.SIGABRT)]
    assert "silent" in made["gateway"].reason


def test_a_pause_of_the_whole_node_kills_nobody() -> None:
    made = roster("scheduler", "gateway", WORKER)
    for role in ("scheduler", "gateway", WORKER):
        up(made, role)
    made.tick(0.5)
    assert made.tick(60.5) == []  # asleep for a minute
    assert made.tick(61.0) == []
    late = [action for t in range(1, 12) for action in made.tick(61.0 + t / 2)]
    assert Signal("gateway", signal.SIGABRT) in late  # but it forgives once


def test_a_worker_that_had_worked_comes_back_at_once() -> None:
    made = roster()
    up(made, WORKER, phase="running 3")
    made.exited(WORKER, -9)
    assert made.can_restart(WORKER, 1.0)
    assert made.restart(WORKER, 1.0) == 0.0
    assert made.tick(1.0) == [Spawn(WORKER, 2)]


def test_a_worker_that_dies_before_any_progress_waits_twice_as_long_each_time() -> None:
    made = roster()
    waits, now = [], 0.0
    for _ in range(4):
        up(made, WORKER, now, "loading")
        made.exited(WORKER, -11)
        waits.append(made.restart(WORKER, now))
        now += waits[-1]
        made.tick(now)
    assert waits == [0.1, 0.2, 0.4, 0.8]


def test_the_budget_of_restarts_is_over_a_window() -> None:
    made = roster(restart_budget=2)
    for now in (1.0, 2.0):
        up(made, WORKER, now)
        made.exited(WORKER, -9)
        assert made.can_restart(WORKER, now)
        made.restart(WORKER, now)
        made.tick(now)
    up(made, WORKER, 3.0)
    made.exited(WORKER, -9)
    assert not made.can_restart(WORKER, 3.0)
    assert made.can_restart(WORKER, 1.0 + LIMITS.restart_window_s)


def test_a_death_that_was_an_utterances_doing_is_not_charged() -> None:
    made = roster(restart_budget=1)
    for life in (1, 2, 3):
        up(made, WORKER, float(life))
        made.exited(WORKER, -9)
        assert made.can_restart(WORKER, float(life))
        made.restart(WORKER, float(life))
        made.excuse(WORKER, life)
        made.tick(float(life))
    made.excuse(WORKER, 1)  # a life long past excuses nothing
    up(made, WORKER, 4.0)
    made.exited(WORKER, -9)
    made.restart(WORKER, 4.0)
    assert not made.can_restart(WORKER, 4.0)


def test_an_excuse_for_a_life_long_past_gives_no_restart_back() -> None:
    made = roster(restart_budget=2)
    for life in (1, 2):
        up(made, WORKER, float(life))
        made.exited(WORKER, -9)
        made.restart(WORKER, float(life))
        made.tick(float(life))
    made.excuse(WORKER, 1)
    assert not made.can_restart(WORKER, 3.0)
    made.excuse(WORKER, 2)
    assert made.can_restart(WORKER, 3.0)


def test_progress_makes_up_for_the_deaths_before_it() -> None:
    """Each death in a row without progress doubles the wait before the next start."""
    made = roster()
    waits, now = [], 0.0
    for phase in ("loading", "loading", "loaded", "loading"):
        up(made, WORKER, now, phase)
        made.exited(WORKER, -11)
        waits.append(made.restart(WORKER, now))
        now += waits[-1]
        made.tick(now)
    assert waits == [0.1, 0.2, 0.0, 0.1]


def test_a_process_that_was_starting_when_the_node_paused_has_all_its_time_to_start() -> None:
    made = roster("gateway")
    made.tick(0.5)
    woken = 0.5 + LIMITS.boot_s
    assert made.tick(woken) == []
    late = [(t / 2, action) for t in range(1, 2 * round(LIMITS.boot_s)) for action in made.tick(woken + t / 2)]
    assert late[0] == (LIMITS.boot_s - 0.5, Signal("gateway", signal.SIGABRT))


def test_a_process_that_could_not_boot_is_not_tried_again() -> None:
    made = roster()
    up(made, WORKER, phase="started")
    made.exited(WORKER, BOOT_FAILED)
    assert not made.can_restart(WORKER, 0.0)


def test_what_an_earlier_life_says_is_known_as_such() -> None:
    made = roster()
    up(made, WORKER)
    made.exited(WORKER, -9)
    made.restart(WORKER, 0.0)
    made.tick(0.0)
    assert made.is_current(WORKER, 2) and not made.is_current(WORKER, 1)
    assert not made.can_condemn(WORKER, 1)
