"""The devices' memory in virtual time: the real book of leases over simulated drivers.

A driver is read when the book is told something or asks for it, and not four times a second: between two events nothing
changes there. What the dead held is shown as used for another moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.vram_clock import Clock
from engine.arbiter.events import Event, Sample, Send, Tell, Tick, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.limits import Limits

GIB = 2**30
CARD_BYTES = 24 * GIB
READ_S = 0.005  # until a reading that somebody waits for
LAG_S = 0.25  # so long the dead's memory is shown as used


class Cards:
    """``told`` gets the answers to workers, ``wanted`` what the scheduler is told."""

    def __init__(
        self, clock: Clock, devices: Iterable[str], told: Callable[[str, Any], None], wanted: Callable[[Any], None]
    ) -> None:
        self.used = dict.fromkeys(devices, 0)
        self.book = Leases([Limits(name, CARD_BYTES) for name in self.used], Waits())
        self._clock = clock
        self._told = told
        self._wanted = wanted
        self._due = float("inf")

    def take(self, device: str, nbytes: int) -> None:
        """A process takes memory."""
        self.used[device] += nbytes

    def give_back(self, device: str, nbytes: int) -> None:
        """A process has ended that had so much."""
        self._clock.after(LAG_S, self._given_back, device, nbytes)

    def hear(self, device: str, event: Event) -> None:
        """Something that concerns a device."""
        self._read(device)
        self._act(self.book.handle(event, self._clock.now))

    def _given_back(self, device: str, nbytes: int) -> None:
        self.used[device] -= nbytes
        self._read(device)

    def _read(self, device: str) -> None:
        now = self._clock.now
        reading = Reading(device, CARD_BYTES, CARD_BYTES - self.used[device], now)
        self._act(self.book.handle(reading, now))

    def _act(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send(peer, message):
                    self._told(peer, message)
                case Tell(message):
                    self._wanted(message)
                case Sample(device):
                    self._clock.after(READ_S, self._read, device)
        due = self.book.due_in(self._clock.now)
        if due is not None and self._clock.now + due < self._due:
            self._due = self._clock.now + due
            self._clock.after(due, self._tick)

    def _tick(self) -> None:
        self._due = float("inf")
        for device in self.used:
            self._read(device)
        self._act(self.book.handle(Tick(), self._clock.now))
