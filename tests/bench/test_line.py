"""The ideal line is a true bound, and impossible intervals do not go unnoticed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import line

W1 = [30.0, 5.0, 30.0, 5.0]
TABLES = st.lists(st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=1, max_size=12)


def outcome(*records):
    keys = ("stage", "worker", "begun_ns", "ended_ns")
    return SimpleNamespace(stages=[dict(zip(keys, record, strict=True)) for record in records])


def test_one_utterance_takes_the_sum_of_its_stages():
    assert line.makespan([W1]) == 70


def test_a_long_line_is_paced_by_its_slowest_stage():
    assert line.makespan([W1] * 200) == 70 + 199 * 30


def test_the_seeds_speed_up_is_what_the_line_allows():
    assert line.serial([W1] * 200) / line.makespan([W1] * 200) == pytest.approx(2.318, abs=0.001)


def test_latency_limit_of_a_backlog_of_20():
    pipelined = sum(line.completions([W1] * 20)) / 20
    one_by_one = sum(70 * (k + 1) for k in range(20)) / 20
    assert 1 - pipelined / one_by_one == pytest.approx(0.517, abs=0.001)


def test_a_slow_utterance_holds_up_those_behind_it_only_where_it_is_slow():
    assert line.makespan([[1, 1], [5, 1], [1, 1]]) == 8


@given(TABLES)
def test_no_line_beats_its_busiest_stage_nor_loses_to_serial(table):
    busiest = max(sum(column) for column in zip(*table, strict=True))
    assert busiest - 1e-6 <= line.makespan(table) <= line.serial(table) + 1e-6


@given(TABLES)
def test_completions_end_at_the_makespan_and_never_go_back(table):
    ends = line.completions(table)
    assert ends[-1] == line.makespan(table)
    assert ends == sorted(ends)


def test_stage_times_add_up_attempts_and_leave_out_what_never_ran():
    one = outcome(
        ("asr", "a", 1_000_000_000, 2_000_000_000), ("asr", "a", 3_000_000_000, 3_500_000_000), ("nmt", "n", 0, 0)
    )
    assert line.stage_times([one], ["asr", "nmt"]) == [[1.5, 0.0]]


def test_a_worker_that_claims_two_runs_at_once_is_caught():
    honest = [outcome(("asr", "a", 0, 10)), outcome(("asr", "a", 10, 20)), outcome(("asr", "b", 5, 15))]
    assert line.overlaps(honest[1:]) == 0
    assert line.overlaps([outcome(("asr", "a", 1, 10)), outcome(("asr", "a", 9, 20))]) == 1


def test_a_run_that_ends_before_it_begins_is_caught():
    assert line.overlaps([outcome(("asr", "a", 20, 10))]) == 1


def test_order_is_counted_against_the_next_index():
    assert line.reordered([0, 1, 2]) == 0
    assert line.reordered([0, 2, 1]) == 2
    assert line.reordered([4, 5], first=4) == 0
