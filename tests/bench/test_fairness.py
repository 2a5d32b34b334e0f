"""bench fairness on a real node, for a moment: every figure is there, and nothing is lost."""

from __future__ import annotations

import json
import math

import pytest

from bench import fairness


def test_a_short_run_gives_every_figure_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fairness.main(["--seconds", "2", "--rounds", "1", "--json"]) == 0
    found = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert found["reordered"] == found["not_ok"] == 0
    assert found["flood_per_session"] > 20 and found["told"] > 0 and found["retry_after_ratio_p50"] >= 1
    assert math.isfinite(found["p99_growth_over_service"]) and found["p99_beside_flood_s"] > 0


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--rounds", "x"]])
def test_bad_numbers_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fairness.main(arguments)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err
