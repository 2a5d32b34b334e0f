"""Workers and the scheduler as processes: without a supervisor each leaves by itself, even without the kernel's help.

The test is their parent and goes on living, so the death signal never comes: only the pipe tells.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.boot import Boot, SchedulerBoot, WorkerBoot
from engine.config import DeadlinesSection
from engine.exits import ORPHANED
from engine.worker.main import Worker
from ipc.messages import Alive, Load, Release, Settled, ToSupervisor
from ipc.sockets import Poll, Router

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 20.0
BODIES = {
    "a@cpu/0": WorkerBoot(
        stage="a", kind="simulated", model="", compute_type="", device="cpu", library_device="cpu", threads=1,
        max_batch=1, estimate_bytes=0,
    ),
    "scheduler": SchedulerBoot(
        stages=(), pipelines={}, mode="pipelined", mode_reason="", send_ahead=1, max_retries=3, capacity_factor=10
    ),
}  # fmt: skip


@pytest.fixture(params=BODIES)
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A started process, and the end of its death pipe that its supervisor would hold."""
    role = request.param
    endpoints = {name: f"ipc://{tmp_path}/{name}" for name in ("supervisor", "scheduler", "arbiter")}
    router = Router(endpoints["supervisor"], 1, ToSupervisor)
    reading, writing = os.pipe()
    boot = Boot(
        role=role, incarnation=1, node="test", parent_pid=os.getpid(), death_fd=reading, endpoints=endpoints, rings=(),
        deadlines=DeadlinesSection(heartbeat_s=0.05), body=BODIES[role],
    )  # fmt: skip
    fd = os.memfd_create("boot", 0)
    os.write(fd, msgspec.msgpack.encode(boot))
    module = "engine.worker.main" if "@" in role else "engine.scheduler.main"
    command = [sys.executable, "-m", module, "--boot-fd", str(fd)]
    process = subprocess.Popen(command, pass_fds=(fd, reading), cwd=ROOT, process_group=0)
    os.close(fd)
    os.close(reading)
    poll, end, heard = Poll(), time.monotonic() + PATIENCE_S, 0
    poll.add(router)
    while heard < 3:  # its loop turns
        assert time.monotonic() < end, "it never speaks"
        poll.wait(0.1)
        heard += sum(isinstance(message, Alive) for _, _, batch in router.drain() for message in batch)
    yield process, writing
    process.kill()
    process.wait()
    router.close()


def test_it_leaves_when_the_pipe_closes(child: tuple[subprocess.Popen, int]) -> None:
    process, writing = child
    os.close(writing)
    assert process.wait(PATIENCE_S) == ORPHANED


@pytest.mark.parametrize("priority", ["normal", "low"])
def test_it_asks_for_memory_with_the_priority_that_it_was_born_with(priority: str) -> None:
    worker = unborn(priority=priority)
    worker.ask_for_lease(Load("m"))
    assert worker.request is not None and worker.request.priority == priority


def unborn(**changes: Any) -> Worker:
    """A worker that nobody runs."""
    boot = Boot(
        role="a@cpu/0", incarnation=1, node="test", parent_pid=os.getpid(), death_fd=-1, endpoints={}, rings=(),
        deadlines=DeadlinesSection(), body=msgspec.structs.replace(BODIES["a@cpu/0"], **changes),
    )  # fmt: skip
    return Worker(boot)


def test_that_it_gives_bytes_back_is_said_to_each_new_arbiter_until_it_asks_for_more_again() -> None:
    worker = unborn(estimate_bytes=1000)
    worker.state, worker.lease, worker.last_words = "loaded", 5, (Settled(5, 900),)
    worker.ask_for_no_more()
    worker.ask_for_no_more()
    assert worker.last_words == (Settled(5, 900), Release(5, keep_bytes=1000))
    worker.ask_for_more(500, 10.0)
    assert worker.last_words == (Settled(5, 900),)
