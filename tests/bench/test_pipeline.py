"""bench pipeline counts what is wrong, and its figures follow from the intervals the node reports."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bench import line, pipeline, workloads
from bench.drive import Run, arrived, within
from bench.pipeline import STAGES, Measured, mixed_up
from stages.simulated import MARK_PREFIX, mark_samples


def outcome(index, mark, *, audio=None, state="ok"):
    samples = mark_samples(mark if audio is None else audio, workloads.OUTPUT_BYTES // 2)
    texts = {"asr": MARK_PREFIX + mark.to_bytes(8, "little").hex()}
    return SimpleNamespace(index=index, outcome=state, texts=texts, audio=samples, stages=[])


def measured(makespan_s, count=200, ms=(30, 5, 30, 5), wrong=0, latency_s=None):
    run = Run([outcome(n, n + 1) for n in range(count)], [latency_s or makespan_s] * (count - 1) + [makespan_s])
    return Measured(run, [[t / 1000 for t in ms]] * count, wrong)


def test_every_utterance_is_sent_with_a_mark_of_its_own():
    marks, utterances = workloads.marked(50)
    assert len(set(marks)) == 50
    assert {u.nbytes for u in utterances} == {320_000}


def test_an_outcome_with_anothers_mark_is_counted():
    marks = [11, 22, 33]
    right = Run([outcome(n, mark) for n, mark in enumerate(marks)])
    assert mixed_up(right, marks) == 0
    assert mixed_up(Run([outcome(0, 22), outcome(1, 22)]), marks) == 1
    assert mixed_up(Run([outcome(0, 11, audio=22)]), marks) == 1, "right transcript, another's audio"


def test_a_result_that_is_torn_or_cut_off_is_counted():
    torn, cut, none = outcome(0, 11), outcome(0, 11), outcome(0, 11)
    torn.audio[50_000] ^= 1
    cut.audio, none.audio = cut.audio[:-1], None
    for bad in (torn, cut, none):
        assert mixed_up(Run([bad]), [11]) == 1


def test_efficiency_is_the_ideal_makespan_over_the_measured_one():
    ideal = 0.070 + 199 * 0.030
    assert measured(ideal).eff == pytest.approx(1)
    assert measured(2 * ideal).eff == pytest.approx(0.5)
    slow = measured(2 * ideal, ms=(60, 10, 60, 10))
    assert slow.eff == pytest.approx(1) and slow.of_limit(1) == pytest.approx(0.5)


def summary(**wrong):
    good = {"30ms": 6.1, "serial": 14.1, "3ms": 0.62, "gil40": 6.1, "short": 0.65, "short_serial": 1.41}
    return pipeline.summary({name: [measured(s, wrong=wrong.get(name, 0))] * 3 for name, s in good.items()})


def test_the_report_has_the_metrics_the_goals_name():
    names = [result.metric for result in summary().results]
    assert set(pipeline.GOALS) | {"reordered", "mixed_up"} <= set(names)
    assert summary()["speedup_over_serial"] == pytest.approx(14.1 / 6.1)
    assert summary()["bottleneck_busy_serial"] == pytest.approx(200 * 0.03 / 14.1)
    assert summary()["bottleneck_busy_pipelined"] == pytest.approx(200 * 0.03 / 6.1)
    assert summary().exit_code == 0


def test_one_mixed_up_utterance_anywhere_fails_the_benchmark():
    assert summary(gil40=1).exit_code == 1
    assert summary(gil40=1)["error_rate"] == pytest.approx(3 / (3 * (4 * 200 + 2 * 200)))


def test_a_node_that_hangs_does_not_hang_the_benchmark():
    with pytest.raises(TimeoutError, match="3ms did not end within"), within(0.05, "3ms"):
        while True:
            pass


def test_taking_what_has_arrived_does_not_wait():
    class Session:
        def outcomes(self, timeout_s):
            assert timeout_s == 0
            yield 1
            raise TimeoutError

    assert list(arrived(Session())) == [1]


def test_a_real_node_through_the_whole_measurement():
    found = pipeline.measure(workloads.translation(0.1), 12, "test")
    assert [o.outcome for o in found.run.outcomes] == ["ok"] * 12
    assert found.mixed_up == 0
    assert line.reordered(o.index for o in found.run.outcomes) == 0
    assert line.overlaps(found.run.outcomes) == 0
    assert all(
        spent >= ms / 10_000 for row in found.durations for spent, ms in zip(row, workloads.W1_MS.values(), strict=True)
    )
    assert 0 < found.eff <= 1, "nothing is faster than the ideal line"


def test_json_is_one_object_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "measure", lambda config, count, what: measured(6.1, count))
    assert pipeline.main(["--json", "--rounds", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "pipeline"


def test_the_workload_is_the_seeds_profile():
    config = workloads.translation()
    assert config.pipelines["full"] == STAGES == ("asr", "repair", "nmt", "tts")
    assert [config.stages[name].options["sleep_ms"] for name in STAGES] == [30, 5, 30, 5]
