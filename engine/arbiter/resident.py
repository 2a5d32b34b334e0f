"""What processes have of the machine's memory, as /proc tells it: the list that drivers keep of their GPUs.

A worker is one process, and has its resident memory without shared mappings, as it measures itself. What a program
under a lease starts itself is the program's; of pages that parent and child still share, as after a fork, each has its
part. Where a program has started very many, that is so of the largest; what the others have is nobody's, as that of any
program without a lease.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Collection, Iterator
from contextlib import suppress

MOST = 128  # that programs have started and are read, as each may take 1.4 ms, and a reading is to take less than 2 s
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Resident:
    """Reads what those processes have that it was last told of; in another thread than tells it."""

    def __init__(self) -> None:
        self._watched: tuple[Collection[int], Collection[int]] = (), ()

    def watch(self, workers: Collection[int], programs: Collection[int]) -> None:
        """Process ids of the node's workers, and of programs outside it."""
        self._watched = workers, programs

    def read(self) -> dict[int, int]:
        """Bytes by process id: of the watched that are there, and of what the programs among them have started."""
        workers, programs = self._watched
        found = {pid: nbytes for pid in workers if (nbytes := _alone(pid)) is not None}
        for pid in _families(programs, max(1, MOST // len(programs))) if programs else ():
            if (nbytes := _part(pid)) is not None:
                found[pid] = nbytes
        return found


def _families(programs: Collection[int], most: int) -> Iterator[int]:
    """These and their descendants, of each one's ``most``, the largest."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
        with suppress(OSError):  # it has ended
            above, pages[pid] = _parent_and_pages(pid)
            children.setdefault(above, []).append(pid)
    ours = set(programs)
    node = os.getppid()  # may have been begun by a program that embeds it; what it begins is its own
    for program in programs:
        family = [program]
        for pid in family:  # grows meanwhile
            family += {*children.get(pid, ())} - ours - {node}
        yield program
        yield from heapq.nlargest(most, family[1:], key=pages.__getitem__)


def _parent_and_pages(pid: int) -> tuple[int, int]:
    """Fields 4 and 24 of its stat, counted behind the name in brackets: about so many pages are in memory. OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        after_name = file.read().rpartition(b")")[2].split()
    return int(after_name[1]), int(after_name[21])


def _alone(pid: int) -> int | None:
    """Resident bytes, shared mappings left out; None: there is no such process."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * PAGE_BYTES
    return None


def _part(pid: int) -> int | None:
    """The same, with its part of the pages that it shares with those it was forked from; None likewise."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss_Anon:"):  # since Linux 5.8
                return int(line.split()[1]) * 1024
    return _alone(pid)
