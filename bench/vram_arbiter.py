"""An arbiter in virtual time: the real book, in a shell that reads true devices and dies now and then.

It dies at an event: before the event is in the journal, or after, and always before its answers have left. The next
one goes on from the journal (``keep``, ``restore``), as in the node.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any, Protocol

from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from engine.arbiter import kept
from engine.arbiter.events import AskToLeave, Event, Sample, Send, Tell, Tick, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.limits import Limits
from ipc.messages import Granted, Leave, Room, Vacate

READ_S = 0.25  # between readings
ASKED_S = 0.002  # until a reading that somebody waits for
DOWN_S = (0.05, 0.5)
FIRST_PID, THEIR_PIDS = 1000, 1_000_000  # of processes here, and by how much a host's numbers differ
OUTSIDER = 999  # the process of all outsiders


class Hearer(Protocol):
    """Whoever has to do with an arbiter."""

    def decided(self, peer: str, granted: Granted) -> None:
        """It is in the journal: a promise, heard or not."""

    def told(self, peer: str, message: Any) -> None:
        """An answer, to a worker or a program."""

    def wanted(self, message: Vacate | Room) -> None:
        """What the scheduler is told."""

    def asked_to_leave(self, peer: str, message: Leave) -> None:
        """A program is to leave."""

    def arbiter_is_up(self, known: kept.Kept) -> None:
        """Another life of it: it knows this, and who has something to say says it again."""


class VirtualArbiter:
    """See the module's docstring."""

    def __init__(
        self,
        clock: Clock,
        chance: random.Random,
        devices: Iterable[TrueDevice],
        limits: Iterable[Limits],
        waits: Waits,
        hearer: Hearer,
        listing: str = "",
        outsiders_listed: float = 0.0,
    ) -> None:
        self.devices = {device.name: device for device in devices}
        self.foreign_read = dict.fromkeys(self.devices, 0)  # other programs' bytes, in the newest reading
        self.held_read: dict[str, dict[str, int]] = {name: {} for name in self.devices}  # ... and each process's
        self.read_at = dict.fromkeys(self.devices, -math.inf)  # when the newest reading of this life was taken
        self.blind: set[str] = set()  # devices whose driver does not answer
        self.lost: set[str] = set()  # devices whose driver never answers any more
        self.lives = 1
        self.alive = True
        self._clock = clock
        self._chance = chance
        self._limits = tuple(limits)
        self._waits = waits
        self._hearer = hearer
        self._listing, self._outsiders_listed = listing, outsiders_listed
        self._pids: dict[str, int] = {}
        self._doom = ""
        self._asked: set[str] = set()
        self.book = Leases(self._limits, waits)

    def start(self) -> None:
        self._look()

    def doom(self) -> None:
        """Die at the next event."""
        self._doom = self._doom or self._chance.choice(("before", "after"))

    def pid(self, process: str) -> int:
        """Its number, as long as it lives."""
        return self._pids.setdefault(process, FIRST_PID + len(self._pids))

    @property
    def will_hear(self) -> bool:
        """Whether it lives through the next event, or at least writes it down."""
        return self.alive and self._doom != "before"

    def hear(self, event: Event) -> bool:
        """Something reaches it. False: it is not there, or died of it and will not know."""
        if not self.alive:
            return False
        if self._doom == "before":
            self._die()
            return False
        actions = self.book.handle(event, self._clock.now)
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, Granted):
                self._hearer.decided(action.peer, action.message)
        if self._doom:
            self._die()
            return True
        for action in actions:
            self._act(action)
        return True

    def _act(self, action: Any) -> None:
        match action:
            case Send(peer, message):
                self._hearer.told(peer, message)
            case Tell(message):
                self._hearer.wanted(message)
            case AskToLeave(peer, message):
                self._hearer.asked_to_leave(peer, message)
            case Sample(device):
                if device not in self._asked:
                    self._asked.add(device)
                    self._clock.after(ASKED_S, self._read, device)

    def _look(self) -> None:
        """The samplers' period; a turn of the shell comes with it, and one when the book says that it is due."""
        for device in self.devices:
            self._read(device)
        self._tick()
        if self.alive and (due := self.book.due_in(self._clock.now)) is not None and due < READ_S:
            self._clock.after(due + 1e-4, self._tick)
        self._clock.after(READ_S, self._look)

    def _tick(self) -> None:
        self.hear(Tick())

    def _read(self, device: str) -> None:
        self._asked.discard(device)
        if device not in self.blind and device not in self.lost:
            true = self.devices[device]
            reading = Reading(device, true.total_bytes, true.free_bytes, self._clock.now, self._list(true))
            self._clock.after(0.001, self._read_arrives, reading, true.foreign_bytes, dict(true.held))

    def _list(self, device: TrueDevice) -> dict[int, int] | None:
        """What the driver says of processes; of those that have nothing, nothing."""
        if not self._listing:
            return None
        other = THEIR_PIDS if self._listing == "theirs" else 0
        found = {self.pid(process) + other: nbytes for process, nbytes in device.held.items()}
        found[OUTSIDER + other] = int(self._outsiders_listed * device.foreign_bytes)
        return {pid: nbytes for pid, nbytes in found.items() if nbytes}

    def _read_arrives(self, reading: Reading, foreign_bytes: int, held: dict[str, int]) -> None:
        if self.will_hear:
            self.foreign_read[reading.device], self.held_read[reading.device] = foreign_bytes, held
            self.read_at[reading.device] = reading.taken_at
        self.hear(reading)

    def _die(self) -> None:
        self._journal = kept.encode(self.book.keep())
        self.alive, self._doom = False, ""
        self._clock.after(self._chance.uniform(*DOWN_S), self._begin_anew)

    def _begin_anew(self) -> None:
        known = kept.decode(self._journal)
        self.read_at = dict.fromkeys(self.devices, -math.inf)
        self.book = Leases(self._limits, self._waits)
        self.book.restore(known)
        self.alive = True
        self.lives += 1
        self._hearer.arbiter_is_up(known)
