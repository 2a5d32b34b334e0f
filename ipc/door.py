"""The door: the gateway's and the operators' ZeroMQ socket, for programs that are not the node's own.

Raw frames, identities chosen by libzmq, which also speaks TCP, answers heartbeats in a thread of its own, and has met
every kind of stranger. The hot path calls pyzmq's compiled socket: what ``zmq.Socket`` adds around it is Python, and in a
process that wakes, handles one message and sleeps all code is cold, so that how much there is of it counts.

A door is watched through its ZMQ_FD. That descriptor tells of commands, not of messages, and a send may swallow its
signal (zmq_getsockopt(3), ZMQ_FD): so a door must be drained until nothing is left, or marked ``touched``, and one that
is, or has sent since the last wait, is asked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zmq
from zmq.backend import Socket as _Compiled
from zmq.backend import zmq_poll

from ipc import messages
from ipc.errors import PeerGone
from ipc.poll import Poll

HIGH_WATER = 10_000  # frames; far above any window
LOCAL_BUFFER_BYTES = 2**20
SMALL_BYTES = 64 * 1024  # frames up to here are copied when they arrive

_NOW, _MORE, _IN = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.POLLIN)
_send = _Compiled.send
Held = zmq.Frame  # samples on their way; its length is in bytes


def hold(data: Any) -> Held:
    """Copy a contiguous buffer, once; the result can be sent any number of times without another copy."""
    return Held(data, copy=True)


def buffer_for(endpoint: str) -> int:
    """Send buffer of a connection: an utterance of some seconds goes out at once on this machine; TCP has its own."""
    return LOCAL_BUFFER_BYTES if endpoint.startswith("ipc:") else -1


def context() -> zmq.Context:
    """The process's ZeroMQ context."""
    return zmq.Context.instance()


class Door:
    """Multipart frames as they come, to and from opaque identities."""

    def __init__(self, endpoints: list[str], max_bytes: int, heartbeat_ms: int = 1000, timeout_ms: int = 3000) -> None:
        self.link = self  # what Poll puts readable things on the list of
        self.stirred: list[Any] = []
        self.touched = True  # its descriptor may have lost a signal since the last wait
        self.socket = context().socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = HIGH_WATER
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, timeout_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
        self._asked = [(self.socket, _IN)]
        for endpoint in endpoints:
            self.socket.setsockopt(zmq.SNDBUF, buffer_for(endpoint))
            self.socket.bind(endpoint)

    def fileno(self) -> int:
        return self.socket.getsockopt(zmq.FD)

    def send(self, client: bytes, batch: list[Any], payload: bytes | Held | None = None) -> None:
        """One frame of messages, and the samples of its ``Outcome`` if given. Raises PeerGone."""
        self.send_frames(client, [messages.encode(batch)] if payload is None else [messages.encode(batch), payload])

    def send_frames(self, client: bytes, frames: list[bytes | Held]) -> None:
        """Frames (at least one) as they are. Raises PeerGone."""
        *parts, last = frames
        self.touched = True
        try:
            _send(self.socket, client, _MORE)
            for part in parts:
                _send(self.socket, part, _MORE)
            _send(self.socket, last, _NOW)
        except zmq.ZMQError as error:
            raise PeerGone(client) from error

    def drain(self, limit: int = 256) -> Iterator[tuple[bytes, list[Any]]]:
        """At most ``limit`` arrivals: (client, frames as bytes). A long frame is not copied: it comes as ``Held``."""
        for count, (client, *frames) in enumerate(self._arrivals(), 1):
            yield client, [frame if len(frame) > SMALL_BYTES else frame.bytes for frame in frames]
            if count == limit:
                self.touched = True  # there may be more
                return

    def _arrivals(self) -> Iterator[list[Any]]:
        """Everything that has arrived: routing id (bytes), then frames.

        What ends a wait mostly comes alone. Then looking for more is left to the next wait, which asks anyway after a
        send; what came meanwhile makes that wait end at once, and the turn after it take everything.
        """
        woke, self.stirred = bool(self.stirred) and not self.touched, []
        try:
            while True:
                yield self._receive()
                if woke:
                    self.touched = True
                    return
                if not self.look():
                    return
        except zmq.Again:  # woken by what was no message
            return

    def _receive(self) -> list[Any]:
        """The parts of one arrival. Raises zmq.Again when there is none."""
        recv = self.socket.recv
        parts: list[Any] = [recv(_NOW)]  # a routing id never comes alone
        while True:
            frame = recv(_NOW, False)
            parts.append(frame)
            if not frame.more:
                return parts

    def look(self) -> bool:
        """Whether something has arrived, asked of libzmq itself."""
        self.touched = False
        return bool(zmq_poll(self._asked, 0))

    def join(self, poll: Poll) -> None:
        self.touched = True
        poll.watch_door(self)

    def part(self, poll: Poll) -> None:
        poll.unwatch_door(self)

    def close(self) -> None:
        self.socket.close()
