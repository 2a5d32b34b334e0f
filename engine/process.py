"""A child's side of the process kit: how every process of the node begins, stays in touch and leaves.

Theory: a process is a module with ``main()``. The first thing it does is ``enter()``: read its boot record from an
inherited descriptor and tie its life to the supervisor. The ties are three, because each has a hole:

* the kernel kills it when the supervisor's main thread ends (``PR_SET_PDEATHSIG``), also inside a native call and also
  while it is stopped; not if the supervisor died before the call was made,
* so the parent's pid is compared afterwards with the one in the boot record,
* and the *death pipe*, whose write end only the supervisor holds, becomes readable: a loop that polls it leaves.

Then it binds what it binds and starts its ``Lifeline``, the link that carries ``Alive`` and ``Report`` up and ``Up``,
``Gone``, ``Serve``, ``Drain``, ``Stop`` and ``Silent`` down. Heartbeats come from the working loop, never from a helper
thread: a loop that hangs must fall silent.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import os
import platform
import resource
import signal
import sys
import time
from typing import Any, NoReturn

import msgspec

from engine import failpoints, logs
from engine.boot import Boot
from engine.exits import BOOT_FAILED, ORPHANED
from ipc.errors import DragomanError, PeerGone
from ipc.messages import Alive, Report, SupervisorSends
from ipc.sockets import Dealer

__all__ = ["BOOT_FAILED", "Lifeline", "enter", "leave", "now", "now_ns"]

REPORT_INTERVAL_S = 1.0
GREET_S = 1.0  # for the supervisor to answer a new connection
DESCRIPTORS = 8192  # the usual soft limit of 1024 is less than the door takes in
GC_THRESHOLD = 20_000  # new objects between two collections; messages are no cycles
KERNEL_FLOOR = (5, 4)
PARENT_FIELD = 4  # of /proc/PID/stat, counted from 1
START_TIME_FIELD = 22
WORKER_OOM_SCORE = 300  # the kernel ends a worker before any other process of the node

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

now = time.monotonic
now_ns = time.monotonic_ns


class Lifeline:
    """A child's link to its supervisor.

    ``link`` is to be polled and ``read``; ``death_fd`` readable means that the supervisor is gone: leave at once.
    """

    def __init__(self, boot: Boot) -> None:
        self.death_fd = boot.death_fd
        self.link: Dealer
        self._boot = boot
        self.pulse_at = 0.0  # before this neither ``beat`` nor ``report`` posts: a turn need not ask them
        self._next_beat = 0.0
        self._next_report = 0.0

    def start(self) -> None:
        """Connect and say ``Alive("started")``. Call it when the process's own sockets are bound."""
        boot = self._boot
        self.link = Dealer(boot.endpoints["supervisor"], boot.role, boot.incarnation, SupervisorSends)
        self.link.greet(GREET_S)  # whatever this process does next, its first word is on its way
        self.beat("started", now())
        self.flush()
        gc.freeze()  # what is here now stays: collections need not walk it again
        gc.set_threshold(GC_THRESHOLD)

    def beat(self, phase: str, now: float) -> None:
        """Post ``Alive(phase)``, at most every ``heartbeat_s``."""
        if now >= self._next_beat:
            self._next_beat = now + self._boot.deadlines.heartbeat_s
            self.pulse_at = min(self._next_beat, self._next_report)
            self.post(Alive(phase))

    def report_due(self, now: float) -> bool:
        """Whether ``report`` would post, so that a snapshot is only made when it is sent."""
        return now >= self._next_report

    def report(self, snapshot: dict[str, Any], now: float) -> None:
        """Post ``Report(snapshot)``, at most once a second."""
        if self.report_due(now):
            self._next_report = now + REPORT_INTERVAL_S
            self.pulse_at = min(self._next_beat, self._next_report)
            self.post(Report(snapshot))

    def hurry(self) -> None:
        """Let the next report be due at once."""
        self._next_report = self.pulse_at = 0.0

    def due_in(self, now: float) -> float:
        """Seconds until the next heartbeat: the longest a loop may wait."""
        return max(0.0, self._next_beat - now)

    def read(self) -> list[SupervisorSends]:
        """Everything that has arrived, in order."""
        return [message for _, _, batch in self.link.drain() for message in batch]

    def post(self, message: Any) -> None:
        """Put a message into this turn's frame."""
        self.link.post(message)

    def flush(self) -> None:
        """Send this turn's frame. A supervisor that cannot be reached is no error here: ``death_fd`` tells."""
        try:
            self.link.flush()
        except PeerGone:
            return

    def close(self) -> None:
        self.link.close()


