"""Where memory has run out although it was leased: counted by phase, and devices that pause after a second time.

One is an accident; another one on the same device within ``oom_window_s`` says that something there is wrong (another
program grows, an estimate is too low), and starting more would only make more of them. Then nothing new begins on that
device for ``oom_hold_s``: no run and no load. What runs there goes on. Pure.
"""

from __future__ import annotations

from typing import Any

PHASES = ("load", "warm_up", "run")


class Shortages:
    """See the module's docstring. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(PHASES, 0)
        self.holds = 0  # how often a device has paused
        self.last: float | None = None
        self._last_on: dict[str, float] = {}
        self._held: dict[str, float] = {}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def happened(self, device: str, phase: str, now: float, *, window_s: float, hold_s: float) -> bool:
        """One more, on ``device`` in ``phase``. Returns whether the device pauses for that, and did not before."""
        self.counts[phase if phase in PHASES else "load"] += 1
        again = now - self._last_on.get(device, -window_s) < window_s
        self.last = self._last_on[device] = now
        if not again:
            return False
        begins = device not in self._held
        self.holds += begins
        self._held[device] = now + hold_s
        return begins

    def age(self, now: float) -> None:
        """Pauses end with time."""
        self._held = {device: until for device, until in self._held.items() if until > now}

    def held_until(self, device: str) -> float | None:
        """When something may begin there again; None: it may."""
        return self._held.get(device)

    def snapshot(self, now: float) -> dict[str, Any]:
        """For ``stats``: by phase, and how much longer devices pause."""
        held = {name: round(until - now, 1) for name, until in self._held.items() if until > now}
        return {**self.counts, "holds": self.holds, "held_s": held}
