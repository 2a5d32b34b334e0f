"""Measured values as a picture: panels one below the other, each with lines or dots over its own axes. With Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import written
from engine.picture import COLOURS, FAINT, INK, PAPER, font
from ipc.errors import UsageError

WIDTH, PANEL, HEAD = 1200, 280, 48
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 34, 44  # of a panel's axes within it
TICKS = 8  # at most so many on an axis
KEY = 250  # most width of an entry of the key
STEPS = (1, 2, 5)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One diagram. Both axes begin at 0. ``series``: name -> its points; names have the same colour in all panels.

    ``marked``: points with a ring around them.
    """

    x: str  # what the axis shows, with its unit
    y: str
    series: Mapping[str, Points]
    dots: bool = False  # points alone, not joined by lines
    marked: Points = field(default=())


def check(path: Path | None) -> None:
    """Raise UsageError when this is no name for a picture, DragomanError when it cannot be written there."""
    if path is not None and path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path} is no .png file", "pictures are drawn as PNG: give a name that ends in .png")
    written.check(path, "--plot")


def draw(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write the PNG. Raises DragomanError when it cannot be written."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEAD + PANEL * len(panels)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 10), title.replace("×", "x"), fill=INK, font=font(18))  # the font has no such sign
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    for number, panel in enumerate(panels):
        _Axes(pen, panel, HEAD + PANEL * number, names).draw()
    data = io.BytesIO()
    image.save(data, "PNG")
    written.write(path, data.getvalue(), "--plot")


class _Axes:
    """A panel and where its points lie in the picture."""

    def __init__(self, pen: Any, panel: Panel, top: int, names: Sequence[str]) -> None:
        self.pen = pen
        self.panel = panel
        self.names = names
        self.top, self.bottom = top + TOP, top + PANEL - BOTTOM
        points = [point for series in panel.series.values() for point in series]
        self.width = max((x for x, _ in points), default=0.0) or 1.0
        self.height = 1.05 * max((y for _, y in points), default=0.0) or 1.0

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / self.width
        return x, self.bottom - (self.bottom - self.top) * point[1] / self.height

    def draw(self) -> None:
        self._scale()
        entry = min(KEY, (WIDTH - LEFT - 200) / max(1, len(self.panel.series)))
        for place, (name, points) in enumerate(self.panel.series.items()):
            colour = COLOURS[self.names.index(name) % len(COLOURS)]
            left = LEFT + 200 + entry * place
            self.pen.rectangle((left, self.top - 22, left + 14, self.top - 10), fill=colour)
            self.pen.text((left + 20, self.top - 23), name[: int(entry / 7)], fill=INK, font=font(13))
            self._points([self.at(point) for point in points], colour)
        for point in self.panel.marked:
            self._ring(*self.at(point))

    def _points(self, points: list[tuple[float, float]], colour: str) -> None:
        if not self.panel.dots and len(points) > 1:
            self.pen.line(points, fill=colour, width=2)
        size = 2 if self.panel.dots or len(points) > 30 else 4
        for x, y in points:
            self.pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)

    def _ring(self, x: float, y: float) -> None:
        self.pen.ellipse((x - 10, y - 10, x + 10, y + 10), outline=INK, width=2)

    def _scale(self) -> None:
        pen, small = self.pen, font(13)
        pen.text((LEFT - 60, self.top - 23), self.panel.y, fill=INK, font=small)
        pen.text((WIDTH - RIGHT, self.bottom + 24), self.panel.x, fill=INK, font=small, anchor="ra")
        for tick in ticks(self.width):
            x, _ = self.at((tick, 0))
            pen.line((x, self.top, x, self.bottom), fill=FAINT)
            pen.text((x, self.bottom + 6), f"{tick:g}", fill=INK, font=small, anchor="ma")
        for tick in ticks(self.height):
            _, y = self.at((0, tick))
            pen.line((LEFT, y, WIDTH - RIGHT, y), fill=FAINT)
            pen.text((LEFT - 8, y), f"{tick:g}", fill=INK, font=small, anchor="rm")


def ticks(end: float) -> list[float]:
    """Round values from 0 to ``end`` (above 0), at most TICKS + 1 of them."""
    power = math.floor(math.log10(end / TICKS))
    while True:
        for factor in STEPS:
            step = factor * 10.0**power
            if end / step <= TICKS:
                return [round(n * step, max(0, -power)) for n in range(int(end / step) + 1)]
        power += 1
