"""A progress bar on standard error; where that is a file or a pipe, a line now and then instead.

A bar renews itself in place, which a file cannot show; silence for minutes looks like a hang to whoever reads the file.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_S = 10.0  # between two lines; what ends sooner says nothing


class Lines(tqdm):
    """A ``tqdm`` that writes a line every LINE_S seconds, when it is updated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._line_due = time.monotonic() + LINE_S
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        del pos
        if msg is None and (now := time.monotonic()) >= self._line_due:
            self._line_due = now + LINE_S
            print(str(self), file=self.fp, flush=True)
        return False  # nothing stands there that would have to be cleared

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """A line of somebody else's."""
        del nolock
        print(s, file=file, end=end, flush=True)


def bar(*args: Any, shown: bool = True, **options: Any) -> tqdm:
    """``tqdm(*args, **options)`` that fits standard error, and leaves nothing behind on a terminal."""
    kind = tqdm if sys.stderr.isatty() else Lines
    if kind is Lines:
        options["ncols"] = 0  # figures only
    return kind(*args, leave=False, disable=not shown, **options)
