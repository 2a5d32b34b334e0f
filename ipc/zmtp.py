"""ZMTP 3.1, the protocol that ZeroMQ sockets speak, as far as the node's own links need it. Pure: bytes in, frames out.

Source: RFC 37 of the ZeroMQ project (rfc.zeromq.org/spec/37). A connection begins with a greeting from each side, then a
``READY`` command from each side that names the kind of socket and who it is; from then on messages::

    greeting (64 bytes)                                            frame
    +------+---------+------+-------+---------+--------+--------+  +-------+------------------+------+
    | 0xff | 8 x any | 0x7f | major | minor   | "NULL" | 32 x 0 |  | flags | length           | body |
    +------+---------+------+-------+---------+--------+--------+  +-------+------------------+------+
       1       8        1       1       1         20      32           1    1, or 8 when LONG

    flags: 1 MORE (another frame of this message follows), 2 LONG, 4 COMMAND

Only the NULL mechanism: who may enter the node's folder may speak. Anything libzmq binds or connects on ``ipc://`` can be
the other end. Commands after ``READY`` are passed over; nothing here asks for heartbeats.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.errors import BadFrame

MORE, LONG, COMMAND = 1, 2, 4
SHORT_BYTES = 255
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MAX_READY_BYTES = 1024
_READY, _KIND, _IDENTITY = b"READY", b"Socket-Type", b"Identity"

Body = bytes | bytearray | memoryview


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame with this body."""
    size = len(body)
    if size <= SHORT_BYTES:
        return bytes((flags, size)) + body
    return bytes((flags | LONG,)) + size.to_bytes(8, "big") + body


def opening(kind: str, identity: str = "") -> bytes:
    """What a socket of this kind says first: the greeting and its ``READY``."""
    body = bytes((len(_READY),)) + _READY
    for name, value in ((_KIND, kind.encode()), (_IDENTITY, identity.encode())):
        body += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return GREETING + frame(body, COMMAND)


class Incoming:
    """One connection's incoming bytes, taken apart.

    ``identity``: who is at the other end, once it has said so (empty bytes: it gave no name); None before.
    """

    def __init__(self, max_bytes: int) -> None:
        self.identity: bytes | None = None
        self._max_bytes = max_bytes
        self._rest = bytearray()  # an incomplete frame, or greeting
        self._greeted = False
        self._parts: list[Body] = []  # of a message that is not complete

    def feed(self, data: bytes) -> list[list[Body]]:
        """The messages that are complete now, each by its parts. Raises BadFrame; the connection is worthless then."""
        size = len(data)
        if self.identity is not None and not self._rest and not self._parts and size > 2:
            # Mostly exactly one message comes.
            if data[0] == 0 and data[1] + 2 == size:
                return [[data[2:]]]
            if data[0] == LONG and size > 9 and int.from_bytes(data[1:9], "big") + 9 == size:
                return [[data[9:]]]
        self._rest += data
        return list(self._messages())

    def _messages(self) -> Iterator[list[Body]]:
        if not self._greeted and not self._greet():
            return
        while (found := self._take()) is not None:
            flags, body = found
            if flags & COMMAND:
                if self.identity is None:
                    self.identity = _identity(body)
                continue
            if self.identity is None:
                raise BadFrame("a message before READY")
            self._parts.append(body)
            if not flags & MORE:
                parts, self._parts = self._parts, []
                yield parts

    def _greet(self) -> bool:
        """Whether the greeting is complete and one that we understand."""
        rest = self._rest
        if len(rest) < len(GREETING):
            if rest and rest[0] != GREETING[0]:
                raise BadFrame("no greeting")
            return False
        if rest[0] != 0xFF or rest[9] & 1 != 1 or rest[10] < 3 or rest[12:32] != GREETING[12:32]:
            raise BadFrame("not a greeting of ZMTP 3 without security")
        del rest[: len(GREETING)]
        self._greeted = True
        return True

    def _take(self) -> tuple[int, bytes] | None:
        """The next complete frame: its flags, its body."""
        rest = self._rest
        head = 9 if rest and rest[0] & LONG else 2
        if len(rest) < head:
            return None
        size = int.from_bytes(rest[1:head], "big")
        most = MAX_READY_BYTES if self.identity is None else self._max_bytes
        if size + sum(map(len, self._parts)) > most:
            raise BadFrame(f"{size} bytes in a frame; {most} are taken")
        if len(rest) < head + size:
            return None
        flags, body = rest[0], bytes(rest[head : head + size])
        del rest[: head + size]
        return flags, body


def _identity(body: bytes) -> bytes:
    """Who a ``READY`` says it is. Raises BadFrame."""
    name_end = 1 + len(_READY)
    if body[:name_end] != bytes((len(_READY),)) + _READY:
        raise BadFrame("the first command is not READY")
    at, properties = name_end, {}
    while at < len(body):
        name = body[at + 1 : at + 1 + body[at]]
        at += 1 + body[at]
        size = int.from_bytes(body[at : at + 4], "big")
        properties[name.lower()] = body[at + 4 : at + 4 + size]
        at += 4 + size
    if at != len(body):
        raise BadFrame("READY is cut short")
    return properties.get(_IDENTITY.lower(), b"")
