"""A worker's runs: arrays in and out of shared memory, checked before and after, one bad item alone."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from engine.boot import Boot, RingGrant
from engine.config import DeadlinesSection
from engine.worker.runner import Runner, put_on_board, stage_error
from ipc import memory
from ipc.messages import Run, RunItem
from ipc.ring import Ring, generation, segment_bytes
from stages.base import Output, Stage, StageConfig, StageError

ROLE = "tts@cpu/0"


class Scripted(Stage):
    """Answers with what the test put into ``script``."""

    script: list = []

    def run(self, items):
        answers = [entry(item) if callable(entry) else entry for entry, item in zip(self.script, items, strict=False)]
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, StageError):
                raise answer
        return answers


@pytest.fixture
def rings():
    fds = {name: memory.create(name, segment_bytes(4)) for name in ("gateway", ROLE)}
    grants = (
        RingGrant(name=ROLE, fd=fds[ROLE], blocks=4, writable=True),
        RingGrant(name="gateway", fd=memory.reopen_read_only(fds["gateway"]), blocks=4, writable=False),
    )
    boot = Boot(
        role=ROLE, incarnation=1, node="n", parent_pid=1, death_fd=-1, endpoints={}, rings=grants,
        deadlines=DeadlinesSection(),
    )  # fmt: skip
    runner = Runner(boot, Scripted(StageConfig()))
    return runner, Ring("gateway", fds["gateway"], 4, writable=True), Ring(ROLE, fds[ROLE], 4, writable=False)


def item(ticket: int, **fields) -> RunItem:
    return RunItem(ticket, "s.1", 0, 1, **fields)


def test_an_array_comes_back_by_reference(rings):
    runner, _, reader = rings
    runner.stage.script = [Output(audio=np.arange(100, dtype=np.int16), sample_rate=22050)]
    (result,) = runner.run(Run((item(7, text="x", slot_offset=65536, slot_nbytes=65536),)))
    assert result.state == "completed" and result.begun_ns <= result.ended_ns
    assert result.ref.sample_rate == 22050 and result.ref.generation == 7
    assert reader.view(result.ref).tolist() == list(range(100))


def test_inputs_are_read_only(rings):
    runner, gateway, _ = rings
    ref = gateway.write(0, 65536, generation(1, 1), np.ones(10, np.int16), 16000)

    def scribble(item):
        item.audio[0] = 5

    runner.stage.script = [scribble]
    (result,) = runner.run(Run((item(1, input=ref),)))
    assert result.state == "failed" and "read-only" in result.error
    assert gateway.view(ref)[0] == 1


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_slot_given_to_somebody_else_is_a_failure_to_be_tried_again(rings, when):
    runner, gateway, _ = rings
    ref = gateway.write(0, 65536, generation(1, 1), np.ones(10, np.int16), 16000)

    def reuse(_item=None):
        gateway.write(0, 65536, generation(1, 2), np.zeros(10, np.int16), 16000)
        return Output(text="wrong")

    if when == "before":
        reuse()
    runner.stage.script = [reuse if when == "during" else Output(text="never")]
    (result,) = runner.run(Run((item(1, input=ref),)))
    assert (result.state, result.code, result.retry) == ("failed", "stale_input", True)


def test_a_result_longer_than_its_slot_fails_with_its_code(rings):
    runner, *_ = rings
    runner.stage.script = [Output(audio=np.zeros(40_000, np.int16), sample_rate=1)]
    (result,) = runner.run(Run((item(1, text="x", slot_offset=0, slot_nbytes=65536),)))
    assert (result.state, result.code) == ("failed", "output_too_long")


def test_one_bad_item_does_not_fail_its_batch(rings):
    runner, *_ = rings
    runner.stage.script = [lambda i: ValueError("bad") if i.index == 1 else Output(text=f"ok{i.index}")] * 3
    results = runner.run(Run(tuple(RunItem(n + 1, "s.1", n, 1, text="x") for n in range(3))))
    assert [r.text for r in results] == ["ok0", None, "ok2"]
    assert (results[1].state, results[1].code, results[1].retry) == ("failed", "failed", True)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA failed with error out of memory")])
def test_out_of_memory_is_told_apart(error):
    assert stage_error(error).code == "oom" and stage_error(error).retry


class Crowded(Stage):
    """Has memory for batches of ``room`` items, and none at all for indices in ``hungry``."""

    room = 1
    hungry: tuple[int, ...] = ()
    raises = True

    def __init__(self, config):
        super().__init__(config)
        self.batches: list[list[int]] = []

    def run(self, items):
        self.batches.append([item.index for item in items])
        starved = len(items) > self.room
        if starved and self.raises:
            raise RuntimeError("CUDA failed with error out of memory")
        oom = StageError("oom", "out of memory", retry=True)
        return [oom if starved or item.index in self.hungry else Output(text=str(item.index)) for item in items]


def crowd(rings, size: int, **facts):
    runner, *_ = rings
    runner.stage = Crowded(StageConfig())
    for name, value in facts.items():
        setattr(runner.stage, name, value)
    results = runner.run(Run(tuple(RunItem(n + 1, "s.1", n, 1, text="x") for n in range(size))))
    assert [result.ticket for result in results] == list(range(1, size + 1))
    return runner, [result.code or result.text for result in results]


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(
    ("size", "room", "fits", "calls"),
    [(4, 4, 0, 1), (4, 2, 2, 3), (4, 1, 1, 7), (5, 2, 2, 4), (7, 3, 3, 4), (1, 1, 0, 1)],
)
def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits(rings, raises, size, room, fits, calls):
    runner, answers = crowd(rings, size, room=room, raises=raises)
    assert answers == [str(n) for n in range(size)]
    assert runner.fits == fits and len(runner.stage.batches) == calls


def test_only_what_has_too_little_memory_alone_is_out_of_memory(rings):
    runner, answers = crowd(rings, 4, room=2, hungry=(1,))
    assert answers == ["0", "oom", "2", "3"] and runner.fits == 2


def test_a_shortage_of_one_run_is_not_the_next_ones(rings):
    runner, _ = crowd(rings, 4, room=2)
    runner.run(Run((item(9, text="x"),)))
    assert runner.fits == 0


@pytest.mark.parametrize("raised", [True, False])
def test_after_a_sticky_cuda_error_the_process_is_of_no_use_and_nothing_is_tried_again(rings, raised):
    runner, *_ = rings
    text = "CUDA error: an illegal memory access was encountered"
    runner.stage.script = [RuntimeError(text) if raised else StageError("failed", text, retry=True)] * 2
    runner.run(Run((item(1, text="x"), item(2, text="y"))))
    assert text in runner.fault


def test_a_usual_failure_is_not_sticky(rings):
    runner, *_ = rings
    runner.stage.script = [RuntimeError("CUDA failed with error out of memory")]
    runner.run(Run((item(1, text="x"),)))
    assert not runner.fault


def test_a_run_that_overtakes_goes_before_the_last_that_has_not_begun() -> None:
    def run(name: int, *, overtakes: bool = False) -> Run:
        return Run((item(name, text="x"),), overtakes)

    runs: deque[Run] = deque()
    put_on_board(runs, run(1, overtakes=True))  # what it was to overtake has begun
    put_on_board(runs, run(2))
    put_on_board(runs, run(3, overtakes=True))
    assert [one.items[0].ticket for one in runs] == [1, 3, 2]
