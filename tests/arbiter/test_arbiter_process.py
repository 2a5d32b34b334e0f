"""The arbiter as a process: workers ask over a socket and get leases, operators see them, ``Stop`` ends it with 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.boot import ArbiterBoot, Boot, DevicePlan
from engine.config import DeadlinesSection
from engine.devices import host_memory
from ipc.messages import (
    Alive,
    ArbiterToWorker,
    Denied,
    Gone,
    Granted,
    LeaseRequest,
    LeaseWait,
    Release,
    Report,
    Settled,
    Stop,
    ToSupervisor,
)  # fmt: skip
from ipc.sockets import Dealer, Poll, Router

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 20.0
MIB = 2**20


class Node:
    """The supervisor's end of one arbiter, and workers that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.endpoints = {"supervisor": f"ipc://{folder}/supervisor", "arbiter": f"ipc://{folder}/arbiter"}
        self.router = Router(self.endpoints["supervisor"], 1, ToSupervisor)
        self.workers: list[Worker] = []
        self.death_end, self._death = os.pipe()
        total = host_memory().total_bytes
        plan = DevicePlan("cpu", memory_source="host", total_bytes=total, max_models=2, reserve_bytes=MIB)
        boot = Boot(
            role="arbiter", incarnation=1, node="test", parent_pid=os.getpid(), death_fd=self.death_end,
            endpoints=self.endpoints, rings=(), deadlines=DeadlinesSection(heartbeat_s=0.05), body=ArbiterBoot((plan,)),
        )  # fmt: skip
        fd = os.memfd_create("boot", 0)
        os.write(fd, msgspec.msgpack.encode(boot))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.arbiter.main", "--boot-fd", str(fd)],
            pass_fds=(fd, self.death_end), cwd=ROOT, process_group=0,
        )  # fmt: skip
        os.close(fd)
        self.await_message(Alive)

    def await_message(self, kind: type, wanted=lambda message: True):
        """The next message of this kind from the arbiter to its supervisor."""
        poll = Poll()
        poll.add(self.router)
        while poll.wait(PATIENCE_S):
            for _, _, batch in self.router.drain():
                for message in batch:
                    if isinstance(message, kind) and wanted(message):
                        return message
        raise AssertionError(f"no {kind.__name__} came")

    def say(self, message) -> None:
        self.router.send("arbiter#1", [message])

    def worker(self, role: str, incarnation: int = 1) -> Worker:
        self.workers.append(Worker(Dealer(self.endpoints["arbiter"], role, incarnation, ArbiterToWorker), role))
        return self.workers[-1]

    def close(self) -> None:
        for worker in self.workers:
            worker.link.close()
        os.close(self._death)
        os.close(self.death_end)
        self.process.kill()
        self.process.wait()
        self.router.close()


class Worker:
    def __init__(self, link: Dealer, role: str) -> None:
        self.link, self.role = link, role
        self.heard: list = []

    def ask(self, nbytes: int, number: int = 1):
        self.link.send([LeaseRequest(number, self.role, "cpu", nbytes, "m")])
        return self.hear()

    def hear(self):
        poll = Poll()
        poll.add(self.link)
        while not self.heard:
            assert poll.wait(PATIENCE_S), "the arbiter does not answer"
            self.heard += [message for _, _, batch in self.link.drain() for message in batch]
        return self.heard.pop(0)


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    node.close()


def leases(report: Report) -> list[str]:
    return [f"{row['worker']} {row['state']}" for row in report.snapshot["leases"]]


def test_a_worker_asks_loads_settles_and_lets_go(node):
    asr, nmt = node.worker("asr@cpu/0"), node.worker("nmt@cpu/0")
    granted = asr.ask(8 * MIB)
    assert isinstance(granted, Granted) and granted.nbytes == 8 * MIB
    wait = nmt.ask(8 * MIB)
    assert isinstance(wait, LeaseWait) and "asr@cpu/0" in wait.reason
    asr.link.send([Settled(granted.lease, 7 * MIB, load_ms=5.0)])
    assert isinstance(nmt.hear(), Granted)
    report = node.await_message(Report, lambda one: len(one.snapshot["leases"]) == 2)
    assert leases(report) == ["asr@cpu/0#1 held", "nmt@cpu/0#1 granted"]
    assert report.snapshot["load_times_ms"] == {"m": 5.0}
    asr.link.send([Release(granted.lease)])
    node.await_message(Report, lambda one: leases(one) == ["nmt@cpu/0#1 granted"])


def test_a_dead_workers_lease_ends_with_it(node):
    asr, nmt = node.worker("asr@cpu/0"), node.worker("nmt@cpu/0")
    assert isinstance(asr.ask(8 * MIB), Granted)
    assert isinstance(nmt.ask(8 * MIB), LeaseWait)
    node.say(Gone("asr@cpu/0", 1, "killed"))
    assert isinstance(nmt.hear(), Granted)


def test_the_impossible_is_denied_over_the_wire(node):
    denied = node.worker("asr@cpu/0").ask(2**60)
    assert isinstance(denied, Denied) and denied.code == "no_vram" and "even when empty" in denied.reason


def test_stop_ends_it_with_0(node):
    node.say(Stop())
    assert node.process.wait(PATIENCE_S) == 0


def test_it_leaves_when_its_supervisor_is_gone(node):
    os.close(node._death)
    node._death = os.open(os.devnull, os.O_RDONLY)
    assert node.process.wait(PATIENCE_S) != 0
