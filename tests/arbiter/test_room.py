"""What lies where, in cases that whole books seldom reach."""

from __future__ import annotations

from typing import Any

from engine.arbiter.lease import Lease, LeaseState, shrink
from engine.arbiter.room import PATIENT_S, DeviceMemory, Reading
from engine.arbiter.words import GIB
from engine.limits import Limits

GPU = "cuda:0"


def lease(number: int, gib: int, held: int, since: float = 0.0, **fields: Any) -> Lease:
    peer, state = "asr@cuda:0/0#1", fields.pop("state", LeaseState.HELD)
    found = Lease(peer, number, GPU, gib * GIB, "m", state, since, number=number, **fields)
    found.held_bytes = held * GIB
    return found


def test_what_a_process_had_before_the_last_of_its_leases_is_no_lease_s() -> None:
    memory = DeviceMemory(Limits(GPU, 24 * GIB))
    leases = [lease(1, 4, 0, pid=7, base_bytes=GIB), lease(2, 4, 0, pid=7, base_bytes=2 * GIB)]
    memory.take(Reading(GPU, 24 * GIB, 18 * GIB, 1.0, {7: 6 * GIB}), leases)
    assert (sum(one.held_bytes for one in leases), memory.foreign_bytes) == (4 * GIB, 2 * GIB)
    memory.check(leases)


def test_what_is_not_given_back_is_no_model_s_that_has_its_own_already() -> None:
    full, memory = lease(2, 4, 3, since=2.0), DeviceMemory(Limits(GPU, 24 * GIB))
    memory.disown(lease(1, 4, 2, state=LeaseState.DEFICIT, left_at=1.0), [full])
    assert (full.held_bytes, memory.foreign_bytes) == (3 * GIB, 2 * GIB)
    empty, memory = lease(2, 4, 1, since=2.0), DeviceMemory(Limits(GPU, 24 * GIB))
    memory.disown(lease(1, 4, 2, state=LeaseState.DEFICIT, left_at=1.0), [empty])
    assert (empty.held_bytes, memory.foreign_bytes) == (3 * GIB, 0)


def test_a_holder_that_keeps_less_keeps_what_it_has_beyond_its_grants() -> None:
    leases = [lease(1, 4, 6), lease(2, 2, 1)]
    assert shrink(leases, 3 * GIB) == []
    assert [one.held_bytes for one in leases] == [5 * GIB, 2 * GIB], "7 GiB, of which 1 was granted to nobody"


def test_what_was_missing_before_the_arbiter_s_death_has_lasted_since_then() -> None:
    held, memory = lease(1, 6, 6), DeviceMemory(Limits(GPU, 24 * GIB))
    memory.remember(Reading(GPU, 24 * GIB, 20 * GIB, 0.0), 0, 2 * GIB, False, [held])
    memory.take(Reading(GPU, 24 * GIB, 20 * GIB, PATIENT_S), [held])
    assert (held.held_bytes, memory.missing_bytes) == (4 * GIB, 0)


def test_what_shows_after_a_death_is_the_dead_s_where_memory_comes_back_late_and_somebody_else_s_elsewhere() -> None:
    for returns_at_once, its in ((False, 2 * GIB), (True, 0)):
        dead = lease(1, 4, 0, state=LeaseState.DRAINING, left_at=1.0)
        memory = DeviceMemory(Limits(GPU, 24 * GIB, returns_at_once=returns_at_once))
        memory.take(Reading(GPU, 24 * GIB, 24 * GIB, 0.5), [dead])
        memory.take(Reading(GPU, 24 * GIB, 22 * GIB, 2.0), [dead])
        assert (dead.held_bytes, dead.leaving_bytes, memory.foreign_bytes) == (its, its, 2 * GIB - its)
