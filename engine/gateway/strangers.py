"""Connections that hold no session: how much they may be told.

Nothing such a connection sends shows that it reads its answers, and what is not read lies in this process. So each has
a budget of answers that fills again slowly: enough for greetings, refusals and a monitor's pings. Over it, and when
very many ask at once, nothing is answered. A connection that was parted with for not reading is told nothing more at
all: it connects anew and resumes there. Pure.
"""

from __future__ import annotations

import math

BUDGET_BYTES = 128 * 1024  # of answers to one connection at once
REFILL_BYTES_PER_S = 2048.0
MOST = 256  # connections with a debt at the same time


class Strangers:
    """What connections without a session were told and may not have read."""

    def __init__(self) -> None:
        self._debts: dict[bytes, tuple[float, float]] = {}  # bytes, and when that was so (monotonic seconds)

    def may_hear(self, client: bytes, nbytes: int, now: float) -> bool:
        """Count an answer; False, and nothing is counted, when it is not to be given."""
        debt = self.debt(client, now)
        if debt >= BUDGET_BYTES or (client not in self._debts and not self._room(now)):
            return False
        self._debts[client] = debt + nbytes, now
        return True

    def owe(self, client: bytes, nbytes: int, now: float) -> None:
        """Its last session is over or was taken from it, and so much of its answers may be unread."""
        if nbytes and self._room(now):
            self._debts[client] = self.debt(client, now) + nbytes, now

    def take(self, client: bytes, now: float) -> int:
        """It holds a session from now on, where its answers are counted: returns what it owes."""
        debt = int(self.debt(client, now))
        self._debts.pop(client, None)
        return debt

    def cut(self, client: bytes, now: float) -> None:
        """It does not read: it is told nothing more."""
        self._room(now)
        self._debts[client] = math.inf, now

    def lost(self, client: bytes) -> None:
        """Nobody is there any more."""
        self._debts.pop(client, None)

    def debt(self, client: bytes, now: float) -> float:
        """Bytes of answers that it may not have read."""
        nbytes, since = self._debts.get(client, (0.0, now))
        return max(0.0, nbytes - REFILL_BYTES_PER_S * (now - since))

    def _room(self, now: float) -> bool:
        """Whether one more fits; those that owe nothing any more are forgotten."""
        if len(self._debts) >= MOST:
            self._debts = {name: debt for name, debt in self._debts.items() if self.debt(name, now)}
        return len(self._debts) < MOST

    def __len__(self) -> int:
        return len(self._debts)
