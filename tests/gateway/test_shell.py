"""The gateway's process, with real sockets: the test plays its supervisor, scheduler, worker and clients."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq
from stand import boot, samples

from engine.boot import Boot, RingGrant
from engine.client import Client
from engine.config import DeadlinesSection
from engine.gateway.events import Arrived, ClientLost
from engine.gateway.inbox import MOST, Inbox
from engine.gateway.main import TURN_LOOKS, TURN_MESSAGES, Shell
from ipc import memory, messages
from ipc.messages import (
    Admit,
    Alive,
    Capacity,
    Copied,
    Drain,
    Flushed,
    Free,
    Here,
    JobAccepted,
    JobOutcome,
    Outcome,
    Ping,
    Report,
    Restored,
    Serve,
    Serving,
    Session,
    Stop,
    ToScheduler,
    ToSupervisor,
    Up,
)
from ipc.ring import Ring, generation, segment_bytes
from ipc.sockets import Poll, Router

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 16
WORKER = "tts@cpu/0"
GATEWAY = "gateway#1"
PATIENCE_S = 10.0


class Surroundings:
    """Everything around one gateway process."""

    def __init__(self, folder: Path, deadlines: DeadlinesSection, hooks: dict[str, str] | None = None) -> None:
        self.address = {name: f"ipc://{folder}/{name}" for name in ("supervisor", "scheduler", "client")}
        self.supervisor = Router(self.address["supervisor"], 1, ToSupervisor)
        self.scheduler = Router(self.address["scheduler"], 1, ToScheduler, epoch=1)
        self.poll = Poll()
        self.poll.add(self.supervisor)
        self.poll.add(self.scheduler)
        self.said: list[Any] = []  # everything the gateway said, to either
        ring, results = (memory.create(name, segment_bytes(BLOCKS)) for name in ("gateway", "tts"))
        self.ingress = Ring("gateway", memory.reopen_read_only(ring), BLOCKS, writable=False)
        self.results = Ring(WORKER, results, BLOCKS, writable=True)
        fds = ring, memory.reopen_read_only(results)
        self.death, death_fd = self._pipe()
        record = Boot(
            role="gateway",
            incarnation=1,
            node="test",
            parent_pid=os.getpid(),
            death_fd=death_fd,
            endpoints=self.address,
            rings=(
                RingGrant(name="gateway", fd=fds[0], blocks=BLOCKS, writable=True),
                RingGrant(name=WORKER, fd=fds[1], blocks=BLOCKS, writable=False),
            ),
            deadlines=deadlines,
            hooks=hooks or {},
            body=boot(endpoints=(self.address["client"],)),
        )
        boot_fd = os.memfd_create("boot")
        os.write(boot_fd, msgspec.msgpack.encode(record))
        self.child = subprocess.Popen(
            [sys.executable, "-m", "engine.gateway.main", "--boot-fd", str(boot_fd)],
            pass_fds=(*fds, death_fd, boot_fd),
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for fd in (*fds, death_fd, boot_fd):
            os.close(fd)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        reader, writer = os.pipe()
        return writer, reader

    def start(self) -> None:
        """Play the node's start up to the open door."""
        self.wait_for(Alive)
        self.tell_supervised(Up("scheduler", 1, self.address["scheduler"]))
        self.wait_for(Here)
        self.schedule(Restored(), Capacity(10))
        self.tell_supervised(Serve())
        assert self.wait_for(Serving).endpoints == (self.address["client"],)

    def tell_supervised(self, *batch: Any) -> None:
        self.supervisor.send(GATEWAY, list(batch))

    def schedule(self, *batch: Any) -> None:
        self.scheduler.send(GATEWAY, list(batch))

    def wait_for(self, kind: type, count: int = 1) -> Any:
        """The ``count``-th message of this kind the gateway says from now on; returned and taken."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for message in self.said:
                if isinstance(message, kind):
                    self.said.remove(message)
                    return message
            self._read(end)
        state = f"ended with {self.child.returncode}" if self.child.poll() is not None else "lives"
        raise AssertionError(f"no {kind.__name__} came; the gateway {state}; {self.said}")

    def _read(self, end: float) -> None:
        self.poll.wait(0.1)
        for router in (self.supervisor, self.scheduler):
            self.said += [message for _, _, batch in router.drain() for message in batch]

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stderr is not None
        self.child.stderr.close()
        self.supervisor.close()
        self.scheduler.close()
        os.close(self.death)


class Plain:
    """A client of pyzmq and msgpack."""

    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)
        self.heard: list[tuple[dict[str, Any], bytes | None]] = []

    def say(self, *batch: dict[str, Any], payload: bytes | None = None) -> None:
        self.socket.send_multipart([msgpack.packb(list(batch))] + ([payload] if payload is not None else []))

    def wait_for(self, kind: str) -> tuple[dict[str, Any], bytes | None]:
        """The first message of this type not taken yet, with its samples."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for at, (message, _) in enumerate(self.heard):
                if message["type"] == kind:
                    return self.heard.pop(at)
            assert self.socket.poll(max(0, 1000 * (end - time.monotonic()))), f"no {kind} came; {self.heard}"
            frames = self.socket.recv_multipart()
            batch = msgpack.unpackb(frames[0])
            audio = [m for m in batch if m["type"] == "Outcome" and m.get("nbytes")]
            assert len(audio) <= 1 and len(frames[0]) <= 65536
            self.heard += [(m, frames[1] if m in audio else None) for m in batch]

    def open(self, tag: str = "s", **fields: Any) -> dict[str, Any]:
        self.say({"type": "Open", "tag": tag, "pipeline": "full", "source": "en", "target": "de"} | fields)
        return self.wait_for("Opened")[0]

    def submit(self, session: str, index: int, data: bytes) -> None:
        self.say(
            {"type": "Submit", "session": session, "index": index, "dtype": "s16le", "nbytes": len(data)}, payload=data
        )

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Surroundings]:
    around = Surroundings(tmp_path, DeadlinesSection(flush_s=0.05, heartbeat_s=0.05))
    try:
        around.start()
        yield around
    finally:
        around.close()


