"""A picture of what was measured has round numbers on its axes, and room for whatever was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench import chart
from bench.chart import Panel


@given(st.floats(1e-6, 1e9))
def test_an_axis_has_some_ticks_and_not_many_and_none_beyond_its_end(end: float) -> None:
    found = chart.ticks(end)
    assert found[0] == 0 and 4 <= len(found) <= chart.TICKS + 1
    assert found == sorted(set(found)) and found[-1] <= end * (1 + 1e-9)


@pytest.mark.parametrize(("end", "ticks"), [(0.5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]), (8, list(range(9)))])
def test_ticks_are_round(end: float, ticks: list[float]) -> None:
    assert chart.ticks(end) == ticks


@pytest.mark.parametrize("series", [{}, {"none": []}, {"zero": [(0.0, 0.0)]}, {str(n): [(n, 1.0)] for n in range(20)}])
def test_anything_can_be_drawn(series: dict[str, chart.Points], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    chart.draw([Panel("x", "y", series, marked=[(0.0, 0.0)]), Panel("x", "z", series, dots=True)], path, "title × 2")
    assert Image.open(path).size == (chart.WIDTH, chart.HEAD + 2 * chart.PANEL)


def test_a_series_has_one_colour_in_all_panels(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    line = [(0.0, 1.0), (1.0, 1.0)]
    chart.draw([Panel("x", "y", {"a": line, "b": line}), Panel("x", "y", {"b": line})], path, "")
    image = Image.open(path)
    colour = tuple(int(chart.COLOURS[1][n : n + 2], 16) for n in (1, 3, 5))
    lower = image.crop((0, chart.HEAD + chart.PANEL, *image.size))
    assert colour in {pixel for _, pixel in lower.getcolors(1 << 20)}
