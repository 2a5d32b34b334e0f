"""Who is asked to make room for the oldest request that lacks it: programs outside the node, and the scheduler. Pure.

A preemptible holder outside the node is asked first, the newest before the older ones, and has ``grace_s`` to leave.
What is lacking beyond that, and beyond the memory of the dead that is on its way back, is told to the scheduler, which
alone knows which of the node's models may leave. Nobody is asked, and nothing told, when all of those together would
not give enough: other programs hold the rest, and nobody leaves in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


class Wants:
    """What was told last, by device."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._told: dict[str, Vacate] = {}
        self._ended: set[str] = set()  # devices where a worker's lease has ended since something was wanted there

    def look(
        self, device: str, wish: Wish | None, leases: Sequence[Lease], room: int, now: float
    ) -> list[AskToLeave | Tell]:
        """Who is to be asked now. ``leases``: those on the device; ``room``: bytes that may be granted."""
        asked, news = [], Vacate(device, 0)
        if wish is not None:
            asked = list(self._ask(wish, leases, room, now))
            news = self._news(device, wish, leases, room + self._promised_back(leases, now))
        again = device in self._ended and news.nbytes > 0
        if news == self._told.get(device, Vacate(device, 0)) and not again:
            return [*asked]
        self._told[device] = news
        if again:
            self._ended.discard(device)
        return [*asked, Tell(msgspec.structs.replace(news, again=again))]

    def can_help(self, wish: Wish, leases: Sequence[Lease], room: int, now: float) -> bool:
        """Whether all who may leave, and what is on its way back, would be enough for it."""
        lacking = wish.lacking(room)
        return lacking <= 0 or lacking <= self._promised_back(leases, now) + sum(
            _taken(one) for one in leases if _is_models(one) or _is_willing(one)
        )

    def again(self, lease: Lease) -> None:
        """This lease has ended, or will not give its bytes back: what is still lacking is said again."""
        if not lease.external:
            self._ended.add(lease.device)

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
        if lacking <= 0:
            return
        programs = [one for one in leases if _is_willing(one)]
        if not programs or lacking > sum(map(_taken, programs)) + sum(_taken(one) for one in leases if _is_models(one)):
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

    @staticmethod
    def _news(device: str, wish: Wish, leases: Sequence[Lease], room: int) -> Vacate:
        lacking = wish.lacking(room)
        if lacking <= 0 or lacking > sum(_taken(one) for one in leases if _is_models(one)):
            return Vacate(device, 0)
        return Vacate(device, lacking, wish.peer.partition("#")[0])


def _is_willing(lease: Lease) -> bool:
    """Whether its holder may be asked to leave, and has not been."""
    return lease.state is LeaseState.HELD and lease.preemptible and lease.asked_at is None


def _is_models(lease: Lease) -> bool:
    """Whether it is one of the node's, loaded, and so may leave."""
    return lease.state is LeaseState.HELD and not lease.external


def _taken(lease: Lease) -> int:
    return max(lease.nbytes, lease.held_bytes)
