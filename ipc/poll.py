"""Waiting on links, the door and plain descriptors together: one system call a turn.

A link brings its connections as they come and go (``watch``, ``unwatch``); what is readable is put on the list of its
link, which ``drain`` then reads. libzmq's sockets have a rule of their own: see ``ipc.door``.
"""

from __future__ import annotations

import select
from typing import Any

_IN, _BOTH = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Poll:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Any] = {}  # descriptor -> connection, listener or door
        self._doors: list[Any] = []

    def add(self, thing: Any) -> None:
        """Watch a Router, Dealer, Door or a descriptor for input."""
        if isinstance(thing, int):
            self._epoll.register(thing, _IN)
        else:
            thing.join(self)

    def remove(self, thing: Any) -> None:
        if isinstance(thing, int):
            self._epoll.unregister(thing)
        else:
            thing.part(self)

    def wait(self, timeout_s: float | None) -> set[Any]:
        """What may be readable within ``timeout_s`` (None: for ever): links, doors and descriptors."""
        ready = {door for door in self._doors if door.look()} if self._doors else set()
        for fd, _ in self._epoll.poll(0 if ready else timeout_s):
            if (watched := self._watched.get(fd)) is None:
                ready.add(fd)
            else:
                link = watched.link
                link.stirred.append(watched)
                ready.add(link)
        return ready

    # ---------------------------------------------------------------- for links

    def watch(self, fd: int, watched: Any) -> None:
        """From now on what is readable at ``fd`` is put on the list of ``watched.link``."""
        self._watched[fd] = watched
        self._epoll.register(fd, _IN)

    def unwatch(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._watched[fd]

    def wants_room(self, fd: int, wanted: bool) -> None:
        """Whether ``fd`` is also to be told of when it takes more bytes."""
        self._epoll.modify(fd, _BOTH if wanted else _IN)

    def watch_door(self, door: Any) -> None:
        self._doors.append(door)

    def unwatch_door(self, door: Any) -> None:
        self._doors.remove(door)
