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

from engine.process import parent

MOST = 256  # that programs have started and are read, as each may take 1.4 ms, and a reading is to take less than 2 s
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
        for program, others in _families(programs) if programs else ():
            for pid in (program, *_largest(others, MOST // len(programs))):
                if (nbytes := _part(pid)) is not None:
                    found[pid] = nbytes
        return found


def _largest(pids: Collection[int], most: int) -> Collection[int]:
    return pids if len(pids) <= most else heapq.nlargest(most, pids, key=lambda pid: _alone(pid) or 0)


def _families(programs: Collection[int]) -> Iterator[tuple[int, list[int]]]:
    """Each of these, and its descendants without those of another one of these."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(parent(int(name)), []).append(int(name))
    ours = set(programs)
    node = os.getppid()  # may have been begun by a program that embeds it; what it begins is its own
    for program in programs:
        family = [program]
        for pid in family:  # grows meanwhile
            family += {*children.get(pid, ())} - ours - {node}
        yield program, family[1:]


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
