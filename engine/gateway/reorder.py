"""What waits for its turn: an outcome leaves when every lower index of its session has ended.

Only indices stand here; the outcomes themselves lie in the outbox. Pure.
"""

from __future__ import annotations


class Reorder:
    """The order of one session's ends. ``next`` is the lowest index that has not ended."""

    def __init__(self, first_index: int, bypass: bool = False) -> None:
        self.next = first_index
        self.held: set[int] = set()  # ended, waiting for a lower index
        self.released: list[int] = []  # in the order they left, not taken by the sender yet
        self._bypass = bypass  # a test's hook: emit on arrival, so that the order checks can be seen failing

    def put(self, index: int) -> None:
        """``index`` has ended. Raises ValueError if it had already."""
        if index < self.next or index in self.held:
            raise ValueError(f"index {index} has already ended")
        self.held.add(index)
        if self._bypass:
            self.released.append(index)
        while self.next in self.held:
            self.held.remove(self.next)
            if not self._bypass:
                self.released.append(self.next)
            self.next += 1

    def check(self) -> None:
        """Invariants: what is held lies above ``next``; what left is in order."""
        assert all(index > self.next for index in self.held), "a held index is not above the next one"
        if not self._bypass:
            assert self.released == sorted(self.released), "released out of order"
            assert all(index < self.next for index in self.released), "released before its turn"
