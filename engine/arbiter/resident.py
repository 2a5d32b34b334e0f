"""What processes have of the machine's memory, as /proc tells it: the list that drivers keep of their GPUs.

A worker is one process, and has its resident memory without shared mappings, as it measures itself. What a program
under a lease starts itself is the program's; of pages that parent and child still share, as after a fork, each has its
part. The kernel adds that up page by page, some milliseconds for each GiB of each process, and a reading that takes
long is an old one, upon which nothing is granted. So of programs no more is read at a time than ``MOST_S`` allow. The
next reading goes on from there, by turns among programs, and until all of a program's processes have been read, what
is told of them are the figures of the round before.

A figure that is not of this moment is to be too low. What is used in all is read elsewhere, and what nobody is told to
have counts as somebody else's, while the program's lease is still promised it: less is granted. Too high, and the
program would seem to have taken what is still to come, which would be granted twice. Hence: one that was not read in a
whole round has nothing yet (what is resident of it would count shared pages once more with each child); figures of two
rounds are not mixed, so that pages which a child got from its parent are not counted with both; and nobody has more
than is resident of it now. What is left: pages that one gives up while the next ones that share them are still to be
read count too much until the next round.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.process import now

MOST_S = 0.1  # of a reading, for what programs have; a process that is begun within is read to its end
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Process(NamedTuple):
    """A process of this machine; ``pid`` and ``started`` together are never another's."""

    pid: int
    above: int  # the process that it is a child of
    started: int  # ticks since boot
    resident_bytes: int  # about so many, shared mappings among them

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


def processes() -> Iterator[Process]:
    """All that are there."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # else it has ended
                fields = file.read().rpartition(b")")[2].split()  # from the third on, behind the name in brackets
                yield Process(int(name), int(fields[1]), int(fields[19]), int(fields[21]) * PAGE_BYTES)


def alone(pid: int) -> int | None:
    """Resident bytes, shared mappings left out; None: there is no such process."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * PAGE_BYTES
    return None


def part(pid: int) -> int | None:
    """The same, with its part of the pages that it shares with those it was forked from; None likewise."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss_Anon:"):  # since Linux 5.8
                return int(line.split()[1]) * 1024
    return alone(pid)


Figures = dict[tuple[int, int], int]  # bytes, by the process's identity


@dataclass
class _Family:
    """A program and what it has started."""

    left: deque[Process] = field(default_factory=deque)  # who is still to be read in this round
    read: Figures = field(default_factory=dict)  # in this round
    told: Figures = field(default_factory=dict)  # in the last whole one; in the first, as they come

    def begin(self, processes: list[Process]) -> None:
        """The next round, when there is none under way; and of these nobody is told to have more than is resident."""
        if not self.left:
            self.left = deque(processes)
            self.read = {} if self.told else self.told
        resident = {one.identity: one.resident_bytes for one in processes}
        for figures in (self.told, self.read):
            for one in [*figures]:
                if one in resident:
                    figures[one] = min(figures[one], resident[one])
                else:
                    del figures[one]

    def read_next(self, part: Callable[[int], int | None]) -> None:
        one = self.left.popleft()
        if (nbytes := part(one.pid)) is not None:
            self.read[one.identity] = nbytes
        if not self.left:
            self.told = self.read


class Resident:
    """Reads what those processes have that it was last told of; in another thread than tells it.

    ``clock`` in seconds; the others are this module's functions, of which ``part`` is what takes its time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = now,
        processes: Callable[[], Iterable[Process]] = processes,
        alone: Callable[[int], int | None] = alone,
        part: Callable[[int], int | None] = part,
    ) -> None:
        self._clock = clock
        self._processes = processes
        self._alone = alone
        self._part = part
        self._watched: tuple[Collection[int], Collection[int]] = (), ()
        self._families: dict[int, _Family] = {}  # by program; whoever has waited longest for its turn is the first

    def watch(self, workers: Collection[int], programs: Collection[int]) -> None:
        """Process ids of the node's workers, and of programs outside it."""
        self._watched = workers, programs

    def read(self) -> dict[int, int]:
        """Bytes by process id: of the watched that are there, and of what the programs among them have started."""
        workers, programs = self._watched
        found = {pid: nbytes for pid in workers if (nbytes := self._alone(pid)) is not None}
        self._meet(_families(self._processes(), programs) if programs else {})
        self._go_round()
        for family in self._families.values():
            found |= {pid: nbytes for (pid, _), nbytes in family.told.items()}
        return found

    def _meet(self, there: dict[int, list[Process]]) -> None:
        """Whoever has come; those that have gone are forgotten."""
        self._families = {program: one for program, one in self._families.items() if program in there}
        for program, processes in there.items():
            self._families.setdefault(program, _Family()).begin(processes)

    def _go_round(self) -> None:
        """Read on for as long as there is time, and of no program more than is left of its round."""
        until = self._clock() + MOST_S
        turns = deque(self._families)
        done: list[int] = []
        while turns:
            program = turns.popleft()
            family = self._families[program]
            family.read_next(self._part)
            (turns if family.left else done).append(program)
            if self._clock() >= until:
                break
        self._families = {program: self._families[program] for program in (*turns, *done)}


def _families(processes: Iterable[Process], programs: Collection[int]) -> dict[int, list[Process]]:
    """Of each program that is there, itself and its descendants."""
    there: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    for one in processes:
        there[one.pid] = one
        children.setdefault(one.above, []).append(one.pid)
    ours = set(programs)
    node = os.getppid()  # may have been begun by a program that embeds it; what it begins is its own
    families = {}
    for program in ours & there.keys():
        family = [program]
        for pid in family:  # grows meanwhile
            family += {*children.get(pid, ())} - ours - {node}
        families[program] = [there[pid] for pid in family]
    return families
