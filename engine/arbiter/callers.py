"""Who may call at the arbiter's socket, and under what name. Looks at processes, and decides nothing about memory.

Whoever may enter the node's folder can connect, and a name is only what somebody says. So the kernel is asked which
process it is (``Stream.pid``):

* a worker's name is for what the supervisor has started, as it has started the arbiter. Else a stranger could take the
  name of a worker's next life, and keep that one from ever loading;
* a lease is for the process that asks for it, or for one that it has started. Else it could be in the name of one that
  never ends, and stay when its asker has gone.

Connections of programs are bounded, so that the node's own always find a descriptor.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Collection

from engine.arbiter.lease import EXTERNAL
from engine.process import parent
from ipc.sockets import MOST_NAMELESS

OWN_DESCRIPTORS = MOST_NAMELESS + 64  # of the arbiter, besides its workers' connections: its own, and of the nameless
LEAST = 8  # programs, where there are hardly any descriptors


class Callers:
    """``workers``: how many this node has. ``node``: the supervisor's process."""

    def __init__(self, workers: int, node: int) -> None:
        self._workers = workers
        self._node = node

    @property
    def most_programs(self) -> int:
        """How many may be connected: each takes a descriptor for that, and one to be watched."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(LEAST, (soft - OWN_DESCRIPTORS - self._workers) // 2)

    def why_not(self, peer: str, pid: int, present: Collection[str]) -> str:
        """Why a process may not be here under this name, among those ``present``; "": it may."""
        if peer.startswith(EXTERNAL):
            most = self.most_programs
            crowded = sum(one.startswith(EXTERNAL) for one in present) >= most
            return f"is one program too many: {most} are connected" if crowded else ""
        if _is_unknown(pid) or self._node in (pid, parent(pid)):
            return ""
        return f"is not the name of process {pid}: that is none of this node"

    def may_lease_for(self, pid: int, holder: int) -> bool:
        """Whether this process may ask for a lease that is the holder's."""
        if _is_unknown(pid):
            return True
        while holder > 1 and holder != pid:
            holder = parent(holder)
        return holder == pid


def _is_unknown(pid: int) -> bool:
    """Some kernels (gVisor) know no credentials of the other end, and tell our own."""
    return pid == os.getpid()
