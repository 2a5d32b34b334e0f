"""The timeline as a picture: a bar for every attempt, in its session's colour; an empty run is a picture too."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from engine import picture, timeline


def record(stage: str, begun_ms: int, ended_ms: int) -> dict:
    return {"stage": stage, "worker": f"{stage}@cpu/0", "state": "completed", "attempt": 1, "queued_ns": 1,
            "begun_ns": begun_ms * 1_000_000, "ended_ns": ended_ms * 1_000_000}  # fmt: skip


def colours(path: Path) -> set[str]:
    with Image.open(path) as image:
        return {"#{:02x}{:02x}{:02x}".format(*pixel) for _, pixel in image.convert("RGB").getcolors(1 << 24)}


def test_each_session_has_its_colour(tmp_path: Path) -> None:
    chart = timeline.trace([("a", 0, [record("asr", 1, 100)]), ("b", 0, [record("asr", 100, 300)])])
    picture.draw(chart, tmp_path / "t.png", "two sessions")
    found = colours(tmp_path / "t.png")
    assert set(picture.COLOURS[:2]) <= found and picture.COLOURS[2] not in found
    with Image.open(tmp_path / "t.png") as image:
        assert image.size == (picture.WIDTH, picture.TOP + picture.ROW + picture.BOTTOM)


def test_a_run_in_which_nothing_ran(tmp_path: Path) -> None:
    picture.draw(timeline.trace([]), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 0


@pytest.mark.parametrize("end", [999.0, 1.53e6, 60e6])
def test_ticks_are_round_and_few(end: float) -> None:
    ticks = picture._ticks(end)
    assert ticks[0] == 0 and ticks[-1] <= end and 3 <= len(ticks) <= picture.TICKS + 1
