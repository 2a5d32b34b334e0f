"""Telling systemd (``Type=notify``): a datagram to the socket it names, and nothing where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from engine import logs


def notify(state: str, environ: Mapping[str, str] | None = None) -> None:
    """Send ``state`` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET, if set. Never blocks, never raises."""
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address  # "@": Linux's abstract names
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto(state.encode(), name)
    except OSError as error:
        logs.get().warning("cannot tell systemd %s: %s", state, error)