def enter(argv: list[str] | None = None) -> Boot:
    """Become a process of the node: the first call of every ``main()``. Returns the boot record.

    Leaves with ``ORPHANED`` when the supervisor is already gone.
    """
    parser = argparse.ArgumentParser(description="A process of a Dragoman node; started by its supervisor only.")
    parser.add_argument("--boot-fd", type=int, required=True, help="descriptor that holds the boot record")
    boot = read_boot(parser.parse_args(argv).boot_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tie_to_parent(boot.parent_pid)
    set_title(f"drg:{boot.role}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    allow_descriptors()
    faulthandler.enable()
    logger = logs.configure(boot.role, boot.node, boot.log_level)
    if "@" in boot.role:
        _offer_to_oom_killer()
    failpoints.arm(boot.hooks, boot.role, boot.incarnation)
    if boot.hooks:
        logger.warning("test hooks are in force: %s", ", ".join(f"{k}={v}" for k, v in sorted(boot.hooks.items())))
    return boot


def allow_descriptors() -> None:
    """As many descriptors as this user may have, within reason: each client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def leave(code: int) -> NoReturn:
    """End this process now: logs and streams are flushed, no destructor and no library's exit handler runs."""
    logs.flush()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # a closed or broken stream has nothing left to say
    os._exit(code)


def read_boot(fd: int) -> Boot:
    """The boot record in descriptor ``fd``, which is closed."""
    try:
        return msgspec.msgpack.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=Boot)
    finally:
        os.close(fd)


def tie_to_parent(parent_pid: int) -> None:
    """Be killed when the parent's spawning thread ends; leave with ``ORPHANED`` if it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        leave(ORPHANED)


def set_title(name: str) -> None:
    """The name shown by ``ps`` and ``top`` (cut to 15 bytes)."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 if it is gone."""
    return _stat(pid, START_TIME_FIELD)


def is_same(pid: int, started: int) -> bool:
    """Whether this process is there and began then. Raises OSError when that cannot be seen."""
    try:
        return _read_stat(pid, START_TIME_FIELD) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    """A process's parent; 0 if it is gone."""
    return _stat(pid, PARENT_FIELD)


def _stat(pid: int, field: int) -> int:
    """A number from /proc/PID/stat, the ``field``-th of them, from the fourth on; 0 if there is no such process."""
    try:
        return _read_stat(pid, field)
    except OSError:
        return 0


def _read_stat(pid: int, field: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        after_name = file.read().rpartition(b")")[2].split()
    return int(after_name[field - 3])


def require_linux(system: str = "", release: str = "") -> None:
    """Raise DragomanError unless this is Linux 5.4 or newer (pidfd, memfd, seals)."""
    system, release = system or platform.system(), release or platform.release()
    if system != "Linux":
        raise DragomanError(f"the node needs Linux 5.4 or newer, this is {system}", "connect to one on Linux instead")
    numbers = release.split("-")[0].split(".")
    if tuple(int(n) for n in numbers[:2] if n.isdigit()) < KERNEL_FLOOR:
        raise DragomanError(f"the node needs Linux 5.4 or newer, this is Linux {release}", "use a newer kernel")


def _prctl(option: int, argument: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _offer_to_oom_killer() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(WORKER_OOM_SCORE))
    except OSError as error:  # a locked-down container: the kernel's own choice stands
        logs.get().debug("oom_score_adj not set: %s", error)