@pytest.fixture
def client(node: Surroundings) -> Iterator[Plain]:
    plain = Plain(node.address["client"])
    yield plain
    plain.close()


def result(node: Surroundings, number: int, values: np.ndarray) -> messages.Ref:
    return node.results.write(0, values.nbytes, generation(1, number), values, 22050)


def test_one_utterance_from_samples_to_samples(node: Surroundings, client: Plain) -> None:
    client.say({"type": "Hello", "version": 1, "client": "plain"})
    assert client.wait_for("Welcome")[0]["limits"]["sample_rate"] == 16000
    session = client.open()["session"]
    data = samples(20_000)
    client.submit(session, 0, data)

    assert node.wait_for(Session).pipeline == ("asr", "nmt", "tts")
    admit = node.wait_for(Admit)
    assert node.ingress.copy(admit.ref) == data and admit.ref.dtype == "int16" and admit.audio_s == 1.25
    node.schedule(JobAccepted(session, 0))
    assert client.wait_for("Accepted")[0] == {"type": "Accepted", "session": session, "index": 0}

    spoken = np.arange(1000, dtype=np.int16)
    told = Outcome(session, 0, "ok", texts={"asr": "hello"})
    node.schedule(JobOutcome(told, result(node, 5, spoken), 77))
    outcome, payload = client.wait_for("Outcome")
    assert payload == spoken.tobytes()
    assert (outcome["dtype"], outcome["nbytes"], outcome["sample_rate"]) == ("s16le", 2000, 22050)
    assert outcome["texts"] == {"asr": "hello"}
    assert node.wait_for(Copied).tickets == (77,)


