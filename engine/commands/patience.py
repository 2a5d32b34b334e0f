"""A word for who waits: what a command is waiting for, said when that takes longer than one expects."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AFTER_S = 2.0
DRIVER = "waiting for the NVIDIA driver to tell of its GPUs (does nvidia-smi answer?)"
START = "still looking at devices and models (if it stays so: does nvidia-smi answer?)"


@contextmanager
def waiting(line: str, after_s: float = AFTER_S) -> Iterator[Callable[[], None]]:
    """Say ``line`` on standard error unless the block is over by then, or has called what it is given."""
    timer = threading.Timer(after_s, print, (line,), {"file": sys.stderr, "flush": True})
    timer.daemon = True  # who is interrupted does not stay for it
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()
