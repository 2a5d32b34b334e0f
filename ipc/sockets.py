"""Links between the node's processes: ZeroMQ's protocol, spoken by the process itself. They only move frames.

A process posts messages as it decides and flushes once per loop turn, so that each peer gets at most one frame a turn.

* ``Router`` is bound, and addresses peers by name; ``Dealer`` connects to one Router and speaks first.
  A peer's name is ``role#incarnation``.

libzmq moves each message through a thread of its own: two wake-ups more a message, which cost more than all the rest of
it (docs/decisions/0012-links-without-a-thread.md). So these links read and write their Unix sockets in the loop's own
thread, in ZeroMQ's wire format (``ipc.zmtp``): libzmq can be the other end of either. A peer's death is the end of its
stream, and comes after everything it had sent.

Sends never block: what the kernel does not take waits here, up to ``MAX_UNSENT_BYTES``, far above every window; beyond
that the peer is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from ipc import messages, zmtp
from ipc.errors import BadFrame, PeerGone
from ipc.peers import peer_name, split_peer
from ipc.poll import Poll

__all__ = ["Dealer", "Poll", "Router"]

MAX_FRAME_BYTES = MAX_UNSENT_BYTES = 16 * 2**20
READ_BYTES = 65_536
BACKLOG = 512  # connections that may wait to be accepted
SCHEME = "ipc://"


class Connection:
    """One stream, its unsent bytes, and who is at its other end."""

    def __init__(self, link: _Link, stream: socket.socket, opening: bytes) -> None:
        stream.setblocking(False)
        self.link = link
        self.peer = ""
        self.incarnation = 0
        self._stream = stream
        self._incoming = zmtp.Incoming(MAX_FRAME_BYTES)
        self._unsent = bytearray()
        self._poll: Poll | None = None
        self.open = True
        self._write(opening)

    def send(self, body: bytes) -> None:
        """Send one frame, or keep it until there is room. Raises PeerGone."""
        self._write(zmtp.frame(body))

    def _write(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            if len(self._unsent) > MAX_UNSENT_BYTES:
                raise PeerGone(self.peer)
            return
        try:
            sent = self._stream.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise PeerGone(self.peer) from error
        if sent < len(data):
            self._unsent += data[sent:]
            if self._poll is not None:
                self._poll.wants_room(self._stream.fileno(), True)

    def read(self) -> list[list[Any]]:
        """Messages that have arrived, by their parts. At the end of the stream the connection closes itself."""
        if self._unsent:
            self._send_rest()
        try:
            data = self._stream.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        named = self._incoming.identity is not None
        try:
            found = self._incoming.feed(data)
            if not named and self._incoming.identity is not None:
                self.link.met(self, self._incoming.identity)
        except BadFrame:
            self.link.bad_frames += 1
            self.close()
            return []
        return found

    def _send_rest(self) -> None:
        with suppress(OSError):  # no room yet; or nobody there any more, which the next read says
            sent = self._stream.send(self._unsent)
            del self._unsent[:sent]
        if not self._unsent and self._poll is not None:
            self._poll.wants_room(self._stream.fileno(), False)

    def join(self, poll: Poll) -> None:
        """Be watched by ``poll``."""
        if self.open:
            self._poll = poll
            poll.watch(self._stream.fileno(), self)
            if self._unsent:
                poll.wants_room(self._stream.fileno(), True)

    def part(self) -> None:
        if self._poll is not None:
            self._poll.unwatch(self._stream.fileno())
            self._poll = None

    def close(self) -> None:
        if self.open:
            self.part()
            self.open = False
            self._stream.close()
            self.link.parted(self)


class Listener:
    """Where a Router's peers knock."""

    def __init__(self, link: Router, path: str) -> None:
        self.link = link
        self.path = path
        with suppress(FileNotFoundError):
            os.unlink(path)  # of a former life
        self._stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stream.setblocking(False)
        self._stream.bind(path)
        self._stream.listen(BACKLOG)

    def fileno(self) -> int:
        return self._stream.fileno()

    def read(self) -> list[list[Any]]:
        """Take in who knocks; what they say is read when the poll tells of it."""
        while True:
            try:
                stream, _ = self._stream.accept()
            except BlockingIOError:
                return []
            with suppress(PeerGone):
                self.link.welcome(stream)

    def close(self) -> None:
        self._stream.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)


