"""How the node's places are divided among sessions: max-min fair by weight, and at least 1 for each. Pure.

A session in line wants more than it has. One with work that is not in line has what it has, if that is no more than its
part: so what some leave of their parts is shared by who wants more. Sessions of lower priority do not count beside a
better one: what they have is in nobody's way at the stages.

Refusing must stay cheap, whoever asks and however often, beside a thousand others in line. So sessions are counted by
what matters of them (rank, weight, how many unended), and what follows from the counts for a rank, its **level**, is
found once after a change: in as many steps as there are different ones, each session's share in a few more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

NEWEST = 0.3  # weight of the newest end in what part of them frees a place
ONE = 2**20  # of that part: counted in whole numbers, so that sums of many stay what they are
Kind = tuple[int, int]  # weight, how many unended


@dataclass(slots=True)
class Seat:
    """One session: what it may have, has, and wants."""

    rank: int  # of its priority, 0 is the best
    weight: int
    unended: int = 0
    waits: bool = False  # it stands in line
    gained: int | None = None  # how many came since its last end; None: none has ended
    fewer: float = 1.0  # weighted mean of how many fewer utterances an end has left

    @property
    def kind(self) -> Kind:
        return self.weight, self.unended

    @property
    def giving(self) -> int:
        """What part of its ends leaves it with fewer: 0 where as many follow, ``ONE`` where none do yet."""
        return int(max(0.0, self.fewer) * ONE)


@dataclass
class _Rank:
    """All sessions of one rank that have work or stand in line."""

    content: Counter[Kind] = field(default_factory=Counter)  # with work and not in line: how many of each kind
    waiting: Counter[Kind] = field(default_factory=Counter)  # in line
    working: int = 0  # weights of those with work
    sharing: int = 0  # weights of all
    giving: int = 0  # over the content ones: unended times giving

    def count(self, seat: Seat, sign: int) -> None:
        """Take a session in (1) or out (-1)."""
        if seat.waits or seat.unended:
            self.sharing += sign * seat.weight
            counter, kind = self.waiting if seat.waits else self.content, seat.kind
            counter[kind] += sign
            if not counter[kind]:
                del counter[kind]
        if seat.unended:
            self.working += sign * seat.weight
            if not seat.waits:
                self.giving += sign * seat.unended * seat.giving


class _Level:
    """What sessions of a rank may have, by their weights.

    The content ones stand by what they have for each unit of weight. They are filled from the least on, as long as that
    is below what the others would have; those share the rest.
    """

    def __init__(self, places: int, sharing: int, content: Iterable[tuple[Kind, int]], waiting: Counter[Kind]) -> None:
        found = sorted(content, key=lambda one: one[0][1] / one[0][0])
        self._places, self._sharing, self._waiting = places, sharing, waiting
        self._kinds = [kind for kind, _ in found]
        self._at = {kind: at for at, kind in enumerate(self._kinds)}
        self._taken, self._weights = [0], [0]  # places and weights of all before each
        for (weight, unended), sessions in found:
            self._taken.append(self._taken[-1] + unended * sessions)
            self._weights.append(self._weights[-1] + weight * sessions)

    def share(self, seat: Seat) -> int:
        """Most places for this session, which wants more, whether it stands in line yet or not."""
        if seat.waits:
            places, sharing = self._rest
        elif seat.unended:
            places, sharing = self._left_beside(seat.kind, self._at[seat.kind])
        else:
            places, sharing = self._left_beside(seat.kind, -1)
        return max(1, places * seat.weight // sharing)

    @cached_property
    def _rest(self) -> tuple[int, int]:
        """Places, and the weights of those who share them, when the content ones have theirs."""
        return self._left_beside((0, 0), len(self._kinds))

    @cached_property
    def over(self) -> int:
        """How many utterances those in line have beyond their shares."""
        places, sharing = self._rest
        return sum(
            sessions * max(0, unended - max(1, places * weight // sharing))
            for (weight, unended), sessions in self._waiting.items()
        )

    def _left_beside(self, kind: Kind, at: int) -> tuple[int, int]:
        """The same where one of this kind is not content: it stands at ``at``, or nowhere yet (-1)."""
        own_weight, own = kind if at >= 0 else (kind[0], 0)

        def left(count: int) -> tuple[int, int]:
            beyond = count > at
            return (
                self._places - self._taken[count] + (own if beyond else 0),
                self._sharing - self._weights[count] + (own_weight if beyond else 0),
            )

        def has_its_part(number: int) -> bool:
            (weight, unended), (places, sharing) = self._kinds[number], left(number)
            return unended * sharing >= places * weight

        # Once one has its part or more, so has each that comes after it.
        return left(bisect_left(range(len(self._kinds)), True, key=has_its_part))


class Shares:
    """Sessions by what they may have, have and want."""

    def __init__(self, ranks: int) -> None:
        self._ranks = [_Rank() for _ in range(ranks)]
        self._seats: dict[str, Seat] = {}
        self._levels: dict[int, _Level] = {}  # by rank: those that still hold
        self._places = 0  # for which they do

    def open(self, session: str, rank: int, weight: int) -> None:
        self._seats[session] = Seat(rank, weight)

    def admit(self, session: str) -> None:
        """It has one more unended."""
        seat = self._seats[session]
        self._count(seat, -1)
        seat.unended += 1
        if seat.gained is not None:
            seat.gained += 1
        self._count(seat, 1)

    def end(self, session: str) -> None:
        """It has one fewer."""
        seat = self._seats[session]
        self._count(seat, -1)
        seat.unended -= 1
        if seat.gained is not None:
            seat.fewer += NEWEST * (1 - seat.gained - seat.fewer)
        seat.gained = 0
        self._count(seat, 1)

    def drop(self, session: str) -> None:
        """It is over."""
        if (seat := self._seats.pop(session, None)) is not None:
            self._count(seat, -1)

    def wait(self, session: str, waits: bool) -> None:
        """It stands in line from now on, or not."""
        seat = self._seats.get(session)
        if seat is not None and seat.waits != waits:
            self._count(seat, -1)
            seat.waits = waits
            self._count(seat, 1)

    def unended(self, session: str) -> int:
        seat = self._seats.get(session)
        return 0 if seat is None else seat.unended

    def share(self, session: str, places: int) -> int:
        """How many of so many places this session may have, if it wants more than it has."""
        seat = self._seats[session]
        return self._level(seat.rank, places).share(seat)

    def freeing(self, session: str, places: int) -> float:
        """How many of the others' unended ones would each leave a place for this session.

        Sessions of a better priority leave it none. One in line that is below its share takes a place again that it
        leaves; one that is not in line does so as far as it has lately.
        """
        own, found = self._seats[session], 0
        for rank in range(own.rank, len(self._ranks)):
            counted = self._ranks[rank]
            found += counted.giving + (ONE * self._level(rank, places).over if counted.waiting else 0)
        if own.waits:
            found -= ONE * max(0, own.unended - self.share(session, places))
        else:
            found -= own.unended * own.giving
        return found / ONE

    def round(self, session: str) -> float:
        """Ends of its priority of which one is its own: sessions with work take turns by their weights."""
        seat = self._seats[session]
        return max(1.0, self._ranks[seat.rank].working / seat.weight)

    @property
    def sessions(self) -> Collection[str]:
        """All that are not over."""
        return self._seats.keys()

    @property
    def best_rank(self) -> int:
        """Of all with work."""
        return next((number for number, rank in enumerate(self._ranks) if rank.working), 0)

    def _level(self, rank: int, places: int) -> _Level:
        if places != self._places:
            self._places = places
            self._levels.clear()
        level = self._levels.get(rank)
        if level is None:
            counted = self._ranks[: rank + 1]
            content = [one for each in counted for one in each.content.items()]
            sharing = sum(each.sharing for each in counted)
            level = self._levels[rank] = _Level(places, sharing, content, self._ranks[rank].waiting)
        return level

    def _count(self, seat: Seat, sign: int) -> None:
        self._ranks[seat.rank].count(seat, sign)
        self._levels.clear()

    def check(self) -> None:
        """Invariant: the counts are the counts."""
        fresh = [_Rank() for _ in self._ranks]
        for seat in self._seats.values():
            fresh[seat.rank].count(seat, 1)
        assert fresh == self._ranks, (fresh, self._ranks)
