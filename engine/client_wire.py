"""What moves a client's bytes: ``LocalWire`` on ``ipc://`` (a Unix socket, no thread), else ``RemoteWire`` (libzmq).

Both speak ZeroMQ's protocol as a DEALER without a name and come back by themselves after the node's restart. A local
wire works while it is asked to; nothing happens between its calls, so ``send`` waits as long as the node makes room.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import zmq
from zmq.backend import Socket as _Compiled

from engine.outcome import NodeGone
from ipc import zmtp
from ipc.errors import BadFrame

SCHEME = "ipc://"
MAX_PATH_BYTES = 107  # of a Unix socket
LOCAL_BUFFER_BYTES = 2**20  # on this machine an utterance of some seconds goes out at once
HIGH_WATER = 20_000  # frames; far above every window, so that a refused send means there is no node
MAX_UNSENT_BYTES = 2**30  # likewise
MAX_MESSAGE_BYTES = 2**30  # of an answer
READ_BYTES = 65_536
STEADY_BYTES = 16 * 2**20
STALL_S = 0.5  # a node that takes nothing for so long is not waited for
RETRY_S = 0.01  # between attempts to connect
LINGER_MS = 500  # last acknowledgements at close

_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_send = _Compiled.send  # what zmq.Socket adds around it is Python, and dearer than the message
Parts = list[Any]


class Wire(Protocol):
    """The client's end of one connection."""

    def send(self, frames: Parts) -> None:
        """Send one message of these frames. Raises NodeGone when nothing is taken any more."""

    def receive(self) -> Iterator[Parts]:
        """The messages that have arrived."""

    def wait(self, timeout_s: float) -> None:
        """Return when something has arrived, or after ``timeout_s``."""

    def close(self) -> None: ...


def steady_heap() -> None:
    """Have the C library keep freed buffers of an utterance's size instead of faulting in new pages for the next one.

    glibc raises its thresholds for giving memory back when a chunk as large as this one is freed (mallopt(3), dynamic
    M_MMAP_THRESHOLD); the chunk is never touched. Elsewhere this does nothing.
    """
    np.empty(STEADY_BYTES, np.uint8)


def connect(endpoint: str) -> Wire:
    """A wire to ``endpoint``, connected in silence: whether a node is there shows when it answers. Raises NodeGone."""
    steady_heap()
    return LocalWire(endpoint) if endpoint.startswith(SCHEME) else RemoteWire(endpoint)


