"""What those who hold leases, or want them, have said, until it is heard: fairly, and so much a turn. Pure.

Anybody's program may speak to the arbiter, and for as long as it listens to one nobody else is answered. So it hears
the node's workers first, and of programs ``AT_ONCE`` messages a turn, one of each in rotation. Whoever says more than
``MOST_UNHEARD`` meanwhile is not heard at all; a program that wants a lease says one thing. Nor is, while all programs
together have said more than ``MOST_UNHEARD_BYTES``, the one that has said most: what waits here is this process's
memory.

A worker is heard when the supervisor has told of that life of its role; it may be a little earlier than that news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from engine.arbiter.lease import EXTERNAL
from ipc import messages
from ipc.peers import split_peer

AT_ONCE = 64
MOST_UNHEARD = 256
MOST_UNHEARD_BYTES = 2**20


class Inbox:
    """``workers``: the roles of the node's workers."""

    def __init__(self, workers: Collection[str]) -> None:
        self._workers = workers
        self._lives: dict[str, int] = {}  # role -> the newest that was told of
        self._unheard: dict[str, deque[Any]] = {}  # by peer
        self._bytes: dict[str, int] = {}  # of what programs have said, as it came
        self._all_bytes = 0

    def __bool__(self) -> bool:
        """Whether there is something left to be heard at once."""
        return any(peer.startswith(EXTERNAL) for peer in self._unheard)

    def announce(self, role: str, life: int) -> None:
        """This life of a role has begun."""
        if role in self._workers:
            self._lives[role] = max(life, self._lives.get(role, life))

    def put(self, peer: str, batch: Sequence[Any]) -> dict[str, str]:
        """Keep what a peer says; returns who is not heard, this one or another, and why."""
        external = peer.startswith(EXTERNAL)
        if not external and split_peer(peer)[0] not in self._workers:
            # Nobody would ever tell of its end, and it would keep its turn to load until then.
            return {peer: "is no worker of this node"}
        line = self._unheard.setdefault(peer, deque())
        line += batch
        if len(line) > MOST_UNHEARD:
            return self._drop(peer)
        if external:
            self._count(peer, sum(map(_size, batch)))
            if self._all_bytes > MOST_UNHEARD_BYTES:
                return self._drop(max(self._bytes, key=self._bytes.__getitem__))
        return {}

    def _drop(self, peer: str) -> dict[str, str]:
        del self._unheard[peer]
        self._count(peer, -self._bytes.get(peer, 0))
        return {peer: "says too much at once"}

    def _count(self, peer: str, nbytes: int) -> None:
        self._all_bytes += nbytes
        if left := self._bytes.pop(peer, 0) + nbytes:
            self._bytes[peer] = left

    def take(self, is_there: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
        """What is to be heard in this turn. ``is_there``: whether somebody is still connected."""
        for peer in [one for one in self._unheard if not one.startswith(EXTERNAL)]:
            role, life = split_peer(peer)
            newest = self._lives.get(role, -1)
            if life == newest:
                yield from ((peer, message) for message in self._unheard.pop(peer))
            elif life < newest or not is_there(peer):
                del self._unheard[peer]
        for _ in range(AT_ONCE):
            peer = next((one for one in self._unheard if one.startswith(EXTERNAL)), "")
            if not peer:
                return
            line = self._unheard.pop(peer)
            message = line.popleft()
            self._count(peer, -_size(message))
            if line:
                self._unheard[peer] = line  # behind the others
            yield peer, message


def _size(message: Any) -> int:
    return len(messages.encode([message]))
