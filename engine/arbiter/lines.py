"""Where requests wait: in a line in front of each device's book, or aside. Pure.

* Who would do with any of several devices stands in one line, and may be moved to another, with the patience that it
  has left.
* Who asks for a device that operators keep empty (*drained*) stands aside, in nobody's way, until it is used again;
  one that would do with another device waits there. What a loaded model grows by is not held up: batches end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain

from engine.arbiter.among import Among
from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.line import Line


class Lines:
    """See the module's docstring. ``books``: devices that have no book of their own -> the one in whose they stand."""

    def __init__(self, devices: Iterable[str], books: Mapping[str, str], wait_s: float) -> None:
        self._books = books
        self._wait_s = wait_s
        self._lines = {name: Line(wait_s) for name in devices}
        self._aside: dict[str, Line] = {}  # drained device -> who waits for it to be used again
        self._among = Among()

    def book(self, name: str) -> str:
        """The device in whose book this one stands."""
        return self._books.get(name, name)

    def in_front_of(self, device: str) -> Line:
        return self._lines[device]

    def aside_of(self, device: str) -> Iterator[tuple[str, Line]]:
        """Drained devices in this one's book, and who stands aside for each."""
        return ((name, line) for name, line in self._aside.items() if self.book(name) == device)

    @property
    def drained(self) -> Collection[str]:
        return self._aside.keys()

    def where(self, lease: Lease) -> Line:
        """Where a request stands, or is to."""
        aside = None if lease.grows else self._aside.get(lease.home or lease.device)
        return self._lines[lease.device] if aside is None else aside

    def stands_aside(self, lease: Lease) -> bool:
        return self.where(lease) is not self._lines[lease.device]

    def all(self) -> Iterator[Line]:
        return chain(self._lines.values(), self._aside.values())

    def waiting_for(self, name: str) -> list[Lease]:
        """Who waits for this device, aside or not."""
        waiting = *self._lines[self.book(name)], *self._aside.get(name, ())
        return [lease for lease in waiting if lease.is_on(name)]

    def others(self, lease: Lease) -> tuple[str, ...]:
        """The devices that would do for it; none where it has named one."""
        return self._among.names(lease)

    def add(self, lease: Lease, now: float, wait_s: float | None, among: tuple[str, ...]) -> None:
        """Let it wait for its device, so long at most (None: as usual); ``among``: those that would do as well."""
        self.where(lease).add(lease, now, wait_s)
        if among:
            self._among.add(lease, among)

    def remove(self, lease: Lease) -> None:
        """It waits no more."""
        self.where(lease).remove(lease)
        self._among.discard(lease)

    def move(self, lease: Lease, name: str, now: float) -> None:
        """Let it wait for another device, as long as it would have waited for this one."""
        self._enter(lease, name, self._leave(lease, now), now)

    def for_room(self, device: str, room: int, serves: Callable[[str], bool]) -> tuple[Lease, str] | None:
        """One that waits for another device and fits into so much of this one, and its name for this one.

        ``serves``: whether the device of that name takes anybody.
        """
        for lease in self._among.fitting(room):
            if lease.device != device:
                for name in self._among.names(lease):
                    if self.book(name) == device and name not in self._aside and serves(name):
                        return lease, name
        return None

    def drain(self, drained: Collection[str], now: float, best: Callable[[Lease], str]) -> bool:
        """These devices are drained now, and no others; returns whether that is news.

        ``best``: of the devices that would do for a request, the best; "" when it has named one.
        """
        changed = self._aside.keys() ^ set(drained)
        if not changed:
            return False
        waiting = [one for line in self._lines.values() for one in line if not one.grows]
        moving = [one for one in waiting if any(map(one.is_on, changed))]
        moving += [one for name, line in self._aside.items() for one in line if name in changed or one in self._among]
        left_s = {one: self._leave(one, now) for one in moving}
        self._aside = {name: self._aside.get(name, Line(self._wait_s)) for name in drained}
        for line in self._aside.values():
            line.run(now)
        for lease in moving:
            name = lease.home or lease.device
            self._enter(lease, (best(lease) or name) if name in self._aside else name, left_s[lease], now)
        return True

    def _leave(self, lease: Lease, now: float) -> float:
        """Take it out of its line; returns the patience it has left."""
        line = self.where(lease)
        left_s = max(0.0, line.patience(lease, now))
        line.remove(lease)
        return left_s

    def _enter(self, lease: Lease, name: str, wait_s: float, now: float) -> None:
        lease.device, lease.home, lease.obstacle = self.book(name), name if name in self._books else "", ""
        self.where(lease).add(lease, now, wait_s)

    def __len__(self) -> int:
        return sum(map(len, self.all()))

    def check(self) -> None:
        """Invariants: only requests stand here, each of them where it belongs."""
        self._among.check()
        for line in self.all():
            line.check()
            assert all(self.where(one) is line for one in line), "in a line of others"
            assert all(one.state is LeaseState.REQUESTED for one in line)
        for name, line in self._lines.items():
            assert all(one.device == name for one in line)
        for name, line in self._aside.items():
            assert all(one.is_on(name) for one in line)
