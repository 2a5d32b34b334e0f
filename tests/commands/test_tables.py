"""Tables fit the terminal, and lose nothing by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commands.stats import _screen, page
from engine.commands.tables import NARROW, fit, table, width, wrap

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


@given(st.lists(st.text("ab 语", max_size=90), min_size=1, max_size=20), st.integers(2, 40), st.integers(1, 30))
def test_what_is_cut_to_a_terminal_fits_with_the_line_that_says_so(lines: list[str], columns: int, rows: int) -> None:
    shown, left = fit("\n".join(lines), columns, rows)
    kept = shown.split("\n") if shown else []
    assert lines[: len(kept)] == kept and not any(lines[len(kept) : len(lines) - left])
    assert sum(max(1, -(-width(line) // columns)) for line in kept) + bool(left) <= rows
    assert left or len(kept) == len(lines) or not any(lines)


def test_a_watched_page_fits_its_terminal_and_says_how_much_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(map(str, range(100)))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "80")
    assert _screen(text, watch=True) == text, "no terminal: whole frames"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    lines = _screen(text, watch=True).split("\n")
    assert lines[0].endswith("0") and lines[21:] == ["21", "… 78 more lines: run_node.py stats shows all"]
    assert _screen(text, watch=False) == text


def test_stats_begins_with_what_matters_and_tells_long_reasons_below_their_table() -> None:
    why = "1 of 2 workers will not come back by themselves: cuda:1 is quarantined: GPU is lost"
    stages = {"asr": {"waiting": 1}, "nmt": {}, "voc": {}, "tts": {}}
    waiting = [{"worker": "asr@cuda:0/0#1", "device": "cuda:0", "reason": "needs 3 GiB, and " * 9}]
    stats = {
        "scheduler": {"stages": stages, "workers": {}, "bottleneck": "asr is"},
        "health": {
            "stages": {
                "asr": {"reason": "no model", "note": why},
                "nmt": {"note": why},
                "voc": {"note": why},
                "tts": {"note": "new"},
            }
        },
        "arbiter": {"waiting": waiting, "devices": {"cuda:0": {}}},
        "leases": [lease("asr@cuda:0/0#1")],
        "placement": {"text": "all resident"},
    }
    lines = page(stats, "ipc://x").split("\n")
    assert all(width(line) < 120 or line.startswith("* ") for line in lines)
    for who, cell in (("asr", "not well *"), ("nmt", "ok *"), ("tts", "ok, new")):
        assert any(line.startswith(f"{who}    {cell}") for line in lines), who
    assert f"* asr: no model; {why}" in lines and f"* nmt, voc: ok, {why}" in lines
    assert f"* asr@cuda:0/0: {waiting[0]['reason']}" in lines
    heads = [line.partition(" (")[0].partition(",")[0] for line in lines]
    order = [heads.index(head) for head in ("Stages", "Devices", "Waiting for memory", "Leases", "Placement")]
    assert order == sorted(order) and lines.index("asr is") < order[0]


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
