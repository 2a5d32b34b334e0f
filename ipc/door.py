"""The door: where programs that are not the node's own come in, clients and operators. Raw frames, opaque ids.

On ``ipc://`` the door speaks ZeroMQ's protocol itself, like the node's links and for the same reason
(``ipc.sockets``): samples are received where they stay, a client's death is seen at once, and what it does not read is
counted in bytes. Everything else is libzmq's: TCP, heartbeats answered by a thread of its own, strangers of every kind.

libzmq's socket is watched through its ZMQ_FD. That descriptor tells of commands, not of messages, and a send may
swallow its signal (zmq_getsockopt(3), ZMQ_FD): so it must be drained until nothing is left, or marked ``touched``, and
a socket that is, or has sent since the last wait, is asked first.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.backend import zmq_poll

from ipc import messages, zmtp
from ipc.errors import PeerGone
from ipc.poll import Poll
from ipc.streams import SCHEME, Listener, Stream, path_of

HIGH_WATER = 10_000  # frames; far above any window
LOCAL_BUFFER_BYTES = 2**20  # an utterance of some seconds goes out at once
MOST_CONNECTIONS = 1024
MOST_UNGREETED = 256  # of them; then the oldest goes
INCOMPLETE_BYTES = 128 * 2**20  # of large messages on their way in, of all local clients together
BATCH = 256  # arrivals taken from libzmq at once
MAX_UNSENT_BYTES = 256 * 2**20
LOCAL = b"@"  # local ids begin so, libzmq's with a zero byte

_NOW, _MORE, _IN = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.POLLIN)


def context() -> zmq.Context:
    """The process's ZeroMQ context."""
    return zmq.Context.instance()


class Door:
    """Multipart frames as they come, to and from whoever connects to one of the ``endpoints``.

    ``max_bytes``: of one message. ``max_unsent``: what a local client may leave unread before it counts as gone.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        max_bytes: int,
        heartbeat_ms: int = 1000,
        timeout_ms: int = 3000,
        max_unsent: int = MAX_UNSENT_BYTES,
    ) -> None:
        self.link = self
        self.bad_frames = 0
        self.stirred: list[Any] = []  # what the poll found readable since the last drain
        self._arrived: deque[tuple[bytes, list[Any]]] = deque()  # taken in, not yet drained
        self._lost: list[bytes] = []
        self._max_bytes = max_bytes
        self._max_unsent = max_unsent
        self._ids = itertools.count(1)
        self._streams: dict[bytes, Stream] = {}
        self._clients: dict[Stream, bytes] = {}
        self._ungreeted: dict[Stream, float] = {}  # local streams, oldest first -> when they must have said READY
        self._timeout_s = timeout_ms / 1000
        self._budget = zmtp.Budget(max(INCOMPLETE_BYTES, 4 * max_bytes))
        self._opening = zmtp.opening("ROUTER")
        self._poll: Poll | None = None
        self._listeners: list[Listener] = []
        self._remote: _Remote | None = None
        far = [endpoint for endpoint in endpoints if not endpoint.startswith(SCHEME)]
        try:
            if far:
                self._remote = _Remote(self, far, max_bytes, heartbeat_ms, timeout_ms)
            for endpoint in endpoints:
                if endpoint.startswith(SCHEME):
                    self._listeners.append(Listener(self, path_of(endpoint), self._welcome))
        except BaseException:
            self.close()
            raise

    def send(self, client: bytes, batch: list[Any], payload: Any = None) -> None:
        """One frame of messages, and the samples of its ``Outcome`` if given. Raises PeerGone."""
        self.send_frames(client, [messages.encode(batch)] if payload is None else [messages.encode(batch), payload])

    def send_frames(self, client: bytes, frames: list[Any]) -> None:
        """Frames (at least one) as they are. Raises PeerGone."""
        if client[:1] == LOCAL:
            stream = self._streams.get(client)
            if stream is None:
                raise PeerGone(client)
            stream.send(frames)
        elif self._remote is not None:
            self._remote.send(client, frames)
        else:
            raise PeerGone(client)

    def drain(self, limit: int = 256) -> Iterator[tuple[bytes, list[Any]]]:
        """At most ``limit`` arrivals: (client, frames as buffers of bytes). What is left ends the next wait at once."""
        if len(self.stirred) > 1:
            self.stirred = list(dict.fromkeys(self.stirred))  # what was left, and found readable again
        for _ in range(limit):
            while not self._arrived:
                if not self.stirred:
                    return
                self._take_in(self.stirred.pop(0))
            yield self._arrived.popleft()

    def _take_in(self, watched: Any) -> None:
        if watched is self._remote:
            self._arrived += self._remote.arrivals(BATCH)
            return
        client = self._clients.get(watched, b"")
        self._arrived += [(client, frames) for frames in watched.read_large()]

    def look(self) -> bool:
        """Whether there is something to drain that the poll may not see."""
        if self._ungreeted:
            self._show_out()
        if self._remote is not None and self._remote.touched and self._remote.look():
            self.stirred.append(self._remote)
        return bool(self.stirred or self._arrived)

    def lost(self) -> list[bytes]:
        """Local clients that have gone since the last call; everything they said has been drained."""
        lost, self._lost = self._lost, []
        return lost

    # ---------------------------------------------------------------- local connections

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._ungreeted) >= MOST_UNGREETED:
            next(iter(self._ungreeted)).close()
        if len(self._streams) >= MOST_CONNECTIONS:
            sock.close()
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
        stream = Stream(self, sock, self._opening, self._max_bytes, self._max_unsent, self._budget)
        self._ungreeted[stream] = time.monotonic() + self._timeout_s
        client = LOCAL + next(self._ids).to_bytes(8, "big")
        self._streams[client], self._clients[stream] = stream, client
        if self._poll is not None:
            stream.join(self._poll)

    def met(self, stream: Stream, identity: bytes) -> None:
        """Clients choose no name; what they say is not used."""
        self._ungreeted.pop(stream, None)

    def _show_out(self) -> None:
        """Who connects and says nothing takes nobody else's place."""
        now = time.monotonic()
        for stream in [stream for stream, until in self._ungreeted.items() if until <= now]:
            stream.close()

    def parted(self, stream: Stream) -> None:
        """A local client has gone."""
        self._ungreeted.pop(stream, None)
        client = self._clients.pop(stream)
        del self._streams[client]
        self._lost.append(client)

    def join(self, poll: Poll) -> None:
        self._poll = poll
        poll.watch_door(self)
        for listener in self._listeners:
            listener.join(poll)
        for stream in self._clients:
            stream.join(poll)
        if self._remote is not None:
            self._remote.join(poll)

    def part(self, poll: Poll) -> None:
        self._poll = None
        poll.unwatch_door(self)
        for listener in self._listeners:
            listener.part(poll)
        for stream in self._clients:
            stream.part()
        if self._remote is not None:
            self._remote.part(poll)

    def close(self, linger_ms: int = 0) -> None:
        """Let everybody go; last words are given ``linger_ms`` to leave."""
        if self._poll is not None:
            self.part(self._poll)
        until = time.monotonic() + linger_ms / 1000
        for stream in list(self._clients):
            stream.linger(until)
            stream.close()
        for listener in self._listeners:
            listener.close()
        if self._remote is not None:
            self._remote.close(linger_ms)


