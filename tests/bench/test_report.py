"""A report is honest: what failed says so, and --json is one object and nothing else."""

from __future__ import annotations

import io
import json
import math

import pytest

from bench.report import ZERO, Goal, Report


def report(**values):
    found = Report("pipeline")
    found.add("eff_30ms", values.get("eff", 0.995), "ratio", Goal(at_least=0.99))
    found.add("reordered", values.get("reordered", 0), "outcomes", ZERO)
    found.add("makespan", 6.1, "s")
    return found


def test_json_has_the_documented_shape():
    out = io.StringIO()
    report().show(as_json=True, out=out)
    found = json.loads(out.getvalue())
    assert set(found) == {"name", "results", "machine", "versions"}
    assert found["results"][0] == {
        "metric": "eff_30ms", "value": 0.995, "unit": "ratio", "goal": "≥ 0.99", "holds": True,
    }  # fmt: skip
    assert found["results"][2]["goal"] is None and found["results"][2]["holds"] is None
    assert found["versions"]["pyzmq"]


def test_what_there_is_no_figure_of_is_a_dash_for_people():
    assert "nan" not in report(eff=math.nan).table()
    assert report(eff=math.nan).table().splitlines()[2].split()[:2] == ["eff_30ms", "-"]


def test_a_missed_goal_is_shown_and_does_not_fail():
    missed = report(eff=0.9)
    assert missed.exit_code == 0
    assert "missed" in missed.table()


def test_a_wrong_order_fails_the_benchmark():
    wrong = report(reordered=1)
    assert wrong.exit_code == 1
    assert "FAILS" in wrong.table()


@pytest.mark.parametrize(("goal", "inside", "outside"), [(Goal(at_least=2), 2, 1.9), (Goal(at_most=2), 2, 2.1)])
def test_goals_include_their_bound(goal, inside, outside):
    assert goal.holds(inside) and not goal.holds(outside)


def test_a_metric_that_could_not_be_measured_never_holds():
    assert not Goal(at_least=0).holds(math.nan)
    assert report(eff=math.nan).as_json()["results"][0]["value"] is None
