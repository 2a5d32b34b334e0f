"""The timeline shows each run once, on its worker's row, and measures how much ran at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import timeline

MS = 1_000_000


def record(worker: str, begun_ms: float, ended_ms: float, queued_ms: float = 1.0, **more: Any) -> dict[str, Any]:
    """A stage record; times in ms of the node's clock."""
    times = {"queued_ns": int(queued_ms * MS), "begun_ns": int(begun_ms * MS), "ended_ns": int(ended_ms * MS)}
    return {"stage": worker.partition("@")[0], "state": "completed", "attempt": 1, "worker": worker, **times, **more}


def chart(*records: dict[str, Any]) -> dict[str, Any]:
    return timeline.trace([("s", i, [r]) for i, r in enumerate(records)])


def test_bars_stand_on_their_workers_row_with_times_from_the_first_queued() -> None:
    made = timeline.trace([("s", 0, [record("asr@cpu/0", 3, 5), record("nmt@cpu/0", 6, 7, queued_ms=5)])])
    rows = {e["tid"]: e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"}
    bars = [(rows[e["tid"]], e["ts"], e["dur"]) for e in made["traceEvents"] if e["ph"] == "X"]
    assert bars == [("asr@cpu/0", 2000.0, 2000.0), ("nmt@cpu/0", 5000.0, 1000.0)]
    assert json.loads(json.dumps(made)) == made


def test_every_attempt_has_its_bar_and_what_never_ran_has_none() -> None:
    failed = record("asr@cpu/0", 2, 3, state="failed")
    again = record("asr@cpu/1", 4, 6, attempt=2)
    skipped = {"stage": "repair", "state": "skipped", "worker": "", "begun_ns": 0, "ended_ns": 0}
    made = timeline.trace([("s", 0, [failed, again, skipped])])
    assert [e["args"]["attempt"] for e in made["traceEvents"] if e["ph"] == "X"] == [1, 2]


def test_overlap_is_the_share_of_the_makespan_with_two_workers_busy() -> None:
    #  a: 0---4      8-10
    #  b:   2-----7           two at once: 2..4 of 0..10
    made = chart(record("a@cpu/0", 10, 14), record("b@cpu/0", 12, 17), record("a@cpu/0", 18, 20))
    assert timeline.overlap_share(made) == pytest.approx(0.2)
    assert timeline.makespan_s(made) == pytest.approx(0.010)


def test_one_workers_batch_is_not_two_workers() -> None:
    made = chart(record("a@cpu/0", 10, 14), record("a@cpu/0", 10, 14), record("a@cpu/0", 12, 16))
    assert timeline.overlap_share(made) == 0.0
    assert timeline.busy_s(made) == {"a@cpu/0": pytest.approx(0.006)}


def test_runs_that_touch_do_not_overlap() -> None:
    assert timeline.overlap_share(chart(record("a@cpu/0", 1, 2), record("b@cpu/0", 2, 3))) == 0.0


def test_three_at_once_count_once() -> None:
    made = chart(record("a@cpu/0", 1, 5), record("b@cpu/0", 3, 5), record("c@cpu/0", 4, 5))
    assert timeline.overlap_share(made) == pytest.approx(0.5)
    assert timeline.overlap_share(made, workers=3) == pytest.approx(0.25)


def test_nothing_ran() -> None:
    made = timeline.trace([("s", 0, [])])
    assert (timeline.overlap_share(made), timeline.makespan_s(made), timeline.busy_s(made)) == (0.0, 0.0, {})


def test_times_that_did_not_happen_are_none() -> None:
    assert timeline.waiting_ms({"queued_ns": 5 * MS}) is None
    assert timeline.processing_ms({"begun_ns": 5 * MS}) is None
    assert timeline.waiting_ms(record("a", 3, 5, queued_ms=1)) == pytest.approx(2.0)
