"""Processes that SIGKILL does not end, as when a driver holds them in the kernel: stopped on their way out, by ptrace.

Made with PTRACE_O_TRACEEXIT (ptrace(2)): the tracee stops in its exit, with its memory and descriptors, until its
tracer lets it go on or ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

SEIZE, CONT, TRACEEXIT = 0x4206, 7, 0x40
ANY_CHILD = 0x40000000  # __WALL: tracees too
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@contextmanager
def stuck_in_its_exit(pid: int) -> Iterator[None]:
    """SIGKILL a process; it ends when the block does. Skips the test where this is not allowed."""
    if _libc.ptrace(SEIZE, pid, None, TRACEEXIT):
        pytest.skip(f"ptrace is not allowed here: {os.strerror(ctypes.get_errno())}")
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, ANY_CHILD)
    assert os.WIFSTOPPED(status), "it has ended"
    try:
        yield
    finally:
        _libc.ptrace(CONT, pid, None, None)
        with suppress(ChildProcessError):
            os.waitpid(pid, ANY_CHILD)  # its parent learns of its end only after its tracer
