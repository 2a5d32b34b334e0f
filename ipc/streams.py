"""One Unix stream socket that speaks ZMTP, without blocking: its unsent bytes, its incoming messages, its watcher.

Used by the node's links and by the door for local clients. ``link`` is whoever owns the stream: an object with
``stirred`` (what the poll found readable), ``met(stream, identity)`` (the other end said who it is; may raise
BadFrame), ``parted(stream)`` (it has ended) and ``bad_frames``.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ipc import zmtp
from ipc.errors import BadFrame, PeerGone
from ipc.poll import Poll

READ_BYTES = 65_536
BACKLOG = 512  # connections that may wait to be accepted
SCHEME = "ipc://"


def path_of(endpoint: str) -> str:
    """The path of an ``ipc://`` endpoint."""
    return endpoint.removeprefix(SCHEME)


class Stream:
    """See the module's docstring. More than ``max_unsent`` bytes that the other end does not take: it is gone.

    Messages wait until the other end has said ``READY``: libzmq drops a connection on which they come earlier.
    """

    def __init__(self, link: Any, sock: socket.socket, opening: bytes, max_bytes: int, max_unsent: int) -> None:
        sock.setblocking(False)
        self.link = link
        self.open = True
        self.unsent_bytes = 0
        self._sock = sock
        self._incoming = zmtp.Incoming(max_bytes)
        self._max_unsent = max_unsent
        self._unsent: deque[memoryview] = deque()
        self._clear = True  # what is sent may go out at once
        self._poll: Poll | None = None
        self._write([opening])
        self._clear = False

    @property
    def greeted(self) -> bool:
        """Whether the other end has said ``READY``."""
        return self._incoming.identity is not None

    def send(self, bodies: Sequence[Any]) -> None:
        """Send one message of these frames, or keep what there is no room for. Raises PeerGone."""
        self._write(zmtp.pieces(bodies))

    def send_frame(self, body: bytes) -> None:
        """Send one message of one small frame: what ``send`` does, with less to do. Raises PeerGone."""
        data = zmtp.frame(body)
        sent = 0
        if self._clear:
            try:
                if (sent := self._sock.send(data)) == len(data):
                    return
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise PeerGone(repr(self)) from error
        self._keep([data], sent)

    def _write(self, pieces: list[Any]) -> None:
        sent = 0
        if self._clear:
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError as error:
                raise PeerGone(repr(self)) from error
        self._keep(pieces, sent)

    def _keep(self, pieces: list[Any], sent: int) -> None:
        """Keep what follows the first ``sent`` bytes, to be sent when there is room."""
        for piece in pieces:
            size = len(piece)
            if sent < size:
                self._unsent.append(memoryview(piece)[sent:])
                self.unsent_bytes += size - sent
            sent = max(0, sent - size)
        if self.unsent_bytes > self._max_unsent:
            raise PeerGone(repr(self))
        if self._clear and self._unsent:
            self._clear = False
            self._watch_room(True)

    def send_rest(self) -> bool:
        """Send as much as there is room for of what was kept; False when nobody is there any more."""
        if not self.greeted:
            return True
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._sock.send(first)
                self.unsent_bytes -= sent
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            self._watch_room(True)
            return True
        except OSError:
            return False  # the next read says so too
        self._clear = True
        self._watch_room(False)
        return True

    def _watch_room(self, wanted: bool) -> None:
        if self._poll is not None:
            self._poll.wants_room(self._sock.fileno(), wanted)

    def read(self) -> list[zmtp.Message]:
        """Messages that have arrived. At the end of the stream, or of its senses, it closes itself."""
        if not self._clear:
            self.send_rest()
        try:
            if data := self._sock.recv(READ_BYTES):
                if self._incoming.at_ease:
                    return self._incoming.feed(data)
                return self._meet(data)
        except BlockingIOError:
            return []
        except (BadFrame, MemoryError):
            self.link.bad_frames += 1
        except (OSError, PeerGone):
            pass  # its end, said otherwise
        self.close()
        return []

    def _meet(self, data: bytes) -> list[zmtp.Message]:
        """Take in bytes that may be more than messages: who is there, and what the protocol wants answered."""
        incoming = self._incoming
        named = incoming.identity is not None
        found = incoming.feed(data)
        if not named and incoming.identity is not None:
            self.link.met(self, incoming.identity)
            self.send_rest()
        if incoming.answers:
            answers, incoming.answers = incoming.answers, []
            self._write(answers)
        return found

    def read_large(self) -> list[zmtp.Message]:
        """Like ``read``, where large messages are expected: those are received in place, and until nothing is left."""
        incoming = self._incoming
        found = self.read() if incoming.room() is None else []
        try:
            while (room := incoming.room()) is not None:
                count = self._sock.recv_into(room)
                if not count:
                    self.close()
                    break
                found += incoming.filled(count)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        return found

    def linger(self, most_ms: int) -> None:
        """Wait, at most so long, until everything kept is sent."""
        end = time.monotonic() + most_ms / 1000
        while self._unsent and (left := end - time.monotonic()) > 0:
            if not select.select([], [self._sock], [], left)[1] or not self.send_rest():
                return

    def join(self, poll: Poll) -> None:
        """Be watched by ``poll``."""
        if self.open:
            self._poll = poll
            poll.watch(self._sock.fileno(), self)
            if self._unsent and self.greeted:
                self._watch_room(True)

    def part(self) -> None:
        if self._poll is not None:
            self._poll.unwatch(self._sock.fileno())
            self._poll = None

    def close(self) -> None:
        if self.open:
            self.part()
            self.open = False
            self._sock.close()
            self.link.parted(self)


class Listener:
    """A bound Unix socket; ``welcome(socket)`` is called for everyone who connects."""

    def __init__(self, link: Any, path: str, welcome: Callable[[socket.socket], None]) -> None:
        self.link = link
        self._path = path
        self._welcome = welcome
        with suppress(FileNotFoundError):
            os.unlink(path)  # of a former life
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.bind(path)
        self._sock.listen(BACKLOG)

    def read(self) -> list[zmtp.Message]:
        """Take in who knocks; what they say is read when the poll tells of it."""
        with suppress(BlockingIOError):
            while True:
                sock, _ = self._sock.accept()
                with suppress(PeerGone):
                    self._welcome(sock)
        return []

    read_large = read

    def join(self, poll: Poll) -> None:
        poll.watch(self._sock.fileno(), self)

    def part(self, poll: Poll) -> None:
        poll.unwatch(self._sock.fileno())

    def close(self) -> None:
        self._sock.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
