"""What processes have of the machine's memory, as /proc tells it: the list that drivers keep of their GPUs.

A worker is one process, and has its resident memory without shared mappings, as it measures itself. What a program
under a lease starts itself is the program's; of pages that parent and child still share, as after a fork, each has its
part.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from engine.process import parent

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
        for pid in _families(programs) if programs else ():
            if (nbytes := _part(pid)) is not None:
                found[pid] = nbytes
        return found


def _families(programs: Collection[int]) -> Iterator[int]:
    """These and their descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(parent(int(name)), []).append(int(name))
    ours = set(programs)
    node = os.getppid()  # may have been begun by a program that embeds it; what it begins is its own
    left = list(programs)
    while left:
        yield (pid := left.pop())
        left += {*children.get(pid, ())} - ours - {node}


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
