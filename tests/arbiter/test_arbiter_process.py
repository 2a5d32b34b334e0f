"""The arbiter as a process: workers ask over a socket and get leases, operators see them, ``Stop`` ends it with 0.

It may be killed at any moment: its next life has the same journal and goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from engine.arbiter.chatter import MOST
from engine.arbiter.journal import Journal
from engine.boot import ArbiterBoot, Boot, DevicePlan
from engine.config import DeadlinesSection
from engine.devices import host_memory
from engine.process import start_time
from ipc import memory
from ipc.errors import PeerGone
from ipc.messages import (
    Alive,
    ArbiterToWorker,
    Denied,
    Failing,
    Gone,
    Granted,
    LeaseRequest,
    LeaseWait,
    Measured,
    Orders,
    Release,
    Report,
    Settled,
    Stop,
    ToSupervisor,
    Up,
)  # fmt: skip
from ipc.sockets import Dealer, Poll, Router

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 20.0
MIB = 2**20
WORKERS = "asr@cpu/0", "asr@cpu/1", "nmt@cpu/0"


class Node:
    """The supervisor's end of one arbiter, and workers that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.endpoints = {"supervisor": f"ipc://{folder}/supervisor", "arbiter": f"ipc://{folder}/arbiter"}
        self.router = Router(self.endpoints["supervisor"], 1, ToSupervisor)
        self.workers: list[Worker] = []
        self.death_end, self._death = os.pipe()
        self.journal_fd = memory.create("journal", 2**20)
        self.incarnation = 0
        self.unheard: list = []  # came along with what was awaited
        self.announced: dict[str, int] = {}  # worker's role -> its life

    def start(self, **deadlines: float) -> None:
        """The arbiter's next life; all have the same journal."""
        self.incarnation += 1
        total = host_memory().total_bytes
        plan = DevicePlan("cpu", memory_source="host", total_bytes=total, max_models=2, reserve_bytes=MIB)
        boot = Boot(
            role="arbiter", incarnation=self.incarnation, node="test", parent_pid=os.getpid(), death_fd=self.death_end,
            endpoints=self.endpoints, rings=(), deadlines=DeadlinesSection(heartbeat_s=0.05, **deadlines),
            journal_fd=self.journal_fd, body=ArbiterBoot((plan,), workers=WORKERS),
        )  # fmt: skip
        fd = os.memfd_create("boot", 0)
        os.write(fd, msgspec.msgpack.encode(boot))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.arbiter.main", "--boot-fd", str(fd)],
            pass_fds=(fd, self.death_end, self.journal_fd), cwd=ROOT, process_group=0,
        )  # fmt: skip
        os.close(fd)
        self.await_message(Alive)
        for role, life in self.announced.items():
            self.say(Up(role, life))

    def kill(self) -> None:
        """SIGKILL, and everything read that it had said."""
        self.process.kill()
        self.process.wait()
        poll = Poll()
        poll.add(self.router)
        while self.peer in self.router and poll.wait(PATIENCE_S):
            self.router.drain()

    @property
    def peer(self) -> str:
        return f"arbiter#{self.incarnation}"

    def await_message(self, kind: type, wanted=lambda message: True):
        """The next message of this kind from the arbiter to its supervisor."""
        poll, end = Poll(), time.monotonic() + PATIENCE_S
        poll.add(self.router)
        while True:
            while self.unheard:
                message = self.unheard.pop(0)
                if isinstance(message, kind) and wanted(message):
                    return message
            if (left := end - time.monotonic()) <= 0 or not poll.wait(left):
                break
            self.unheard += [message for _, _, batch in self.router.drain() for message in batch]
        raise AssertionError(f"no {kind.__name__} came")

    def say(self, message) -> None:
        self.router.send(self.peer, [message])

    def announce(self, role: str, incarnation: int) -> None:
        self.announced[role] = incarnation
        self.say(Up(role, incarnation))

    def worker(self, role: str, incarnation: int = 1, *, announced: bool = True) -> Worker:
        if announced:
            self.announce(role, incarnation)
        link = Dealer(self.endpoints["arbiter"], role, incarnation, ArbiterToWorker)
        assert link.greet(PATIENCE_S)
        self.workers.append(Worker(link, role))
        return self.workers[-1]

    def close(self) -> None:
        for worker in self.workers:
            worker.link.close()
        os.close(self._death)
        os.close(self.death_end)
        os.close(self.journal_fd)
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
            self.heard += self.heard_now()
        return self.heard.pop(0)

    def heard_now(self) -> list:
        return [message for _, _, batch in self.link.drain() for message in batch]


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    node.start()
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


