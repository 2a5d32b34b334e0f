"""Whether clients could be let in where the configuration says, looked at before any model is loaded.

The gateway binds when everything is ready. What can be known at the start is known at the start: an address that
somebody else listens at ends it in a moment, and not after minutes of loading.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from ipc.errors import ConfigError, DragomanError

TCP, LOCAL = "tcp://", "ipc://"


def check_free(endpoints: Iterable[str]) -> None:
    """Raises DragomanError for the first of them that cannot be bound now, ConfigError where it has no place."""
    for endpoint in endpoints:
        if why := _no_place(endpoint):
            raise ConfigError(
                f"node.endpoints: cannot listen at {endpoint} ({why})", "mend that, or change the address"
            )
        try:
            _try(endpoint)
        except OSError as error:
            text = f"node.endpoints: cannot listen at {endpoint} ({error.strerror or error})"
            who = "ss -ltnp shows who does" if endpoint.startswith(TCP) else "ss -lxp shows who does"
            raise DragomanError(text, f"free it ({who}), or change node.endpoints") from error


def _no_place(endpoint: str) -> str:
    """Why there can be no such file; "": there can, or it is no file's address."""
    path = Path(endpoint.removeprefix(LOCAL))
    if not endpoint.startswith(LOCAL) or os.access(path.parent, os.W_OK | os.X_OK):
        return ""
    return f"{path.parent} cannot be written to" if path.parent.is_dir() else f"there is no folder {path.parent}"


def _try(endpoint: str) -> None:
    if endpoint.startswith(TCP):
        host, _, port = endpoint.removeprefix(TCP).rpartition(":")
        with socket.socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as libzmq does
            probe.bind((host, int(port)))
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(endpoint.removeprefix(LOCAL))
        except (FileNotFoundError, ConnectionRefusedError):  # nobody, or what a dead one left
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
