"""What the weights of a shaped model are: a block of numbers repeated, never more than one tensor of it in memory.

The block's length is prime, so that rows of a matrix differ from each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 40_961  # numbers
SPREAD = 0.02  # standard deviation, as after a usual initialisation
PIECE_BYTES = 1 << 22  # written at once


def block(dtype: str) -> bytes:
    """The bytes that repeat: normal numbers for "float16" and "float32", even ones over all values for "int8"."""
    random = np.random.Generator(np.random.PCG64(7))
    if dtype == "int8":
        return random.integers(-127, 128, BLOCK, dtype=np.int8).tobytes()
    return random.normal(0, SPREAD, BLOCK).astype(dtype).tobytes()


def fill(nbytes: int, unit: bytes) -> bytearray:
    """``nbytes`` bytes of ``unit`` repeated, its last repetition cut."""
    whole = bytearray(nbytes)
    view = memoryview(whole)
    done = min(len(unit), nbytes)
    view[:done] = unit[:done]
    while done < nbytes:
        more = min(done, nbytes - done)
        view[done : done + more] = view[:more]
        done += more - more % len(unit) if done + more < nbytes else more
    return whole


def pieces(nbytes: int, unit: bytes) -> Iterator[bytes]:
    """The same bytes in pieces of some megabytes, each whole repetitions but for the last."""
    piece = unit * max(1, PIECE_BYTES // len(unit))
    for begin in range(0, nbytes, len(piece)):
        yield piece[: nbytes - begin]


def merges(letters: Sequence[str], count: int) -> list[tuple[str, str]]:
    """``count`` byte-pair merges over ``letters``: all pairs, then pairs with a third letter, as many as are needed.

    Made-up ones; a tokenizer takes memory by their number.
    """
    pairs = [(a, b) for a in letters for b in letters]
    if count <= len(pairs):
        return pairs[:count]
    triples = ((a + b, c) for a, b in pairs for c in letters)
    return pairs + [next(triples) for _ in range(count - len(pairs))]
