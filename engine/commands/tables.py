"""Plain text tables for terminals: columns as wide as their widest cell, as far as the terminal has room, wide
characters counted as two. What is written to a pipe or a file stays in lines, however long."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

GAP = "  "
LEAST = 80  # columns that every terminal is taken to have
NARROW = 10  # no column is made narrower than this for another's sake


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], most: int | None = None) -> str:
    """Lines of a table; numbers right, everything else left. What is wider than ``most`` columns is broken.

    ``most``: None: as the terminal is; 0: as wide as it likes.
    """
    cells = [[cell(value) for value in row] for row in rows]
    widths = _fit([list(head), *cells], terminal() if most is None else most)
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows) for i in range(len(head))
    ]
    rule = [["-" * w for w in widths]]
    lines = [*_broken(head, widths), *rule, *(line for row in cells for line in _broken(row, widths))]
    return "\n".join(
        GAP.join(pad(c, w, r) for c, w, r in zip(line, widths, right, strict=True)).rstrip() for line in lines
    )


def remark(text: str) -> str:
    """A line of its own below a table, broken where the terminal ends."""
    most = terminal()
    return "\n  ".join(wrap(text, most - len(GAP))) if most else text


def fit(text: str, columns: int, rows: int) -> tuple[str, int]:
    """As much of a text as a terminal of this size shows, and how many lines that leaves out, for which the last row
    is kept free."""
    lines = text.split("\n")
    heights = [max(1, -(-width(line) // max(1, columns))) for line in lines]
    if sum(heights) <= rows:
        return text, 0
    shown, used = 0, 0
    while used + heights[shown] < rows:
        used += heights[shown]
        shown += 1
    return "\n".join(lines[:shown]).rstrip("\n"), len(lines) - shown


def terminal() -> int:
    """Columns of the terminal, at least ``LEAST``; 0 where there is none."""
    return max(LEAST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 0


def _fit(lines: Sequence[Sequence[str]], most: int) -> list[int]:
    """Widths of the columns: of their widest cells, the widest made narrower until all have room, between words as
    long as that does."""
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    words = [
        max(width(word) for text in column for word in text.split() or [""]) for column in zip(*lines, strict=True)
    ]
    room = most - len(GAP) * (len(widths) - 1)
    for least in (words, [min(w, NARROW) for w in words]):
        while most and sum(widths) > room and (loose := [i for i, w in enumerate(widths) if w > least[i]]):
            widths[max(loose, key=lambda i: widths[i])] -= 1
    return widths


def _broken(row: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The lines that a row takes."""
    columns = [wrap(text, columns) for text, columns in zip(row, widths, strict=True)]
    return [list(line) for line in zip_longest(*columns, fillvalue="")]


def wrap(text: str, columns: int) -> list[str]:
    """``text`` in lines of at most so many columns, broken between words where there are such."""
    lines = [""]
    for word in text.split(" "):
        grown = f"{lines[-1]} {word}" if lines[-1] else word
        if width(grown) <= columns:
            lines[-1] = grown
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while width(lines[-1]) > columns > 1:
            kept = shorten(lines[-1], columns + 1)[:-1]
            lines[-1:] = [kept, lines[-1][len(kept) :]]
    return lines


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
