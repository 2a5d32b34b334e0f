"""The simulated day: repeatable, nothing lost or out of order in it, and right where the answer is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from tqdm import tqdm

from bench import simulate
from bench.capacity_day import Day
from bench.capacity_figures import Figures
from bench.capacity_node import CapacityNode
from bench.capacity_times import SEED_TIMES, Speech, StageTime, full_run_s, parse_times, rates
from bench.capacity_worker import VirtualWorker
from ipc.messages import Run

ALIKE = Speech(5.0, 0.0)  # utterances of one length
FIXED = {"asr": StageTime(3.0), "repair": StageTime(0.5), "nmt": StageTime(3.0), "tts": StageTime(0.5)}
SMALL = Day(gpus=2, sessions=40, hours=0.25)
ROUGH = replace(SMALL, hours=1.0, load=0.5, worker_mtbf_h=0.2, gpu_mtbf_h=0.3, gpu_away_s=300.0)


def played(day: Day) -> tuple[CapacityNode, Figures]:
    node = CapacityNode(day)
    return node, node.run()


def test_the_same_seed_is_the_same_day_and_another_one_is_another() -> None:
    _, once = played(ROUGH)
    _, again = played(ROUGH)
    _, other = played(replace(ROUGH, seed=2))
    assert once == again
    assert once != other


def test_the_same_seed_is_the_same_day_in_another_process() -> None:
    def told(hash_seed: str) -> list[dict[str, object]]:
        command = [sys.executable, "-m", "bench.simulate", "--gpus", "2", "--sessions", "40", "--hours", "0.2"]
        command += ["--mtbf", "0.2", "--gpu-mtbf", "0.3", "--gpu-away", "60", "--json"]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [result for result in json.loads(found.stdout)["results"] if result["metric"] != "cpu_s"]

    assert told("1") == told("2")


def test_progress_is_told_in_numbers_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def kept(day: Day, what: str) -> tqdm:
        shown = progress(day, what)
        monkeypatch.setattr(shown, "close", lambda: told.append(str(shown)))
        return shown

    progress = simulate.progress
    monkeypatch.setattr(simulate, "progress", kept)
    simulate.play(replace(SMALL, hours=0.26), "the day")
    assert told[0].startswith("the day: 100% 16/16 [")


# ---------------------------------------------------------------- nothing is lost


def test_whatever_dies_each_utterance_ends_once_and_in_order() -> None:
    node, figures = played(ROUGH)
    assert figures.deaths > 20 and figures.outages > 1, "nothing went wrong, so this shows nothing"
    assert figures.spoken > 800 and figures.lost == 0 and figures.reordered == 0
    assert all(speaker.ended == speaker.spoken for speaker in node.speakers.values())
    assert figures.success_rate > 0.7
    node.check()
    assert node.scheduler.book.slots.idle


def test_a_worker_that_loses_a_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is not blind: what never comes back ends late and as expired."""
    lost = []
    runs: Callable[[VirtualWorker, object], None] = VirtualWorker.command

    def command(worker: VirtualWorker, message: object) -> None:
        if isinstance(message, Run) and not lost:
            lost.append(len(message.items))
        else:
            runs(worker, message)

    monkeypatch.setattr(VirtualWorker, "command", command)
    _, figures = played(SMALL)
    assert lost and figures.lost == 0 and figures.outcomes["expired"] >= lost[0]


def test_where_everything_dies_all_the_time_each_utterance_still_ends_once() -> None:
    _, figures = played(replace(SMALL, worker_mtbf_h=0.002))
    assert figures.lost == 0 and figures.reordered == 0
    assert figures.outcomes["ok"] < figures.spoken / 2 and figures.deaths > 500


def test_outcomes_out_of_order_are_noticed() -> None:
    """The judge is not blind: each of these sessions has several utterances on their way, and none waits for order."""
    day = Day(gpus=4, sessions=15, hours=0.2)
    orderly, unruly = CapacityNode(day), CapacityNode(day)
    unruly.gateway.books.hooks["gateway.reorder"] = "bypass"
    assert orderly.run().reordered == 0 and orderly.gateway.books.totals.held_max > 0
    assert unruly.run().reordered > 0


def test_a_gpu_that_is_away_gets_nothing_and_is_used_again_when_it_is_back() -> None:
    node = CapacityNode(replace(SMALL, gpu_away_s=120.0))
    node.after(100.0, node._fail, "cuda:1")
    runs = {role: worker.runs_done for role, worker in node.workers.items()}
    figures = node.run()
    assert figures.outages == 1 and figures.deaths == 4
    assert all(worker.life == (2 if worker.plan.device == "cuda:1" else 1) for worker in node.workers.values())
    assert all(worker.runs_done > runs[role] for role, worker in node.workers.items())
    away = replace(SMALL, gpu_away_s=3600.0)
    node = CapacityNode(away)
    node.after(20.0, node._fail, "cuda:1")
    node.run()
    assert sum(w.runs_done for w in node.workers.values() if w.plan.device == "cuda:1") < 20


# ---------------------------------------------------------------- closed forms


def test_an_utterance_that_has_the_node_for_itself_takes_the_sum_of_its_stages() -> None:
    _, figures = played(Day(gpus=1, sessions=1, load=None, speech=ALIKE, times=FIXED))
    assert figures.latency_s(0) == pytest.approx(7.0) and figures.extra_s(0) == pytest.approx(0.0)


