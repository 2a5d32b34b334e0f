"""The judge by itself: what it is shown wrong, it counts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from bench.vram_arbiter import VirtualArbiter
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from bench.vram_judge import Judge, Process
from engine.arbiter.events import Waits
from engine.arbiter.lease import Lease, LeaseState
from engine.limits import Limits
from ipc.messages import LeaseRequest

NAME, TOTAL = "cuda:0", 1000
NOBODY: Any = None  # hears of the arbiter


def scene() -> tuple[Clock, TrueDevice, Judge, VirtualArbiter]:
    clock, limits = Clock(), [Limits(NAME, TOTAL)]
    device = TrueDevice(NAME, TOTAL, clock, lambda: 0.0)
    arbiter = VirtualArbiter(clock, random.Random(1), [device], limits, Waits(), NOBODY)
    return clock, device, Judge(clock, limits, Waits(), {NAME: device}, exact=True), arbiter


def asks(judge: Judge, nbytes: int) -> Process:
    process = Process("lease@1/0", 1, NAME, asked_bytes=nbytes)
    process.question = LeaseRequest(1, process.role, NAME, nbytes, "", 5.0)
    judge.present[NAME].add(process)
    judge.heard(process)
    return process


def test_what_those_without_a_lease_have_counts() -> None:
    _, device, judge, arbiter = scene()
    assert device.take("stuck#1", 600)
    judge.granted(asks(judge, 500), 500, arbiter)
    assert judge.counts["overcommitted"] == 1


def test_a_grant_of_more_is_judged() -> None:
    _, _, judge, arbiter = scene()
    process = asks(judge, 500)
    judge.granted(process, 500, arbiter)
    assert not judge.counts["overcommitted"]
    judge.granted_more(process, 600, arbiter)
    assert judge.counts["overcommitted"] == 1


def test_only_what_outsiders_took_since_the_grant_excuses_an_oom() -> None:
    _, device, judge, arbiter = scene()
    device.others(400)
    arbiter.foreign_read[NAME] = 400
    process = asks(judge, 500)
    judge.granted(process, 500, arbiter)
    judge.out_of_memory(process, 100)
    assert (judge.counts["oom"], judge.counts["snatched"]) == (1, 0)
    device.others(500)
    judge.out_of_memory(process, 100)
    assert (judge.counts["oom"], judge.counts["snatched"]) == (1, 1)


def test_a_new_arbiter_has_time_of_its_own_to_serve_what_fits() -> None:
    clock, _, judge, arbiter = scene()
    process = asks(judge, 100)
    process.question = LeaseRequest(1, process.role, NAME, 100, "", 120.0)
    clock.now += 1.5  # since the last answer
    for _ in range(5):
        judge.look(arbiter)
        clock.now += 1.0
    judge.arbiter_died()
    judge.heard(process)
    for _ in range(5):
        judge.look(arbiter)
        clock.now += 1.0
    assert not judge.counts["stalled"]
    judge.look(arbiter)
    assert judge.counts["stalled"] == judge.counts["deadlocks"] == 1


def test_a_question_that_nobody_answers_is_starved_and_one_that_would_fit_is_a_deadlock() -> None:
    clock, _, judge, arbiter = scene()
    asks(judge, 100)
    for _ in range(10):
        clock.after(1.0, judge.look, arbiter)
        clock.step()
    assert judge.counts["starved"] == 1 and judge.counts["deadlocks"] >= 1


@pytest.mark.parametrize(("max_models", "its_own_leaves", "passed"), [(2, False, 1), (2, True, 0), (3, True, 1)])
def test_who_waited_too_long_is_passed_only_where_the_book_had_a_place_for_its_model(
    max_models: int, its_own_leaves: bool, passed: int
) -> None:
    """What the one that is served has let go itself, and the driver still shows, takes a place as well."""
    clock, limits = Clock(), [Limits(NAME, TOTAL, max_models=max_models)]
    device = TrueDevice(NAME, TOTAL, clock, lambda: 0.0)
    arbiter = VirtualArbiter(clock, random.Random(1), [device], limits, Waits(), NOBODY)
    judge = Judge(clock, limits, Waits(), {NAME: device}, exact=True)
    elder, served = (Process(f"{stage}@{NAME}/0", 1, NAME, asked_bytes=10) for stage in ("asr", "nmt"))
    for process in (elder, served):
        process.question = LeaseRequest(1, process.role, NAME, 10, "m")
        judge.present[NAME].add(process)
        judge.heard(process)
        clock.now += 30.0
    leases = [Lease("tts@cuda:0/0#1", 1, NAME, 10, "voice", LeaseState.HELD, 0.0)]
    if its_own_leaves:
        leases.append(Lease(served.peer, 1, NAME, 10, "before", LeaseState.DRAINING, 0.0))
    memory = SimpleNamespace(limits=limits[0])
    arbiter.book = SimpleNamespace(books=lambda: [(memory, leases)], knows=lambda peer: True)  # type: ignore[assignment]
    arbiter.read_at[NAME] = clock.now
    judge.granted(served, 10, arbiter)
    assert judge.counts["passed"] == passed
