"""What loads and runs really take: watches the book of leases, and changes nothing in it. Pure.

A load is measured in one of three ways, the best there is:

* its holder has measured itself (on the CPU, where a process knows what it has): *exact*;
* the driver tells what each process has, and the holder's appears in its list while it loads: *exact*, whoever else is
  there. In a container the driver knows processes by other numbers, or tells nothing;
* the device's used memory in the reading before the grant and in the first one after the load. It is *noisy*, which
  means too much or too little, when anything else was seen to move: somebody else came, left or drained, a program
  outside the node holds a lease there, foreign memory is not what it was (a fall of used memory is put down to it
  first), or one of the other holders has run since the first reading. They are asked (``Inquire``), afterwards; whoever
  runs answers late, and says so. What other programs do *while* memory grows, no reading shows; so one such sample
  alone lowers nothing (``engine.corrections``).

Then the most that a holder has is told whenever it has grown: by itself or from the driver's list (exact), else by what
the book puts down to it (noisy, and never more than was granted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.arbiter import words
from engine.arbiter.events import Send
from engine.arbiter.lease import ALIVE, ON_DEVICE, Lease, LeaseState
from engine.arbiter.room import DeviceMemory, Reading
from ipc.messages import Inquire, Measured, Used

STILL_BYTES = 2**20  # a smaller change is none: drivers round
GROWN = 0.01  # a peak is told again when it has grown by this share

Book = tuple[DeviceMemory, list[Lease]]


@dataclass(eq=False)
class _Watched:
    """One lease from its grant on."""

    lease: Lease
    before: Reading | None  # when it was granted; None: that was an earlier arbiter's doing
    foreign_bytes: int
    others: frozenset[int]  # leases beside it
    listed: bool = False  # the driver tells what it has
    noise: str = ""  # why its load's sample is not clean
    after: Reading | None = None  # the first one since it has loaded
    asked: set[int] = field(default_factory=set)  # leases whose holders have not said yet whether they ran
    said_bytes: int = 0  # the most that its holder said it has had
    told_bytes: int = -1  # the most that was told; -1: its load was not told yet


class Samples:
    """Watches all devices. ``known``: the highest lease number so far; what an earlier arbiter has granted."""

    def __init__(self, known: int = 0) -> None:
        self._known = known
        self._watched: dict[int, _Watched] = {}

    def hear(self, peer: str, message: Used) -> None:
        """What a holder says about its lease."""
        watched = self._watched.get(message.lease)
        if watched is not None and watched.lease.peer == peer:
            self._answer(watched.lease, message.ran_at)
            watched.said_bytes = max(watched.said_bytes, message.peak_bytes)

    def look(self, books: Iterable[Book]) -> list[Send | Measured]:
        """At the book as it is now, after everything that has happened in this turn."""
        actions: list[Send | Measured] = []
        alive: set[int] = set()
        newest = self._known
        for memory, leases in books:
            present = [lease for lease in leases if lease.state in ON_DEVICE]
            firsts = _firsts(present)
            for lease in present:
                newest = max(newest, lease.number)
                if lease.state in ALIVE and not lease.external and lease.number in firsts:
                    alive.add(lease.number)
                    # Whoever was granted in this turn has not heard of it yet, and so has nothing on the device.
                    latest = max(lease.number, self._known)
                    others = [one for one in present if one is not lease and one.number <= latest and not one.grows]
                    actions += self._follow(self._watch(lease, memory, others), memory, others)
        self._watched = {number: one for number, one in self._watched.items() if number in alive}
        self._known = newest
        return actions

    # ------------------------------------------------------------ a load

    def _watch(self, lease: Lease, memory: DeviceMemory, others: list[Lease]) -> _Watched:
        watched = self._watched.get(lease.number)
        if watched is None:
            before = memory.reading if lease.number > self._known else None  # else an earlier arbiter granted it
            beside = frozenset(one.number for one in others)
            watched = _Watched(lease, before, memory.foreign_bytes, beside)
            self._watched[lease.number] = watched
        return watched

    def _follow(self, watched: _Watched, memory: DeviceMemory, others: list[Lease]) -> list[Send | Measured]:
        lease = watched.lease
        if watched.told_bytes >= 0:
            return [*self._peak(watched, memory, others)]
        if lease.state is LeaseState.HELD and lease.measured_bytes >= 0:
            return [self._loaded(watched, lease.measured_bytes, exact=True)]
        if watched.before is None:
            watched.told_bytes = lease.held_bytes
            return []
        assert memory.reading is not None
        if watched.after is None:
            self._listen(watched, memory, others)
            if lease.state is not LeaseState.HELD or memory.reading.taken_at <= lease.since:
                return []
            return self._read_after(watched, memory.reading, others)
        if watched.asked - {one.number for one in others if one.state is LeaseState.HELD}:
            watched.asked.clear()
            watched.noise = "another holder left before it could say whether it ran"
        return [] if watched.asked else [self._by_difference(watched)]

    def _listen(self, watched: _Watched, memory: DeviceMemory, others: list[Lease]) -> None:
        """For anything else that moves on the device."""
        beside = {one.number for one in others}
        if watched.others != beside or any(one.state is not LeaseState.HELD for one in others):
            watched.noise = watched.noise or "another lease on the device came, left or drained"
        elif any(one.external for one in others):
            watched.noise = watched.noise or "a program outside the node holds a lease there"
        elif abs(memory.foreign_bytes - watched.foreign_bytes) > STILL_BYTES:
            watched.noise = watched.noise or "memory of other programs changed, or it took more than was granted"

    def _read_after(self, watched: _Watched, reading: Reading, others: list[Lease]) -> list[Send | Measured]:
        watched.after = reading
        assert watched.before is not None
        pid = watched.lease.pid
        if pid in reading.listed and pid not in watched.before.listed:
            watched.listed = True
            return [self._loaded(watched, reading.listed[pid], exact=True)]
        if watched.noise or not others:
            return [self._by_difference(watched)]
        watched.asked = _firsts(others)
        return [Send(one.peer, Inquire(one.number)) for one in others if one.number in watched.asked]

    def _by_difference(self, watched: _Watched) -> Measured:
        assert watched.before is not None and watched.after is not None
        nbytes = max(0, watched.after.used_bytes - watched.before.used_bytes)
        return self._loaded(watched, nbytes, exact=False)

    def _loaded(self, watched: _Watched, nbytes: int, *, exact: bool) -> Measured:
        watched.told_bytes = nbytes
        lease, noise = watched.lease, "" if exact else watched.noise
        return Measured(words.name(lease), "load", nbytes, lease.nbytes, exact, noise, lease.variant)

    def _answer(self, lease: Lease, ran_at: float) -> None:
        """A holder has said when it last ran, for whoever has loaded beside it."""
        for other in self._watched.values():
            if lease.number in other.asked:
                other.asked.discard(lease.number)
                assert other.before is not None
                if ran_at >= other.before.taken_at:
                    other.noise = f"{words.name(lease)} ran while it loaded"

    # ------------------------------------------------------------ afterwards

    def _peak(self, watched: _Watched, memory: DeviceMemory, others: list[Lease]) -> list[Measured]:
        if watched.lease.measured_bytes >= 0 or memory.reading is None:
            return self._grown(watched, watched.said_bytes, exact=True)
        if not watched.listed:
            besides = sum(one.held_bytes for one in others if one.peer == watched.lease.peer)
            return self._grown(watched, watched.lease.held_bytes + besides, exact=False)
        return self._grown(watched, memory.reading.listed.get(watched.lease.pid, 0), exact=True)

    def _grown(self, watched: _Watched, nbytes: int, *, exact: bool) -> list[Measured]:
        if watched.told_bytes < 0 or nbytes <= watched.told_bytes * (1 + GROWN) + STILL_BYTES:
            return []
        watched.told_bytes = nbytes
        lease, note = watched.lease, "" if exact else "as the book puts it down"
        return [Measured(words.name(lease), "run", nbytes, lease.nbytes, exact, note, lease.variant)]

    def check(self) -> None:
        """Invariants: who is asked is asked for a load that nothing has spoiled, and is somebody else."""
        for number, watched in self._watched.items():
            assert number not in watched.asked and watched.lease.number == number
            assert not watched.asked or (watched.after is not None and watched.told_bytes < 0)


def _firsts(leases: Iterable[Lease]) -> set[int]:
    """Of each holder the first lease: its model's. Later ones are what it grows by, and no loads."""
    first: dict[str, int] = {}
    for lease in leases:
        first[lease.peer] = min(lease.number, first.get(lease.peer, lease.number))
    return set(first.values())
