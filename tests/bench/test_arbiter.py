"""bench arbiter times what it says: grants, with a line of that length, in a book that stays right."""

from __future__ import annotations

import json

import pytest

from bench import arbiter
from bench.report import Goal


def test_the_report_has_a_figure_for_each_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert arbiter.main(["--waiting", "1", "50", "--decisions", "20", "--json"]) == 0
    figures = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert set(figures) >= {"decision_us_1", "decision_p99_us_1", "decision_us_50", "other_us_50"}
    assert figures["decision_us_50"] == max(figures["decision_named_us_50"], figures["decision_mixed_us_50"])
    assert all(value > 0 for value in figures.values())


@pytest.mark.parametrize("devices", [arbiter.GPUS[:1], arbiter.GPUS])
def test_what_it_times_are_grants_with_that_many_waiting(devices: tuple[str, ...]) -> None:
    bench = arbiter.Bench(200, 3, devices)
    bench.decide(30)
    bench.book.check()
    report = bench.book.snapshot(bench.now)
    assert len(bench.decisions_us) >= 30 and report["counts"]["granted"] >= 30
    assert report["waiting_total"] == 200 and report["counts"].get("expired", 0) == 0
    for device in devices:
        held = sum(row["nbytes"] for row in report["leases"] if row["device"] == device)
        assert arbiter.TOTAL // 2 < held <= arbiter.TOTAL, "the device is well used, and not over-used"


@pytest.mark.parametrize(("argv", "code"), [([], 0), (["--strict"], 1)])
def test_decisions_that_take_too_long_are_a_failure_where_that_is_asked_for(
    argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(arbiter.GOALS, 1000, Goal(at_most=1e-6))
    assert arbiter.main(["--waiting", "1000", "--decisions", "10", *argv]) == code
