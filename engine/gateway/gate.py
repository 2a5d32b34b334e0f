"""The line in front of a full node: which session gets the next free place, and when about. Pure.

A session below its share always gets in. One that has its share and finds the node full stands in line; places that
come free are given in its order, and one that came later finds only what is left beyond those before it. It leaves the
line when it is let in, when it has not come back in time, and with its end.

When it will be let in is told as the lesser of two times: until so many ends that the places before it and its own are
free, and until so many of its own utterances have ended that it is below its share. Ends come at the measured rate,
counted from the last one. Many free no place: a session in line that is below its share then takes its place again, one
of a better priority does so too, and one that is not in line does as far as it has lately (``Ledger.giving``). Beside
sessions of a better priority the second time is not counted in ends, which are theirs, but is what others of its part
have stayed (``stays``).
"""

from __future__ import annotations

import math
from collections.abc import Collection

LONGEST_S, SHORTEST_S = 30.0, 0.01  # what is told of waiting, whatever the figures say


class Gate:
    """Sessions in line, first come first served. Times in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._line: dict[str, float] = {}  # session -> until when its place is kept

    def ahead(self, session: str, now: float) -> int:
        """How many stand before this session, which may not stand in line itself."""
        late = [name for name, until in self._line.items() if until < now]
        for name in late:
            del self._line[name]
        for number, name in enumerate(self._line):
            if name == session:
                return number
        return len(self._line)

    def stand(self, session: str, until: float) -> None:
        """Join the line, or keep the place in it."""
        self._line[session] = until

    def leave(self, session: str) -> None:
        self._line.pop(session, None)

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
