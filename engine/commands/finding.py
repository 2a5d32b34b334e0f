"""Where the running node is: the folder its supervisor keeps locked, and the sockets in it.

A node that died without a farewell leaves its folder and its sockets behind; its lock is free then, so it is not found.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from engine import loading, published
from engine.commands import asking
from engine.commands.asking import START_ONE, NoNode
from engine.supervisor import folder
from ipc.errors import DragomanError

BOUND = Path("/proc/net/unix")
SHOWN = 3  # nodes elsewhere


def running() -> Path | None:
    """The folder of the node that clients find by themselves, or None when none is alive."""
    homes = (published.newest(base) for base in folder.candidates(os.environ, os.getuid()))
    return next((home for home in homes if home is not None), None)


def starting() -> Path | None:
    """The folder of a node that says it is starting, and will be found when it is ready; None when none does."""
    for base in folder.candidates(os.environ, os.getuid()):
        for home in sorted(base.glob("*/ctl")):
            with suppress(DragomanError):
                if published.is_held(home.parent / published.LOCK) and _will_be_found(f"ipc://{home}"):
                    return home.parent
    return None


def _will_be_found(endpoint: str) -> bool:
    health = asking.ask(endpoint, "health", timeout_s=1.0)
    return health.get("phase") == "starting" and bool(health.get("publishes"))


def elsewhere() -> list[str]:
    """Operators' sockets of this user's nodes that are not found by themselves: part of a program, or started under
    another TMPDIR. By what the kernel knows of bound sockets (unix(7))."""
    try:
        bound = re.findall(r"(/\S+/[0-9a-f]{8})/ctl\n", BOUND.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []
    return [f"ipc://{home}/ctl" for home in dict.fromkeys(bound) if published.is_held(Path(home, published.LOCK))]


def _or_that(endpoint: str) -> str:
    return f"; or give --connect {endpoint}"


def how_far(home: Path) -> str:
    """How far the stages are of the node in this folder, in words; "" when it does not say."""
    try:
        return loading.words(asking.ask(f"ipc://{home / 'ctl'}", "stats", timeout_s=1.0)["processes"])
    except DragomanError:  # it may just have ended
        return ""


def client_endpoint() -> str | None:
    """Where clients reach the running node; None without one."""
    home = running()
    return f"ipc://{home / 'client'}" if home else None


def ctl_endpoint(given: str | None) -> str:
    """The operators' socket: the one given (a node's client socket names its node too), or the running node's.

    Raises NoNode when nothing is given and no node runs.
    """
    if given:
        return (
            given.removesuffix("/client") + "/ctl"
            if given.startswith("ipc://") and given.endswith("/client")
            else given
        )
    home = running()
    if home is None and (coming := starting()):
        raise NoNode(f"a node is starting ({coming.name}): {how_far(coming)}", "ask again when it has said ready")
    if home is None:
        raise NoNode(
            "no node of this user lets itself be found", f"{START_ONE}{''.join(map(_or_that, elsewhere()[:SHOWN]))}"
        )
    return f"ipc://{home / 'ctl'}"
