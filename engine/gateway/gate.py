"""The line in front of a full node: which session gets the next free place, and when about. Pure.

A session below its share always gets in. One that has its share and finds the node full stands in line; places that
come free are given in its order, and one that came later finds only what is left beyond those before it. It leaves the
line when it is let in, when it has not come back in time, and with its end.

When it will be let in is told as the lesser of two times: until so many ends that the places before it and its own are
free, and until so many of its own utterances have ended that it is below its share. Ends come at the measured rate,
counted from the last one. Many free no place: a session in line that is below its share then takes its place again, one
of a better priority does so too, and one that is not in line does as far as it has lately (``Shares.freeing``). Beside
sessions of a better priority the second time is not counted in ends, which are theirs, but is what others of its part
have stayed (``stays``).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Collection

from engine.gateway.shares import Shares

LONGEST_S, SHORTEST_S = 30.0, 0.01  # what is told of waiting, whatever the figures say


class Gate:
    """Sessions in line, first come first served. Times in seconds of the monotonic clock.

    ``shares`` is told who stands in it. A question costs the same however long the line is, but for once in a turn.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._line: dict[str, tuple[int, float]] = {}  # session -> its number, until when its place is kept
        self._numbers: list[int] = []  # of all in line, in order
        self._next_number = itertools.count()
        self._late_at = math.inf  # nobody is late before

    def ahead(self, session: str, now: float) -> int:
        """How many stand before this session, which may not stand in line itself."""
        if self._late_at < now:
            for name in [name for name, (_, until) in self._line.items() if until < now]:
                self.leave(name)
            self._late_at = min((until for _, until in self._line.values()), default=math.inf)
        place = self._line.get(session)
        return len(self._numbers) if place is None else bisect_left(self._numbers, place[0])

    def stand(self, session: str, until: float) -> None:
        """Join the line, or keep the place in it."""
        place = self._line.get(session)
        if place is None:
            number = next(self._next_number)
            self._numbers.append(number)
            self._shares.wait(session, True)
        else:
            number = place[0]
        self._line[session] = number, until
        self._late_at = min(self._late_at, until)

    def leave(self, session: str) -> None:
        place = self._line.pop(session, None)
        if place is not None:
            del self._numbers[bisect_left(self._numbers, place[0])]
            self._shares.wait(session, False)

    def standing(self) -> Collection[str]:
        """Who stands in line, or has not come back yet."""
        return self._line.keys()

    def __len__(self) -> int:
        return len(self._line)


def wait_s(ends: float, since_s: float, rate: float, unknown_s: float) -> float:
    """Seconds until so many more have ended, the last one ``since_s`` ago.

    ``rate``: ends per second; 0: not measured, then ``unknown_s``.
    """
    if rate <= 0 or not math.isfinite(rate):
        return unknown_s
    return min(LONGEST_S, max(SHORTEST_S, ends / rate - min(since_s, 1 / rate)))
