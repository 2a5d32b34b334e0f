"""One Unix stream socket that speaks ZMTP, without blocking: its unsent bytes, its incoming messages, its watcher.

Used by the node's links and by the door for local clients. ``link`` is whoever owns the stream: an object with
``stirred`` (what the poll found readable), ``met(stream, identity)`` (the other end said who it is; may raise
BadFrame), ``parted(stream)`` (it has ended) and ``bad_frames``.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
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
ACCEPTED_AT_ONCE = 32  # and then it is somebody else's turn
SCHEME = "ipc://"
_CREDENTIALS = struct.Struct("3i")  # process, user, group


def path_of(endpoint: str) -> str:
    """The path of an ``ipc://`` endpoint."""
    return endpoint.removeprefix(SCHEME)


class Stream:
    """See the module's docstring. More than ``max_unsent`` bytes that the other end does not take: it is gone.

    Messages wait until the other end has said ``READY``: libzmq drops a connection on which they come earlier. Whoever
    has closed his end hears nothing any more, but what he had said before counts: what is sent to him is dropped, and
    only the end of the stream, behind his last words, says that he has gone.
    """

    def __init__(
        self, link: Any, sock: socket.socket, opening: bytes, max_bytes: int, max_unsent: int,
        budget: zmtp.Budget | None = None,
    ) -> None:  # fmt: skip
        sock.setblocking(False)
        self.link = link
        self.open = True
        self.unsent_bytes = 0
        self._sock = sock
        self._incoming = zmtp.Incoming(max_bytes, budget)
        self._max_unsent = max_unsent
        self._unsent: deque[memoryview] = deque()
        self._clear = True  # what is sent may go out at once
        self._deaf = False  # the other end takes nothing any more
        self._poll: Poll | None = None
        self._write([opening])
        self._clear = False

    @property
    def greeted(self) -> bool:
        """Whether the other end has said ``READY``."""
        return self._incoming.identity is not None

    @property
    def pid(self) -> int:
        """The process that has connected, in our pid namespace (unix(7), SO_PEERCRED); 0: one that is not in it."""
        pid, _, _ = _CREDENTIALS.unpack(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)

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
            except OSError:
                self._give_up()
        self._keep([data], sent)

    def _write(self, pieces: list[Any]) -> None:
        sent = 0
        if self._clear:
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError:
                self._give_up()
        self._keep(pieces, sent)

    def _keep(self, pieces: list[Any], sent: int) -> None:
        """Keep what follows the first ``sent`` bytes, to be sent when there is room."""
        if self._deaf:
            return
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
        if not self.greeted or self._deaf:
            return not self._deaf
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
            self._give_up()
            return False
        self._clear = True
        self._watch_room(False)
        return True

    def _give_up(self) -> None:
        """Nobody hears what is sent; what was said to us is still read, to the end of the stream."""
        self._deaf, self._clear = True, False
        self._unsent.clear()
        self.unsent_bytes = 0
        self._watch_room(False)

    def _watch_room(self, wanted: bool) -> None:
        if self._poll is not None:
            self._poll.wants_room(self._sock.fileno(), wanted)

    def read(self) -> list[zmtp.Message]:
        """Messages that have arrived. At the end of the stream, or of its senses, it closes itself."""
        if not self._clear:
            self.send_rest()
        if not self._incoming.at_ease and self._incoming.room() is not None:
            return self.read_large()  # the rest of a large message
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
            if self._clear:  # who does not read needs no sign of life, and the newest is as good as all of them
                self._write(answers[-1:])
        return found

    def read_large(self) -> list[zmtp.Message]:
        """Like ``read``, where large messages are expected: those are received in place, and until nothing is left."""
        incoming = self._incoming
        if not self._clear:
            self.send_rest()
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
        except (BadFrame, MemoryError):
            self.link.bad_frames += 1
            self.close()
        except OSError:
            self.close()
        return found

    def linger(self, until: float) -> None:
        """Wait until everything kept is sent, at most to this time (monotonic)."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        while self._unsent and self.greeted and (left := until - time.monotonic()) > 0:
            if not poll.poll(1000 * left) or not self.send_rest():
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
            self._incoming.drop()
            self.link.parted(self)


class Listener:
    """A bound Unix socket; ``welcome(socket)`` is called for everyone who connects.

    Raises OSError where it cannot be bound: EADDRINUSE when somebody answers there.
    """

    def __init__(self, link: Any, path: str, welcome: Callable[[socket.socket], None]) -> None:
        self.link = link
        self._path = path
        self._welcome = welcome
        clear(path)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # given up to turn away who finds no descriptor
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.setblocking(False)
            self._sock.bind(path)
            self._sock.listen(BACKLOG)
        except BaseException:
            self._sock.close()
            os.close(self._spare)
            raise
        self._inode = os.stat(path).st_ino

    def read(self) -> list[zmtp.Message]:
        """Take in some of those who knock; the rest, and what they say, is read when the poll tells of it again."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, _address = self._sock.accept()
            except BlockingIOError:
                break
            except OSError:  # no descriptor, or no memory, for one more
                self._turn_away()
                break
            try:
                self._welcome(sock)
            except PeerGone:
                sock.close()
        return []

    read_large = read

    def _turn_away(self) -> None:
        """Who waits must not wait for ever, nor wake us for ever."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with suppress(OSError):
            self._sock.accept()[0].close()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def join(self, poll: Poll) -> None:
        poll.watch(self._sock.fileno(), self)

    def part(self, poll: Poll) -> None:
        poll.unwatch(self._sock.fileno())

    def close(self) -> None:
        self._sock.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        with suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:  # else it is somebody else's by now
                os.unlink(self._path)


def clear(path: str) -> None:
    """Remove what a former life left at ``path``. Raises OSError when somebody lives there, or it is no socket."""
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "something else than a socket is there", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:  # somebody, and very busy
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
