"""What a process has of the machine's memory is told of it, and of what it has started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.arbiter.resident import Resident

MIB = 2**20
TAKE = "import sys; taken = bytearray(b'x') * (int(sys.argv[1]) << 20); print('has it', flush=True); sys.stdin.read()"
# The child has its parent's pages, and 64 MiB of its own.
FORK = """
import os, sys
taken = bytearray(b'x') * (256 << 20)
pid = os.fork()
if not pid:
    own = bytearray(b'x') * (64 << 20)
    print(os.getpid(), flush=True)
sys.stdin.read()
"""

# Children that have 16, 32, 48 and 64 MiB of their own; says their numbers.
MANY = """
import os, sys
children = []
for number in range(1, 5):
    there, told = os.pipe()
    if not (pid := os.fork()):
        own = bytearray(b'x') * (number * 16 << 20)
        os.write(told, b'x')
        sys.stdin.read()
        os._exit(0)
    os.read(there, 1)
    children.append(str(pid))
print(*children, flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """Its number, and its first line."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None
        yield child.pid, child.stdout.readline()


@pytest.mark.parametrize("as_program", [False, True])
def test_a_process_has_what_it_has_taken_and_nobody_else_is_told_of(as_program: bool) -> None:
    resident = Resident()
    with process(TAKE, "200") as (pid, _), process(TAKE, "300"):
        resident.watch(*((), {pid}) if as_program else ({pid}, ()))
        found = resident.read()
        assert found.keys() == {pid}
        assert found[pid] == pytest.approx(210 * MIB, abs=10 * MIB)


def test_pages_that_a_program_shares_with_its_child_are_counted_once() -> None:
    resident = Resident()
    with process(FORK) as (parent, child):
        resident.watch((), {parent})
        found = resident.read()
        assert found.keys() == {parent, int(child)}
        assert sum(found.values()) == pytest.approx(330 * MIB, abs=10 * MIB)
        assert found[int(child)] > 64 * MIB


def test_of_very_many_that_a_program_has_started_the_largest_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.arbiter.resident.MOST", 4)
    resident = Resident()
    with process(MANY) as (parent, children), process(TAKE, "1") as (other, _):
        numbers = [int(one) for one in children.split()]
        resident.watch((), {parent})
        assert resident.read().keys() == {parent, *numbers}
        resident.watch((), {parent, other})  # each has its share
        assert resident.read().keys() == {parent, other, *numbers[2:]}


def test_what_the_node_has_is_not_a_program_s_that_embeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Resident()
    with process(FORK) as (parent, child):
        monkeypatch.setattr("os.getppid", lambda: int(child))  # as the arbiter's own parent is
        resident.watch((), {parent})
        assert resident.read().keys() == {parent}


def test_of_one_that_has_ended_nothing_is_told() -> None:
    resident = Resident()
    with process(TAKE, "1") as (pid, _):
        pass
    resident.watch({pid}, {pid})
    assert resident.read() == {}
