"""Looking at a node from outside: which of its processes live, and what it left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

COOKIE = b"DRAGOMAN_NODE="


def processes(node: str) -> dict[int, str]:
    """Living processes of the node with this id: pid -> role (its title). Zombies have no environment: not counted."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if COOKIE + node.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
            except OSError:
                continue
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def state(pid: int) -> str:
    """The kernel's letter: R, S, D, T (stopped), Z."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def shared_memory_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open: descriptor -> target."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[int(entry.name)] = os.readlink(entry)
    return found


def wait_until(holds: Callable[[], object], within_s: float = 10.0, what: str = "") -> None:
    """Wait for a state to come about. Fails with ``what`` when it does not."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s: {what or holds}"
        time.sleep(0.01)
