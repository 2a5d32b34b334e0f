"""Programs outside the node that hold leases: their deaths end these, and some can be asked to leave.

Such a holder calls itself ``lease@PID/N#START``: its process id, a number of its own for each lease, and its start time
in clock ticks since boot (field 22 of /proc/PID/stat), which together with the pid is never another process's. It may
close its connection, for instance because it has become another program by exec: the lease is the process's.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from engine.process import is_same, parent
from ipc.messages import Gone
from ipc.peers import split_peer
from ipc.sockets import Poll

_NAME = re.compile(r"lease@(\d{1,9})/\d+#(\d+)")
MOST = 1000
CROWDED = (errno.EMFILE, errno.ENFILE)  # there is no descriptor left: that says nothing of anybody


class Holders:
    """Watches them by their pidfds, which ``poll`` waits for; more than ``most``, by looking at them now and then."""

    def __init__(self, poll: Poll, most: int = MOST) -> None:
        self._poll = poll
        self._most = most
        self._fds: dict[str, int] = {}  # peer -> pidfd
        self._pids: dict[str, int] = {}  # peer -> process id
        self._unseen: set[str] = set()  # who could not be looked at, and is taken to live until that can be done

    @staticmethod
    def process(peer: str) -> int:
        """The process that a holder of this name is; 0: it is no such name."""
        match = _NAME.fullmatch(peer)
        return int(match[1]) if match else 0

    def watch(self, peer: str) -> bool:
        """Watch this holder; False when there is no such process (any more)."""
        if peer in self._fds:
            return True
        self._unseen.discard(peer)
        match = _NAME.fullmatch(peer)
        if match is None:
            return False
        pid, started = int(match[1]), int(match[2])
        try:
            if len(self._fds) < self._most:
                return self._open(peer, pid, started)
            if there := is_same(pid, started):
                self._unseen.add(peer)
            return there
        except OSError as error:
            if error.errno in CROWDED:
                self._unseen.add(peer)
            return error.errno in CROWDED

    def _open(self, peer: str, pid: int, started: int) -> bool:
        fd = os.pidfd_open(pid)
        try:
            if not is_same(pid, started):  # another process has the number
                return False
            self._fds[peer], self._pids[peer] = fd, pid
            self._poll.add(fd)
            return True
        finally:
            if peer not in self._fds:
                os.close(fd)

    def gather(self, processes: Mapping[int, int]) -> dict[int, int]:
        """Bytes by process, where what a holder's descendants have is the holder's: a script runs others.

        Not so the node's own processes, which may descend from a holder, too: from a program that embeds the node.
        """
        holders, node = set(self._pids.values()), os.getppid()
        found: Counter[int] = Counter()
        above_of = lru_cache(maxsize=None)(parent)  # asked once of each: those listed may be each other's descendants
        for pid, nbytes in processes.items():
            above = pid if holders else 0
            while above > 1 and above not in holders and above != node:
                above = above_of(above)
            found[above if above in holders else pid] += nbytes
        return dict(found)

    def dead(self, readable: set[Any]) -> list[Gone]:
        """Those whose death has been seen."""
        found = [Gone(*split_peer(peer), "ended") for peer in list(self._unseen) if not self.watch(peer)]
        for peer in [peer for peer, fd in self._fds.items() if fd in readable]:
            fd = self._fds.pop(peer)
            del self._pids[peer]
            self._poll.remove(fd)
            os.close(fd)
            found.append(Gone(*split_peer(peer), "ended"))
        return found

    def forget(self, peer: str) -> None:
        """It has given its lease back, and lives on."""
        self._unseen.discard(peer)
        if (fd := self._fds.pop(peer, None)) is not None:
            del self._pids[peer]
            self._poll.remove(fd)
            os.close(fd)

    def ask_to_leave(self, peer: str) -> None:
        """SIGTERM, for one that has no connection to be asked on."""
        if (fd := self._fds.get(peer)) is not None:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
