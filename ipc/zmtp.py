"""ZMTP 3.1, the protocol that ZeroMQ sockets speak, as far as the node needs it on Unix sockets. Pure.

Source: RFC 37 of the ZeroMQ project (rfc.zeromq.org/spec/37). A connection begins with a greeting from each side, then
a ``READY`` command from each side that names the kind of socket and who it is; from then on messages of one or more
frames::

    greeting (64 bytes)                                            frame
    +------+---------+------+-------+---------+--------+--------+  +-------+------------------+------+
    | 0xff | 8 x any | 0x7f | major | minor   | "NULL" | 32 x 0 |  | flags | length           | body |
    +------+---------+------+-------+---------+--------+--------+  +-------+------------------+------+
       1       8        1       1       1         20      32           1    1, or 8 when LONG

    flags: 1 MORE (another frame of this message follows), 2 LONG, 4 COMMAND

Only the NULL mechanism: whoever may enter the node's folder may speak. libzmq can be the other end. ``PING`` is
answered; other commands after ``READY`` are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ipc.errors import BadFrame

MORE, LONG, COMMAND = 1, 2, 4
SHORT_BYTES = 255
LARGE_BYTES = 32 * 1024  # bodies from here on are not joined with others before they are sent
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MECHANISM = slice(12, 32)
MAX_READY_BYTES = 1024
MAX_PARTS = 64
FIRST_BYTES = 384 * 1024  # of a large body's buffer; it grows with what arrives, so that a promise costs little
_READY, _PING, _PONG = b"\x05READY", b"\x04PING", b"\x04PONG"
_KIND, _IDENTITY = b"Socket-Type", b"Identity"
_TTL_BYTES = 2  # of a PING, before its context

Message = list[Any]  # the bodies of its frames: bytes, large ones memoryviews of bytes


def header(size: int, flags: int = 0) -> bytes:
    """What stands before a body of ``size`` bytes."""
    return bytes((flags, size)) if size <= SHORT_BYTES else bytes((flags | LONG,)) + size.to_bytes(8, "big")


def frame(body: bytes) -> bytes:
    """A message of one frame."""
    size = len(body)
    if size > SHORT_BYTES:
        return b"\x02" + size.to_bytes(8, "big") + body
    return bytes((0, size)) + body


def pieces(bodies: Sequence[Any]) -> list[Any]:
    """A message of these bodies, as buffers to be sent one after the other; large bodies are not copied."""
    out: list[Any] = []
    joined = b""
    last = len(bodies) - 1
    for at, body in enumerate(bodies):
        size = len(body)
        joined += header(size, 0 if at == last else MORE)
        if size < LARGE_BYTES:
            joined += body
        else:
            out += (joined, body)
            joined = b""
    if joined:
        out.append(joined)
    return out


def opening(kind: str, identity: str = "") -> bytes:
    """What a socket of this kind says first: the greeting and its ``READY``."""
    body = _READY
    for name, value in ((_KIND, kind.encode()), (_IDENTITY, identity.encode())):
        body += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return GREETING + header(len(body), COMMAND) + body


class Budget:
    """How many bytes of incomplete messages several connections may hold together."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, count: int) -> None:
        """Raises BadFrame when there is not so much left."""
        if count > self.left:
            raise BadFrame("too much is incomplete already")
        self.left -= count

    def give(self, count: int) -> None:
        self.left += count


