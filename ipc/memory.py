"""Segments: anonymous shared memory that cannot leak.

A segment is a memfd, allocated in full at creation (so that a memory limit is an error here and not a SIGBUS later) and
sealed against shrinking, growing and further seals. It has no name, so nothing collides and nothing is left behind: the
memory goes with the last process that holds it. The supervisor creates segments and children inherit descriptors:
producers the writable one, consumers one re-opened read-only, which the kernel refuses to map writable.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from ipc.errors import MemoryTooSmall

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, nbytes: int) -> int:
    """Make a sealed segment of ``nbytes``; returns its writable descriptor (close-on-exec).

    Raises MemoryTooSmall when the machine (or its cgroup) does not have the memory.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(fd)
        raise MemoryTooSmall(
            f"cannot allocate {nbytes / 2**20:.0f} MiB of shared memory for {name} ({error.strerror})",
            "lower node.ring_budget_bytes or give the node more memory",
        ) from error
    return fd


def reopen_read_only(fd: int) -> int:
    """A second descriptor of the same segment that can only be read."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def attach(fd: int, nbytes: int, *, writable: bool) -> mmap.mmap:
    """Map a whole segment. Raises PermissionError when ``writable`` is asked of a read-only descriptor."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=protection)
