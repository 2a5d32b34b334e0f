"""The client's local wire: whole messages or none, nothing left behind, nobody waited for longer than asked."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_node import FakeNode

from engine.client import Client
from engine.client_wire import LocalWire
from engine.outcome import NodeGone
from ipc.door import Door
from ipc.messages import Accepted, Outcome, Submit
from ipc.poll import Poll

LIMIT_S = 5.0


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/door"


class Bound:
    """A door on a thread of its own; ``heard`` keeps what came. ``reads`` off: it turns, but takes nothing in."""

    def __init__(self, endpoint: str) -> None:
        self.door = Door([endpoint], 64 << 20)
        self.poll = Poll()
        self.poll.add(self.door)
        self.heard: list[list[bytes]] = []
        self.reads = threading.Event()
        self.reads.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self.reads.wait(0.01):
                continue
            self.poll.wait(0.01)
            for _, frames in self.door.drain():
                self.heard.append([bytes(frame) for frame in frames])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.door.close()


@pytest.fixture
def bound(endpoint: str) -> Iterator[Bound]:
    made = Bound(endpoint)
    yield made
    made.close()


def until(condition: Any, wire: LocalWire | None = None) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        if wire is None:
            time.sleep(0.005)
        else:
            wire.wait(0.01)


def met(endpoint: str) -> LocalWire:
    """A wire whose other end has answered."""
    wire = LocalWire(endpoint)
    until(lambda: wire._incoming.identity is not None, wire)
    return wire


def test_what_there_is_no_room_for_is_waited_for_while_the_node_reads(endpoint: str, bound: Bound) -> None:
    wire = met(endpoint)
    wire.send([b"head", bytes(9 << 20)])
    assert not wire._unsent, "between calls nothing is sent, so nothing may be left"
    until(lambda: bound.heard)
    assert [len(frame) for frame in bound.heard[0]] == [4, 9 << 20]
    wire.close()


def test_a_node_that_reads_nothing_is_not_waited_for(endpoint: str, bound: Bound) -> None:
    wire = met(endpoint)
    bound.reads.clear()
    time.sleep(0.05)
    wire.send([b"head", bytes(9 << 20)])  # comes back
    assert wire._unsent_bytes > 1 << 20
    bound.reads.set()
    until(lambda: bound.heard, wire)
    assert len(bound.heard[0][1]) == 9 << 20
    wire.close()


def test_closing_waits_until_the_last_words_have_left(endpoint: str, bound: Bound) -> None:
    wire = met(endpoint)
    bound.reads.clear()
    time.sleep(0.05)
    wire.send([b"head", bytes(9 << 20)])
    threading.Timer(0.1, bound.reads.set).start()
    wire.close()
    until(lambda: bound.heard)
    assert len(bound.heard[0][1]) == 9 << 20


def test_half_a_message_is_not_finished_with_another_node(endpoint: str) -> None:
    first = Bound(endpoint)
    wire = met(endpoint)
    first.reads.clear()
    time.sleep(0.05)
    wire.send([b"old", bytes(9 << 20)])
    first.close()
    second = Bound(endpoint)
    until(lambda: wire._socket is not None and wire._incoming.identity is not None and not wire._unsent, wire)
    wire.send([b"new"])
    until(lambda: second.heard, wire)
    assert second.heard == [[b"new"]] and second.door.bad_frames == 0
    wire.close()
    second.close()


def test_what_is_said_before_the_node_is_there_arrives_when_it_is(endpoint: str) -> None:
    wire = LocalWire(endpoint)
    wire.send([b"early"])
    late = Bound(endpoint)
    until(lambda: late.heard, wire)
    assert late.heard == [[b"early"]]
    wire.close()
    late.close()


def test_a_node_whose_folder_is_gone_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NodeGone, match="there is no node"):
        LocalWire(f"ipc://{tmp_path}/nobody/client")


@pytest.mark.parametrize("path", ["", "/" + "x" * 107])
def test_a_path_no_socket_can_have_is_told(path: str) -> None:
    with pytest.raises(NodeGone, match="107 bytes"):
        LocalWire(f"ipc://{path}")


def test_a_message_whose_handling_is_broken_off_comes_again(endpoint: str, bound: Bound) -> None:
    wire = met(endpoint)
    wire._found.extend([[b"one"], [b"two"]])
    for message in wire.receive():
        assert message == [b"one"]
        break
    assert list(wire.receive()) == [[b"one"], [b"two"]]
    wire.close()


def test_a_call_that_is_broken_off_gives_the_connection_up(endpoint: str, bound: Bound) -> None:
    wire = met(endpoint)
    wire._unsent.append(memoryview(b"half a mess"))
    with pytest.raises(KeyboardInterrupt), wire._whole():
        raise KeyboardInterrupt
    assert wire._socket is None and not wire._unsent
    until(lambda: wire._incoming.identity is not None, wire)
    wire.send([b"whole"])
    until(lambda: bound.heard, wire)
    assert bound.heard == [[b"whole"]] and bound.door.bad_frames == 0
    wire.close()


def test_a_busy_node_does_not_keep_us_waiting_beyond_our_patience(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as full:
        full.bind(f"{tmp_path}/full")
        full.listen(0)
        waiting = []
        for _ in range(3):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            one.connect_ex(f"{tmp_path}/full")
            waiting.append(one)
        began = time.monotonic()
        with pytest.raises(NodeGone, match="no answer"), Client(f"ipc://{tmp_path}/full", patience_s=0.3):
            pass
        assert time.monotonic() - began < 3.0
        for one in waiting:
            one.close()


def test_more_descriptors_than_select_can_count(endpoint: str, bound: Bound) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1300:
        pytest.skip("this user may not open so many")
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        wire = met(endpoint)
        wire.send([b"head", bytes(9 << 20)])
        until(lambda: bound.heard, wire)
        wire.close()
    finally:
        for fd in taken:
            os.close(fd)


def test_interrupts_in_any_call_lose_nothing_and_mix_nothing_up(tmp_path: Path) -> None:
    """As a user's Ctrl-C in a program that catches it and goes on: at random moments of sending and of reading."""

    def marked(index: int) -> np.ndarray:
        return np.full(400_000, index, np.int16)

    def answer(message: Any) -> Any:
        if not isinstance(message, Submit):
            return None
        session, index = message.session, message.index
        head = Outcome(session, index, "ok", dtype="s16le", nbytes=800_000, sample_rate=16_000)
        return [Accepted(session, index), (head, marked(index).tobytes())]

    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    chance, interrupts, got = random.Random(4), 0, {}
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with FakeNode(tmp_path / "node") as node, Client(node.endpoint, patience_s=20) as client:
            node.answer = answer
            session = client.session()
            count, submitted = 40, 0
            while len(got) < count:
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.01))
                        if submitted < count and session.outstanding < 3:
                            submitted = max(submitted, session.submit(marked(submitted)) + 1)
                        else:
                            for outcome in session.outcomes(timeout_s=LIMIT_S):
                                got[outcome.index] = outcome.audio
                                break
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:  # also one that came just before the clock was stopped
                    interrupts += 1
                    submitted = session.core.next_index
                if len(got) == count and interrupts <= 10 and count < 2000:  # calls are short here: go on till it hurts
                    count += 20
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 10
    assert sorted(got) == list(range(count))
    assert all(np.array_equal(audio, marked(index)) for index, audio in got.items())