class _Link:
    """What Router and Dealer share."""

    def __init__(self, incarnation: int, union: object, epoch: int) -> None:
        self.incarnation = incarnation
        self.epoch = epoch
        self.bad_frames = 0
        self.stirred: list[Any] = []  # what the poll found readable since the last drain
        self._decode = messages.frame_decoder(union).decode
        self._poll: Poll | None = None

    def met(self, connection: Connection, identity: bytes) -> None:
        """The other end has said who it is. Raises BadFrame when it may not be that."""

    def parted(self, connection: Connection) -> None:
        """A connection has ended."""

    def _arrivals(self) -> Iterator[tuple[Connection, tuple[int, int, list[Any]]]]:
        """What has arrived where the poll found something: (connection, (incarnation, epoch, messages))."""
        stirred, self.stirred = self.stirred, []
        for connection in stirred:
            for parts in connection.read():
                try:
                    (body,) = parts
                    yield connection, self._decode(body)
                except (msgspec.MsgspecError, ValueError):
                    self.bad_frames += 1


class Router(_Link):
    """The bound end of internal links: many peers, each by its name."""

    def __init__(self, endpoint: str, incarnation: int, union: object, epoch: int = 0) -> None:
        super().__init__(incarnation, union, epoch)
        self.endpoint = endpoint
        self._posted: dict[str, list[Any]] = {}
        self._peers: dict[str, Connection] = {}
        self._connections: set[Connection] = set()
        self._opening = zmtp.opening("ROUTER")
        self._listener = Listener(self, endpoint.removeprefix(SCHEME))

    def __contains__(self, peer: str) -> bool:
        """Whether the peer's stream has not ended: while it has not, more may come from it."""
        return peer in self._peers

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
        connection = self._peers.get(peer)
        if connection is None:
            raise PeerGone(peer)
        connection.send(messages.encode((self.incarnation, self.epoch, batch)))

    def drain(self) -> Iterator[tuple[str, int, list[Any]]]:
        """Everything the last wait found: (peer, epoch, messages). Bad frames are counted and dropped."""
        for connection, (incarnation, epoch, batch) in self._arrivals():
            if incarnation != connection.incarnation:
                self.bad_frames += 1
                continue
            yield connection.peer, epoch, batch

    # ---------------------------------------------------------------- connections

    def welcome(self, stream: socket.socket) -> None:
        """Somebody has connected."""
        connection = Connection(self, stream, self._opening)
        self._connections.add(connection)
        if self._poll is not None:
            connection.join(self._poll)

    def met(self, connection: Connection, identity: bytes) -> None:
        try:
            peer = identity.decode()
            connection.incarnation = split_peer(peer)[1]
        except ValueError as error:
            raise BadFrame(f"{identity!r} is no peer's name") from error
        if peer in self._peers:
            raise BadFrame(f"{peer} is here already")
        connection.peer = peer
        self._peers[peer] = connection

    def parted(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._peers.get(connection.peer) is connection:
            del self._peers[connection.peer]

    def join(self, poll: Poll) -> None:
        self._poll = poll
        poll.watch(self._listener.fileno(), self._listener)
        for connection in self._connections:
            connection.join(poll)

    def part(self, poll: Poll) -> None:
        self._poll = None
        poll.unwatch(self._listener.fileno())
        for connection in self._connections:
            connection.part()

    def close(self) -> None:
        if self._poll is not None:
            self.part(self._poll)
        for connection in list(self._connections):
            connection.close()
        self._listener.close()


class Dealer(_Link):
    """The connecting end of an internal link: one peer, whose endpoint must be bound already."""

    def __init__(self, endpoint: str, role: str, incarnation: int, union: object) -> None:
        super().__init__(incarnation, union, 0)
        self._posted: list[Any] = []
        self._connection: Connection | None = None
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(endpoint.removeprefix(SCHEME))
            self._connection = Connection(self, stream, zmtp.opening("DEALER", peer_name(role, incarnation)))
        except (OSError, PeerGone):  # it died meanwhile: the first send says so
            stream.close()

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
        if self._connection is None:
            raise PeerGone("bound end")
        self._connection.send(messages.encode((self.incarnation, self.epoch, batch)))

    def drain(self) -> Iterator[tuple[int, int, list[Any]]]:
        """Everything the last wait found: (sender's incarnation, epoch, messages)."""
        for _, arrival in self._arrivals():
            yield arrival

    def parted(self, connection: Connection) -> None:
        self._connection = None

    def join(self, poll: Poll) -> None:
        if self._connection is not None:
            self._connection.join(poll)

    def part(self, poll: Poll) -> None:
        if self._connection is not None:
            self._connection.part()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
