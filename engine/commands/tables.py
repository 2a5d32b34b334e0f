"""Plain text tables for terminals: columns as wide as their widest cell, wide characters counted as two."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lines of a table; numbers right, everything else left."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max([width(name)] + [width(row[i]) for row in cells]) for i, name in enumerate(head)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows) for i in range(len(head))
    ]
    lines = [list(head), ["-" * w for w in widths], *cells]
    return "\n".join(
        "  ".join(pad(c, w, r) for c, w, r in zip(line, widths, right, strict=True)).rstrip() for line in lines
    )


def cell(value: Any) -> str:
    """A value as text: floats with a sensible number of digits, None as a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return str(value)


def width(text: str) -> int:
    """Columns a terminal needs for ``text``."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, columns: int, right: bool = False) -> str:
    room = " " * (columns - width(text))
    return room + text if right else text + room


def shorten(text: str, columns: int) -> str:
    """``text`` in at most ``columns`` columns, cut with an ellipsis."""
    if width(text) <= columns:
        return text
    kept, used = "", 0
    for c in text:
        used += width(c)
        if used > columns - 1:
            break
        kept += c
    return kept + "…"


def nbytes(count: int | float | None) -> str:
    """A size for people: ``1.5 GiB``."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
