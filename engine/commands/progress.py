"""A progress bar on standard error: how many utterances have ended, and what is happening to the others.

Without a terminal, or without tqdm, there is no bar and lines are printed as they are.
"""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """A context manager around one run of ``total`` utterances."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total = total
        self._shown = shown
        self._bar: Any = None
        self._failed = 0

    def __enter__(self) -> Bar:
        if self._shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(total=self._total, unit="utt", file=sys.stderr, dynamic_ncols=True, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def ended(self, row: dict[str, Any], _outcome: Any) -> None:
        """One more has its row."""
        self._failed += row["outcome"] != "ok"
        if self._bar is not None:
            if self._failed:
                self._bar.set_description(f"{self._failed} not ok", refresh=False)
            self._bar.update()

    def heard(self, progress: Any) -> None:
        """News of an utterance on its way (``engine.outcome.Progress``)."""
        if self._bar is not None and progress.state:
            self._bar.set_postfix_str(f"{progress.session}/{progress.index} {progress.stage} {progress.state}")

    def print(self, line: str) -> None:
        """A result, on standard output, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def say(self, line: str) -> None:
        """A line for the user, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