class Incoming:
    """One connection's incoming bytes, taken apart.

    ``identity``: who is at the other end, once it has said so (empty: it gave no name); None before.
    ``answers``: frames that the protocol wants sent back; who sends them empties it.
    ``at_ease``: the greeting is over and nothing is incomplete.

    What arrives is either given to ``feed``, or, while a large body is incomplete, received right into ``room()`` and
    counted with ``filled``.
    """

    def __init__(self, max_bytes: int, budget: Budget | None = None) -> None:
        self.identity: bytes | None = None
        self.answers: list[bytes] = []
        self.at_ease = False
        self._max_bytes = max_bytes
        self._rest = b""  # an incomplete greeting or frame
        self._greeted = False
        self._parts: Message = []  # of a message that is not complete
        self._size = 0  # of those
        self._budget = budget or Budget(1 << 62)
        self._body: memoryview | None = None  # the buffer of a large body, as long as it has had to be so far
        self._body_flags = 0
        self._body_size = 0  # what was announced
        self._arrived = 0
        self._held = 0  # bytes of an incomplete message, counted in the budget

    def room(self) -> memoryview | None:
        """Where the next bytes belong, while a large body is incomplete."""
        return self._body[self._arrived :] if self._body is not None else None

    def filled(self, count: int) -> list[Message]:
        """``count`` bytes have been received into ``room()``; the messages that are complete now."""
        if self._body is None:
            return []
        self._hold(count)
        self._arrived += count
        if self._arrived < len(self._body):
            return []
        if self._arrived < self._body_size:
            self._grow(min(self._body_size, 2 * self._arrived))
            return []
        body, self._body = self._body, None
        found = self._end_frame(self._body_flags, body)
        self._look()
        return found

    def _grow(self, size: int) -> None:
        """A longer buffer for the large body."""
        longer = np.empty(size, np.uint8).data
        if self._body is not None:
            longer[: len(self._body)] = self._body
        self._body = longer

    def _hold(self, count: int) -> None:
        """Raises BadFrame when all connections together hold too much."""
        self._budget.take(count)
        self._held += count

    def drop(self) -> None:
        """What is incomplete is over: its message is complete, or the connection has ended."""
        self._budget.give(self._held)
        self._held = 0
        self._body = None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises BadFrame; the connection is worthless then."""
        size = len(data)
        if self.at_ease and 9 < size <= self._max_bytes:  # mostly exactly one message of one frame comes
            flags = data[0]
            if flags == 0 and data[1] + 2 == size:
                return [[data[2:]]]
            if flags == LONG and int.from_bytes(data[1:9], "big") + 9 == size:
                return [[data[9:]]]
        if self._rest:
            data = self._rest + data
        at = 0
        found: list[Message] = []
        if not self._greeted:
            if len(data) < len(GREETING) and data[:1] == GREETING[:1]:
                self._rest = data
                return found
            at = self._greet(data)
        while (step := self._frame(data, at, found)) is not None:
            at = step
        self._rest = data[at:]
        self._look()
        return found

    def _look(self) -> None:
        self.at_ease = not (
            self.identity is None or self._rest or self._parts or self._body is not None or self.answers
        )

    def _greet(self, data: bytes) -> int:
        """Check the greeting; returns where it ends."""
        if data[0] != 0xFF or not data[9] & 1 or data[10] < 3 or data[MECHANISM] != GREETING[MECHANISM]:
            raise BadFrame("not a greeting of ZMTP 3 without security")
        self._greeted = True
        return len(GREETING)

    def _frame(self, data: bytes, at: int, found: list[Message]) -> int | None:
        """Take the frame that begins at ``at``; returns where the next begins, None when it is not complete."""
        head = 9 if len(data) > at and data[at] & LONG else 2
        begin = at + head
        if len(data) < begin:
            return None
        flags, size = data[at], int.from_bytes(data[at + 1 : begin], "big")
        self._check(flags, size)
        here = len(data) - begin
        if here >= size:
            found += self._end_frame(flags, data[begin : begin + size])
            return begin + size
        if size < LARGE_BYTES or flags & COMMAND:
            return None
        self._hold(here)
        self._grow(min(size, max(FIRST_BYTES, here + 1)))
        self._body_flags, self._body_size, self._arrived = flags, size, here
        if self._body is not None:
            self._body[:here] = data[begin:]
        return len(data)

    def _check(self, flags: int, size: int) -> None:
        most = self._max_bytes if self.identity is not None and not flags & COMMAND else MAX_READY_BYTES
        if self._size + size > most or len(self._parts) >= MAX_PARTS:
            raise BadFrame(f"a message of more than {most} bytes or {MAX_PARTS} frames")
        if self.identity is None and not flags & COMMAND:
            raise BadFrame("a message before READY")

    def _end_frame(self, flags: int, body: Any) -> list[Message]:
        """A frame is complete; the message that it completes, if it does."""
        if flags & COMMAND:
            self._command(body)
            return []
        self._parts.append(body)
        self._size += len(body)
        if flags & MORE:
            if isinstance(body, bytes):  # a large one has been counted as it came
                self._hold(len(body))
            return []
        if self._held:
            self.drop()
        parts, self._parts, self._size = self._parts, [], 0
        return [parts]

    def _command(self, body: bytes) -> None:
        if self.identity is None:
            self.identity = _identity(body)
        elif body.startswith(_PING):
            pong = _PONG + body[len(_PING) + _TTL_BYTES :]
            self.answers.append(header(len(pong), COMMAND) + pong)


def _identity(body: bytes) -> bytes:
    """Who a ``READY`` says it is. Raises BadFrame."""
    if not body.startswith(_READY):
        raise BadFrame("the first command is not READY")
    at, identity = len(_READY), b""
    while at < len(body):
        name = body[at + 1 : at + 1 + body[at]]
        at += 1 + body[at]
        size = int.from_bytes(body[at : at + 4], "big")
        if name.lower() == _IDENTITY.lower():
            identity = body[at + 4 : at + 4 + size]
        at += 4 + size
    if at != len(body):
        raise BadFrame("READY is cut short")
    return identity