class _Remote:
    """The libzmq side of a door. The hot path calls pyzmq's compiled socket, which is less code and so less cold."""

    def __init__(
        self, door: Door, endpoints: Sequence[str], max_bytes: int, heartbeat_ms: int, timeout_ms: int
    ) -> None:
        self.link = door
        self.touched = True
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
            self.socket.bind(endpoint)

    def send(self, client: bytes, frames: list[Any]) -> None:
        *parts, last = frames
        self.touched = True
        try:
            self.socket.send(client, _MORE)
            for part in parts:
                self.socket.send(part, _MORE)
            self.socket.send(last, _NOW, copy=len(last) < zmtp.LARGE_BYTES)
        except zmq.ZMQError as error:
            raise PeerGone(client) from error

    def arrivals(self, most: int) -> Iterator[tuple[bytes, list[Any]]]:
        """At most so many that have arrived."""
        self.touched = True  # until nothing is left
        try:
            for _ in range(most):
                client, *frames = self.socket.recv_multipart(_NOW, copy=False)
                yield client.bytes, [f.buffer if len(f) >= zmtp.LARGE_BYTES else f.bytes for f in frames]
        except zmq.Again:
            self.touched = False

    def look(self) -> bool:
        """Whether something has arrived, asked of libzmq itself."""
        self.touched = False
        return bool(zmq_poll(self._asked, 0))

    def join(self, poll: Poll) -> None:
        self.touched = True
        poll.watch(self.socket.getsockopt(zmq.FD), self)

    def part(self, poll: Poll) -> None:
        poll.unwatch(self.socket.getsockopt(zmq.FD))

    def close(self, linger_ms: int) -> None:
        self.socket.close(linger=linger_ms)
