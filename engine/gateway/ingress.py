"""The slots of the gateway's own ring: which blocks an utterance's samples take, from admission to ``Free``.

The table is private (``ipc.blocks``). A session may fill the ring only up to its part of it. Small utterances could
keep a long one from ever finding a run of blocks, so the oldest request that was turned away for want of a run has,
once it has waited ``reserve_after_s``, a stretch kept for it until it is admitted or withdrawn, or does not come back
in time. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ipc.blocks import Blocks
from ipc.ring import BLOCK, blocks_for

Key = tuple[str, int]  # session, index


@dataclass(slots=True)
class Claim:
    """A request that found no run of ``length`` blocks: since when, and until when it counts.

    ``over_part``: there may be one, but its session holds its part of the ring already. Nothing is reserved for it.
    """

    length: int
    since: float
    until: float
    over_part: bool = False


class Ingress:
    """Slots by (session, index)."""

    def __init__(self, blocks: int, longest_bytes: int, first_generation: int, reserve_after_s: float) -> None:
        self.blocks = Blocks(blocks)
        self._longest = blocks_for(longest_bytes)
        self._generation = first_generation
        self._reserve_after_s = reserve_after_s
        self._starts: dict[Key, int] = {}
        self._lengths: dict[Key, int] = {}
        self._generations: dict[Key, int] = {}
        self._held: dict[str, int] = {}  # session -> blocks
        self._claims: dict[Key, Claim] = {}  # oldest first
        self._reserved_for: Key | None = None
        self.is_pressed = False  # somebody has waited for long, as of the last review

    def can_hold(self, session: str, nbytes: int, open_sessions: int) -> bool:
        """Whether the session stays within max(longest slot, its part of the ring)."""
        part = max(self._longest, self.blocks.count // max(1, open_sessions))
        return self._held.get(session, 0) + blocks_for(nbytes) <= part

    def take(self, session: str, index: int, nbytes: int) -> tuple[int, int] | None:
        """Offset in bytes and generation of a slot for ``nbytes``, or None when no run is free."""
        key, length = (session, index), blocks_for(nbytes)
        start = None
        if key == self._reserved_for and self.blocks.reserved >= length:
            start = self.blocks.take_reserved()
        if start is not None:
            self.blocks.shrink(start, length)
        else:
            start = self.blocks.take(length)
        if start is None:
            return None
        self.withdraw(session, index)
        self._generation += 1
        self._enter(key, start, length, self._generation)
        return start * BLOCK, self._generation

    def adopt(self, session: str, index: int, offset: int, nbytes: int, generation: int) -> None:
        """A slot of a former life of this process. Raises ValueError when its blocks are taken."""
        start, length = offset // BLOCK, blocks_for(nbytes)
        self.blocks.take_at(start, length)
        self._enter((session, index), start, length, generation)

    def held(self) -> Iterator[tuple[Key, int, int, int]]:
        """Every slot that is not free: key, offset and size in bytes, generation."""
        for key, start in self._starts.items():
            yield key, start * BLOCK, self._lengths[key] * BLOCK, self._generations[key]

    def _enter(self, key: Key, start: int, length: int, generation: int) -> None:
        assert key not in self._starts, f"{key} has a slot already"
        self._starts[key], self._lengths[key], self._generations[key] = start, length, generation
        self._held[key[0]] = self._held.get(key[0], 0) + length

    def claim(
        self, session: str, index: int, nbytes: int, now: float, until: float, *, over_part: bool = False
    ) -> None:
        """This request found no run, or not within its session's part; it will come again before ``until``."""
        claim = self._claims.setdefault((session, index), Claim(blocks_for(nbytes), now, until))
        claim.until, claim.over_part = until, over_part
        if over_part and self._reserved_for == (session, index):
            self._unreserve()
        self.review(now)

    def ahead(self, session: str, index: int) -> int:
        """How many wait for a run since before this request, which may not wait yet."""
        found = 0
        for key, claim in self._claims.items():
            if key == (session, index):
                break
            found += not claim.over_part
        return found

    def is_over_part(self, session: str, index: int) -> bool:
        """Whether this request waits for nothing but its own session's slots."""
        claim = self._claims.get((session, index))
        return claim is not None and claim.over_part

    def claimants(self) -> frozenset[str]:
        """Sessions with a request that waits for memory."""
        return frozenset(session for session, _ in self._claims)

    def review(self, now: float) -> None:
        """Drop claims that did not come back; reserve for the oldest one that has waited long enough."""
        for key in [key for key, claim in self._claims.items() if claim.until <= now]:
            self.withdraw(*key)
        waited = [key for key, claim in self._claims.items() if now - claim.since >= self._reserve_after_s]
        self.is_pressed = bool(waited)
        if self._reserved_for is None:
            self._reserved_for = next((key for key in waited if not self._claims[key].over_part), None)
            if self._reserved_for is not None:
                self.blocks.reserve(self._claims[self._reserved_for].length)

    def withdraw(self, session: str, index: int | None = None) -> None:
        """The claim of this index (None: every claim of the session) is over, and its reservation with it."""
        for key in [key for key in self._claims if key[0] == session and index in (None, key[1])]:
            del self._claims[key]
            if key == self._reserved_for:
                self._unreserve()

    def _unreserve(self) -> None:
        self._reserved_for = None
        self.blocks.unreserve()

    def give(self, session: str, index: int) -> None:
        """The scheduler and its workers are done with this slot. Unknown ones are ignored."""
        start = self._starts.pop((session, index), None)
        if start is None:
            return
        self.blocks.give(start)
        del self._generations[session, index]
        left = self._held[session] - self._lengths.pop((session, index))
        if left:
            self._held[session] = left
        else:
            del self._held[session]

    @property
    def waiting(self) -> bool:
        """Whether a claim stands, so that ``review`` has something to do."""
        return bool(self._claims)

    def check(self) -> None:
        """Invariants: each slot is one run; sums are sums; a reservation has a claim."""
        self.blocks.check()
        assert {start: self._lengths[key] for key, start in self._starts.items()} == self.blocks.runs
        for session, held in self._held.items():
            assert held == sum(length for key, length in self._lengths.items() if key[0] == session) > 0
        assert self._reserved_for is None or self._reserved_for in self._claims
        assert (self._reserved_for is None) <= (self.blocks.reserved == 0)
