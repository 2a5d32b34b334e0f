"""Who is asked to make room for the oldest request that lacks it: programs outside the node, and the scheduler. Pure.

A preemptible holder outside the node is asked first, the newest before the older ones, and has ``grace_s`` to leave.
What is lacking beyond that, and beyond the memory of the dead that is on its way back, is told to the scheduler, which
alone knows which of the node's models may leave. Nobody is asked, and nothing told, when all of those together would
not give enough: other programs hold the rest, and nobody leaves in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

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


@dataclass
class _Means:
    """Bytes of a device that may come free. ``back``: of those who have left, and of those who were asked to and have
    time yet; ``models``: of the node's; ``programs``: who may be asked, the oldest first."""

    back: int = 0
    models: int = 0
    programs: list[Lease] = field(default_factory=list)
    all: int = 0


class Wants:
    """What was told last, by device."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._told: dict[str, Vacate] = {}
        self._ended: set[str] = set()  # devices where a worker's lease has ended since something was wanted there

    def look(
        self, device: str, wishes: Iterable[Wish], leases: Sequence[Lease], room: int, now: float
    ) -> list[AskToLeave | Tell]:
        """Who is to be asked now, for the first of these whom it helps.

        ``leases``: those on the device; ``room``: bytes that may be granted.
        """
        asked: list[AskToLeave] = []
        news, means = Vacate(device, 0), None
        for wish in wishes:
            means = means or self._means(leases, now)
            if wish.lacking(room) <= means.all:
                asked = self._ask(wish, means, room, now)
                lacking = wish.lacking(room + means.back)
                if 0 < lacking <= means.models:
                    news = Vacate(device, lacking, wish.peer.partition("#")[0])
                break
        again = device in self._ended and news.nbytes > 0
        if news == self._told.get(device, Vacate(device, 0)) and not again:
            return [*asked]
        self._told[device] = news
        if again:
            self._ended.discard(device)
        return [*asked, Tell(msgspec.structs.replace(news, again=again))]

    def again(self, lease: Lease) -> None:
        """This lease has ended, or will not give its bytes back: what is still lacking is said again."""
        if not lease.external:
            self._ended.add(lease.device)

    def all(self) -> list[Vacate]:
        """Everything that is wanted now, for a scheduler that has heard nothing yet."""
        return [told for told in self._told.values() if told.nbytes]

    def leaving(self, leases: Sequence[Lease]) -> list[Lease]:
        """Of programs outside the node that were asked to leave and are still there."""
        return [one for one in leases if one.asked_at is not None and one.state is LeaseState.HELD]

    def is_overdue(self, lease: Lease, now: float) -> bool:
        """Whether its holder was asked to leave, and has not in time."""
        return lease.asked_at is not None and now >= lease.asked_at + self._grace_s

    def due_in(self, lease: Lease, now: float) -> float | None:
        """Seconds until it is overdue; None when it is, or never will be."""
        return None if lease.asked_at is None or self.is_overdue(lease, now) else lease.asked_at + self._grace_s - now

    def _means(self, leases: Sequence[Lease], now: float) -> _Means:
        means = _Means()
        for lease in leases:
            if lease.state is LeaseState.DRAINING:
                means.back += _taken(lease)
            elif lease.state is LeaseState.HELD:
                if lease.asked_at is not None and not self.is_overdue(lease, now):
                    means.back += _taken(lease)
                if lease.preemptible and lease.asked_at is None:
                    means.programs.append(lease)
                elif not lease.external:
                    means.models += _taken(lease)
        means.all = means.back + means.models + sum(map(_taken, means.programs))
        return means

    def _ask(self, wish: Wish, means: _Means, room: int, now: float) -> list[AskToLeave]:
        """Ask programs, as far as that is needed; what they will give is on its way back from here on."""
        lacking, asked = wish.nbytes - room - means.back, []
        for lease in reversed(means.programs):
            if lacking > 0:
                lease.asked_at = now
                lacking -= _taken(lease)
                means.back += _taken(lease)
                asked.append(AskToLeave(lease.peer, Leave(lease.number, self._grace_s)))
        return asked


def _taken(lease: Lease) -> int:
    return max(lease.nbytes, lease.held_bytes)
