"""Rings: one producer's arrays in shared memory.

Layout of a ring of n blocks (all little-endian; BLOCK = 65,536 bytes)::

    0                      8n      pad to 4,096                                  end
    +----+----+-- ... --+----+-----+-----------+-----------+-- ... --+-----------+
    | m0 | m1 |         |mn-1|  0  |  block 0  |  block 1  |         | block n-1 |
    +----+----+-- ... --+----+-----+-----------+-----------+-- ... --+-----------+
      marks: one uint64 a block        payload: a slot is a run of consecutive blocks

    mark = generation << 1 | closed        generation = owner (16 bits) . counter (47 bits), never 0, never repeated

A **slot** is a run of blocks as long as its payload. Only the ring's producer writes: it stores the mark, closed = 0,
into every block of the run, then the payload, then the mark with closed = 1. It publishes by a message, never through
memory, so there are no shared atomics and nobody polls. A reader compares the marks with the generation in its
reference before it uses the bytes and again after: a mismatch means the slot was given to somebody else (StaleData).
dtype, shape and length stand in the reference only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ipc import memory
from ipc.errors import StaleData
from ipc.messages import Ref

BLOCK = 65_536
PAGE = 4_096
OWNER_BITS, COUNTER_BITS = 16, 47
DTYPES: dict[str, np.dtype] = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}


def generation(owner: int, counter: int) -> int:
    """Number of a slot's life: the owner's incarnation (or epoch) and a counter, 63 bits."""
    return (owner & (1 << OWNER_BITS) - 1) << COUNTER_BITS | (counter & (1 << COUNTER_BITS) - 1)


def owner_of(number: int) -> int:
    """The incarnation or epoch that made this generation."""
    return number >> COUNTER_BITS


def blocks_for(nbytes: int) -> int:
    """Blocks of a slot for ``nbytes`` (at least one)."""
    return max(1, -(-nbytes // BLOCK))


def segment_bytes(blocks: int) -> int:
    """Size of a segment that holds a ring of ``blocks``."""
    return payload_start(blocks) + blocks * BLOCK


def payload_start(blocks: int) -> int:
    """Offset of block 0 in the segment."""
    return -(-8 * blocks // PAGE) * PAGE


class Ring:
    """One process's mapping of a ring: the producer's (writable) or a consumer's (read-only)."""

    def __init__(self, name: str, fd: int, blocks: int, *, writable: bool) -> None:
        self.name = name
        self.blocks = blocks
        self.writable = writable
        self._map = memory.attach(fd, segment_bytes(blocks), writable=writable)
        self._start = payload_start(blocks)
        self._marks = np.frombuffer(self._map, dtype="<u8", count=blocks)
        self._payload = memoryview(self._map)[self._start :]

    def write(
        self,
        offset: int,
        nbytes_granted: int,
        number: int,
        array: np.ndarray,
        sample_rate: int,
        midway: Callable[[], None] | None = None,
    ) -> Ref:
        """Put ``array`` (int16 or float32, contiguous) into the slot at ``offset``; returns its reference.

        ``midway``: see ``put``. Raises ValueError when the array is longer than the slot.
        """
        nbytes = array.nbytes
        if nbytes > nbytes_granted:
            raise ValueError(f"{nbytes} bytes do not fit in a slot of {nbytes_granted}")
        self.put(offset, nbytes, number, array.reshape(-1).view(np.uint8), midway)
        return Ref(self.name, offset, nbytes, array.dtype.name, array.shape, sample_rate, number)

    def put(self, offset: int, nbytes: int, number: int, data: Any, midway: Callable[[], None] | None = None) -> None:
        """Put ``nbytes`` as they lie in the buffer ``data`` into the slot at ``offset``.

        ``midway`` is called when half of them lie there, for those who want to see what becomes of such a slot.
        """
        first = offset // BLOCK
        run = self._marks[first : first + blocks_for(nbytes)]
        run[:] = number << 1
        source = memoryview(data)  # a zmq.Frame as such has no strides
        if midway is not None:
            self._payload[offset : offset + nbytes // 2] = source[: nbytes // 2]
            midway()
        self._payload[offset : offset + nbytes] = source
        run[:] = number << 1 | 1

    def view(self, ref: Ref) -> np.ndarray:
        """Read-only array over the slot, no copy. Check with ``intact`` after use. Raises StaleData."""
        self.check(ref)
        dtype = DTYPES[ref.dtype]
        array = np.frombuffer(self._map, dtype, ref.nbytes // dtype.itemsize, self._start + ref.offset)
        if self.writable:
            array.flags.writeable = False
        return array if len(ref.shape) == 1 else array.reshape(ref.shape)

    def copy(self, ref: Ref, make: Callable[[memoryview], Any] = bytes) -> Any:
        """What ``make`` copies from the slot's bytes, checked before and after the copy. Raises StaleData."""
        self.check(ref)
        data = make(self._payload[ref.offset : ref.offset + ref.nbytes])
        self.check(ref)
        return data

    def intact(self, ref: Ref) -> bool:
        """Whether the slot still carries the reference's generation, closed, in every block."""
        first, count = ref.offset // BLOCK, blocks_for(ref.nbytes)
        mark = (ref.generation << 1 | 1).to_bytes(8, "little")
        return self._map[8 * first : 8 * (first + count)] == mark * count

    def check(self, ref: Ref) -> None:
        """Raise StaleData unless ``intact``."""
        if ref.offset + ref.nbytes > self._payload.nbytes or not self.intact(ref):
            raise StaleData(f"slot {ref.ring}+{ref.offset} does not carry generation {ref.generation}")


def digest(data: bytes | np.ndarray) -> tuple[int, int, int]:
    """Digest of an utterance: byte length, and the uint64 sums (mod 2**64) of its even and odd 8-byte words."""
    raw = np.frombuffer(data, dtype=np.uint8)
    tail = raw.nbytes % 16
    words = raw[: raw.nbytes - tail].view("<u8")
    even = int(np.add.reduce(words[0::2]))  # a sum over axis 0 of pairs takes 40 times as long
    odd = (int(np.add.reduce(words)) - even) % 2**64
    if tail:
        last = np.frombuffer(raw[raw.nbytes - tail :].tobytes().ljust(16, b"\0"), dtype="<u8")
        even, odd = (even + int(last[0])) % 2**64, (odd + int(last[1])) % 2**64
    return raw.nbytes, even, odd