def test_a_result_that_is_no_longer_there_ends_as_failed(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    ref = result(node, 5, np.arange(1000, dtype=np.int16))
    result(node, 6, np.arange(1000, dtype=np.int16))  # the slot has been given to somebody else
    node.schedule(JobAccepted(session, 0), JobOutcome(Outcome(session, 0, "ok"), ref, 77))
    outcome, payload = client.wait_for("Outcome")
    assert (outcome["outcome"], outcome["code"], payload) == ("error", "failed", None)
    assert node.wait_for(Copied).tickets == (77,)


def test_what_another_life_of_the_scheduler_says_is_dropped(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    node.scheduler.epoch = 9
    node.schedule(JobOutcome(Outcome(session, 0, "error", "failed")))
    node.scheduler.epoch = 1
    node.schedule(JobOutcome(Outcome(session, 0, "ok")))
    assert client.wait_for("Outcome")[0]["outcome"] == "ok"


def test_garbage_is_answered_and_the_session_goes_on(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    for frames in ([b"\xc1"], [b""], [b"\x91" * 60_000], [b"a", b"b", b"c"], [b"\x90" * 70_000]):
        client.socket.send_multipart(frames)
        assert client.wait_for("Rejected")[0]["code"] == "bad_message", frames[0][:10]
    client.submit(session, 0, samples())
    node.wait_for(Admit)


def test_a_client_that_goes_away_gets_everything_when_it_resumes(node: Surroundings, client: Plain) -> None:
    opened = client.open()
    session = opened["session"]
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    client.close()
    node.schedule(JobAccepted(session, 0), JobOutcome(Outcome(session, 0, "ok", texts={"asr": "kept"})))
    again = Plain(node.address["client"])
    again.say({"type": "Ping"})
    assert again.wait_for("Pong")[0]["incarnation"] == 1
    again.say({"type": "Resume", "token": opened["token"], "last_received": -1})
    assert again.wait_for("Opened")[0]["next_index"] == 1
    assert again.wait_for("Outcome")[0]["texts"] == {"asr": "kept"}
    again.close()


def test_a_client_s_death_is_seen_without_a_word_to_it(node: Surroundings, client: Plain) -> None:
    client.open()
    until = time.monotonic() + PATIENCE_S
    while node.wait_for(Report).snapshot["clients"] != 1:
        assert time.monotonic() < until
    client.close()
    while node.wait_for(Report).snapshot["clients"] != 0:
        assert time.monotonic() < until, "the gateway does not notice"


def test_sessions_closed_in_one_breath_with_the_connection_are_closed(node: Surroundings) -> None:
    """The answer to the first Close finds nobody; the others count all the same."""
    for _ in range(10):
        with Client(node.address["client"]) as client:
            for session in [client.session(pipeline="full", source="en", target="de") for _ in range(3)]:
                session.close("abort")
    until = time.monotonic() + PATIENCE_S
    while (seen := node.wait_for(Report).snapshot)["clients"] or seen["sessions"]:
        assert time.monotonic() < until, f"{seen['sessions']} sessions are left behind"


def test_a_slot_comes_back_when_the_scheduler_says_so(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    longest = samples(64_000)  # 2 blocks each, 16 in all; the session's window is 8
    for index in range(8):
        client.submit(session, index, longest)
        node.wait_for(Admit)
        node.schedule(JobAccepted(session, index), JobOutcome(Outcome(session, index, "ok")))
        client.wait_for("Outcome")
    client.say({"type": "Ack", "session": session, "through": 7})
    client.submit(session, 8, longest)
    assert client.wait_for("Busy")[0]["reason"] == "memory"
    node.schedule(Free(((session, 3),)))
    client.say({"type": "Ping"})
    client.wait_for("Pong")
    client.submit(session, 8, longest)
    assert node.wait_for(Admit).index == 8


def test_the_report_tells_what_is_going_on(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    client.socket.send(b"\xc1")
    client.wait_for("Rejected")
    fields = {"sessions", "accepted", "rejected", "busy", "outcomes", "response_queue", "held", "held_max"}
    fields |= {"outbox_bytes", "ring", "clients", "bad_frames", "whole"}
    for _ in range(5):
        snapshot = node.wait_for(Report).snapshot
        assert set(snapshot) == fields
        if snapshot["bad_frames"]:
            break
    assert snapshot["accepted"] == 1 and snapshot["sessions"] == 1 and snapshot["bad_frames"] == 1
    assert snapshot["ring"] == {"blocks": BLOCKS, "free": BLOCKS - 1}


def test_it_drains_flushes_and_leaves_with_code_0(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    node.tell_supervised(Drain(5000))
    client.say({"type": "Ping"})
    client.wait_for("Pong")
    client.submit(session, 1, samples())
    assert client.wait_for("Busy")[0]["reason"] == "shutting_down"
    node.schedule(JobOutcome(Outcome(session, 0, "error", "shutting_down")))
    assert client.wait_for("Outcome")[0]["code"] == "shutting_down"
    node.wait_for(Flushed)
    assert client.wait_for("Closed")[0]["reason"] == "shutting_down"
    node.tell_supervised(Stop())
    assert node.child.wait(PATIENCE_S) == 0
    assert node.child.stderr is not None and node.child.stderr.read() == b""


def test_told_to_stop_it_ends_what_is_accepted_and_says_so_before_it_leaves(node: Surroundings, client: Plain) -> None:
    session = client.open()["session"]
    for index in range(3):
        client.submit(session, index, samples())
        node.wait_for(Admit)
    node.tell_supervised(Stop())
    assert node.child.wait(PATIENCE_S) == 0
    assert [client.wait_for("Outcome")[0]["code"] for _ in range(3)] == ["shutting_down"] * 3
    assert client.wait_for("Closed")[0]["reason"] == "shutting_down"


def test_a_flood_from_one_client_leaves_everybody_else_their_turn(node: Surroundings, client: Plain) -> None:
    """A megabyte of the smallest bad messages, and more messages than a turn takes: nothing of a frame is lost."""
    flood = Plain(node.address["client"])
    for _ in range(20):
        flood.socket.send(b"\xdc" + (65_000).to_bytes(2, "big") + b"\xc0" * 65_000)
    session = client.open()["session"]
    idle = {"type": "Ack", "session": session, "through": -1}
    for _ in range(10):
        client.say(*[idle] * 1300, {"type": "Ping"})
    client.submit(session, 0, samples())
    node.wait_for(Admit)
    for _ in range(10):
        client.wait_for("Pong")
    for _ in range(20):
        flood.wait_for("Rejected")
    flood.say({"type": "Ping"})
    flood.wait_for("Pong")
    flood.close()


@pytest.mark.parametrize("full", [False, True])
def test_a_result_there_is_no_memory_for_ends_as_failed(full: bool) -> None:
    def no_memory(*_: Any) -> bytes:
        raise MemoryError

    ring = SimpleNamespace(copy=(lambda ref, make: b"xx") if full else no_memory)
    outbox = SimpleNamespace(total_bytes=1000 if full else 0, count=3)
    shell = SimpleNamespace(rings={"tts": ring}, core=SimpleNamespace(books=SimpleNamespace(outbox=outbox)),
                            outbox_most=1001, log=logging.getLogger("test"))  # fmt: skip
    ref = messages.Ref("tts", 0, 2, "int16", (1,), 16000, 1)
    event = Shell._fetch(shell, JobOutcome(Outcome("s", 0, "ok"), ref, 77))  # type: ignore[arg-type]
    assert (event.outcome.outcome, event.outcome.code, event.payload, event.ticket) == ("error", "failed", None, 77)
    assert "memory" in event.outcome.error


def reader(fed: list[Any]) -> Shell:
    """A shell that reads clients and does nothing else: what it feeds its core is in ``fed``."""
    shell = Shell.__new__(Shell)
    shell.inbox, shell.bad_frames, shell.now, shell.log = Inbox(), 0, 0.0, logging.getLogger("test")
    shell._feed = fed.append  # type: ignore[method-assign]
    return shell


def door(*arrivals: tuple[bytes, list[Any]]) -> Any:
    waiting = iter(arrivals)
    return SimpleNamespace(drain=lambda: waiting, lost=list)


def test_a_frame_there_is_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("engine.gateway.wire.read", no_memory)
    fed: list[Any] = []
    reader(fed)._read_clients(door((b"a", [b"x"]), (b"b", [b"x"])))
    assert [(event.client, event.messages[0].code) for event in fed] == [(b"a", "bad_message"), (b"b", "bad_message")]


def test_messages_there_is_no_memory_to_handle_are_refused_and_the_rest_goes_on() -> None:
    fed: list[Any] = []

    def feed(event: Any) -> None:
        if len(fed) == 1 and type(event.messages[0]) is Ping:
            fed.append("failed")
            raise MemoryError
        fed.append(event)

    shell = reader(fed)
    shell._feed, shell.now = feed, float("inf")  # type: ignore[method-assign]
    shell._read_clients(door((b"a", [msgpack.packb([{"type": "Ping"}] * 40)])))
    assert [event if event == "failed" else type(event.messages[0]).__name__ for event in fed] == [
        "Ping", "failed", "Rejected", "Ping",
    ]  # fmt: skip


def test_a_turn_takes_so_many_messages_and_comes_back_for_the_rest() -> None:
    taken: list[Any] = []
    shell = reader(taken)
    shell.now = float("inf")  # the turn will never have lasted long
    waiting = door(*[(b"a", [msgpack.packb([{"type": "Ping"}] * 500)])] * 10)
    for turn in (1, 2):
        shell._read_clients(waiting)
        assert sum(len(event.messages) for event in taken) == turn * TURN_MESSAGES
    shell.now = float("-inf")  # the turn has lasted long already
    shell._read_clients(waiting)
    assert sum(len(event.messages) for event in taken) == 2 * TURN_MESSAGES + TURN_LOOKS


def test_a_long_frame_takes_several_turns_with_others_heard_in_between() -> None:
    """In order, with nothing else of its client before the rest of it, and the loss of that client after all of it."""
    taken: list[Any] = []
    shell = reader(taken)
    shell.now = float("-inf")  # each turn has lasted long already

    def frame(*indices: int) -> list[bytes]:
        return [msgpack.packb([{"type": "Skip", "session": "s", "index": index} for index in indices])]

    waiting = door((b"a", frame(*range(600))), (b"a", frame(600)), (b"b", frame(0, 1)))
    waiting.lost = lambda: [b"a"]
    turns = 0
    while not any(isinstance(event, ClientLost) for event in taken):
        before = sum(len(event.messages) for event in taken)
        shell._read_clients(waiting)
        turns += 1
        handled = [event for event in taken if isinstance(event, Arrived)]
        assert sum(len(event.messages) for event in handled) - before < 2 * TURN_LOOKS
        if turns == 4:
            assert any(event.client == b"b" for event in handled), "it waits for no more than the turn of another"
    assert turns >= 600 // TURN_LOOKS
    assert [m.index for event in handled if event.client == b"a" for m in event.messages] == list(range(601))


def test_a_turn_does_not_wait_while_something_of_a_frame_is_left(tmp_path: Path) -> None:
    """One frame of more messages than a turn takes, on a connection that says nothing more, far from a heartbeat."""
    around = Surroundings(tmp_path, DeadlinesSection(heartbeat_s=10 * PATIENCE_S))
    try:
        around.start()
        client = Plain(around.address["client"])
        session = client.open()["session"]
        idle = {"type": "Ack", "session": session, "through": -1}
        client.say(*[idle] * (TURN_MESSAGES - 690), *[{"type": "Ping"}] * 700)
        for _ in range(700):
            client.wait_for("Pong")
        client.close()
    finally:
        around.close()


def test_it_leaves_when_its_supervisor_is_gone(node: Surroundings) -> None:
    os.close(node.death)
    try:
        assert node.child.wait(PATIENCE_S) == 4
    finally:
        node.death = os.open(os.devnull, os.O_RDONLY)


def test_its_memory_is_capped_once_it_serves(node: Surroundings) -> None:
    limits = Path(f"/proc/{node.child.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert line.split()[3].isdigit()


def test_results_are_mapped_read_only_and_only_its_own_ring_is_writable(node: Surroundings) -> None:
    maps = Path(f"/proc/{node.child.pid}/maps").read_text().splitlines()
    rights = {line.split("memfd:")[1].split()[0]: line.split()[1] for line in maps if "memfd:" in line}
    assert rights["gateway"].startswith("rw") and rights["tts"].startswith("r-")


def test_frames_that_are_not_through_yet_keep_further_ones_in_the_door() -> None:
    shell = reader([])
    shell.now = float("inf")  # the turn will never have lasted long
    left = [(b"%d" % number, [msgpack.packb([{"type": "Ping"}] * 500)]) for number in range(2 * MOST)]
    shell._read_clients(SimpleNamespace(drain=lambda: iter(left.pop, None), lost=list))
    assert len(shell.inbox) == MOST == len(left)
