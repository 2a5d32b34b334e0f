"""What programs under a lease start themselves is theirs, as the lease is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from engine.arbiter.holders import Holders
from engine.process import start_time
from ipc.sockets import Poll

PARENT = (
    "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); "
    "sys.stdin.read(); child.kill(); child.wait()"
)


@contextmanager
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process and its child."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        yield parent, int(parent.stdout.readline())


def peer(pid: int) -> str:
    return f"lease@{pid}/1#{start_time(pid)}"


def test_what_a_child_has_is_its_ancestors_who_holds_a_lease() -> None:
    holders = Holders(Poll())
    with family() as (parent, child):
        listed = {child: 3, parent.pid: 1, os.getpid(): 5, 1: 7}
        assert holders.gather(listed) == listed, "nobody holds a lease"
        assert holders.watch(peer(parent.pid))
        assert holders.gather(listed) == {parent.pid: 4, os.getpid(): 5, 1: 7}
        holders.forget(peer(parent.pid))
        assert holders.gather(listed) == listed


def test_a_number_without_a_process_is_nobodys() -> None:
    holders = Holders(Poll())
    with family() as (parent, child):
        assert holders.watch(peer(parent.pid))
    assert holders.gather({child: 3}) == {child: 3}
