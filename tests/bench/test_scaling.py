"""bench scaling compares with the ideal line of as many workers, and counts what is wrong in every session."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from bench import line, scaling, workloads
from bench.drive import Run
from bench.scaling import STAGES, Measured
from stages.simulated import MARK_PREFIX, mark_samples

W1 = [30.0, 5.0, 30.0, 5.0]
MS = 1_000_000
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")


def test_the_four_fold_line_has_the_limit_that_fill_and_drain_leave() -> None:
    assert line.makespan([W1] * 200) / line.makespan([W1] * 200, 4) == pytest.approx(3.92, abs=0.005)


def test_with_as_many_workers_as_utterances_each_takes_its_own_time() -> None:
    table = [[3.0, 1.0], [7.0, 2.0], [1.0, 1.0]]
    assert line.makespan(table, 3) == 9
    assert line.makespan(table, 1) == 13
    assert line.makespan([], 2) == 0


def outcome(index: int, mark: int, ms=W1, ok: bool = True) -> SimpleNamespace:
    begun, stages = 0, []
    for name, spent in zip(STAGES, ms, strict=True):
        stages.append(
            {"stage": name, "worker": f"{name}{mark}", "begun_ns": begun + 1, "ended_ns": begun + 1 + spent * MS}
        )
        begun += int(spent * MS) + 1
    texts = {"asr": MARK_PREFIX + mark.to_bytes(8, "little").hex()}
    samples = mark_samples(mark, workloads.OUTPUT_BYTES // 2)
    return SimpleNamespace(
        index=index, ok=ok, outcome="ok" if ok else "error", texts=texts, audio=samples, stages=stages
    )


def measured(gpus: int, makespan_s: float, count: int = 8, held: int = 3, **wrong: int) -> Measured:
    runs = [Run([outcome(n, 1 + n * gpus + s) for n in range(count)], [makespan_s] * count) for s in range(gpus)]
    return Measured(gpus, runs, wrong.get("mixed_up", 0), held)


def test_what_was_reached_is_compared_with_the_line_of_as_many_workers() -> None:
    ideal = line.makespan([W1] * 16, 2) / 1000
    assert measured(2, ideal).of_limit == pytest.approx(1)
    assert measured(2, 2 * ideal).of_limit == pytest.approx(0.5)
    assert measured(2, ideal).eff == pytest.approx(1)


def summary(held: int = 3, reorder: bool = False, failed: bool = False, mixed_up: int = 0):
    rounds = [{gpus: measured(gpus, 0.4) for gpus in scaling.GPUS}]
    single = {1: measured(1, 2.0), 2: measured(1, 1.0, held=held, mixed_up=mixed_up)}
    outcomes = rounds[0][4].sessions[2].outcomes
    if reorder:
        outcomes[0], outcomes[1] = outcomes[1], outcomes[0]
    if failed:
        outcomes[3] = outcome(3, 3, ok=False)
    return scaling.summary(rounds, single)


def test_the_report_has_the_metrics_the_goals_name() -> None:
    report = summary()
    assert set(scaling.GOALS) | {"reordered", "mixed_up"} <= {result.metric for result in report.results}
    assert report["one_session_x2"] == 2 and report["held_max"] == 3 and report["success_rate"] == 1
    assert report.exit_code == 0


@pytest.mark.parametrize("wrong", [{"held": 0}, {"reorder": True}, {"failed": True}, {"mixed_up": 1}])
def test_a_fault_in_any_session_fails_the_benchmark(wrong: dict[str, int]) -> None:
    assert summary(**wrong).exit_code == 1


@needs_gcc
def test_two_gpus_serve_their_sessions_in_order() -> None:
    found = scaling.measure(2, 16, "test", sessions=2)
    assert [[o.index for o in run.outcomes] for run in found.sessions] == [list(range(8))] * 2
    assert {o.outcome for o in found.outcomes} == {"ok"} and found.mixed_up == 0
    devices = {record["device"] for o in found.outcomes for record in o.stages}
    assert devices == {"cuda:0", "cuda:1"}
    assert 0 < found.of_limit < found.eff, "a sleep takes longer than it says"


@needs_gcc
def test_utterances_of_one_session_overtake_each_other_and_wait_for_their_turn() -> None:
    found = scaling.measure(2, 40, "test", sigma=scaling.SIGMA)
    assert [o.index for o in found.outcomes] == list(range(40))
    assert found.held_max > 0
    asr = [row[0] for row in line.stage_times(found.outcomes, STAGES)]
    assert max(asr) > 3 * min(asr), "lengths vary"


@needs_gcc
def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--json", "--rounds", "1", "--utterances", "8", "--long", "30"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "scaling" and report["results"][0]["metric"] == "x1_of_limit_30ms"
