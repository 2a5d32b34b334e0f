"""What a process has of the machine's memory is told of it, and of what it has started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.arbiter.resident import Process, Resident

MIB, GIB = 2**20, 2**30
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


class Machine:
    """Programs as /proc would show them. To read of a process what it has takes ``read_s``, and nothing else does."""

    def __init__(self, read_s: float) -> None:
        self.now = 100.0
        self.read_s = read_s
        self.parents: dict[int, int] = {}
        self.begun: dict[int, int] = {}
        self.has: dict[int, int] = {}  # with its part of what it shares
        self.sees: dict[int, int] = {}  # of which it could make use: all that is resident of it
        self.resident = Resident(lambda: self.now, self.processes, self.has.get, self.part)

    def begin(self, pid: int, nbytes: int, parent: int = 1) -> None:
        self.parents[pid], self.begun[pid] = parent, self.begun.get(pid, 0) + 1
        self.has[pid] = self.sees[pid] = nbytes

    def fork(self, parent: int, children: range) -> None:
        """Each of them shares all that its parent has."""
        for pid in children:
            self.begin(pid, 0, parent)
        for pid in (parent, *children):
            self.has[pid], self.sees[pid] = self.sees[parent] // (len(children) + 1), self.sees[parent]

    def end(self, pid: int) -> None:
        del self.parents[pid], self.has[pid], self.sees[pid]

    def read(self, at_most_s: float) -> dict[int, int]:
        until = self.now + at_most_s
        found = self.resident.read()
        assert self.now <= until, "a reading that is old when it is made"
        return found

    def processes(self) -> list[Process]:
        return [Process(pid, above, self.begun[pid], self.sees[pid]) for pid, above in self.parents.items()]

    def part(self, pid: int) -> int | None:
        if pid not in self.has:
            return None
        self.now += self.read_s
        return self.has[pid]


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


def test_a_program_with_a_hundred_data_loaders_makes_no_reading_long_and_each_of_them_is_read() -> None:
    machine = Machine(read_s=0.03)
    machine.begin(10, 4 * GIB)
    machine.resident.watch((), {10})
    assert machine.resident.read() == {10: 4 * GIB}
    machine.fork(10, range(11, 121))
    readings = 0
    while len(found := machine.read(at_most_s=0.2)) == 1:
        assert found == {10: 4 * GIB}  # what it shares with them is in it, until all of them were read
        readings += 1
    assert readings > 10
    assert found == machine.has and sum(found.values()) == pytest.approx(4 * GIB, abs=200)


def test_what_very_many_processes_have_is_told_of_as_they_are_read() -> None:
    machine = Machine(read_s=0.03)
    machine.begin(10, 1 * GIB)
    machine.fork(10, range(11, 121))
    machine.resident.watch((), {10})
    told = 0
    for _ in range(50):
        found = machine.read(at_most_s=0.2)
        assert max(told, 1) <= len(found) and sum(found.values()) <= GIB
        told = len(found)
    assert told == 111
    for pid in machine.has:
        machine.has[pid] //= 2  # all of them are read again and again
    for _ in range(100):
        found = machine.resident.read()
    assert found == machine.has


def test_what_a_process_gives_back_or_takes_with_it_is_not_told_of_until_it_is_read_again() -> None:
    machine = Machine(read_s=1.0)  # one at a time
    machine.begin(10, 1 * GIB)
    for pid in (11, 12, 13, 14):
        machine.begin(pid, 2 * GIB, parent=10)
    machine.resident.watch((), {10})
    for _ in range(5):
        found = machine.resident.read()
    assert sum(found.values()) == 9 * GIB
    machine.end(14)
    machine.begin(14, 3 * GIB, parent=1)  # somebody else's has its number
    machine.end(13)
    machine.begin(13, 3 * GIB, parent=10)  # here too, and this one is the program's
    machine.sees[12] = machine.has[12] = 0
    assert machine.resident.read() == {10: 1 * GIB, 11: 2 * GIB, 12: 0}
    for _ in range(10):
        found = machine.resident.read()
    assert found == {10: 1 * GIB, 11: 2 * GIB, 12: 0, 13: 3 * GIB}


def test_a_program_of_a_thousand_processes_keeps_no_other_s_from_being_read() -> None:
    machine = Machine(read_s=0.01)
    machine.begin(10, GIB)
    machine.fork(10, range(1000, 2000))
    for pid in range(11, 16):
        machine.begin(pid, GIB)
    machine.resident.watch((), range(10, 16))
    machine.resident.read()
    for pid in range(11, 16):
        machine.sees[pid] = machine.has[pid] = 2 * GIB
    assert machine.resident.read().items() >= dict.fromkeys(range(11, 16), 2 * GIB).items()


def test_of_more_programs_than_there_is_time_for_each_has_its_turn() -> None:
    machine = Machine(read_s=1.0)
    for pid in range(10, 15):
        machine.begin(pid, GIB)
    machine.resident.watch((), range(10, 15))
    for count in range(1, 6):
        assert len(machine.resident.read()) == count
    machine.resident.watch((), ())
    assert machine.resident.read() == {}


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
