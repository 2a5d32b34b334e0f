"""What those who hold leases, or want them, have said, until it is heard: fairly, and so much a turn. Pure.

Anybody's program may speak to the arbiter, and for as long as it listens to one nobody else is answered. So it hears
the node's workers first, and of programs ``AT_ONCE`` messages a turn, one of each in rotation. Whoever says more than
``MOST_UNHEARD`` meanwhile is not heard at all; a program that wants a lease says one thing.

A worker is heard when the supervisor has told of that life of its role; it may be a little earlier than that news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from engine.arbiter.lease import EXTERNAL
from ipc.peers import split_peer

AT_ONCE = 64
MOST_UNHEARD = 256


class Inbox:
    """``workers``: the roles of the node's workers."""

    def __init__(self, workers: Collection[str]) -> None:
        self._workers = workers
        self._lives: dict[str, int] = {}  # role -> the newest that was told of
        self._unheard: dict[str, deque[Any]] = {}  # by peer

    def __bool__(self) -> bool:
        """Whether there is something left to be heard at once."""
        return any(peer.startswith(EXTERNAL) for peer in self._unheard)

    def announce(self, role: str, life: int) -> None:
        """This life of a role has begun."""
        if role in self._workers:
            self._lives[role] = max(life, self._lives.get(role, life))

    def put(self, peer: str, batch: Sequence[Any]) -> str:
        """Keep what a peer says; returns why it is not heard, "" if it is."""
        if not peer.startswith(EXTERNAL) and split_peer(peer)[0] not in self._workers:
            # Nobody would ever tell of its end, and it would keep its turn to load until then.
            return "is no worker of this node"
        line = self._unheard.setdefault(peer, deque())
        line += batch
        if len(line) > MOST_UNHEARD:
            del self._unheard[peer]
            return "says too much at once"
        return ""

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
            yield peer, line.popleft()
            if line:
                self._unheard[peer] = line  # behind the others