def test_a_line_that_always_has_work_is_as_fast_as_its_slowest_stage() -> None:
    """The ideal line's throughput (bench.line): 1 / 0.6 a second, although 2 are spoken."""
    times = {"asr": StageTime(0.6), "repair": StageTime(0.1), "nmt": StageTime(0.5), "tts": StageTime(0.1)}
    day = Day(gpus=1, sessions=1, hours=0.5, load=None, pause_s=0.0, speech=Speech(0.5, 0.0), times=times, batch=1)
    node = CapacityNode(day)
    figures = node.run()
    worker = node.workers["asr@cuda:0/0"]
    assert figures.stages["asr"].utilisation == pytest.approx(1.0, abs=0.01)
    assert worker.items_done == figures.spoken and figures.bottleneck == "asr"
    assert figures.stages["nmt"].waiting_s == pytest.approx(0.0, abs=1e-6), "what leaves asr is spaced by 0.6 s"


def test_one_worker_and_random_arrivals_wait_as_queueing_theory_says() -> None:
    """M/D/1 (Pollaczek-Khinchine): mean wait = load x time / 2 (1 - load) = 1.5 s; behind it nobody waits at all."""
    day = Day(gpus=1, sessions=500, hours=6.0, load=0.5, speech=ALIKE, times=FIXED, batch=1)
    _, figures = played(day)
    assert figures.stages["asr"].waiting_s == pytest.approx(1.5, rel=0.1)
    assert figures.stages["nmt"].waiting_s < 0.01
    assert figures.stages["asr"].utilisation == pytest.approx(0.5, rel=0.05)


def test_the_load_that_is_asked_for_is_the_load_there_is() -> None:
    _, figures = played(Day(gpus=4, sessions=200, hours=1.0, load=0.8, times=FIXED, batch=1))
    assert figures.stages["asr"].utilisation == pytest.approx(0.8, rel=0.04)
    assert figures.throughput == pytest.approx(0.8 * 4 / 3, rel=0.04)


def test_more_gpus_serve_more() -> None:
    day = Day(gpus=1, sessions=20, hours=0.5, load=None, pause_s=50.0, batch=1)
    found = [played(replace(day, gpus=gpus))[1] for gpus in (1, 2, 4)]
    assert found[0].throughput < found[1].throughput <= found[2].throughput
    assert found[0].sessions_served < found[1].sessions_served <= found[2].sessions_served == 20
    assert found[0].waiting_s(99) > found[1].waiting_s(99) > found[2].waiting_s(99)


def test_waiting_is_short_at_four_fifths_of_the_load() -> None:
    """G4, for an hour of the day that `bench simulate` plays whole."""
    _, figures = played(replace(simulate.USUAL, hours=1.0, worker_mtbf_h=0.0, gpu_mtbf_h=0.0))
    assert figures.waiting_s(99) < 10 and figures.success_rate > 0.95 and not figures.lost


# ---------------------------------------------------------------- times


def test_a_run_takes_what_its_longest_utterance_takes_and_a_part_more_for_each_other() -> None:
    time = StageTime(1.0, 0.5)
    assert time.run_s([2.0], 0.3) == 2.0
    assert time.run_s([2.0, 4.0, 1.0], 0.25) == pytest.approx(3.0 * 1.5)
    assert full_run_s(time, Speech(2.0, 0.0), 3, 0.25) == pytest.approx(2.0 * 1.5)
    assert full_run_s(time, Speech(2.0, 0.6), 3, 0.25) > 2.0 * 1.5, "it is padded to the longest"


def test_the_seeds_times_are_the_seeds_for_five_seconds_of_audio() -> None:
    assert [time.alone_s(5.0) for time in SEED_TIMES.values()] == pytest.approx([3.0, 0.5, 3.0, 0.5])
    assert min(rates(SEED_TIMES, Speech(), 8, 1, 0.3).values()) == pytest.approx(8 / 3)


def test_times_are_given_stage_by_stage_over_the_seeds() -> None:
    times = parse_times("asr=2, tts=0.1+0.02")
    assert times["asr"] == StageTime(2.0) and times["tts"] == StageTime(0.1, 0.02)
    assert times["nmt"] == SEED_TIMES["nmt"] and list(times) == list(SEED_TIMES)


# ---------------------------------------------------------------- the command


def test_the_command_prints_its_metrics_and_the_bottleneck(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--gpus", "2", "--sessions", "40", "--hours", "0.1"]
    assert simulate.main([*asked, "--json"]) == 0
    found = {one["metric"]: one for one in json.loads(capsys.readouterr().out)["results"]}
    assert {"waiting_p50_s", "waiting_p90_s", "waiting_p99_s", "throughput", "utilisation_asr"} <= found.keys()
    assert found["waiting_p99_s"]["goal"] == "≤ 10" and found["lost"]["holds"] is True
    assert simulate.main(asked) == 0
    assert "The bottleneck is " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--gpus", "0"], "from 1 to 64"),
        (["--hours", "inf"], "from 0.01"),
        (["--load", "nan"], "from 0.01 to 2"),
        (["--times", "asr=fast"], "is no time"),
        (["--times", "asr=-1"], "must be above 0"),
        (["--times", "ocr=1"], "no stage 'ocr', only asr, repair, nmt, tts"),
        (["--sessions", "3"], "give more sessions or a lower load"),
        (["--load", "0.5", "--pause", "3"], "not allowed with"),
        (["--frobnicate"], "--frobnicate"),
        (["--sessions", "1", "--pause", "86400", "--hours", "0.05"], "nobody speaks in 0.05 hours: more --hours"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate.main(asked)
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out
    assert said in told.err and told.err.count("\n") == 1 and told.err.startswith("error: ")