def test_a_program_that_is_refused_again_and_again_does_not_fill_the_log(unstarted, capfd):
    node = unstarted
    node.start()
    program = node.worker(f"lease@{os.getpid()}/1", start_time(os.getpid()), announced=False)
    for number in range(3 * MOST):
        assert isinstance(program.ask(2**60, number + 1), Denied)
    assert capfd.readouterr().err.count("gets no memory") == MOST


def test_a_frame_of_many_thousand_requests_is_not_taken_and_the_others_are_served(node):
    flood = node.worker("nmt@cpu/0")
    flood.link.send([LeaseRequest(1, "nmt@cpu/0", "", MIB, among=("cpu",) * 100_000)])
    poll = Poll()
    poll.add(flood.link)
    assert poll.wait(PATIENCE_S)  # for the end of its stream
    assert flood.heard_now() == []
    assert isinstance(node.worker("asr@cpu/0").ask(8 * MIB), Granted)


def test_a_program_that_was_denied_is_not_watched_any_more(node):
    for number in range(20):
        program = node.worker(f"lease@{os.getpid()}/{number}", start_time(os.getpid()))
        assert isinstance(program.ask(2**60), Denied)
    folder = f"/proc/{node.process.pid}/fd"
    assert not [fd for fd in os.listdir(folder) if "pidfd" in os.readlink(f"{folder}/{fd}")]


def test_stop_ends_it_with_0(node):
    node.say(Stop())
    assert node.process.wait(PATIENCE_S) == 0


def test_it_leaves_when_its_supervisor_is_gone(node):
    os.close(node._death)
    node._death = os.open(os.devnull, os.O_RDONLY)
    assert node.process.wait(PATIENCE_S) != 0


# ---------------------------------------------------------------- its own death


def test_a_lease_granted_before_the_arbiter_was_killed_is_the_same_one_afterwards(node):
    other = node.worker("asr@cpu/1")
    other.link.send([Release(other.ask(8 * MIB).lease)])
    before = node.worker("asr@cpu/0").ask(8 * MIB, number=7)
    assert before.lease == 2  # so that a book that starts anew would give another number
    node.kill()
    node.start()
    asr, nmt = node.worker("asr@cpu/0"), node.worker("nmt@cpu/0")
    assert asr.ask(8 * MIB, number=7) == before  # as if it had never heard the first answer
    wait = nmt.ask(8 * MIB)
    assert isinstance(wait, LeaseWait) and "asr@cpu/0 to load" in wait.reason
    asr.link.send([Settled(before.lease, 7 * MIB)])
    granted = nmt.hear()
    assert isinstance(granted, Granted) and granted.lease != before.lease
    node.await_message(Report, lambda one: leases(one) == ["asr@cpu/0#1 held", "nmt@cpu/0#1 granted"])


def test_a_load_under_way_while_the_arbiter_is_dead_keeps_its_turn(node):
    granted = node.worker("asr@cpu/0").ask(8 * MIB)
    node.kill()
    node.start()
    nmt = node.worker("nmt@cpu/0")
    assert isinstance(nmt.ask(8 * MIB), LeaseWait)  # asr loads, and has not spoken to this arbiter yet
    asr = node.worker("asr@cpu/0")
    asr.link.send([Settled(granted.lease, ok=False), Release(granted.lease)])  # its last words, perhaps said before
    assert isinstance(nmt.hear(), Granted)


def test_a_holder_that_died_with_the_arbiter_keeps_nobody_waiting(node):
    node.worker("asr@cpu/0").ask(8 * MIB)
    node.kill()
    node.start()
    nmt = node.worker("nmt@cpu/0")
    assert isinstance(nmt.ask(8 * MIB), LeaseWait)
    node.say(Gone("asr@cpu/0", 1))
    assert isinstance(nmt.hear(), Granted)
    node.await_message(Report, lambda one: leases(one) == ["nmt@cpu/0#1 granted"])


def test_of_a_load_that_began_in_its_earlier_life_it_measures_nothing_by_difference(node):
    granted = node.worker("asr@cpu/0").ask(8 * MIB)
    node.kill()
    node.start()
    asr, nmt = node.worker("asr@cpu/0"), node.worker("nmt@cpu/0")
    assert isinstance(nmt.ask(8 * MIB), LeaseWait)
    asr.link.send([Settled(granted.lease)])
    nmt.link.send([Settled(nmt.hear().lease, 5 * MIB)])
    load = node.await_message(Measured, lambda one: one.phase == "load")
    assert load.worker == "nmt@cpu/0", "and what a worker measured itself it tells"


