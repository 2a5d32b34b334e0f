"""What is accepted and not acknowledged: one entry per utterance, from admission to acknowledgement.

    admitted -> accepted -> ended -> (acknowledged: forgotten)
        \\----------------->/
    missing: ended without ever having been admitted (gap, Skip, cancelled before it came)

An admitted utterance is known to this process only; the scheduler's word makes it accepted: now two processes know it.
Pure.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
NEWEST = 0.3  # weight of the newest end in what part of them frees a place
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
    """Entries of all sessions, and how many of them have not ended."""

    def __init__(self) -> None:
        self.total = 0  # unended, node-wide
        self.moves = 0  # how often that has changed
        self._entries: dict[str, dict[int, Entry]] = {}
        self._unended: dict[str, int] = {}  # only sessions with work stand here
        self._parts: dict[str, Part] = {}  # of sessions whose part is not the usual one
        self._giving: dict[str, float] = {}  # weighted mean of how many fewer utterances an end has left, by session
        self._gained: dict[str, int] = {}  # by session: how many came since its last end
        self._having: Counter[tuple[Part, int]] = Counter()  # part, so many unended -> how many sessions have them

    def open(self, session: str, part: Part = USUAL) -> None:
        self._entries[session] = {}
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
        self._count(admit.session, 1)
        if admit.session in self._gained:
            self._gained[admit.session] += 1
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
        self._count(session, -1)
        if session in self._gained:
            giving = self._giving.get(session, 1.0)
            self._giving[session] = giving + NEWEST * (1 - self._gained[session] - giving)
        self._gained[session] = 0
        return True

    def forget(self, session: str, index: int) -> None:
        """Acknowledged. Raises ValueError while it has not ended."""
        entry = self._entries[session].pop(index)
        if entry.state is not State.ENDED:
            self._entries[session][index] = entry
            raise ValueError(f"{session} {index} is acknowledged before its end")

    def drop(self, session: str) -> None:
        """Forget a session and everything of it."""
        self._count(session, -self.unended(session))
        self._entries.pop(session, None)
        self._giving.pop(session, None)
        self._gained.pop(session, None)
        self._parts.pop(session, None)

    def unended(self, session: str) -> int:
        return self._unended.get(session, 0)

    def unended_indices(self, session: str) -> Iterator[int]:
        return (index for index, entry in self.of(session).items() if entry.state is not State.ENDED)

    def older(self, session: str) -> int:
        """How many unended utterances of other sessions were taken before this one's oldest."""
        mine = self.oldest(session)
        return sum(
            entry.taken_at < mine for other in self._unended if other != session for entry in self._open_entries(other)
        )

    def _open_entries(self, session: str) -> Iterator[Entry]:
        return (entry for entry in self.of(session).values() if entry.state is not State.ENDED)

    def level(self, places: int, session: str, wanting: Iterable[str]) -> int:
        """How many of so many places this session may have: max-min fair by weight, and at least 1.

        ``wanting`` want more than they have, as it does; each other session has what it has, if that is no more than
        its part. So what some leave of their parts is shared by who wants more. Sessions of lower priority do not
        count: what they have is in nobody's way at the stages.
        """
        own = self.part(session)
        having, sharing = Counter[tuple[Part, int]](), 0
        for (part, unended), sessions in self._having.items():
            if part.rank <= own.rank:
                having[part, unended] = sessions
                sharing += sessions * part.weight
        for name in {session, *wanting}:
            part, unended = self.part(name), self.unended(name)
            if part.rank > own.rank:
                continue
            if unended:
                having[part, unended] -= 1
            else:
                sharing += part.weight
        for part, unended in sorted(having, key=lambda one: one[1] / one[0].weight):
            if unended * sharing >= places * part.weight:
                break
            sessions = max(0, having[part, unended])
            places, sharing = places - unended * sessions, sharing - part.weight * sessions
        return max(1, places * own.weight // sharing)

    def part(self, session: str) -> Part:
        """What the session may have beside others."""
        return self._parts.get(session, USUAL)

    @property
    def best_rank(self) -> int:
        """Of all with work."""
        return min((part.rank for part, _ in self._having), default=0)

    def at_work(self) -> list[str]:
        """Sessions with an unended utterance."""
        return list(self._unended)

    def not_before(self, session: str) -> list[str]:
        """Which sessions with work do not go before this one: of its priority, and of lower ones."""
        rank = self.part(session).rank
        return [name for name in self._unended if self.part(name).rank >= rank]

    def round(self, session: str) -> float:
        """Ends of its priority of which one is its own: sessions with work take turns by their weights."""
        own, total = self.part(session), 0.0
        for (part, _), sessions in self._having.items():
            if part.rank == own.rank:
                total += sessions * part.weight / own.weight
        return max(1.0, total)

    def giving(self, session: str) -> float:
        """What part of its ends leaves it with fewer utterances: 0 where as many follow, 1 where none do yet."""
        return max(0.0, self._giving.get(session, 1.0))

    def oldest(self, session: str) -> float:
        """When the oldest of its unended utterances was taken; 0: it has none."""
        return min((entry.taken_at for entry in self._open_entries(session)), default=0.0)

    def _enter(self, session: str, entry: Entry) -> Entry:
        mine = self._entries[session]
        if entry.index in mine:
            raise ValueError(f"{session} {entry.index} is known")
        mine[entry.index] = entry
        return entry

    def _count(self, session: str, change: int) -> None:
        self.total += change
        before, part = self._unended.get(session, 0), self.part(session)
        left = before + change
        self.moves += 1
        if before:
            self._having[part, before] -= 1
            if not self._having[part, before]:
                del self._having[part, before]
        if left:
            self._having[part, left] += 1
            self._unended[session] = left
        else:
            self._unended.pop(session, None)

    def check(self) -> None:
        """Invariant: the counts are the counts."""
        for session, entries in self._entries.items():
            unended = sum(entry.state is not State.ENDED for entry in entries.values())
            assert unended == self.unended(session), f"{session}: {unended} unended, counted {self.unended(session)}"
        assert sum(self._unended.values()) == self.total
        assert Counter((self.part(name), count) for name, count in self._unended.items()) == self._having
        assert all(count > 0 for count in self._unended.values())
