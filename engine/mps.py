"""NVIDIA's Multi-Process Service: is its daemon there, so that CUDA programs share one context server?

A CUDA program asks the control daemon when it starts, and is served by it if it answers; its socket (in old drivers a
pipe) is called ``control`` and lies in CUDA_MPS_PIPE_DIRECTORY (docs.nvidia.com/deploy/mps). The file outlives its
daemon, so it is asked whether anybody listens, without being connected to: the daemon notices nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
FOLDER = "/tmp/nvidia-mps"


def is_served(environ: Mapping[str, str]) -> bool:
    """Whether CUDA programs started with this environment are served by an MPS daemon."""
    control = Path(environ.get(VARIABLE) or FOLDER) / "control"
    try:
        mode = control.stat().st_mode
    except OSError:
        return False
    if stat.S_ISSOCK(mode):
        return _is_listened_to(control)
    return stat.S_ISFIFO(mode) and _is_read(control)


def _is_listened_to(control: Path) -> bool:
    """A socket that somebody holds says that datagrams are not its type; one of a dead daemon refuses anybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(control))
        except OSError as error:
            return error.errno in (errno.EPROTOTYPE, errno.EACCES)
        return True


def _is_read(control: Path) -> bool:
    """Opening a pipe for writing fails when nobody reads it."""
    try:
        os.close(os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EACCES
    return True
