"""Reading devices' memory, each source in a thread of its own: a driver's call may hang, the arbiter's loop must not.

A sampler reads every ``period_s``, and at once when it is asked. What it read waits in a list; a descriptor becomes
readable with it. When the driver hangs no reading comes, the newest one ages, and past a limit the book grants nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from engine.arbiter.room import Reading
from engine.devices import HostMemory, host_memory, opened_nvml
from engine.process import now

Read = Callable[[], tuple[list[Reading], str]]  # readings, and why some are missing ("": none is)
Source = Callable[[Callable[[Read], None]], None]  # opens its driver, then hands over what to repeat


class Sampler:
    """One source's thread. ``fileno()`` is readable when ``take()`` has something."""

    def __init__(self, name: str, source: Source, period_s: float) -> None:
        self.name = name
        self._source = source
        self._period_s = period_s
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._readings: list[Reading] = []
        self._failure = ""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"sample-{self.name}", daemon=True).start()

    def fileno(self) -> int:
        return self._fd

    def ask(self) -> None:
        """Read now rather than at the end of the period."""
        self._asked.set()

    def take(self) -> tuple[list[Reading], str]:
        """What was read since the last call, oldest first, and why reading failed since ("": it did not)."""
        with self._lock:
            readings, self._readings = self._readings, []
            failure, self._failure = self._failure, ""
            with suppress(BlockingIOError):  # nothing was read since
                os.eventfd_read(self._fd)
            return readings, failure

    def _run(self) -> None:
        while True:
            try:
                self._source(self._repeat)
            except Exception as error:  # a driver's error of whatever class: shown, and tried again
                self._put([], str(error) or type(error).__name__)
            self._pause()

    def _repeat(self, read: Read) -> None:
        while True:
            self._asked.clear()
            self._put(*read())
            self._pause()

    def _pause(self) -> None:
        self._asked.wait(self._period_s)

    def _put(self, readings: list[Reading], failure: str) -> None:
        with self._lock:
            newest = {reading.device: reading for reading in (*self._readings, *readings)}
            self._readings = list(newest.values())
            self._failure = failure or self._failure
            os.eventfd_write(self._fd, 1)


def host_source(names: Iterable[str], memory: Callable[[], HostMemory] = host_memory) -> Source:
    """Source of the devices whose memory is the machine's."""
    names = tuple(names)

    def read() -> tuple[list[Reading], str]:
        taken_at = now()
        seen = memory()
        return [Reading(name, seen.total_bytes, seen.available_bytes, taken_at) for name in names], ""

    return lambda repeat: repeat(read)


def declared_source(sizes: Mapping[str, int]) -> Source:
    """Source of devices of which only the configuration says how much memory there is: all of it, less our leases."""

    def read() -> tuple[list[Reading], str]:
        return [Reading(name, nbytes, nbytes, now()) for name, nbytes in sizes.items()], ""

    return lambda repeat: repeat(read)


def nvml_source(uuids: Mapping[str, str], nvml: Any = None) -> Source:
    """Source of GPUs: device name -> UUID. One that does not answer keeps no other's figures from us.

    The driver is opened anew whenever none of them answered.
    """

    def source(repeat: Callable[[Read], None]) -> None:
        with opened_nvml(nvml) as library:
            if library is None:
                raise OSError("the NVIDIA driver is not there any more")
            handles: dict[str, Any] = {}

            def read_one(name: str, uuid: str) -> Reading:
                if name not in handles:
                    handles[name] = library.nvmlDeviceGetHandleByUUID(uuid)
                taken_at = now()
                memory = library.nvmlDeviceGetMemoryInfo(handles[name])
                return Reading(name, int(memory.total), int(memory.free), taken_at, _processes(library, handles[name]))

            def read() -> tuple[list[Reading], str]:
                readings, failures = [], []
                for name, uuid in uuids.items():
                    try:
                        readings.append(read_one(name, uuid))
                    except library.NVMLError as error:
                        handles.pop(name, None)
                        failures.append(f"{name}: {error}")
                if not readings:
                    raise OSError("; ".join(failures))
                return readings, "; ".join(failures)

            repeat(read)

    return source


def _processes(library: Any, handle: Any) -> dict[int, int]:
    """Bytes by process, of those the driver tells; in a container it knows them by other numbers, or not at all."""
    try:
        rows = library.nvmlDeviceGetComputeRunningProcesses(handle)
    except library.NVMLError:
        return {}
    return {int(row.pid): int(row.usedGpuMemory) for row in rows if row.usedGpuMemory is not None}
