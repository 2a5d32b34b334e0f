"""The timeline of a run as a picture: one row a worker, one bar an attempt, one colour a session. Drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import timeline

WIDTH, ROW, LEFT, TOP, BOTTOM, RIGHT = 1200, 44, 170, 66, 46, 20
COLOURS = ("#3b76c4", "#d9822b", "#4a9d5b", "#b3486a", "#7b5fb8", "#8a7a3d")
INK, FAINT, PAPER = "#222222", "#d5d5d5", "#ffffff"
TICKS = 8  # at least half as many
_STEPS = (1, 2, 5)


def draw(chart: Mapping[str, Any], path: Path, title: str = "", speakers: Mapping[str, str] | None = None) -> None:
    """Write the PNG of a Chrome trace (``timeline.trace``). Raises OSError.

    ``speakers``: what to call a session.
    """
    from PIL import Image, ImageDraw

    names = {e["tid"]: e["args"]["name"] for e in chart["traceEvents"] if e["name"] == "thread_name"}
    bars = [event for event in chart["traceEvents"] if event["ph"] == "X"]
    rows = {tid: number for number, tid in enumerate(sorted(names, key=lambda tid: _first(bars, tid)))}
    sessions = {name: n for n, name in enumerate(dict.fromkeys(bar["args"]["session"] for bar in bars))}
    end = max((bar["ts"] + bar["dur"] for bar in bars), default=1.0)
    height = TOP + ROW * len(rows) + BOTTOM
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    small, large = font(13), font(18)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / end

    pen.text((LEFT, 12), title, fill=INK, font=large)
    for name, number in sessions.items():
        at = LEFT + 190 * number
        pen.rectangle((at, 42, at + 14, 54), fill=_colour(number))
        pen.text((at + 20, 41), (speakers or {}).get(name, name)[:24], fill=INK, font=small)
    for tick in _ticks(end):
        pen.line((x(tick), TOP, x(tick), height - BOTTOM), fill=FAINT)
        pen.text((x(tick), height - BOTTOM + 8), f"{tick / 1e6:g} s", fill=INK, font=small, anchor="ma")
    for tid, number in rows.items():
        y = TOP + ROW * number
        pen.line((LEFT, y + ROW, WIDTH - RIGHT, y + ROW), fill=FAINT)
        pen.text((LEFT - 10, y + ROW / 2), names[tid], fill=INK, font=small, anchor="rm")
    for bar in bars:
        y = TOP + ROW * rows[bar["tid"]]
        left, right = x(bar["ts"]), max(x(bar["ts"] + bar["dur"]), x(bar["ts"]) + 2)
        pen.rectangle((left, y + 7, right, y + ROW - 8), fill=_colour(sessions[bar["args"]["session"]]))
        if right - left > 18:
            label = str(bar["args"]["index"])
            pen.text(((left + right) / 2, y + ROW / 2), label, fill=PAPER, font=small, anchor="mm")
    image.save(path)


def makespan_text(chart: Mapping[str, Any]) -> str:
    """The title of a run's picture."""
    return f"{timeline.makespan_s(chart):.2f} s, two or more workers busy {timeline.overlap_share(chart):.0%} of it"


def _first(bars: list[dict[str, Any]], tid: int) -> float:
    return min((float(bar["ts"]) for bar in bars if bar["tid"] == tid), default=0.0)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _ticks(end: float) -> list[float]:
    """Round times from 0 to ``end`` microseconds, at most TICKS of them."""
    step = 1.0
    while True:
        for factor in _STEPS:
            if end / (step * factor) <= TICKS:
                return [n * step * factor for n in range(int(end / (step * factor)) + 1)]
        step *= 10
