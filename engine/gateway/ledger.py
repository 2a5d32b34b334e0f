"""What is accepted and not acknowledged: one entry per utterance, from admission to acknowledgement.

    admitted -> accepted -> ended -> (acknowledged: forgotten)
        \\----------------->/
    missing: ended without ever having been admitted (gap, Skip, cancelled before it came)

An admitted utterance is known to this process only; the scheduler's word makes it accepted: now two processes know it.
Pure.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.gateway.shares import Shares
from ipc.errors import IllegalMove
from ipc.messages import Admit, Remade


class State(enum.Enum):
    """Where an utterance stands."""

    ADMITTED = "admitted"
    ACCEPTED = "accepted"
    ENDED = "ended"

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call


MOVES: dict[State, frozenset[State]] = {
    State.ADMITTED: frozenset({State.ACCEPTED, State.ENDED}),
    State.ACCEPTED: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


class Part(NamedTuple):
    """What a session may have beside others. ``rank``: of its priority, 0 is the best."""

    rank: int
    weight: int


PRIORITIES = ("high", "normal", "low")
RANKS = {name: rank for rank, name in enumerate(PRIORITIES)}
USUAL = Part(RANKS["normal"], 1)


@dataclass(slots=True)
class Entry:
    """One utterance. ``admit`` None: it was never sent, only its end is known."""

    index: int
    admit: Admit | None
    taken_at: float
    state: State = State.ADMITTED
    cancelled: bool = False  # its client wants it ended
    remade: Remade | None = None  # it had ended before our time; its samples are being made once more
    suspect: bool = False  # an epoch of the scheduler died while it held this, and had ended nothing
    charges: int = 0  # epochs that died when they held this and no other suspect

    @property
    def digest(self) -> tuple[str, int, int, int]:
        """What was sent, by kind and content."""
        assert self.admit is not None, self.index
        return digest_of(self.admit)

    @property
    def deadline(self) -> float:
        assert self.admit is not None, self.index
        return self.taken_at + self.admit.budget_ms / 1000

    def move(self, state: State) -> None:
        """Change the state. Raises IllegalMove and changes nothing if the table has no such move."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"utterance {self.index}: {self.state.value} -> {state.value}")
        self.state = state


def digest_of(admit: Admit) -> tuple[str, int, int, int]:
    """Two utterances are the same when this is."""
    return (admit.ref.dtype if admit.ref is not None else "text", *admit.digest)


class Ledger:
    """Entries of all sessions, how many of them have not ended, and who may have how many (``shares``)."""

    def __init__(self) -> None:
        self.total = 0  # unended, node-wide
        self.moves = 0  # how often that has changed
        self.shares = Shares(len(PRIORITIES))
        self._entries: dict[str, dict[int, Entry]] = {}
        self._parts: dict[str, Part] = {}  # of sessions whose part is not the usual one
        self._taken: dict[str, list[float]] = {}  # when unended ones were taken, in order; only sessions with work
        self._all_taken: list[float] = []  # the same of all sessions together

    def open(self, session: str, part: Part = USUAL) -> None:
        self._entries[session] = {}
        self.shares.open(session, *part)
        if part != USUAL:
            self._parts[session] = part

    def get(self, session: str, index: int) -> Entry | None:
        return self._entries.get(session, {}).get(index)

    def of(self, session: str) -> dict[int, Entry]:
        """The session's entries by index (not to be changed)."""
        return self._entries.get(session, {})

    def admit(self, admit: Admit, now: float) -> Entry:
        """Enter an utterance. Raises ValueError if the index is known."""
        entry = self._enter(admit.session, Entry(admit.index, admit, now))
        self.shares.admit(admit.session)
        insort(self._taken.setdefault(admit.session, []), now)
        insort(self._all_taken, now)
        self._count(1)
        return entry

    def enter_missing(self, session: str, index: int, now: float) -> Entry:
        """Enter an index that was never admitted and has ended. Raises ValueError if the index is known."""
        return self._enter(session, Entry(index, None, now, State.ENDED))

    def accept(self, session: str, index: int) -> bool:
        """The scheduler has it. False when nobody waits for that word any more."""
        entry = self.get(session, index)
        if entry is None or entry.state is not State.ADMITTED:
            return False
        entry.move(State.ACCEPTED)
        return True

    def end(self, session: str, index: int) -> bool:
        """It has ended. False when it is unknown or had ended before: the first end holds."""
        entry = self.get(session, index)
        if entry is None or entry.state is State.ENDED:
            return False
        entry.move(State.ENDED)
        self.shares.end(session)
        mine = self._taken[session]
        _remove(mine, entry.taken_at)
        _remove(self._all_taken, entry.taken_at)
        if not mine:
            del self._taken[session]
        self._count(-1)
        return True

    def forget(self, session: str, index: int) -> None:
        """Acknowledged. Raises ValueError while it has not ended."""
        entry = self._entries[session].pop(index)
        if entry.state is not State.ENDED:
            self._entries[session][index] = entry
            raise ValueError(f"{session} {index} is acknowledged before its end")

    def drop(self, session: str) -> None:
        """Forget a session and everything of it."""
        self.shares.drop(session)
        taken = self._taken.pop(session, [])
        for when in taken:
            _remove(self._all_taken, when)
        self._count(-len(taken))
        self._entries.pop(session, None)
        self._parts.pop(session, None)

    def unended(self, session: str) -> int:
        return self.shares.unended(session)

    def unended_indices(self, session: str) -> Iterator[int]:
        return (index for index, entry in self.of(session).items() if entry.state is not State.ENDED)

    def older(self, session: str) -> int:
        """How many unended utterances of other sessions were taken before this one's oldest."""
        return bisect_left(self._all_taken, self.oldest(session))

    def oldest(self, session: str) -> float:
        """When the oldest of its unended utterances was taken; 0: it has none."""
        return self._taken[session][0] if session in self._taken else 0.0

    def part(self, session: str) -> Part:
        """What the session may have beside others."""
        return self._parts.get(session, USUAL)

    def round(self, session: str) -> float:
        """Ends of its priority of which one is its own."""
        return self.shares.round(session)

    @property
    def best_rank(self) -> int:
        """Of all with work."""
        return self.shares.best_rank

    def at_work(self) -> list[str]:
        """Sessions with an unended utterance."""
        return list(self._taken)

    def _enter(self, session: str, entry: Entry) -> Entry:
        mine = self._entries[session]
        if entry.index in mine:
            raise ValueError(f"{session} {entry.index} is known")
        mine[entry.index] = entry
        return entry

    def _count(self, change: int) -> None:
        self.total += change
        self.moves += 1

    def check(self) -> None:
        """Invariants: the counts are the counts, the times those of what has not ended; nobody who is gone is there."""
        self.shares.check()
        found: dict[str, list[float]] = {}
        for session, entries in self._entries.items():
            taken = sorted(entry.taken_at for entry in entries.values() if entry.state is not State.ENDED)
            assert len(taken) == self.unended(session), f"{session}: {taken} unended, counted {self.unended(session)}"
            if taken:
                found[session] = taken
        assert found == self._taken, (found, self._taken)
        assert sorted(when for taken in found.values() for when in taken) == self._all_taken
        assert len(self._all_taken) == self.total
        assert self._parts.keys() <= self._entries.keys() == self.shares.sessions


def _remove(times: list[float], when: float) -> None:
    """Take one out of a list in order."""
    del times[bisect_left(times, when)]
