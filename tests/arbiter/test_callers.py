"""A name is for the process that it names: a stranger has no worker's, and no lease is another's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from engine.arbiter.callers import LEAST, OWN_DESCRIPTORS, Callers
from engine.process import parent

WORKER, PROGRAM = "asr@cpu/0#2", "lease@7/1#5"


def test_a_workers_name_is_for_the_supervisor_and_what_it_has_started() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as child:
        callers = Callers(4, os.getpid() + 2**22)
        assert "none of this node" in callers.why_not(WORKER, child.pid, ())
        callers = Callers(4, os.getpid())
        assert not callers.why_not(WORKER, child.pid, ())
        assert callers.why_not(WORKER, parent(os.getpid()), ()) and callers.why_not(WORKER, 0, ())
        assert not Callers(4, child.pid).why_not(WORKER, child.pid, ())
        assert child.stdin is not None
        child.stdin.close()


def test_a_lease_is_for_the_asker_or_for_one_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    callers, above = Callers(4, 1), {40: 30, 30: 20, 20: 1}
    monkeypatch.setattr("engine.arbiter.callers.parent", lambda pid: above.get(pid, 0))
    assert callers.may_lease_for(30, 30) and callers.may_lease_for(20, 40)
    assert not callers.may_lease_for(30, 20) and not callers.may_lease_for(30, 1) and not callers.may_lease_for(0, 30)


def test_programs_leave_descriptors_for_the_nodes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = Callers(4, os.getpid())
    monkeypatch.setattr(resource, "getrlimit", lambda _: (OWN_DESCRIPTORS + 4 + 2 * 20, 4096))
    crowd = [f"lease@7/{number}#5" for number in range(20)]
    assert not callers.why_not(PROGRAM, 7, [*crowd[1:], WORKER])
    assert callers.why_not(PROGRAM, 7, crowd) == "is one program too many: 20 are connected"
    assert not callers.why_not(WORKER, os.getpid(), crowd)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))
    assert callers.most_programs == LEAST
