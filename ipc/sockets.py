"""Links between processes over ZeroMQ. Policy lives elsewhere; these only move frames.

A process posts messages as it decides and flushes once per loop turn, so that each peer gets at most one frame a turn.
Sends never block: high-water marks stand far above every window, so a send that fails means the peer is gone.

* ``Router`` is bound, and addresses peers by name; ``Dealer`` connects to one Router and speaks first.
  A peer's name is ``role#incarnation``.
* ``Door`` is the gateway's socket for clients: raw frames, identities chosen by libzmq.

A process of the node wakes, handles one message and sleeps, so its code is always cold, and what counts is how much of
it there is. So the hot path calls pyzmq's compiled socket: ``send_multipart``, ``recv_multipart`` and ``getsockopt``
are Python around it, and asking an empty socket for a frame costs an exception; cold, each takes longer than the frame.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import msgspec
import zmq
from zmq.backend import Socket as _Compiled
from zmq.backend import zmq_poll

from ipc import messages
from ipc.errors import BadFrame, PeerGone
from ipc.peers import peer_name, split_peer

HIGH_WATER = 10_000  # frames; far above any window
RECONNECT_MS = 10
MAX_FRAME_BYTES = 16 * 2**20
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


class _Link:
    """A socket of this process, and what ``Poll`` must know of it."""

    def __init__(self, kind: int) -> None:
        self.socket = _prepare(kind)
        self.touched = False  # its descriptor may have lost a signal since the last wait
        self.woke = False  # the last wait really waited, and this ended it
        self._routed = kind == zmq.ROUTER
        self._asked = [(self.socket, _IN)]

    def _arrivals(self) -> Iterator[list[Any]]:
        """Everything that has arrived, by its parts: on a ROUTER the routing id (bytes), then frames.

        What ends a wait mostly comes alone. Then looking for more is left to the next wait, which asks anyway after a
        send; what came meanwhile makes that wait end at once, and the turn after it take everything.
        """
        woke, self.woke = self.woke, False
        try:
            while True:
                yield self._receive()
                if woke:
                    self.touched = True
                    return
                if not zmq_poll(self._asked, 0):
                    return
        except zmq.Again:  # woken by what was no message
            return

    def _receive(self) -> list[Any]:
        """The parts of one arrival. Raises zmq.Again when there is none."""
        recv = self.socket.recv
        parts: list[Any] = [recv(_NOW)] if self._routed else []  # a routing id never comes alone
        while True:
            frame = recv(_NOW, False)
            parts.append(frame)
            if not frame.more:
                return parts

    def close(self) -> None:
        self.socket.close()


class Router(_Link):
    """The bound end of internal links: many peers, each by its name."""

    def __init__(self, endpoint: str, incarnation: int, union: object, epoch: int = 0) -> None:
        super().__init__(zmq.ROUTER)
        self.incarnation = incarnation
        self.epoch = epoch
        self.bad_frames = 0
        self._decode = messages.frame_decoder(union).decode
        self._posted: dict[str, list[Any]] = {}
        self._known: dict[bytes, tuple[str, int]] = {}  # routing id -> peer, its incarnation
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(endpoint)

    def post(self, peer: str, message: Any) -> None:
        """Put a message into this turn's frame for ``peer``."""
        self._posted.setdefault(peer, []).append(message)

    def flush(self) -> list[str]:
        """Send one frame to each peer that has messages; returns the peers that are gone."""
        gone: list[str] = []
        if not self._posted:
            return gone
        posted, self._posted = self._posted, {}
        for peer, batch in posted.items():
            try:
                self.send(peer, batch)
            except PeerGone:
                gone.append(peer)
        return gone

    def send(self, peer: str, batch: list[Any]) -> None:
        """Send one frame now. Raises PeerGone."""
        frame = messages.encode((self.incarnation, self.epoch, batch))
        self.touched = True
        try:
            _send(self.socket, peer.encode(), _MORE)
            _send(self.socket, frame, _NOW)
        except zmq.ZMQError as error:
            raise PeerGone(peer) from error

    def drain(self) -> Iterator[tuple[str, int, list[Any]]]:
        """Everything that has arrived: (peer, epoch, messages). Bad frames are counted and dropped."""
        for frames in self._arrivals():
            try:
                id_, frame = frames
                peer, life = self._known.get(id_) or self._meet(id_)
                incarnation, epoch, batch = self._decode(frame)
                if life != incarnation:
                    raise BadFrame(peer)
            except (msgspec.MsgspecError, ValueError, BadFrame):
                self.bad_frames += 1
                continue
            yield peer, epoch, batch

    def _meet(self, id_: bytes) -> tuple[str, int]:
        """Name and incarnation of a peer that speaks for the first time. Raises ValueError when the id is no name."""
        peer = id_.decode()
        self._known[id_] = peer, split_peer(peer)[1]
        return self._known[id_]


class Dealer(_Link):
    """The connecting end of an internal link: one peer."""

    def __init__(self, endpoint: str, role: str, incarnation: int, union: object) -> None:
        super().__init__(zmq.DEALER)
        self.incarnation = incarnation
        self.epoch = 0
        self.bad_frames = 0
        self._decode = messages.frame_decoder(union).decode
        self._posted: list[Any] = []
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
            _send(self.socket, messages.encode((self.incarnation, self.epoch, batch)), _NOW)
        except zmq.ZMQError as error:
            raise PeerGone("bound end") from error

    def drain(self) -> Iterator[tuple[int, int, list[Any]]]:
        """Everything that has arrived: (sender's incarnation, epoch, messages)."""
        for frames in self._arrivals():
            try:
                (frame,) = frames
                incarnation, epoch, batch = self._decode(frame)
            except (msgspec.MsgspecError, ValueError):
                self.bad_frames += 1
                continue
            yield incarnation, epoch, batch


class Door(_Link):
    """The gateway's socket for clients: multipart frames as they come, to and from opaque identities."""

    def __init__(self, endpoints: list[str], max_bytes: int, heartbeat_ms: int = 1000, timeout_ms: int = 3000) -> None:
        super().__init__(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, timeout_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, timeout_ms)
        for endpoint in endpoints:
            self.socket.setsockopt(zmq.SNDBUF, buffer_for(endpoint))
            self.socket.bind(endpoint)

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


class Poll:
    """Waits on links and plain descriptors together.

    A link is watched through its ZMQ_FD, which saves two system calls per link and turn against ``zmq.Poller``. That
    descriptor tells of commands, not of messages, and a send may swallow its signal (zmq_getsockopt(3), ZMQ_FD): so
    links must be drained until nothing is left, or marked ``touched``, and those that are, or sent since the last wait,
    are asked first.
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
        ready: set[Any] = set()
        asked = []
        for link in self._links.values():
            if link.touched:
                link.touched = False
                asked.append((link.socket, _IN))
        if asked:
            ready.update([socket for socket, _ in zmq_poll(asked, 0)])
        woke = not ready
        for fd, _ in self._epoll.poll(0 if ready else timeout_s):
            link = self._links.get(fd)
            if link is None:
                ready.add(fd)
            else:
                link.woke = woke
                ready.add(link.socket)
        return ready
