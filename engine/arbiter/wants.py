"""Who is asked to make room for the oldest request that lacks it: programs outside the node, and the scheduler. Pure.

A preemptible holder outside the node is asked first, the newest before the older ones, and has ``grace_s`` to leave.
What is lacking beyond that, and beyond the memory of the dead that is on its way back, is told to the scheduler, which
alone knows which of the node's models may leave. Nobody is asked, and nothing told, when all of those together would
not give enough: other programs hold the rest, and nobody leaves in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.arbiter.events import AskToLeave, Tell
from engine.arbiter.lease import Lease, LeaseState
from ipc.messages import Leave, Vacate


@dataclass(frozen=True)
class Wish:
    """The request that somebody's leaving would help. ``place``: it lacks a place among the models, whatever room."""

    peer: str
    nbytes: int
    place: bool = False

    def lacking(self, room: int) -> int:
        """Bytes that it needs more than there are; 0: it lacks nothing."""
        return max(self.nbytes - room, 1 if self.place else 0)


class Wants:
    """What was told last, by device."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._told: dict[str, Vacate] = {}
        self._again: set[str] = set()  # devices of which it is to be said again

    def look(
        self, device: str, wish: Wish | None, leases: Sequence[Lease], room: int, now: float
    ) -> list[AskToLeave | Tell]:
        """Who is to be asked now. ``leases``: those on the device; ``room``: bytes that may be granted."""
        asked = list(self._ask(wish, leases, room, now)) if wish else []
        news = self._news(device, wish, leases, room + self._promised_back(leases, now))
        repeated = bool(news.nbytes) and device in self._again
        self._again.discard(device)
        if news == self._told.get(device, Vacate(device, 0)) and not repeated:
            return [*asked]
        self._told[device] = news
        return [*asked, Tell(news)]

    def again(self, device: str) -> None:
        """A lease there has ended, or will not: what is still lacking is said again."""
        self._again.add(device)

    def all(self) -> list[Vacate]:
        """Everything that is wanted now, for a scheduler that has heard nothing yet."""
        return [told for told in self._told.values() if told.nbytes]

    def leaving(self, leases: Sequence[Lease]) -> list[str]:
        """Programs outside the node that were asked to leave and are still there."""
        return [one.peer for one in leases if one.asked_at is not None and one.state is LeaseState.HELD]

    def is_overdue(self, lease: Lease, now: float) -> bool:
        """Whether its holder was asked to leave, and has not in time."""
        return lease.asked_at is not None and now >= lease.asked_at + self._grace_s

    def due_in(self, lease: Lease, now: float) -> float | None:
        """Seconds until it is overdue; None when it is, or never will be."""
        return None if lease.asked_at is None or self.is_overdue(lease, now) else lease.asked_at + self._grace_s - now

    def _ask(self, wish: Wish, leases: Sequence[Lease], room: int, now: float) -> Iterator[AskToLeave]:
        lacking = wish.nbytes - room - self._promised_back(leases, now)
        held = [one for one in leases if one.state is LeaseState.HELD]
        programs = [one for one in held if one.preemptible and one.asked_at is None]
        models = [one for one in held if not one.external]
        if lacking > sum(map(_taken, programs + models)):
            return  # it would not be enough
        for lease in reversed(programs):
            if lacking > 0:
                lease.asked_at = now
                lacking -= _taken(lease)
                yield AskToLeave(lease.peer, Leave(lease.number, self._grace_s))

    def _promised_back(self, leases: Sequence[Lease], now: float) -> int:
        """Bytes on their way back: of those who have left, and of those who were asked to and have time yet."""
        left = [one for one in leases if one.state is LeaseState.DRAINING]
        asked = [one for one in leases if one.asked_at is not None and one.state is LeaseState.HELD]
        return sum(map(_taken, left)) + sum(_taken(one) for one in asked if not self.is_overdue(one, now))

    def _news(self, device: str, wish: Wish | None, leases: Sequence[Lease], room: int) -> Vacate:
        lacking = wish.lacking(room) if wish else 0
        ours = sum(_taken(one) for one in leases if one.state is LeaseState.HELD and not one.external)
        if wish is None or not 0 < lacking <= ours:
            return Vacate(device, 0)
        return Vacate(device, lacking, wish.peer.partition("#")[0])


def _taken(lease: Lease) -> int:
    return max(lease.nbytes, lease.held_bytes)
