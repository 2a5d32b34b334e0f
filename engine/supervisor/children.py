"""The supervisor's hands: starts child processes, hears them end, signals them. No policy.

A child is ``python -m engine.<role>.main`` started by ``Popen`` with its own environment, its own process group (a
Ctrl-C is for the supervisor alone), its boot record in a memfd and exactly the descriptors it needs. Its death is a
readable pidfd, and signals go through the pidfd, so a pid used again by the kernel can never be hit. What it writes to
standard output or error comes through a pipe and is passed on line by line; the last line is kept, because it often
says why a process died.

Children must be started from the main thread: the death signal they ask for is sent when the *thread* that started
them ends.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from engine import logs
from engine.boot import Boot
from engine.process import now, start_time

READ_BYTES = 65_536
READS_A_TURN = 8  # a child that floods its log must not keep the supervisor from its work
LONGEST_LINE_BYTES = 8_192


class Output:
    """What a child writes, passed on to ``out`` line by line."""

    def __init__(self, role: str, fd: int, out: logs.LineHandler) -> None:
        self.role = role
        self.fd = fd
        self.last = ""  # the last line that may say why it died
        self._out = out
        self._rest = b""

    def drain(self) -> bool:
        """Pass on what is there; False at the end of the pipe."""
        for _ in range(READS_A_TURN):
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._take(data)
        return True

    def close(self) -> None:
        """Pass on all that is left."""
        self.drain()
        self._pass_on(self._rest)
        os.close(self.fd)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if not text:
            return
        head, mark, words = text.partition(f" {self.role}: ")
        if not mark:  # not a log line of ours: a library's word, or a traceback
            self.last = text
            self._out.write(f"{self.role}| {text}")
            return
        if " ERROR " in head:
            self.last = words
        self._out.write(text)


@dataclass
class Child:
    """One living process."""

    role: str
    process: subprocess.Popen[bytes]
    pidfd: int
    output: Output

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def start_time(self) -> int:
        """Clock ticks since boot at which it started; with the pid it names a process for ever."""
        return start_time(self.pid)


class Children:
    """All living children by role."""

    def __init__(self, out: logs.LineHandler) -> None:
        self._out = out
        self._children: dict[str, Child] = {}

    def spawn(self, boot: Boot, module: str, environment: Mapping[str, str], descriptors: Iterable[int]) -> Child:
        """Start a process. Raises OSError when the machine cannot (processes, descriptors, memory)."""
        assert threading.current_thread() is threading.main_thread(), "children are tied to the main thread"
        record = memfd(f"boot:{boot.role}", msgspec.msgpack.encode(boot))
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                command(module, "--boot-fd", str(record)),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=(record, *descriptors),
                process_group=0,
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(record)
            os.close(writing)
        os.set_blocking(reading, False)
        child = Child(boot.role, process, os.pidfd_open(process.pid), Output(boot.role, reading, self._out))
        self._children[boot.role] = child
        return child

    @property
    def living(self) -> list[str]:
        """Roles whose process is not confirmed dead."""
        return list(self._children)

    def signal(self, role: str, number: signal.Signals) -> None:
        """Send a signal; none if the process is dead already."""
        child = self._children.get(role)
        if child is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, number)

    def reap(self, child: Child) -> int:
        """Collect a dead child: exit status, or minus the signal's number. What it left in its group is killed."""
        del self._children[child.role]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # the unreaped child still holds this number
        code = child.process.wait()
        child.output.close()
        os.close(child.pidfd)
        return code

    def kill_all(self, patience_s: float) -> None:
        """The last resort of a supervisor that cannot go on. Nobody waits longer for what a driver holds."""
        for role in list(self._children):
            self.signal(role, signal.SIGKILL)
        until = now() + patience_s
        for child in list(self._children.values()):
            end = select.poll()
            end.register(child.pidfd, select.POLLIN)
            if end.poll(max(0.0, until - now()) * 1000):
                self.reap(child)


def command(module: str, *arguments: str) -> list[str]:
    """Command line of a module of ours; the working folder is not searched for it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def memfd(name: str, data: bytes) -> int:
    """An anonymous file that holds ``data``, for a child to inherit."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd
