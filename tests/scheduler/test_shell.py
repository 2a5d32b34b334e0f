"""The scheduler's shell: what a dying worker had sent is read before its death is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.boot import Boot, SchedulerBoot
from engine.config import DeadlinesSection
from engine.scheduler.main import Shell
from ipc.messages import (
    Admit,
    Done,
    Gone,
    Here,
    JobOutcome,
    Loaded,
    Loading,
    Run,
    RunResult,
    Session,
    ToGateway,
    ToWorker,
)
from ipc.sockets import Dealer, Poll
from tests.scheduler.world import text_stage

WORKER = "a@cpu/0"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    body = SchedulerBoot(
        stages=(text_stage("a"),), pipelines={"full": ("a",)}, mode="pipelined", mode_reason="", send_ahead=1,
        max_retries=3, capacity_factor=10,
    )  # fmt: skip
    endpoints = {role: f"ipc://{tmp_path}/{role}" for role in ("scheduler", "supervisor")}
    boot = Boot(
        role="scheduler", incarnation=1, node="n", parent_pid=1, death_fd=-1, endpoints=endpoints, rings=(),
        deadlines=DeadlinesSection(), body=body,
    )  # fmt: skip
    made = Shell(boot)
    made.lifeline.start()
    made.poll.add(made.router)
    yield made
    made.router.close()
    made.lifeline.close()


class Peer:
    """A hand-driven end of the scheduler's link."""

    def __init__(self, shell: Shell, role: str, union: object) -> None:
        self.shell = shell
        self.link = Dealer(shell.router.endpoint, role, 1, union)
        self.link.epoch = 1
        self.poll = Poll()
        self.poll.add(self.link)
        self.got: list = []
        while not self.link.greeted:
            turn(shell)
            self.poll.wait(0)
            self.link.drain()

    def say(self, *messages: object) -> None:
        self.link.send(list(messages))

    def until(self, kind: type, limit_s: float = 5.0) -> object:
        """Turn the shell until a message of this kind has come."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            turn(self.shell)
            self.poll.wait(0)
            self.got += [m for _, _, batch in self.link.drain() for m in batch]
            for message in self.got:
                if isinstance(message, kind):
                    self.got.remove(message)
                    return message
        raise AssertionError(f"no {kind.__name__}")


def turn(shell: Shell) -> None:
    shell.poll.wait(0)
    shell.read_peers()
    shell.bury()
    shell.act()


def test_the_last_words_of_a_dying_worker_count(shell: Shell) -> None:
    gateway, worker = Peer(shell, "gateway", ToGateway), Peer(shell, WORKER, ToWorker)
    gateway.say(Here(), Session("s", "local", ("a",)))
    worker.say(Here(), Loading(), Loaded(""))
    gateway.say(Admit("s", 0, 60_000, text="hello"))
    run = worker.until(Run)
    shell.dying[f"{WORKER}#1"] = (Gone(WORKER, 1, "killed"), time.monotonic() + 1.0)  # told first ...
    turn(shell)
    worker.say(Done((RunResult(run.items[0].ticket, "completed", text="done"),)))  # ... and then its last words come
    outcome = gateway.until(JobOutcome).outcome
    assert outcome.texts == {"a": "done"} and [r.attempt for r in outcome.stages] == [1]
    worker.link.close()
    end = time.monotonic() + 5.0
    while shell.dying:
        assert time.monotonic() < end, "the dead are never buried"
        turn(shell)
    assert shell.core.snapshot(time.monotonic())["deaths"] == 1


def test_what_another_epoch_sends_is_dropped_and_counted(shell: Shell) -> None:
    gateway = Peer(shell, "gateway", ToGateway)
    gateway.link.epoch = 7
    gateway.say(Here(), Session("s", "local", ("a",)))
    gateway.link.epoch = 1
    gateway.say(Here(), Session("t", "local", ("a",)))
    end = time.monotonic() + 5.0
    while "t" not in shell.core.book.lines:
        assert time.monotonic() < end
        turn(shell)
    assert "s" not in shell.core.book.lines and shell.old_epoch == 1
