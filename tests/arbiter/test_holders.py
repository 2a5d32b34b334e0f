"""What programs under a lease start themselves is theirs, as the lease is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

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


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


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


def test_what_the_nodes_own_processes_have_is_never_a_holders_though_it_began_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that embeds the node takes a lease itself: supervisor and workers descend from it."""
    holders = Holders(Poll())
    with family() as (supervisor, worker):
        monkeypatch.setattr(os, "getppid", lambda: supervisor.pid)  # as the arbiter's own is
        assert holders.watch(peer(os.getpid()))
        assert holders.gather({worker: 3, os.getpid(): 5}) == {worker: 3, os.getpid(): 5}


def test_where_there_is_no_descriptor_left_nobody_is_taken_for_dead() -> None:
    holders = Holders(Poll())
    with family() as (living, _), family() as (dying, _):
        names = [peer(living.pid), peer(dying.pid)]
        with no_descriptors():
            assert all(map(holders.watch, names))
            assert holders.dead(set()) == []
        dying.kill()
        dying.wait()
        assert [news.role for news in holders.dead(set())] == [names[1].partition("#")[0]]
        assert holders.dead(set()) == [] and holders.gather({living.pid: 3}) == {living.pid: 3}
        assert len(os.listdir(f"/proc/{os.getpid()}/fd")) > 0


def test_a_process_that_began_at_another_time_is_somebody_else() -> None:
    assert not Holders(Poll()).watch(f"lease@{os.getpid()}/1#{start_time(os.getpid()) + 1}")


def test_a_dead_holders_number_may_become_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    poll = Poll()
    holders = Holders(poll)
    with family() as (parent, child):
        assert holders.watch(peer(parent.pid))
        parent.kill()
        assert [news.role for news in holders.dead(poll.wait(10.0))] == [f"lease@{parent.pid}/1"]
        listed = {parent.pid: 1, child: 3}
        monkeypatch.setattr("engine.arbiter.holders.parent", {child: parent.pid}.get)  # who has it began that one
        assert holders.gather(listed) == listed
        os.kill(child, signal.SIGKILL)


def test_a_number_that_no_process_can_have_is_nobodys() -> None:
    assert not Holders(Poll()).watch(f"lease@{10**30}/1#5")


def test_a_number_without_a_process_is_nobodys() -> None:
    holders = Holders(Poll())
    with family() as (parent, child):
        assert holders.watch(peer(parent.pid))
    assert holders.gather({child: 3}) == {child: 3}


def test_the_deaths_of_more_than_may_be_watched_are_found_by_looking() -> None:
    holders = Holders(Poll(), most=1)
    with family() as (watched, _), family() as (other, _):
        assert holders.watch(peer(watched.pid)) and holders.watch(peer(other.pid))
        assert holders.dead(set()) == []
        other.kill()
        other.wait()
        assert [news.role for news in holders.dead(set())] == [f"lease@{other.pid}/1"]
        assert holders.dead(set()) == []
