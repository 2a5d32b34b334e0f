"""What the arbiter's next life must know, in memory that outlives this one."""

from __future__ import annotations

import os
import struct
import zlib

FIELDS = struct.Struct("<QI")  # sequence number, length of the state in bytes
CRC = struct.Struct("<I")
HEADER_BYTES = FIELDS.size + CRC.size


class Journal:
    """One state, the newest that was written whole, in a memfd that the supervisor keeps. No history.

    ::

        0          8        12       16                      half                          2 x half
        +----------+--------+--------+---------+-------------+-----------------------------+
        | sequence | length | CRC32  | state   | (left over) | the other half, the same    |
        +----------+--------+--------+---------+-------------+-----------------------------+

    State number n lies in half n % 2, so a write never touches the newest state: a kill in the middle of it leaves
    that one readable. The CRC covers sequence, length and state, so what is there of a write cut short is no state,
    whichever of its bytes are in place (nor is a half that was never written). Numbers are little-endian.

    One writer: the arbiter, of which one lives at a time. The memory outlives the process, not the machine: no fsync.

    A state larger than a half is not kept: it is counted in ``too_large``, and the earlier state stays.
    ``fd`` -1: there is no such memory, and nothing is kept.
    """

    def __init__(self, fd: int) -> None:
        self.too_large = 0  # writes that found no room
        self._fd = fd
        self._sequence = -1  # of the newest state; 0: there is none, -1: not looked yet
        self._state: bytes | None = None

    @property
    def most_bytes(self) -> int:
        """The largest state a half can hold."""
        return self._half_bytes - HEADER_BYTES

    def read(self) -> bytes | None:
        """The newest state; None: there is none."""
        found = [self._read_half(half) for half in (0, 1)] if self._fd >= 0 else []
        self._sequence, self._state = max((one for one in found if one), default=(0, None))
        return self._state

    def write(self, state: bytes) -> bool:
        """Keep this state instead of the one before; False: it is too large. The same state again costs nothing.

        Raises OSError when the memory cannot be written: whoever depends on it must not go on as if it could.
        """
        if self._fd < 0:
            return True
        if self._sequence < 0:
            self.read()
        if state == self._state:
            return True
        if len(state) > self.most_bytes:
            self.too_large += 1
            return False
        sequence = self._sequence + 1
        fields = FIELDS.pack(sequence, len(state))
        checksum = CRC.pack(zlib.crc32(state, zlib.crc32(fields)))
        self._put(fields + checksum + state, self._start_of(sequence % 2))
        self._sequence, self._state = sequence, state
        return True

    @property
    def _half_bytes(self) -> int:
        return os.fstat(self._fd).st_size // 2

    def _start_of(self, half: int) -> int:
        return half * self._half_bytes

    def _read_half(self, half: int) -> tuple[int, bytes] | None:
        """Sequence number and state of this half; None: it holds no whole one."""
        start = self._start_of(half)
        header = os.pread(self._fd, HEADER_BYTES, start)
        if len(header) < HEADER_BYTES:
            return None
        fields, (checksum,) = header[: FIELDS.size], CRC.unpack(header[FIELDS.size :])
        sequence, length = FIELDS.unpack(fields)
        if length > self.most_bytes:
            return None
        state = os.pread(self._fd, length, start + HEADER_BYTES)
        return (sequence, state) if zlib.crc32(state, zlib.crc32(fields)) == checksum else None

    def _put(self, data: bytes, at: int) -> None:
        while data:
            written = os.pwrite(self._fd, data, at)
            data, at = data[written:], at + written
