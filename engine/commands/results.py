"""The results of a run on disk: one line of ``results.jsonl`` per outcome, one WAV per spoken one, ``timeline.json``.

Lines are written when their outcome arrives, unbuffered, so that a run cut short has lost nothing that had ended. A row
is made from the outcome alone; what was never submitted (a file that is no sound) gets a row of the same shape.

The folder may hold an earlier run. It is left as it is until this run's sessions are open; then the earlier run's
results, and the WAV files that they list, make way. What could not be written whole (a full disk) is taken away again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine import media, timeline
from engine.commands.inputs import Utterance
from engine.outcome import Outcome
from ipc.errors import DragomanError

Row = dict[str, Any]


def outcome_row(utterance: Utterance, outcome: Outcome, audio: str | None) -> Row:
    """The row of an outcome; ``audio``: the name of its WAV file, if it has one. What was rejected is an error too."""
    texts = outcome.texts
    return {
        "session": outcome.session,
        "tag": outcome.tag,
        "utterance_index": outcome.index,
        "outcome": "error" if outcome.outcome == "rejected" else outcome.outcome,
        "code": outcome.code or None,
        "input": utterance.name,
        "source_text": utterance.text,
        "transcript": texts.get("asr"),
        "repaired": texts.get("repair"),
        "translation": texts.get("nmt"),
        "audio": audio,
        "error": outcome.error or None,
        "degraded": outcome.degraded or None,
        "language": outcome.language or None,
        "stages": [stage_row(record) for record in outcome.stages],
    }


def refusal_row(utterance: Utterance, session: str, tag: str, index: int | None, code: str, error: str) -> Row:
    """The row of an utterance that no node accepted."""
    row: Row = dict.fromkeys(
        ("session", "tag", "utterance_index", "outcome", "code", "input", "source_text", "transcript", "repaired",
         "translation", "audio", "error", "degraded", "language")
    )  # fmt: skip
    row.update(session=session, tag=tag, utterance_index=index, outcome="error", code=code, input=utterance.name)
    row.update(error=error, source_text=utterance.text)
    row["stages"] = []
    return row


def stage_row(record: Mapping[str, Any]) -> Row:
    """One attempt at one stage, with times in ms."""
    return {
        "stage": record["stage"],
        "model": record.get("model") or None,
        "state": record["state"],
        "attempt": record.get("attempt", 0),
        "worker": record.get("worker") or None,
        "device": record.get("device") or None,
        "reason": record.get("reason") or None,
        "waiting_ms": timeline.waiting_ms(record),
        "processing_ms": timeline.processing_ms(record),
        "queued_ns": record.get("queued_ns", 0),
        "begun_ns": record.get("begun_ns", 0),
        "ended_ns": record.get("ended_ns", 0),
    }


class Results:
    """The folder of one run. ``open`` begins it, ``add`` writes one row, ``close`` writes the timeline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self._file: BinaryIO | None = None
        self._broken = False  # nothing more can be written

    def check(self) -> None:
        """Raises DragomanError when the folder could not be written to; touches nothing."""
        existing = next((place for place in (self.folder, *self.folder.absolute().parents) if place.exists()), None)
        if existing is None or not existing.is_dir():
            raise DragomanError(f"cannot write to {self.folder}: {existing} is no folder", "give another --out")
        if not os.access(existing, os.W_OK | os.X_OK):
            read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
            why = os.strerror(errno.EROFS if read_only else errno.EACCES)
            raise DragomanError(f"cannot write to {self.folder}: {why}", "give another --out")

    def open(self) -> None:
        """Make the folder and begin ``results.jsonl``; again does nothing. Raises DragomanError."""
        if self._file is not None:
            return
        path = self.folder / "results.jsonl"
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise DragomanError(f"another run is writing to {self.folder}", "give another --out") from None
            for name in _spoken_before(path):
                (self.folder / name).unlink(missing_ok=True)
            (self.folder / "timeline.json").unlink(missing_ok=True)
            file.truncate(0)
            self._file = file

    def add(self, row: Row) -> None:
        assert self._file is not None
        self.rows.append(row)
        end = self._file.tell()
        with self._writing():
            try:
                line = memoryview(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(end)  # half a line is no row
                raise

    def save_audio(self, utterance: Utterance, samples: np.ndarray | None, rate_hz: int) -> str | None:
        """Write the WAV of an outcome that has samples; its name, or None."""
        if samples is None or not len(samples):
            return None
        with self._writing(self.folder / utterance.wav_name):
            media.write_wav(self.folder / utterance.wav_name, samples, rate_hz)
        return utterance.wav_name

    def chart(self) -> dict[str, Any]:
        """The Chrome trace of everything so far."""
        return timeline.trace((row["session"], row["utterance_index"], row["stages"]) for row in self.rows)

    def close(self) -> None:
        """Write the timeline, unless writing has failed before."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        if not self._broken:
            path = self.folder / "timeline.json"
            with self._writing(path):
                path.write_text(json.dumps(self.chart()), encoding="utf-8")

    @contextmanager
    def _writing(self, whole: Path | None = None) -> Iterator[None]:
        """What the disk refuses is one line, and ``whole``, which is of no use in part, is removed."""
        try:
            yield
        except OSError as error:
            self._broken = True
            if whole is not None:
                whole.unlink(missing_ok=True)
            mend = "make room there, or give another --out"
            raise DragomanError(f"cannot write to {self.folder}: {error.strerror or error}", mend) from error


def _spoken_before(path: Path) -> list[str]:
    """Names of the WAV files that an earlier run's ``results.jsonl`` lists; of a file that is none: none."""
    names = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            name = json.loads(line).get("audio")
            if isinstance(name, str) and name.endswith(".wav") and Path(name).name == name:
                names.append(name)
    except (OSError, ValueError, AttributeError):
        return names
    return names


def all_ok(rows: Iterable[Row]) -> bool:
    return all(row["outcome"] == "ok" for row in rows)


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows ended how: ok, error, skipped."""
    return {"ok": 0, "error": 0, "skipped": 0} | Counter(row["outcome"] for row in rows)


def stage_means(rows: Iterable[Row]) -> list[Row]:
    """Per stage, in the order met: attempts by state, mean waiting and processing in ms."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        for record in row["stages"]:
            found.setdefault(record["stage"], []).append(record)
    return [
        {
            "stage": stage,
            "attempts": sum(record["processing_ms"] is not None for record in records),
            "states": dict(Counter(record["state"] for record in records)),
            "waiting_ms": _mean([record["waiting_ms"] for record in records]),
            "processing_ms": _mean([record["processing_ms"] for record in records]),
        }
        for stage, records in found.items()
    ]


def summary(rows: Sequence[Row], chart: Mapping[str, Any]) -> Row:
    """The run in figures: counts, stages, makespan, overlap, and the sum of all work by the makespan."""
    makespan = timeline.makespan_s(chart)
    work = sum(timeline.busy_s(chart).values())
    return {
        "outcomes": counts(rows),
        "stages": stage_means(rows),
        "makespan_s": makespan,
        "work_s": work,
        "overlap_share": timeline.overlap_share(chart),
        "work_over_makespan": work / makespan if makespan else 0.0,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
