"""Telling systemd (``Type=notify``): a datagram to the socket it names, and nothing where there is none.

Its watchdog (``WatchdogSec=``) is told from the working loop: a supervisor that hangs, and watches nobody any more, is
ended and started again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from math import inf

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


class Watchdog:
    """Tells systemd's watchdog that this process works, where it asks for that (sd_watchdog_enabled(3))."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environ.get("WATCHDOG_USEC", "")
        self.interval_s = int(limit_us) / 1e6 / 3 if mine and limit_us.isdigit() else inf
        self._next = 0.0 if self.interval_s < inf else inf

    def beat(self, now: float) -> None:
        """Say so, three times within its limit."""
        if now >= self._next:
            self._next = now + self.interval_s
            notify("WATCHDOG=1")

    def due_in(self, now: float) -> float:
        """Seconds until it wants to hear from us."""
        return self._next - now
