"""A node's claims on GPUs: one name a GPU, so that two nodes do not each believe a card to be theirs.

A claim is a bound Unix socket with a name in the kernel and not in a folder (unix(7), "abstract"): nobody ever connects
to it, a second one of the same name is refused. Such a name is there for all users and whatever their TMPDIR. It is
gone with the last descriptor of it: nothing is left that could block a GPU, and nothing can be cleaned away under a
node that lives::

    @dragoman/GPU-5f3a...                     the GPU is one node's, or somebody looks whether it can be
    @dragoman/GPU-5f3a...#0 ... #15           ... or one of the nodes' that are told to share it (devices.share)
    @dragoman/GPU-5f3a... 4711 /run/user/...  who that is: pid and folder, to be read in /proc/net/unix

Who shares holds the first of these only while it takes one of the second, and who does not share keeps it, if it finds
none of the second taken. Every worker on that GPU inherits the claim and who it is. So it ends when the last of them is
gone, however the supervisor ended: the next node cannot find memory taken by what is left of the one before.

These names are the network namespace's: nodes in containers that have one each do not see each other's claims.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ipc.errors import DragomanError

PREFIX = "dragoman/"
NAME_BYTES = 107  # of a name: sizeof(sun_path) less the first byte
PLACES = 16  # nodes that share a GPU
LOOKS, LOOK_S = 20, 0.01  # how often who finds a name taken by nobody tries, and how long between
BOUND = Path("/proc/net/unix")
NAME_COLUMN = 7
SHARE = "stop that node, or let both have a part of it: devices.share = true and devices.max_bytes, in both"


class Claims:
    """The claims of one node, whose run folder is ``node``. ``shared``: others that say so may claim the same GPUs."""

    def __init__(self, node: Path, *, shared: bool = False) -> None:
        self._node = node
        self._shared = shared
        self._held: dict[str, list[socket.socket]] = {}  # UUID -> the claim, and who has it

    def take(self, uuid: str) -> str:
        """Claim a GPU: "", or who has it, in words. Raises DragomanError where nothing can be claimed."""
        if uuid in self._held:
            return ""
        for _ in range(LOOKS):
            if (claim := self._claim(uuid)) is not None:
                who = _bind(_described(uuid, os.getpid(), self._node))
                self._held[uuid] = [claim, who] if who is not None else [claim]
                return ""
            if who_has := holder(uuid):
                return who_has
            time.sleep(LOOK_S)  # nobody has it: somebody takes it in this moment, or looks
        return "a process that does not say who it is"

    def fds(self, uuid: str) -> tuple[int, ...]:
        """The descriptors for a worker on this GPU to inherit."""
        return tuple(one.fileno() for one in self._held[uuid])

    def close(self) -> None:
        """Let go. What workers have inherited stays theirs."""
        for held in self._held.values():
            for one in held:
                one.close()
        self._held.clear()

    def _claim(self, uuid: str) -> socket.socket | None:
        gate = _bind(f"{PREFIX}{uuid}")
        if gate is None:
            return None
        names = [f"{PREFIX}{uuid}#{place}" for place in range(PLACES)]
        if self._shared:
            with closing(gate):
                return next((place for name in names if (place := _bind(name)) is not None), None)
        places = [_bind(name) for name in names]
        for place in places:
            if place is not None:
                place.close()
        if None not in places:
            return gate
        gate.close()
        return None


def holder(uuid: str) -> str:
    """Who has a GPU, in words; "": nobody says so."""
    return next(_holders(uuid), "")


def _bind(name: str) -> socket.socket | None:
    """A socket of this name; None: there is one. Raises DragomanError when the kernel refuses it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(b"\0" + name.encode())
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            return None
        text = f"cannot claim a GPU by an abstract Unix socket ({error.strerror or error})"
        raise DragomanError(text, "allow it to this process: a sandbox's rules may forbid it") from error
    return made


def _described(uuid: str, pid: int, node: Path) -> str:
    """Who has a claim. Of a folder whose path is too long the end is told, where the node's name stands."""
    who = f"{PREFIX}{uuid} {pid} "
    room = NAME_BYTES - len(who.encode())
    return who + os.fsencode(node)[-room:].decode("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")


def _holders(uuid: str) -> Iterator[str]:
    """Who says to have a claim on this GPU. Any user can say so, so it is only shown."""
    start = f"@{PREFIX}{uuid} "
    try:
        lines = BOUND.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError:
        return
    for line in lines:
        columns = line.split(None, NAME_COLUMN)
        if len(columns) > NAME_COLUMN and columns[NAME_COLUMN].startswith(start):
            pid, _, node = columns[NAME_COLUMN].removeprefix(start).partition(" ")
            if pid.isdecimal() and node.isprintable():
                yield _words(pid, node)


def _words(pid: str, node: str) -> str:
    if Path(f"/proc/{pid}").exists():
        return f"node {node} (pid {pid})"
    return f"what is left of node {node} (its pid {pid} is gone)"
