"""A capacity plan: the node as asked for beside its neighbours, and the most sessions that each serves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench import plan
from bench.capacity_day import Day
from bench.capacity_figures import Figures
from bench.capacity_node import CapacityNode

ASKED = ["--gpus", "1", "--sessions", "12", "--hours", "0.2", "--batch", "2"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SEARCH_HOURS", 0.2)
    monkeypatch.setattr(plan, "PRECISION", 0.1)


def test_neighbours_have_one_gpu_more_or_other_batches_and_hear_the_same_speech() -> None:
    day = Day(gpus=2, sessions=50, load=0.7)
    found = plan.variants_of(day)
    asked, gpu, bigger, smaller = found.values()
    assert [(one.gpus, one.batch) for one in (gpu, bigger, smaller)] == [(3, 4), (2, 8), (2, 2)]
    assert "smaller_batch" not in plan.variants_of(replace(day, batch=1))
    assert len({one.rate for one in found.values()}) == 1 and asked.offered == pytest.approx(0.7)
    assert gpu.offered == pytest.approx(0.7 * 2 / 3)


def test_the_most_sessions_are_served_and_many_more_are_not() -> None:
    day = Day(gpus=2, sessions=10, hours=0.2, load=None)
    most = plan.most_sessions(day, True, "a node")
    assert plan.serves(replace(day, sessions=most, hours=0.2))
    assert not plan.serves(replace(day, sessions=3 * most, hours=0.2))


def test_nobody_is_served_where_one_utterance_takes_too_long() -> None:
    times = dict(Day().times)
    times["asr"] = replace(times["asr"], base_s=400.0)
    assert plan.most_sessions(Day(gpus=1, sessions=10, load=None, pause_s=1000.0, times=times), False, "a node") == 0


@pytest.mark.parametrize("sessions", [1, 2, 40])
def test_what_the_plan_says_of_the_sessions_asked_for_and_of_the_most_agrees(
    sessions: int, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ["--pause", "300", "--times", "asr=12,repair=0.5,nmt=12,tts=0.5", "--hours", "0.5"]  # two at once: one waits
    assert plan.main(["--gpus", "1", "--sessions", str(sessions), *slow, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    most = {one["metric"]: one["value"] for one in told["results"]}["sessions_most"]
    is_served = f"{sessions} sessions are served" in told["advice"][0]
    assert most >= sessions if is_served else most < sessions
    assert most > 0, "one is always served"


def test_a_stage_that_is_seldom_busy_is_no_bottleneck_and_nothing_waits_for_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main(["--gpus", "1", "--sessions", "1", "--pause", "60", "--hours", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "No stage is a bottleneck yet; the busiest is " in out and ": its worker is busy " in out
    waits = [line.split()[1] for line in out.splitlines() if line.startswith("waiting_p50_s ")]
    assert waits == ["0"]


def test_the_plan_tells_what_is_served_what_limits_and_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*ASKED, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    metrics = {one["metric"]: one["value"] for one in told["results"]}
    assert metrics["sessions"] == 12 and metrics["sessions_most_one_more_gpu"] > metrics["sessions_most"] > 0
    assert {"sessions_served", "waiting_p50_s", "waiting_p90_s", "waiting_p99_s", "throughput"} <= metrics.keys()
    assert told["bottleneck"] in ("asr", "nmt") and told["bottleneck"] in told["advice"][1]
    assert told["variants"]["one_more_gpu"]["gpus"] == 2 and told["variants"]["bigger_batch"]["batch"] == 4
    assert plan.main([*ASKED, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["results"], again["variants"]) == (told["results"], told["variants"])


def test_the_advice_is_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(ASKED) == 0
    out = capsys.readouterr().out
    assert (
        "The bottleneck is " in out
        and "One more GPU: about " in out
        and "Batches of 4 (if memory suffices): about " in out
    )
    assert "Batches of 1: about " in out


def test_a_time_in_which_nobody_speaks_says_nothing_of_the_node(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.main(["--gpus", "1", "--sessions", "1", "--pause", "86400", "--hours", "0.05"])
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out
    assert "nobody speaks in 0.05 hours: more --hours" in told.err and told.err.count("\n") == 1


def test_a_node_that_loses_outcomes_fails_the_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = CapacityNode.run

    def losing(node: CapacityNode, *args: object) -> Figures:
        figures = play(node)
        figures.spoken += 1
        return figures

    monkeypatch.setattr(CapacityNode, "run", losing)
    assert plan.main(ASKED) == 1
    assert "FAILS" in capsys.readouterr().out
