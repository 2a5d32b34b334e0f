"""Tables fit the terminal, and lose nothing by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commands.stats import page
from engine.commands.tables import NARROW, table, width, wrap

HEAD = ["stage", "at once", "because"]
ROWS = [["asr", 1, "it waits for /a/very/long/path/without/a/blank/that/goes/on and on " * 3], ["词语", 20, None]]


def test_a_wide_table_is_broken_between_words_and_every_word_is_there() -> None:
    lines = table(HEAD, ROWS, 80).split("\n")
    assert max(map(width, lines)) <= 80 and len(lines) > 5
    assert " ".join(lines).count("/a/very/long/path/without/a/blank/that/goes/on") == 3


def test_without_a_terminal_every_row_is_one_line() -> None:
    assert len(table(HEAD, ROWS).split("\n")) == len(table(HEAD, ROWS, 0).split("\n")) == 4


@given(st.text("ab 语/", max_size=60), st.integers(2, 30))
def test_what_is_wrapped_fits_and_loses_nothing(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert max(map(width, lines)) <= columns
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.lists(st.text("ab 语/", max_size=90), min_size=4, max_size=4), max_size=3))
def test_a_table_of_any_text_fits(rows: list[list[str]]) -> None:
    lines = table(["a", "b", "c", "d"], rows, 4 * NARROW + 6).split("\n")
    assert max(map(width, lines)) <= 4 * NARROW + 6


def lease(worker: str, **more: object) -> dict[str, object]:
    return {"lease": 1, "worker": worker, "device": "cuda:0", "nbytes": 2**30, "state": "held", **more}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (lease("asr@cuda:0/0#2", model="models/asr"), "asr@cuda:0/0#2  cuda:0  1.0 GiB  held"),
        (lease("lease@77/1#9", model="train.py"), "train.py (pid 77)  cuda:0  1.0 GiB  held"),
        (lease("lease@77/1#9", model="x", preemptible=True), "held, may be asked to leave"),
        (lease("lease@77/1#9", model="x", preemptible=True, asked_to_leave=True), "GiB  asked to leave"),
        (lease("lease@77/1#9", preemptible=True, asked_to_leave=True, overdue=True), "overdue: it was asked to leave"),
    ],
)
def test_stats_names_the_holder_of_a_lease_and_says_who_was_asked_to_leave(row: dict[str, object], says: str) -> None:
    assert says in page({"leases": [row]}, "ipc://x")


def test_stats_shows_a_device_that_cannot_be_read_as_one_that_grants_nothing() -> None:
    devices = {"cuda:0": {"memory_source": "nvml", "total_bytes": 2**33, "free_bytes": 2**33, "grantable_bytes": 2**32}}
    assert "cuda:0  nvml   8.0 GiB  8.0 GiB  4.0 GiB" in page({"arbiter": {"devices": devices}}, "ipc://x")
    told = page({"arbiter": {"devices": devices}, "health": {"unreadable": ["cuda:0"]}}, "ipc://x")
    assert "cuda:0  unreadable  8.0 GiB  8.0 GiB  0 B" in told
