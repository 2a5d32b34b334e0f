"""Log lines of the node: one line per record on standard error, and never a wait.

Theory: a process that does real work must not stop because whoever reads its log has stopped. A line is written only
when the descriptor has room for it (at most PIPE_BUF bytes, which the kernel then takes in whole); otherwise it is
dropped and counted, and the next line that goes out says how many are missing.

Each line carries the time (wall clock: for people), the level, the node, and the process's role, which names stage and
device; messages name session and index where they have one. The children's standard error is a pipe to the supervisor,
which passes the lines on to its own.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
NAME = "dragoman"


class LineHandler(logging.Handler):
    """Writes records to a descriptor, whole lines, without ever blocking; ``tail`` keeps the last ones."""

    def __init__(self, fd: int = 2, tail: deque[str] | None = None) -> None:
        super().__init__()
        self.dropped = 0
        self._tail = tail
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))

    def write(self, text: str) -> None:
        """One line, cut to what the kernel takes at once; dropped and counted when there is no room."""
        if self._tail is not None:
            self._tail.append(text[: select.PIPE_BUF])
        if self.dropped:
            text = f"{text} [{self.dropped} lines before this one were dropped]"
        line = text.replace("\n", "\n    ").encode("utf-8", "backslashreplace")[: select.PIPE_BUF - 1] + b"\n"
        if self._has_room() and self._put(line):
            self.dropped = 0
        else:
            self.dropped += 1

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in poll.poll(0))

    def _put(self, line: bytes) -> bool:
        try:
            return os.write(self._fd, line) > 0
        except OSError:  # nobody reads any more: there is no better place to say so
            return False


def configure(role: str, node: str, level: str, tail: deque[str] | None = None) -> logging.Logger:
    """Make this process's logger write to standard error (and keep its last lines in ``tail``). Returns it."""
    handler = LineHandler(tail=tail)
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s {node} {role}: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = get()
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False
    return logger


def get() -> logging.Logger:
    """The logger of this process."""
    return logging.getLogger(NAME)


def flush() -> None:
    """Hand over what a handler still holds."""
    for handler in get().handlers:
        handler.flush()
