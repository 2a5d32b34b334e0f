"""What lies where in one device's memory, and how much of it may still be granted.

Pure. The driver only says how much is free in all. The book splits what is used into what our leases *hold* and what
is *foreign* (other programs, and whatever of ours no lease covers), and keeps the sum equal to the driver's figure:

* growth goes first to leases that were granted more than they hold (those that have begun to drain since the reading
  before, then the one loading, before the others), then to foreign;
* a fall goes first to leases that are draining, then to foreign, then to the others; to those only what of it has
  lasted for ``PATIENT_S``, because memory often tells of a death before anybody does. Until then it is *missing*;
* what a lease still has ``DOUBT_S`` after it has become a deficit is not its own: growth and a fall between two
  readings look like a smaller fall. So it goes to models that loaded meanwhile and are thought to have next to nothing;
  the rest is foreign: somebody may live on with it (a program's child), and ours are still promised what they were;
* what a worker measured of itself after loading replaces what was put down to it.

That is a guess whenever several may have grown. A driver may also *list* what each process has (in containers, and in
WSL, it does not, or by numbers that are not ours). Once one of our holders has appeared in its list, nothing is guessed
of those who can stand there:

* a living holder has what it is listed with, or nothing, less what it had before it asked (the process of a worker on
  the CPU); what others are listed with is foreign;
* a driver may drop a process that ends before its memory is free, and before anybody tells of its death. So what the
  list drops while the sum stays is *fading*: still its holder's, which might take as much anew; after ``PATIENT_S`` it
  is somebody else's who is not listed;
* the rules above are for memory that is listed with nobody: what the dead have left, and what the list leaves out.

Room for a grant, all figures signed::

    free = min( driver_free - sum max(0, granted - held),
                min(total, ceiling) - sum max(granted, held) - foreign ) - margin
    margin = max(safety_margin x min(driver_free, ceiling), reserve)

A reading from before a lease settled or let go is not the truth about it, so such figures wait for a later one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from engine.arbiter.lease import ALIVE, LEAVING, ON_DEVICE, Lease, LeaseState
from engine.limits import Limits

PATIENT_S = 1.0  # for the news of a death that its memory has told already
DOUBT_S = 5.0  # after which a deficit is not its lease's
LOADED = 0.5  # of what it was granted a model has at least when it has loaded, by any estimate that was ever measured


@dataclass(frozen=True)
class Reading:
    """A device's memory as its driver showed it at ``taken_at`` (monotonic seconds).

    ``processes``: bytes by process id; None: the driver does not tell.
    """

    device: str
    total_bytes: int
    free_bytes: int
    taken_at: float
    processes: dict[int, int] | None = None

    @property
    def used_bytes(self) -> int:
        return max(0, self.total_bytes - self.free_bytes)

    @property
    def listed(self) -> dict[int, int]:
        """What is told of processes."""
        return self.processes or {}


class DeviceMemory:
    """The book of one device: its newest reading and what of it is foreign. Leases are the caller's."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.reading: Reading | None = None
        self.missing_bytes = 0  # of what the book says is held, and the driver does not show
        self.lists_us = False  # the driver has shown that it lists our processes, by the numbers that we know
        self._fading: dict[int, tuple[int, float]] = {}  # lease -> bytes that the list has dropped, and since when
        self._strangers_bytes = 0  # foreign, and listed
        self._unlisted_bytes = 0  # foreign otherwise
        self._lasting_bytes = 0  # what of them was missing in every reading since ``_missing_since``
        self._missing_since = 0.0
        self._remembered = False  # the reading is an earlier arbiter's

    @property
    def foreign_bytes(self) -> int:
        """What other programs have, and whatever of ours no lease covers."""
        return self._strangers_bytes + self._unlisted_bytes

    def remember(
        self, reading: Reading | None, foreign_bytes: int, missing_bytes: int, lists_us: bool, leases: Iterable[Lease]
    ) -> None:
        """Go on from an earlier arbiter's figures: they explain the next reading, and nothing is granted upon them."""
        self.reading, self._remembered, self.lists_us = reading, True, lists_us
        self.missing_bytes = self._lasting_bytes = missing_bytes
        self._missing_since = reading.taken_at if reading else 0.0
        self._strangers_bytes = _strangers(reading.listed, leases) if reading and lists_us else 0
        self._unlisted_bytes = foreign_bytes - self._strangers_bytes

    def take(self, reading: Reading, leases: Collection[Lease]) -> None:
        """Enter a reading: what it lists, what was measured before it; then explain the rest."""
        leases = [lease for lease in leases if lease.state in ON_DEVICE]
        loaders = {lease.number for lease in leases if lease.is_loading}
        shown = reading.used_bytes
        dropped: list[tuple[Lease, int]] = []
        if self._tells(reading, leases):
            shown -= sum(reading.listed.values())
            leases, dropped = self._enter(reading, leases)
        unexplained = shown - self._unlisted_bytes - sum([lease.held_bytes for lease in leases])
        settled = sum([self._settle(lease, reading) for lease in leases if lease.settled_at is not None])
        if settled:
            # What shows now for the first time is theirs; only beyond that had others too much.
            self._correct(settled - min(max(0, unexplained), max(0, settled)), leases)
            unexplained = shown - self._unlisted_bytes - sum([lease.held_bytes for lease in leases])
        before = self.reading.taken_at if self.reading else 0.0
        self.reading, self._remembered = reading, False
        fading = self._fade(max(0, unexplained), dropped, reading.taken_at)
        if unexplained > fading:
            # What the dead took shows in the first reading after their end; what appears later is somebody else's.
            growing = [one for one in leases if one.state is not LeaseState.DRAINING or one.left_at >= before]
            self._grow(unexplained - fading, growing, loaders)
        missing = self._shrink(max(0, -unexplained), leases)
        self.missing_bytes = missing - self._lasting(missing, leases, reading.taken_at)

    def forget(self, lease: Lease, others: Iterable[Lease]) -> None:
        """A lease is over; what the book still has of it is somebody else's, as all growth: ours first, then foreign.

        Memory may have told of this death long before anybody did, so that it was put down to another.
        """
        nbytes, lease.held_bytes = lease.held_bytes, 0
        assert self.reading is not None
        if not nbytes:
            return
        if self._is_listed(lease, self.reading):  # its holder lives on with it
            self._strangers_bytes += nbytes
        else:
            others = [one for one in others if one is not lease and not self._is_listed(one, self.reading)]
            self._grow(nbytes, others, {one.number for one in others if one.is_loading})

    def disown(self, lease: Lease, others: Iterable[Lease]) -> None:
        """A lease is over, and what it has not given back is there all the same."""
        nbytes, lease.held_bytes = lease.held_bytes, 0
        for one in others:
            loaded_meanwhile = one.state in ALIVE and not one.external and one.since >= lease.left_at
            if loaded_meanwhile and one.measured_bytes < 0 and one.held_bytes < LOADED * one.nbytes:
                part = min(nbytes, one.promised_bytes)
                one.held_bytes, nbytes = one.held_bytes + part, nbytes - part
        self._unlisted_bytes += nbytes

    def margin(self) -> int:
        return self.limits.margin(self.reading.free_bytes if self.reading else 0)

    def room(self, leases: Iterable[Lease]) -> int:
        """Bytes that may be granted now (negative: too much is taken already). The formula of this module."""
        if self.reading is None:
            return 0
        promised = held = 0
        for lease in leases:
            if lease.state in ON_DEVICE:
                its = lease.held_bytes
                held += its
                if its < lease.nbytes:
                    promised += lease.promised_bytes
        promised += self._promised_anew(leases)  # with what is held: sum max(granted, held)
        return self.limits.grantable(self.reading.free_bytes, promised, promised + held, self.foreign_bytes)

    def taken_of_ceiling(self, leases: Collection[Lease]) -> int:
        """Bytes that are taken of the configured ceiling, where that and not the device is what bounds a grant; -1."""
        if self.reading is None or not self.limits.ceiling_bytes:
            return -1
        promised = self.promised(leases)
        ours = promised + sum(lease.held_bytes for lease in leases if lease.state in ON_DEVICE)
        left = self.limits.under_ceiling(ours, self.foreign_bytes)
        by_device = min(self.reading.free_bytes - promised, self.limits.total_bytes - ours - self.foreign_bytes)
        return self.limits.usable_bytes - left if left < by_device else -1

    def booked_bytes(self, leases: Collection[Lease]) -> tuple[int, int]:
        """Bytes of our leases, and of other programs, where these and not what is free bound a grant; else zeroes.

        So it is where a driver shows free what nobody may count on: of a holder that cannot be killed.
        """
        if self.reading is None:
            return 0, 0
        promised = self.promised(leases)
        ours = promised + sum(lease.held_bytes for lease in leases if lease.state in ON_DEVICE)
        bounds = self.limits.total_bytes - ours - self.foreign_bytes < self.reading.free_bytes - promised
        return (ours, self.foreign_bytes) if bounds else (0, 0)

    def promised(self, leases: Collection[Lease]) -> int:
        """Bytes that holders may still take, and that are not used by the driver's figures."""
        return sum(lease.promised_bytes for lease in leases) + self._promised_anew(leases)

    def _promised_anew(self, leases: Iterable[Lease]) -> int:
        return sum(map(self._anew, leases)) if self._fading else 0

    def age(self, now: float, since: float) -> float:
        """Seconds since the newest reading; while there is none of our own, since ``since``."""
        return now - (self.reading.taken_at if self.reading and not self._remembered else since)

    def current(self, leases: Iterable[Lease]) -> bool:
        """Whether there is a reading of our own, from after every end of a load here."""
        ours = self.reading is not None and not self._remembered
        return ours and all(lease.settled_at is None for lease in leases)

    def _tells(self, reading: Reading, leases: list[Lease]) -> bool:
        """Whether a reading tells what each process has. Then strangers' bytes stand apart, else among all foreign."""
        if reading.processes is None:
            self._unlisted_bytes, self._strangers_bytes = self.foreign_bytes, 0
            return False
        before, told_before = self.reading.listed if self.reading else {}, self._told_by(self.reading)
        # A number that was there before may be another process's, and be the same as ours by chance.
        self.lists_us = self.lists_us or any(one.pid in reading.listed and one.pid not in before for one in leases)
        if self.lists_us and not told_before:
            self._unlisted_bytes = max(0, self._unlisted_bytes - _strangers(reading.listed, leases))
        return self.lists_us

    def _told_by(self, reading: Reading | None) -> bool:
        return self.lists_us and reading is not None and reading.processes is not None

    def _is_listed(self, lease: Lease, reading: Reading) -> bool:
        """Whether this reading says what its holder has. The dead leave the list before their memory is back."""
        return self._told_by(reading) and (lease.pid in reading.listed or (lease.pid > 0 and lease.state in ALIVE))

    def _enter(self, reading: Reading, leases: list[Lease]) -> tuple[list[Lease], list[tuple[Lease, int]]]:
        """Enter what the list says; returns the leases of which it says nothing, and whose bytes it has dropped."""
        ours: dict[int, list[Lease]] = {}
        others: list[Lease] = []
        dropped: list[tuple[Lease, int]] = []
        for lease in leases:
            if self._is_listed(lease, reading):
                ours.setdefault(lease.pid, []).append(lease)
            else:
                others.append(lease)
        listed = reading.listed
        self._strangers_bytes = sum(listed.values())
        for pid, held in ours.items():
            nbytes = max(0, listed.get(pid, 0) - max(lease.base_bytes for lease in held))
            self._strangers_bytes -= nbytes
            fall = sum(lease.held_bytes for lease in held) - nbytes
            first = min(held, key=lambda lease: lease.number)
            first.peak_bytes = max(first.peak_bytes, nbytes)
            self._share(nbytes, held, reading)
            if fall > 0:
                dropped.append((held[0], fall))
        return others, dropped

    def _fade(self, nbytes: int, dropped: list[tuple[Lease, int]], taken_at: float) -> int:
        """Leave with its holder what the list has dropped and the device has not; returns how much that is."""
        before, self._fading = self._fading, {}
        rest = nbytes
        for lease, fall in dropped:
            since = before[lease.number][1] if lease.number in before else taken_at
            if (part := min(rest, fall)) and taken_at - since < PATIENT_S:
                self._fading[lease.number] = part, since
                lease.held_bytes += part
                rest -= part
        return nbytes - rest

    def _anew(self, lease: Lease) -> int:
        """What a holder may take besides what is promised it, as far as what it had is fading."""
        fading = self._fading.get(lease.number, (0, 0.0))[0] if lease.state in ALIVE else 0
        return max(0, lease.nbytes - lease.held_bytes + fading) - max(0, lease.nbytes - lease.held_bytes)

    def _share(self, nbytes: int, leases: list[Lease], reading: Reading) -> None:
        """What one process has: to each of its leases what was granted, and the first what is too much for all."""
        if len(leases) > 1:
            leases.sort(key=lambda one: one.state not in ALIVE)
        for lease in leases:
            self._settle(lease, reading)
            lease.held_bytes = min(nbytes, lease.nbytes)
            nbytes -= lease.held_bytes
        leases[0].held_bytes += nbytes

    @staticmethod
    def _settle(lease: Lease, reading: Reading) -> int:
        """Take in what the holder measured, if the reading is later; returns by how much it corrects the book."""
        if lease.settled_at is None or reading.taken_at <= lease.settled_at:
            return 0
        lease.settled_at = None
        if lease.measured_bytes < 0 or lease.state not in ALIVE:
            return 0
        before, lease.held_bytes = lease.held_bytes, lease.measured_bytes
        return lease.held_bytes - before

    def _correct(self, nbytes: int, leases: list[Lease]) -> None:
        """So much more have those who have measured themselves now: others had too much, and foreign first."""
        part = min(self._unlisted_bytes, nbytes)  # below 0: foreign had too little
        self._unlisted_bytes, nbytes = self._unlisted_bytes - part, nbytes - part
        for lease in leases:
            if lease.state in ALIVE and 0 <= lease.measured_bytes < lease.held_bytes and nbytes > 0:
                part = min(lease.held_bytes - lease.measured_bytes, nbytes)
                lease.held_bytes, nbytes = lease.held_bytes - part, nbytes - part

    def _grow(self, nbytes: int, leases: list[Lease], loaders: Collection[int]) -> None:
        # What somebody took just before its death may show only now; then the loader, and one that got stuck in its
        # load; then those who have asked for more; then holders outside the node, who take their bytes when they please
        # and never say so.
        order = [LeaseState.DRAINING, LeaseState.GRANTED, LeaseState.LOST, LeaseState.HELD]
        if self.limits.returns_at_once:
            order.remove(LeaseState.DRAINING)

        def rank(lease: Lease) -> tuple[int, bool, bool]:
            state = LeaseState.GRANTED if lease.number in loaders else lease.state
            return order.index(state), not lease.grows, not lease.external

        for lease in sorted([one for one in leases if one.state in order], key=rank):
            part = min(nbytes, lease.promised_bytes)
            lease.held_bytes += part
            lease.leaving_bytes = max(lease.leaving_bytes, lease.held_bytes)
            nbytes -= part
        self._unlisted_bytes += nbytes

    def _shrink(self, nbytes: int, leases: list[Lease]) -> int:
        """Put a fall down to whom it may be put down at once; returns what is left of it."""
        leaving = [lease for lease in leases if lease.state in LEAVING]
        nbytes = self._take_from(leaving, nbytes)
        part = min(nbytes, self._unlisted_bytes)
        self._unlisted_bytes -= part
        return nbytes - part

    def _lasting(self, missing: int, leases: list[Lease], taken_at: float) -> int:
        """Put down to the living what has been missing for ``PATIENT_S``; returns how much that is."""
        if not self._lasting_bytes:
            self._lasting_bytes, self._missing_since = missing, taken_at
        self._lasting_bytes = min(self._lasting_bytes, missing)
        if taken_at - self._missing_since < PATIENT_S:
            return 0
        taken = self._lasting_bytes
        rest = self._take_from([lease for lease in leases if lease.state in ALIVE], taken)
        self._lasting_bytes, self._missing_since = missing - taken + rest, taken_at
        return taken - rest

    @staticmethod
    def _take_from(leases: list[Lease], nbytes: int) -> int:
        for lease in leases:
            part = min(nbytes, lease.held_bytes)
            lease.held_bytes -= part
            nbytes -= part
        return nbytes

    def check(self, leases: Iterable[Lease]) -> None:
        """Invariants: nothing is negative, and foreign + held is what the driver shows as used."""
        held = [lease.held_bytes for lease in leases if lease.state in ON_DEVICE]
        assert self.foreign_bytes >= 0 and all(nbytes >= 0 for nbytes in held), "negative bytes in the book"
        if self.reading is not None:
            shown = self.foreign_bytes + sum(held) - self.missing_bytes
            assert shown == self.reading.used_bytes, "the book does not add up"


def _strangers(processes: Mapping[int, int], leases: Iterable[Lease]) -> int:
    """Bytes of those listed who hold no lease."""
    ours = {lease.pid for lease in leases}
    return sum(nbytes for pid, nbytes in processes.items() if pid not in ours)
