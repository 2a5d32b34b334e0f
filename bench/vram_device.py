"""A device as it really is: who has allocated what, whatever anybody's book says. (Simulated, in virtual time.)

    total = what processes hold + what was given back and is still shown as used (lag) + other programs' + free

An allocation that finds too little fails and changes nothing, as in a driver. What a process gives back, or leaves by
its death, is shown as used for another moment.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.vram_clock import Clock


class TrueDevice:
    """``lag_s``: draws how long memory that was given back stays used."""

    def __init__(self, name: str, total_bytes: int, clock: Clock, lag_s: Callable[[], float]) -> None:
        self.name = name
        self.total_bytes = total_bytes
        self.held: dict[str, int] = {}  # process -> bytes it has allocated
        self.foreign_bytes = 0
        self.lagging_bytes = 0
        self.held_bytes = 0
        self.used_byte_s = 0.0  # what processes held, over time
        self._clock = clock
        self._lag_s = lag_s
        self._since = clock.now

    @property
    def free_bytes(self) -> int:
        """What the driver shows."""
        return self.total_bytes - self.held_bytes - self.lagging_bytes - self.foreign_bytes

    def take(self, process: str, nbytes: int) -> bool:
        """Allocate; False: out of memory."""
        if nbytes > self.free_bytes:
            return False
        self._change(process, nbytes)
        return True

    def give_back(self, process: str) -> None:
        """Everything that it has, or had when it died."""
        nbytes = self.held.get(process, 0)
        if nbytes:
            self._change(process, -nbytes)
            del self.held[process]
            self.lagging_bytes += nbytes
            self._clock.after(self._lag_s(), self._shown_back, nbytes)

    def shrink(self, process: str, nbytes: int) -> None:
        """Give back a part, which is shown at once."""
        self._change(process, -nbytes)

    def others(self, nbytes: int) -> None:
        """Let other programs hold so much, or what there is."""
        self.foreign_bytes = max(0, min(nbytes, self.foreign_bytes + self.free_bytes))

    def _shown_back(self, nbytes: int) -> None:
        self.lagging_bytes -= nbytes

    def _change(self, process: str, nbytes: int) -> None:
        self.settle()
        self.held[process] = self.held.get(process, 0) + nbytes
        self.held_bytes += nbytes

    def settle(self) -> None:
        """Bring ``used_byte_s`` up to now."""
        self.used_byte_s += self.held_bytes * (self._clock.now - self._since)
        self._since = self._clock.now