def test_what_operators_keep_empty_is_not_reported_as_grantable(node):
    node.await_message(Report, lambda one: one.snapshot["devices"]["cpu"]["grantable_bytes"] > 0)
    node.say(Orders(drained=("cpu",)))
    row = node.await_message(Report, lambda one: one.snapshot["devices"]["cpu"]["drained"]).snapshot["devices"]["cpu"]
    assert row["grantable_bytes"] == 0 < row["free_bytes"]


def test_leases_outlive_one_arbiter_after_another(node):
    granted = node.worker("asr@cpu/0").ask(8 * MIB)
    for _ in range(3):
        node.kill()
        node.start()
    assert node.worker("asr@cpu/0").ask(8 * MIB) == granted
    node.kill()
    node.start()
    node.worker("asr@cpu/0").link.send([Settled(granted.lease, 7 * MIB)])
    node.await_message(Report, lambda one: leases(one) == ["asr@cpu/0#1 held"])
    node.kill()
    node.start()
    report = node.await_message(Report)
    assert leases(report) == ["asr@cpu/0#1 held"]
    assert report.snapshot["leases"][0]["lease"] == granted.lease


@pytest.fixture
def unstarted(tmp_path):
    node = Node(tmp_path)
    yield node
    node.close()


def test_no_answer_leaves_that_could_not_be_written_down_first(unstarted):
    node = unstarted
    os.close(node.journal_fd)
    node.journal_fd = os.memfd_create("journal", os.MFD_ALLOW_SEALING)
    os.truncate(node.journal_fd, 4096)
    node.start(unreadable_s=1000.0)  # one reading, so that between the sealing and the question nothing is written
    node.await_message(Report, lambda one: one.snapshot["devices"]["cpu"]["grantable_bytes"] > 0)
    fcntl.fcntl(node.journal_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    asr = node.worker("asr@cpu/0")
    asr.link.send([LeaseRequest(1, "asr@cpu/0", "cpu", 8 * MIB)])
    assert node.process.wait(PATIENCE_S) != 0
    poll = Poll()
    poll.add(asr.link)
    assert poll.wait(PATIENCE_S)  # for the end of its stream, and what came before it
    assert asr.heard_now() == []


def test_who_cannot_read_what_was_granted_grants_nothing_and_has_the_node_end(unstarted):
    Journal(unstarted.journal_fd).write(b"of another version")
    for _ in range(2):  # nor is it overwritten with an empty book, for the next one to go on from
        unstarted.start()
        failing = unstarted.await_message(Failing)
        assert "cannot read what the one before it kept" in failing.reason and "start the node again" in failing.reason
        unstarted.await_message(Alive)
        door = Path(unstarted.endpoints["arbiter"].removeprefix("ipc://"))
        assert not door.exists(), "nobody can ask"
        unstarted.kill()
    unstarted.start()
    unstarted.await_message(Failing)
    unstarted.say(Stop())
    assert unstarted.process.wait(PATIENCE_S) == 0


def test_a_name_that_is_no_workers_of_this_node_gets_nothing_and_keeps_nobody_waiting(unstarted, capfd):
    node = unstarted
    node.start()
    stranger = node.worker("nobody@cpu/0", 7)
    stranger.link.send([LeaseRequest(1, "nobody@cpu/0", "cpu", MIB)])
    poll = Poll()
    poll.add(stranger.link)
    assert poll.wait(PATIENCE_S)  # for the end of its stream
    assert stranger.heard_now() == []
    assert isinstance(node.worker("asr@cpu/0").ask(8 * MIB), Granted)
    assert leases(node.await_message(Report, lambda one: one.snapshot["leases"])) == ["asr@cpu/0#1 granted"]
    assert capfd.readouterr().err.count("'nobody@cpu/0#7' is no worker of this node") == 1


def test_a_life_of_a_worker_that_the_supervisor_has_not_told_of_gets_nothing(node):
    false = node.worker("nmt@cpu/0", 9, announced=False)
    false.link.send([LeaseRequest(1, "nmt@cpu/0", "cpu", MIB)])
    assert isinstance(node.worker("asr@cpu/0").ask(8 * MIB), Granted)
    assert leases(node.await_message(Report, lambda one: one.snapshot["leases"])) == ["asr@cpu/0#1 granted"]
    assert false.heard_now() == []
    node.announce("nmt@cpu/0", 9)  # it was the news that was late
    assert isinstance(false.hear(), LeaseWait)


def test_a_flood_of_small_frames_is_not_heard_and_keeps_nobody_waiting(unstarted, capfd):
    node = unstarted
    node.start()
    flood = node.worker(f"lease@{os.getpid()}/1", start_time(os.getpid()), announced=False)
    with suppress(PeerGone):
        for number in range(20_000):
            flood.link.send([LeaseRequest(number, "x", "cpu", MIB)])
    assert isinstance(node.worker("asr@cpu/0").ask(8 * MIB), Granted)
    poll = Poll()
    poll.add(flood.link)
    while flood.heard_now():  # to the end of its stream
        assert poll.wait(PATIENCE_S)
    assert "says too much at once: it gets no memory, and is not heard" in capfd.readouterr().err
    assert node.process.poll() is None


def test_a_program_that_reads_no_answer_is_let_go_before_they_cost_much_memory(node):
    program = node.worker(f"lease@{os.getpid()}/1", start_time(os.getpid()), announced=False)
    asr = node.worker("asr@cpu/0")
    for number in range(6400):
        program.link.send([LeaseRequest(number, "x", "y" * 64, MIB)])
        if number % 64 == 63:
            assert isinstance(asr.ask(2**60, number), Denied)  # so much has been heard by then
    poll, answers = Poll(), 0
    poll.add(program.link)
    while not program.link.ended:
        assert poll.wait(PATIENCE_S), "it is still there"
        answers += len(program.heard_now())
    assert 0 < answers < 6400


def test_a_book_too_large_for_its_journal_is_said_once_and_counted_and_leases_go_on(unstarted, capfd):
    os.close(unstarted.journal_fd)
    unstarted.journal_fd = memory.create("journal", 128)
    unstarted.start()
    granted = unstarted.worker("asr@cpu/0").ask(8 * MIB)
    assert isinstance(granted, Granted)
    unstarted.await_message(Report, lambda one: one.snapshot["counts"]["not_kept"] > 3)
    assert capfd.readouterr().err.count("would not outlive this arbiter") == 1


SQUATTER = """
import sys
from ipc.messages import ArbiterToWorker
from ipc.sockets import Dealer, Poll
link = Dealer(sys.argv[1], sys.argv[2], int(sys.argv[3]), ArbiterToWorker)
print(link.greet(20.0), flush=True)
poll = Poll()
poll.add(link)
while not link.ended:
    poll.wait(20.0)
    print(*(message for _, _, batch in link.drain() for message in batch), flush=True)
"""


@contextmanager
def squatting(node: Node, role: str, started: int) -> Iterator[None]:
    """Another process is there under this name, which neither is that program nor has begun it."""
    argv = [sys.executable, "-c", SQUATTER, node.endpoints["arbiter"], role, str(started)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "True\n"
            yield
        finally:
            process.kill()


def test_a_program_gets_its_name_from_who_has_taken_it(node):
    role, started = f"lease@{os.getpid()}/1", start_time(os.getpid())
    with squatting(node, role, started):
        program = node.worker(role, started, announced=False)
        assert isinstance(program.ask(8 * MIB), Granted)


def test_that_a_program_is_to_leave_is_told_to_it_and_not_to_who_has_taken_its_name(node):
    most = int(0.6 * host_memory().available_bytes)
    with subprocess.Popen(["sleep", "600"]) as holder:
        try:
            role, started = f"lease@{holder.pid}/1", start_time(holder.pid)
            program = node.worker(role, started, announced=False)  # we have begun it, and ask for it
            program.link.send([LeaseRequest(1, role, "cpu", most, preemptible=True)])
            assert isinstance(program.hear(), Granted)
            program.link.close()
            with squatting(node, role, started):
                node.worker("asr@cpu/0").ask(most)
                assert holder.wait(PATIENCE_S) == -signal.SIGTERM
        finally:
            holder.kill()


def test_a_leases_process_is_the_one_of_its_name_whatever_else_is_said(node):
    role = f"lease@{os.getpid()}/1"
    program = node.worker(role, start_time(os.getpid()), announced=False)
    program.link.send([LeaseRequest(1, role, "cpu", 8 * MIB, "m", pid=1, base_bytes=2**62)])
    assert isinstance(program.hear(), Granted)
    (row,) = node.await_message(Report, lambda one: one.snapshot["leases"]).snapshot["leases"]
    assert row["pid"] == os.getpid()
