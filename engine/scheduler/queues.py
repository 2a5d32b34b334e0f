"""The queue in front of one stage: priority, then fairness between sessions, then index order.

Sessions of one priority take turns: whoever was just served goes to the back, so that a flood from one cannot starve
another. Within a session the lowest index goes first, always: "to the back" never means behind its own later indices.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from engine.scheduler.jobs import Key

LEVELS = ("high", "normal", "low")


class StageQueue:
    """Keys of the jobs that wait for one stage."""

    def __init__(self) -> None:
        self._levels: dict[str, dict[str, list[int]]] = {level: {} for level in LEVELS}
        self.waiting: dict[Key, str] = {}  # every job -> its priority

    def push(self, key: Key, priority: str) -> None:
        """Add a job. Pushing one twice is an error of the caller (AssertionError)."""
        assert key not in self.waiting, f"{key} is queued already"
        self.waiting[key] = priority
        heapq.heappush(self._levels[priority].setdefault(key[0], []), key[1])

    def remove(self, key: Key) -> None:
        """Take a job out, if it is there."""
        self.waiting.pop(key, None)  # its index is dropped from the heap when it comes up

    def pick(self, most: int, eligible: Callable[[Key], bool]) -> list[Key]:
        """Take up to ``most`` eligible jobs, in order. A session whose lowest index is not eligible waits."""
        picked: list[Key] = []
        for level in LEVELS:
            while self._levels[level] and len(picked) < most:
                key = self._next(level, eligible)
                if key is None:
                    break
                picked.append(key)
        return picked

    def _next(self, level: str, eligible: Callable[[Key], bool]) -> Key | None:
        sessions = self._levels[level]
        for session in list(sessions):
            heap = sessions[session]
            while heap and self.waiting.get((session, heap[0])) != level:
                heapq.heappop(heap)
            if not heap:
                del sessions[session]
            elif eligible((session, heap[0])):
                key = (session, heapq.heappop(heap))
                del self.waiting[key]
                del sessions[session]
                if heap:
                    sessions[session] = heap  # behind the others
                return key
        return None

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.waiting)

    def check(self) -> None:
        """Invariant: every waiting job stands in exactly one heap of its level."""
        for key, level in self.waiting.items():
            assert self._levels[level].get(key[0], []).count(key[1]) >= 1, f"{key} is lost"
