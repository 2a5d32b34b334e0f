"""Which lines about programs outside the node are worth the log: so many of one process in a while. Pure.

Anybody's program may ask, and be refused, thousands of times a second. What is left out is counted, and the count said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engine.arbiter.lease import EXTERNAL

MOST = 32  # lines of one process
WHILE_S = 60.0


class Chatter:
    """Counts them."""

    def __init__(self) -> None:
        self._lines: Counter[str] = Counter()  # by process: "lease@PID"
        self._until = 0.0

    def admits(self, peer: str) -> bool:
        """Whether one more line about this peer goes into the log; of the node's own each does."""
        if not peer.startswith(EXTERNAL):
            return True
        who = peer.partition("/")[0]
        self._lines[who] += 1
        return self._lines[who] <= MOST

    def left_out(self, now: float) -> Iterator[str]:
        """At the end of a while, how much of it was left out, in words."""
        if now < self._until:
            return
        for who, lines in self._lines.items():
            if lines > MOST:
                yield f"{who}: {lines - MOST} more lines in {WHILE_S:g} s were left out"
        self._lines.clear()
        self._until = now + WHILE_S