class LocalWire:
    """See the module's docstring.

    A call that is broken off (by Ctrl-C, say) may leave half a message in either direction, so it gives the connection
    up; the next one begins anew, and what was not answered is sent again.
    """

    def __init__(self, endpoint: str) -> None:
        self._path = endpoint.removeprefix(SCHEME)
        self._endpoint = endpoint
        self._opening = zmtp.opening("DEALER")
        self._socket: socket.socket | None = None
        self._incoming = zmtp.Incoming(MAX_MESSAGE_BYTES)
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._found: deque[Parts] = deque()  # arrived, not handled yet
        self._retry_at = 0.0
        self._timeout_s = -1.0  # the socket's
        if len(self._path.encode()) > MAX_PATH_BYTES or not self._path:
            text = f"cannot connect to {endpoint!r} (a socket's path has 1 to {MAX_PATH_BYTES} bytes)"
            raise NodeGone(text, "an endpoint reads ipc://PATH or tcp://HOST:PORT")
        self._connect()

    def send(self, frames: Parts) -> None:
        with self._whole():
            pieces = zmtp.pieces(frames)
            sent = 0
            if self._socket is not None and not self._unsent and self._incoming.identity is not None:
                try:
                    sent = self._socket.sendmsg(pieces, (), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    self._lose()
            for piece in pieces:
                size = len(piece)
                if sent < size:
                    self._unsent.append(memoryview(piece).cast("B")[sent:])
                    self._unsent_bytes += size - sent
                sent = max(0, sent - size)
            self._make_way()
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            raise NodeGone(f"{self._endpoint} takes nothing any more", "is the node running?")

    def receive(self) -> Iterator[Parts]:
        if not self._found:
            self._read(socket.MSG_DONTWAIT)
        while self._found:
            yield self._found[0]
            self._found.popleft()  # only now: who is interrupted while handling it gets it again

    def wait(self, timeout_s: float) -> None:
        if self._found:
            return
        if self._socket is None:
            time.sleep(max(0.0, min(timeout_s, self._retry_at - time.monotonic())))
            self._connect()
        elif self._unsent and self._incoming.identity is not None:
            self._write_and_read(timeout_s)
        else:
            if timeout_s != self._timeout_s:
                self._timeout_s = timeout_s
                whole = int(timeout_s)
                packed = struct.pack("ll", whole, max(1, int((timeout_s - whole) * 1e6)))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
            self._read(0)

    def close(self) -> None:
        end = time.monotonic() + LINGER_MS / 1000
        while self._socket is not None and self._unsent and (left := end - time.monotonic()) > 0:
            self.wait(left)
            self._found.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ---------------------------------------------------------------- bytes

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
        self._retry_at = time.monotonic() + RETRY_S
        try:
            sock.setblocking(False)  # a node that is busy with others would keep us waiting
            sock.connect(self._path)
            sock.setblocking(True)
            sock.send(self._opening)
        except OSError as error:
            sock.close()
            if isinstance(error, FileNotFoundError) and not os.path.isdir(os.path.dirname(self._path) or "."):
                raise NodeGone(
                    f"there is no node at {self._endpoint}", "is it running? see: run_node.py stats"
                ) from None
            return
        except BaseException:
            sock.close()
            raise
        self._socket, self._timeout_s = sock, -1.0  # what is sent waits until the node's READY has come

    def _lose(self) -> None:
        """The connection is of no use; whoever is there next is spoken to anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unsent.clear()  # half a message is none, and what was unanswered is sent again
        self._unsent_bytes = 0
        self._incoming = zmtp.Incoming(MAX_MESSAGE_BYTES)
        self._retry_at = time.monotonic() + RETRY_S

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is in here happens as a whole, or the connection ends."""
        try:
            yield
        except BaseException:
            self._lose()
            raise

    def _read(self, flags: int) -> None:
        """Receive once, and what belongs to it; with ``flags`` 0 this waits."""
        with self._whole():
            try:
                if self._socket is not None and not self._receive(self._socket, flags):
                    self._lose()
            except BlockingIOError:
                return
            except BadFrame:
                text = f"{self._endpoint} does not speak this protocol"
                raise NodeGone(text, "give the endpoint that the node printed") from None
            except OSError:
                self._lose()

    def _receive(self, sock: socket.socket, flags: int) -> bool:
        """Whether the other end is still there."""
        incoming = self._incoming
        while True:
            room = incoming.room()
            if room is None:
                if not (data := sock.recv(READ_BYTES, flags)):
                    return False
                known = incoming.identity is not None
                self._found += incoming.feed(data)
                if not known and incoming.identity is not None:
                    self._write()
            else:
                if not (count := sock.recv_into(room, 0, flags)):
                    return False
                self._found += incoming.filled(count)
            if incoming.room() is None:
                if incoming.answers:
                    self._answer()
                return True

    def _make_way(self) -> None:
        """Wait as long as the node takes what it has no room for yet: between calls nothing is sent."""
        before = self._unsent_bytes + 1
        while self._unsent and self._incoming.identity is not None and self._unsent_bytes < before:
            before = self._unsent_bytes
            self._write_and_read(STALL_S)

    def _answer(self) -> None:
        answers, self._incoming.answers = self._incoming.answers, []
        if not self._unsent:
            self._unsent.append(memoryview(answers[-1]))
            self._unsent_bytes += len(answers[-1])
            self._write()

    def _write(self) -> None:
        """Send as much as there is room for of what was kept."""
        try:
            while self._unsent and (sock := self._socket) is not None:
                first = self._unsent[0]
                sent = sock.send(first, socket.MSG_DONTWAIT)
                self._unsent_bytes -= sent
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._lose()

    def _write_and_read(self, timeout_s: float) -> None:
        if self._socket is None:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        ready = sum(events for _, events in poll.poll(max(0.0, 1000 * timeout_s)))
        if ready & select.POLLOUT:
            with self._whole():
                self._write()
        if ready & ~select.POLLOUT:
            self._read(socket.MSG_DONTWAIT)


class RemoteWire:
    """See the module's docstring."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._timeout_ms = -1  # the socket's
        self._found: Parts | None = None  # what ended the last wait
        self._socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.SNDHWM, HIGH_WATER), (zmq.RCVHWM, HIGH_WATER), (zmq.LINGER, LINGER_MS),
                              (zmq.RECONNECT_IVL, 10), (zmq.RECONNECT_IVL_MAX, 500)):  # fmt: skip
            self._socket.setsockopt(option, value)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            text = f"cannot connect to {endpoint!r} ({error.strerror})"
            raise NodeGone(text, "an endpoint reads ipc://PATH or tcp://HOST:PORT") from error

    def send(self, frames: Parts) -> None:
        *parts, last = frames
        try:
            for part in parts:
                _send(self._socket, part, _MORE)
            self._socket.send(last, _NOW, copy=len(last) < zmtp.LARGE_BYTES)
        except zmq.Again as error:
            raise NodeGone(f"{self._endpoint} takes nothing any more", "is the node running?") from error

    def receive(self) -> Iterator[Parts]:
        found, self._found = self._found, None
        if found is not None:
            yield found
        with suppress(zmq.Again):
            while True:
                yield [part.buffer for part in self._socket.recv_multipart(_NOW, copy=False)]

    def wait(self, timeout_s: float) -> None:
        timeout_ms = max(0, int(timeout_s * 1000 + 0.999))
        if timeout_ms != self._timeout_ms:
            self._timeout_ms = timeout_ms
            self._socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
        with suppress(zmq.Again):
            self._found = [part.buffer for part in self._socket.recv_multipart(0, copy=False)]

    def close(self) -> None:
        self._socket.close()
