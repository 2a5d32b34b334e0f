"""Virtual time: what is due, and in what order."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """``now`` in seconds; it only moves from one event to the next."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), do, args))

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._due:
            return False
        self.now, _, do, args = heapq.heappop(self._due)
        do(*args)
        return True
