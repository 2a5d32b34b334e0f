"""Which stage holds up the others: what is measured, and the sentence that says it."""

from __future__ import annotations

import pytest

from engine.boot import WorkerPlan
from engine.scheduler.pace import STEPS_MS, Histogram
from engine.scheduler.utilisation import Utilisation, bottleneck
from engine.scheduler.workers import Batch, Life, Worker
from tests.scheduler.world import World, text_stage


def worker(stage: str, busy_s: float = 0.0) -> Worker:
    found = Worker(WorkerPlan(role=f"{stage}@cpu/0", stage=stage, device="cpu"), text_stage(stage))
    found.life, found.busy_s = Life.LOADED, busy_s
    return found


def test_a_stage_is_busy_for_the_share_of_its_workers_time_that_is_spent_in_runs() -> None:
    one, two = worker("asr"), worker("asr")
    seen = Utilisation()
    assert seen.look({"1": one, "2": two}, 100.0) == {}
    one.busy_s, two.busy_s = 10.0, 5.0
    assert seen.look({"1": one, "2": two}, 110.0) == {"asr": pytest.approx(0.75)}


def test_a_run_that_has_not_ended_counts_as_far_as_it_has_come() -> None:
    one = worker("asr")
    seen = Utilisation()
    seen.look({"1": one}, 100.0)
    one.batches.append(Batch({1: ("s", 0)}, 102.0, 60.0, began=102.0))
    assert seen.look({"1": one}, 110.0) == {"asr": pytest.approx(0.8)}


def test_only_the_last_half_minute_counts() -> None:
    one = worker("asr")
    seen = Utilisation()
    for second in range(100):
        one.busy_s = float(min(second, 50))
        shares = seen.look({"1": one}, float(second))
    assert shares == {"asr": 0.0}


def test_time_without_a_model_is_no_time_to_work_in() -> None:
    one = worker("asr")
    seen = Utilisation()
    seen.look({"1": one}, 100.0)
    one.busy_s = 10.0
    seen.look({"1": one}, 110.0)
    one.life = Life.EMPTY
    assert seen.look({"1": one}, 120.0) == {"asr": 1.0}


def test_the_sentence_names_the_busiest_or_says_that_none_is_busy() -> None:
    assert bottleneck({"asr": 0.97, "nmt": 0.41}, {}).startswith("asr is the bottleneck: its workers were busy 97%")
    assert bottleneck({"asr": 0.97, "nmt": 0.41}, {}).endswith("next is nmt, 41%")
    assert bottleneck({"asr": 0.4}, {}).startswith("no stage holds up the others")
    assert bottleneck({}, {}) == "nothing has run yet"
    assert bottleneck({"asr": 0.3, "tts": 0.6}, {}, serial=True).endswith("of the last 30 s: asr 30%, tts 60%")


def test_a_histogram_counts_each_time_once() -> None:
    found = Histogram()
    for ms in (0.0, 1.0, 1.1, 30_000.0, 30_000.1, 1e9):
        found.add(ms / 1000)
    assert found.counts[:2] == [2, 1] and found.counts[-2:] == [1, 2] and sum(found.counts) == 6
    assert len(found.counts) == len(STEPS_MS) + 1


def test_a_node_s_statistics_say_how_long_utterances_waited_and_ran() -> None:
    world = World(text_stage("a"))
    world.start_all()
    world.open()
    world.admit(0)
    world.now += 0.02
    world.done(world.peer("a@cpu/0"), begun_ns=int(100.0 * 1e9) + 2_000_000, ended_ns=int(100.02 * 1e9))
    row = world.core.snapshot(world.now)["stages"]["a"]
    assert row["waiting_histogram"][1] == row["processing_histogram"][3] == 1


def test_a_stage_that_work_waits_for_and_that_has_no_model_holds_up_the_others() -> None:
    found = World(text_stage("asr"), text_stage("nmt"))
    found.start("asr@cpu/0")
    found.open()
    for index in range(3):
        found.admit(index)
    for _ in range(3):
        found.done(found.peer("asr@cpu/0"))
    expected = "nmt is the bottleneck: 3 wait for it, and none of its workers has its model"
    assert found.core.snapshot(found.now)["bottleneck"] == expected


def test_a_batch_keeps_its_worker_busy_for_its_run_and_not_for_that_of_each_in_it() -> None:
    world = World(text_stage("a", max_batch=4), send_ahead=0)
    world.start_all()
    world.open()
    for index in range(5):
        world.admit(index)
    peer, worker = world.peer("a@cpu/0"), world.core.book.workers["a@cpu/0"]
    for size in (1, 4):
        assert len(world.board[peer]) == size
        before, begun = worker.busy_s, world.now
        world.now += 1.0
        for _ in range(size):
            world.done(peer, begun_ns=int(begun * 1e9), ended_ns=int(world.now * 1e9))
        assert worker.busy_s - before == pytest.approx(1.0)
