"""What somebody who waits for a lease is told meanwhile, on standard error.

Why, and for how long at most; then the reason again whenever the arbiter tells another, and with the figures of the
moment: on a terminal in place, every ``RENEW_S``; elsewhere as a line of its own where it has changed, less and less
often.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from engine.commands.tables import shorten
from ipc.errors import DragomanError

RENEW_S = 10.0
SELDOM_S = 60.0
CLEAR = "\r\x1b[K"


class Waiting:
    """A context manager around the wait; ``told`` takes the arbiter's reasons.

    ``most_s``: how long it will wait. ``more``: the command that tells more. ``look``: the reason as it is now, "" if
    nobody knows; it is called in a thread of its own, and may raise DragomanError.
    """

    def __init__(self, most_s: float, more: str, look: Callable[[], str]) -> None:
        self._most_s = most_s
        self._more = more
        self._look = look
        self._lock = threading.Lock()  # nothing is written once it is over
        self._over = threading.Event()
        self._since = time.monotonic()
        self._reason = ""
        self._drawn = False

    def __enter__(self) -> Waiting:
        self._since = time.monotonic()
        threading.Thread(target=self._run, name="waiting", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
            self._clear()

    def told(self, reason: str) -> None:
        """The arbiter says why it waits."""
        with self._lock:
            first, changed = not self._reason, reason != self._reason
            if changed:
                self._line(reason if reason.startswith("waiting") else f"waiting: {reason}")
                self._reason = reason
            if first:
                self._line(f"  for {self._most_s:g} s at most, others' loads not counted; {self._more} tells more")

    def renew(self) -> None:
        """Say it as it is now."""
        try:
            reason = self._look() or self._reason
        except DragomanError:  # whoever waits for the lease says that, if it lasts
            reason = self._reason
        waited_s = time.monotonic() - self._since
        with self._lock:
            if self._over.is_set() or not reason:
                return
            text = f"waited {waited_s:.0f} of {self._most_s:g} s: {reason}"
            if sys.stderr.isatty():
                print(
                    CLEAR + shorten(text, shutil.get_terminal_size().columns - 1), end="", file=sys.stderr, flush=True
                )
                self._drawn = True
            elif reason != self._reason:
                self._line(text)
            self._reason = reason

    def _run(self) -> None:
        renew_s = RENEW_S
        while not self._over.wait(renew_s):
            self.renew()
            if not sys.stderr.isatty():  # a thousand programs may wait, and each asks the whole node
                renew_s = min(2 * renew_s, SELDOM_S)

    def _line(self, text: str) -> None:
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._drawn:
            print(CLEAR, end="", file=sys.stderr, flush=True)
            self._drawn = False


def reason_of(pid: int, stats: Mapping[str, Any]) -> str:
    """Why a program waits, by the node's statistics; "": it is not among those that they show."""
    rows = (stats.get("arbiter") or {}).get("waiting") or []
    return next((str(row["reason"]) for row in rows if row["worker"].startswith(f"lease@{pid}/")), "")
