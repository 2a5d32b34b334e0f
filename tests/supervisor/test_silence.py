"""What silence means for the health of the node: of its processes, and of the scheduler that reports."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config import DeadlinesSection
from engine.supervisor.events import Heard, Tick
from engine.supervisor.health import STALE_S, judge
from engine.supervisor.lifecycle import Lifecycle
from engine.supervisor.roster import Roster
from ipc.messages import Alive, Ready, Report, Serving

LIMITS = DeadlinesSection()
CORES = ("arbiter", "scheduler", "gateway")
WORKER = "nmt@cpu/0"
WELL = {"stages": {"nmt": {"absent": "", "optional": False, "loaded": 1, "why": "", "stalled_s": 0.0}}}


class Node:
    """A node that serves, at time 0, and has been reported well."""

    def __init__(self) -> None:
        self.now = 0.0
        self.life = Lifecycle(Roster((*CORES, WORKER), LIMITS, 5), {}, LIMITS)
        self.life.handle(Tick(), self.now)
        self.hear(*CORES, WORKER)
        self.say("scheduler", Ready("pipelined", ""))
        self.say("gateway", Serving(("ipc://client",)))
        self.say("scheduler", Report(WELL))

    def say(self, role: str, message: Any) -> None:
        self.life.handle(Heard(role, self.life.roster[role].incarnation, message), self.now)

    def hear(self, *roles: str) -> None:
        for role in roles:
            self.say(role, Alive("serving" if role == "gateway" else "running"))

    def health(self) -> dict[str, Any]:
        return judge(self.life, LIMITS, self.now)


def test_a_node_whose_processes_are_heard_and_whose_stages_are_well_is_ready() -> None:
    health = Node().health()
    assert health["ready"] and not health["reason"]


@pytest.mark.parametrize("role", CORES)
def test_a_core_process_that_is_there_and_says_nothing_makes_the_node_unready(role: str) -> None:
    node = Node()
    node.now = LIMITS.silent_s + 0.5
    node.hear(*(other for other in CORES if other != role))
    health = node.health()
    assert not health["ready"] and f"{role} has been silent for {node.now:.1f} s" in health["reason"]
    node.hear(role)
    assert node.health()["ready"]


def test_a_busy_worker_s_silence_is_no_illness_of_the_node() -> None:
    node = Node()
    node.now = LIMITS.silent_s + 0.5
    node.hear(*CORES)
    assert node.health()["ready"]


def test_a_scheduler_that_lives_and_reports_nothing_is_not_taken_at_its_old_word() -> None:
    node = Node()
    while node.now < STALE_S:
        assert node.health()["ready"]
        node.now += 1.0
        node.hear(*CORES)
    node.now += 0.5
    health = node.health()
    assert not health["ready"] and "the scheduler has reported nothing for" in health["reason"]
    node.say("scheduler", Report(WELL))
    assert node.health()["ready"]
