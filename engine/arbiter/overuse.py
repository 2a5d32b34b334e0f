"""Who has more of a device than was granted, by figures that are certain: what a list of processes says. Pure.

It endangers nobody from then on: what is held counts as used. But it was granted without so much being asked for; so it
is said, and when this worker asks for this model again, it asks for what it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.arbiter import words
from engine.arbiter.events import Note
from engine.arbiter.lease import ALIVE, Lease

LEAST_BYTES = 64 * 2**20  # so much more is nothing to speak of
LEAST_SHARE = 0.1  # ... or this share of what was granted

Subject = tuple[str, str, int]  # worker, model, variant


class Overuse:
    """What this life of the arbiter has seen."""

    def __init__(self) -> None:
        self._took: dict[Subject, int] = {}

    def asks(self, lease: Lease) -> int:
        """Bytes that a request is for: what it says, or what its worker took with that model."""
        if lease.grows or not self._took:
            return lease.nbytes
        return max(lease.nbytes, self._took.get(_subject(lease), 0))

    def look(self, leases: Sequence[Lease]) -> Iterator[Note]:
        """At those on one device, after a reading."""
        for lease in leases:
            if lease.peak_bytes > lease.nbytes and lease.state in ALIVE:
                granted = sum(one.nbytes for one in leases if one.peer == lease.peer and one.state in ALIVE)
                if lease.peak_bytes > granted + max(LEAST_BYTES, LEAST_SHARE * granted):
                    yield from self._note(lease, granted)

    def _note(self, lease: Lease, granted: int) -> Iterator[Note]:
        if not lease.external:
            self._took[_subject(lease)] = lease.peak_bytes
        if not lease.overused:
            lease.overused = True
            yield Note(words.overuse(lease, granted))


def _subject(lease: Lease) -> Subject:
    return words.name(lease), lease.model, lease.variant
