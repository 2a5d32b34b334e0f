"""The judge by itself: what it is shown wrong, it counts."""

from __future__ import annotations

import random
from typing import Any

from bench.vram_arbiter import VirtualArbiter
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from bench.vram_judge import Judge, Process
from engine.arbiter.events import Waits
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


def test_a_question_that_nobody_answers_is_starved_and_one_that_would_fit_is_a_deadlock() -> None:
    clock, _, judge, arbiter = scene()
    asks(judge, 100)
    for _ in range(10):
        clock.after(1.0, judge.look, arbiter)
        clock.step()
    assert judge.counts["starved"] == 1 and judge.counts["deadlocks"] >= 1
