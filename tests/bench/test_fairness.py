"""bench fairness on a real node, for a moment: every figure is there, and nothing is lost."""

from __future__ import annotations

import json
import math

import pytest

from bench import fairness, workloads
from bench.drive import newest
from engine.node import Node


def test_a_short_run_gives_every_figure_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fairness.main(["--seconds", "2", "--rounds", "1", "--json"]) == 0
    found = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert found["reordered"] == found["not_ok"] == 0
    assert found["flood_per_session"] > 20 and found["retry_after_ratio_p90_weighted"] >= 1
    assert found["told"] > 0 and found["retry_after_ratio_p50"] >= 1
    assert math.isfinite(found["p99_growth_over_service"]) and found["p99_beside_flood_s"] > 0


def test_the_flood_keeps_to_no_share_and_counts_what_the_node_was_really_sent() -> None:
    with Node(workloads.translation()) as node:
        with node.client() as client, fairness.Flood(node.endpoint, 400.0) as flood:
            fairness.speak(client, 1.0, seed=0, what="beside a flood")
        heard = newest(node.stats, "gateway")["gateway"]
    assert flood.submitted > 3 * heard["accepted"], "it asks for more than it is admitted with"
    assert heard["busy"] > 0, "it does not wait for its share"
    assert flood.submitted <= heard["accepted"] + heard["busy"]


def test_a_crowd_has_priorities_and_weights_and_who_is_never_admitted_counts_too() -> None:
    with Node(workloads.translation()) as node:
        one = fairness.Plain(node.endpoint, "late", 8, {"priority": "low", "weight": 7})
        one._told = [(10.0, 0.5), (11.0, 9.0)]
        one.close(now=14.0)
        assert one.factors == [(10.0, 8.0)], "four seconds and not admitted, for one half that it was told"
        factors = fairness.crowd(node.endpoint, 4.0, fairness.WEIGHTED)
    assert factors and min(factors) >= 1


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--rounds", "x"]])
def test_bad_numbers_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fairness.main(arguments)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err
