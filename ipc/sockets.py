"""Links between processes over ZeroMQ. Policy lives elsewhere; these only move frames.

A process posts messages as it decides and flushes once per loop turn, so that each peer gets at most one frame a turn.
Sends never block: high-water marks stand far above every window, so a send that fails means the peer is gone.

* ``Router`` is bound, and addresses peers by name; ``Dealer`` connects to one Router and speaks first.
  A peer's name is ``role#incarnation``.
* ``Door`` is the gateway's socket for clients: raw frames, identities chosen by libzmq.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import msgspec
import zmq

from ipc import messages
from ipc.errors import BadFrame, PeerGone
from ipc.peers import peer_name, split_peer

HIGH_WATER = 10_000  # frames; far above any window
RECONNECT_MS = 10
MAX_FRAME_BYTES = 16 * 2**20


def context() -> zmq.Context:
    """The process's ZeroMQ context."""
    return zmq.Context.instance()


def carry_on(cpu: int) -> None:
    """Keep ZeroMQ's own thread on this CPU; call it before the first socket."""
    context().set(zmq.THREAD_AFFINITY_CPU_ADD, cpu)


def _prepare(kind: int) -> zmq.Socket:
    socket = context().socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = HIGH_WATER
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    return socket


class Router:
    """The bound end of internal links: many peers, each by its name."""

    def __init__(self, endpoint: str, incarnation: int, union: object, epoch: int = 0) -> None:
        self.incarnation = incarnation
        self.epoch = epoch
        self.bad_frames = 0
        self._decode = messages.frame_decoder(union).decode
        self._posted: dict[str, list[Any]] = {}
        self.touched = False  # sent since the last wait: its descriptor may have lost a signal
        self.socket = _prepare(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(endpoint)

    def post(self, peer: str, message: Any) -> None:
        """Put a message into this turn's frame for ``peer``."""
        self._posted.setdefault(peer, []).append(message)

    def flush(self) -> list[str]:
        """Send one frame to each peer that has messages; returns the peers that are gone."""
        gone = []
        posted, self._posted = self._posted, {}
        for peer, batch in posted.items():
            try:
                self.send(peer, batch)
            except PeerGone:
                gone.append(peer)
        return gone

    def send(self, peer: str, batch: list[Any]) -> None:
        """Send one frame now. Raises PeerGone."""
        frame = messages.encode(messages.Frame(self.incarnation, self.epoch, batch))
        self.touched = True
        try:
            self.socket.send_multipart([peer.encode(), frame], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            raise PeerGone(peer) from error

    def drain(self) -> Iterator[tuple[str, int, list[Any]]]:
        """Everything that has arrived: (peer, epoch, messages). Bad frames are counted and dropped."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                incarnation, epoch, batch = self._decode(parts[-1])
                peer = parts[0].decode()
                if len(parts) != 2 or split_peer(peer)[1] != incarnation:
                    raise BadFrame(peer)
            except (msgspec.MsgspecError, ValueError, BadFrame):
                self.bad_frames += 1
                continue
            yield peer, epoch, batch

    def close(self) -> None:
        self.socket.close()


class Dealer:
    """The connecting end of an internal link: one peer."""

    def __init__(self, endpoint: str, role: str, incarnation: int, union: object) -> None:
        self.incarnation = incarnation
        self.epoch = 0
        self.bad_frames = 0
        self._decode = messages.frame_decoder(union).decode
        self._posted: list[Any] = []
        self.touched = False  # sent since the last wait: its descriptor may have lost a signal
        self.socket = _prepare(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, peer_name(role, incarnation).encode())
        self.socket.connect(endpoint)

    def post(self, message: Any) -> None:
        """Put a message into this turn's frame."""
        self._posted.append(message)

    def flush(self) -> None:
        """Send this turn's frame, if any. Raises PeerGone."""
        if self._posted:
            batch, self._posted = self._posted, []
            self.send(batch)

    def send(self, batch: list[Any]) -> None:
        """Send one frame now. Raises PeerGone."""
        self.touched = True
        try:
            self.socket.send(messages.encode(messages.Frame(self.incarnation, self.epoch, batch)), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            raise PeerGone("bound end") from error

    def drain(self) -> Iterator[tuple[int, int, list[Any]]]:
        """Everything that has arrived: (sender's incarnation, epoch, messages)."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                incarnation, epoch, batch = self._decode(parts[-1])
            except (msgspec.MsgspecError, ValueError):
                self.bad_frames += 1
                continue
            yield incarnation, epoch, batch

    def close(self) -> None:
        self.socket.close()


class Door:
    """The gateway's socket for clients: multipart frames as they come, to and from opaque identities."""

    def __init__(self, endpoints: list[str], max_bytes: int, heartbeat_ms: int = 1000, timeout_ms: int = 3000) -> None:
        self.touched = False
        self.socket = _prepare(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, timeout_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
        for endpoint in endpoints:
            self.socket.bind(endpoint)

    def send(self, client: bytes, batch: list[Any], payload: Any = None) -> None:
        """One frame of messages, and the samples of its ``Outcome`` if given. Raises PeerGone."""
        self.send_frames(client, [messages.encode(batch)] + ([payload] if payload is not None else []))

    def send_frames(self, client: bytes, frames: list[Any]) -> None:
        """Frames as they are. Raises PeerGone."""
        self.touched = True
        try:
            self.socket.send_multipart([client, *frames], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            raise PeerGone(client) from error

    def drain(self, limit: int = 256) -> Iterator[tuple[bytes, list[bytes]]]:
        """At most ``limit`` arrivals: (client, frames)."""
        for _ in range(limit):
            try:
                client, *frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            yield client, frames
        self.touched = True  # there may be more

    def close(self) -> None:
        self.socket.close()


class Poll:
    """Waits on links and plain descriptors together.

    A link is watched through its ZMQ_FD, which saves two system calls per link and turn against ``zmq.Poller``. That
    descriptor tells of commands, not of messages, and a send may swallow its signal (zmq_getsockopt(3), ZMQ_FD): so
    links must be drained until nothing is left, and those that sent since the last wait are asked first.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._links: dict[int, Any] = {}

    def add(self, thing: Any) -> None:
        """Watch a Router, Dealer, Door or a descriptor for input."""
        if isinstance(thing, int):
            self._epoll.register(thing, select.EPOLLIN)
            return
        fd = thing.socket.getsockopt(zmq.FD)
        self._epoll.register(fd, select.EPOLLIN)
        self._links[fd] = thing
        thing.touched = True

    def remove(self, thing: Any) -> None:
        fd = thing if isinstance(thing, int) else thing.socket.getsockopt(zmq.FD)
        self._epoll.unregister(fd)
        self._links.pop(fd, None)

    def wait(self, timeout_s: float | None) -> set[Any]:
        """What may be readable within ``timeout_s`` (None: for ever): sockets of links, and descriptors."""
        ready = set()
        for link in self._links.values():
            if link.touched:
                link.touched = False
                if link.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    ready.add(link.socket)
        for fd, _ in self._epoll.poll(0 if ready else timeout_s):
            link = self._links.get(fd)
            ready.add(fd if link is None else link.socket)
        return ready
