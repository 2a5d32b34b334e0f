"""What a run leaves behind: one line per outcome as it comes, WAVs, a timeline, figures that add up."""

from __future__ import annotations

import json
import os
import resource
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.commands import results
from engine.commands.inputs import Utterance
from engine.commands.results import Results
from engine.outcome import Outcome
from ipc.errors import DragomanError

FIELDS = {
    "session", "tag", "utterance_index", "outcome", "code", "input", "transcript", "repaired", "translation", "audio",
    "error", "degraded", "stages",
}  # fmt: skip
TALK = Utterance(4, 1, Path("talk.mp3"))


def stage(name: str, begun_ms: int, ended_ms: int, **more: Any) -> dict[str, Any]:
    times = {"queued_ns": begun_ms * 10**6 - 2_000_000, "begun_ns": begun_ms * 10**6, "ended_ns": ended_ms * 10**6}
    return (
        {"stage": name, "state": "completed", "attempt": 1, "worker": f"{name}@cpu/0", "device": "cpu"} | times | more
    )


def outcome(**more: Any) -> Outcome:
    texts = {"asr": "the fox", "repair": "the fox", "nmt": "der Fuchs"}
    given = {
        "session": "s0.1",
        "tag": "s0",
        "index": 7,
        "outcome": "ok",
        "texts": texts,
        "stages": [stage("asr", 10, 30)],
    }
    return Outcome(**(given | more))


def test_a_row_has_every_field_and_times_in_ms() -> None:
    row = results.outcome_row(TALK, outcome(), "004_talk.wav")
    assert row.keys() >= FIELDS
    assert (row["session"], row["tag"], row["utterance_index"], row["input"]) == ("s0.1", "s0", 7, "talk.mp3")
    assert (row["transcript"], row["repaired"], row["translation"]) == ("the fox", "the fox", "der Fuchs")
    assert row["audio"] == "004_talk.wav"
    (one,) = row["stages"]
    assert (one["state"], one["attempt"], one["device"]) == ("completed", 1, "cpu")
    assert (one["waiting_ms"], one["processing_ms"]) == (2.0, 20.0)


def test_silence_is_an_empty_transcript_and_what_was_not_made_is_null() -> None:
    row = results.outcome_row(TALK, outcome(texts={"asr": ""}), None)
    assert row["transcript"] == ""
    assert row["translation"] is None
    assert row["audio"] is None


def test_what_the_node_rejected_is_an_error_with_its_code() -> None:
    row = results.outcome_row(
        TALK, outcome(outcome="rejected", code="bad_language", error="no such", texts={}, stages=[]), None
    )
    assert (row["outcome"], row["code"], row["error"]) == ("error", "bad_language", "no such")


def test_a_refused_file_has_a_row_of_the_same_shape() -> None:
    row = results.refusal_row(TALK, "s0.1", "s0", None, "bad_audio", "talk.mp3 is no sound")
    assert row.keys() == results.outcome_row(TALK, outcome(), None).keys()
    assert (row["outcome"], row["code"], row["utterance_index"], row["stages"]) == ("error", "bad_audio", None, [])
    assert (row["session"], row["tag"]) == ("s0.1", "s0")


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    kept = Results(tmp_path / "deep" / "out")
    kept.open()
    kept.add(results.outcome_row(TALK, outcome(texts={"asr": "Füchse"}), None))
    lines = (tmp_path / "deep" / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["transcript"] for line in lines] == ["Füchse"]
    kept.close()
    kept.close()


def test_the_timeline_is_written_at_the_end_from_the_rows(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.open()
    kept.add(results.outcome_row(TALK, outcome(), None))
    kept.add(results.refusal_row(TALK, "s0.1", "s0", None, "bad_audio", "no"))
    kept.close()
    chart = json.loads((tmp_path / "timeline.json").read_text())
    assert [e["name"] for e in chart["traceEvents"] if e["ph"] == "X"] == ["s0.1/7 asr"]


def test_audio_is_a_wav_at_its_own_rate_and_none_when_there_is_none(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.open()
    assert kept.save_audio(TALK, np.arange(100, dtype=np.int16), 22_050) == "004_talk.wav"
    assert kept.save_audio(TALK, None, 0) is None
    assert kept.save_audio(TALK, np.zeros(0, np.int16), 22_050) is None
    with wave.open(str(tmp_path / "004_talk.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (22_050, 100)
    kept.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DragomanError, match="cannot write to"):
        Results(tmp_path / "file" / "out").open()


def test_an_earlier_run_is_left_alone_until_the_new_one_begins_and_makes_way_then(tmp_path: Path) -> None:
    earlier = Results(tmp_path)
    earlier.open()
    name = earlier.save_audio(TALK, np.ones(10, np.int16), 16_000)
    earlier.add(results.outcome_row(TALK, outcome(), name))
    earlier.close()
    (tmp_path / "mine.wav").write_bytes(b"not of a run")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fresh = Results(tmp_path)
    fresh.check()
    fresh.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    fresh.open()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.wav", "results.jsonl"]
    assert (tmp_path / "results.jsonl").read_bytes() == b""
    fresh.close()


@pytest.mark.parametrize(("flags", "why"), [(os.ST_RDONLY, "Read-only file system"), (0, "Permission denied")])
def test_a_folder_that_takes_nothing_is_told_as_the_system_does(
    flags: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    with pytest.raises(DragomanError, match=f"cannot write to .*: {why}; give another --out"):
        Results(tmp_path / "out").check()


@contextmanager
def disk_of(nbytes: int) -> Iterator[None]:
    """No file can grow beyond ``nbytes``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    kept = Results(tmp_path)
    kept.open()
    kept.add(results.outcome_row(TALK, outcome(), None))
    written = (tmp_path / "results.jsonl").read_bytes()
    with disk_of(len(written) + 10):
        with pytest.raises(DragomanError, match=r"cannot write to .*make room"):
            kept.save_audio(TALK, np.ones(10_000, np.int16), 16_000)
        with pytest.raises(DragomanError, match=r"cannot write to .*make room"):
            kept.add(results.outcome_row(TALK, outcome(), None))
        kept.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"results.jsonl": written}


def test_figures_add_up() -> None:
    rows = [
        results.outcome_row(TALK, outcome(stages=[stage("asr", 10, 30), stage("nmt", 30, 40)]), None),
        results.outcome_row(
            TALK, outcome(outcome="error", code="failed", stages=[stage("asr", 30, 50, state="failed")]), None
        ),
    ]
    kept = Results(Path("unused"))
    kept.rows = rows
    figures = results.summary(rows, kept.chart())
    assert figures["outcomes"] == {"ok": 1, "error": 1, "skipped": 0}
    assert figures["makespan_s"] == pytest.approx(0.040)
    assert figures["work_s"] == pytest.approx(0.050)
    assert figures["work_over_makespan"] == pytest.approx(1.25)
    assert figures["overlap_share"] == pytest.approx(0.25)
    asr, nmt = figures["stages"]
    assert (asr["stage"], asr["attempts"], asr["states"]) == ("asr", 2, {"completed": 1, "failed": 1})
    assert nmt["processing_ms"] == pytest.approx(10.0)
    assert not results.all_ok(rows)
