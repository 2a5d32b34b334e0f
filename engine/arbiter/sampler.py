"""Reading devices' memory, each source in a thread of its own: a driver's call may hang, the arbiter's loop must not.

A sampler reads every ``period_s``, and at once when it is asked. What it read waits in a list; a descriptor becomes
readable with it. When a call hangs no reading comes, the newest one ages, and past a limit the book grants nothing.

Each GPU is a source of its own, so one that hangs keeps nobody else's figures from us, as far as its driver lets others
in meanwhile. They share the driver: it counts who has opened it, and its calls leave Python's lock to the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Union

from engine.arbiter.events import DeviceLost
from engine.arbiter.room import Reading
from engine.devices import VOLATILE_UNCORRECTED, HostMemory, host_memory, opened_nvml
from engine.process import now

DEAD = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED

News = Union[Reading, DeviceLost]
Read = Callable[[], list[News]]
Source = Callable[[Callable[[Read], None]], None]  # opens its driver, then hands over what to repeat


class Sampler:
    """One source's thread. ``fileno()`` is readable when ``take()`` has something."""

    def __init__(self, name: str, source: Source, period_s: float) -> None:
        self.name = name
        self._source = source
        self._period_s = period_s
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._news: list[News] = []
        self._failure = ""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"sample-{self.name}", daemon=True).start()

    def fileno(self) -> int:
        return self._fd

    def ask(self) -> None:
        """Read now rather than at the end of the period."""
        self._asked.set()

    def take(self) -> tuple[list[News], str]:
        """What was read since the last call, oldest first, and why reading failed since ("": it did not)."""
        with self._lock:
            news, self._news = self._news, []
            failure, self._failure = self._failure, ""
            with suppress(BlockingIOError):  # nothing was read since
                os.eventfd_read(self._fd)
            return news, failure

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
            self._put(read(), "")
            self._pause()

    def _pause(self) -> None:
        """To the next multiple of the period: all samplers read at once, and who waits for them wakes once."""
        self._asked.wait(self._period_s - now() % self._period_s)

    def _put(self, news: list[News], failure: str) -> None:
        with self._lock:
            newest = {(type(one), one.device): one for one in (*self._news, *news)}
            self._news = list(newest.values())
            self._failure = failure or self._failure
            os.eventfd_write(self._fd, 1)


def host_source(
    names: Iterable[str],
    memory: Callable[[], HostMemory] = host_memory,
    processes: Callable[[], dict[int, int] | None] = lambda: None,
) -> Source:
    """Source of the devices whose memory is the machine's. ``processes``: bytes by process id; None: not told."""
    names = tuple(names)

    def read() -> list[News]:
        taken_at = now()
        seen, listed = memory(), processes()
        return [Reading(name, seen.total_bytes, seen.available_bytes, taken_at, listed) for name in names]

    return lambda repeat: repeat(read)


def declared_source(sizes: Mapping[str, int]) -> Source:
    """Source of devices of which only the configuration says how much memory there is: all of it, less our leases."""

    def read() -> list[News]:
        return [Reading(name, nbytes, nbytes, now()) for name, nbytes in sizes.items()]

    return lambda repeat: repeat(read)


@dataclass(frozen=True)
class Gpu:
    """A GPU to watch. ``tells_memory``: else only whether it still computes, and rightly, is asked."""

    uuid: str
    ecc_errors: int = 0  # uncorrectable ones at the node's start: whatever they broke was there before it
    tells_memory: bool = True


def nvml_source(name: str, gpu: Gpu, nvml: Any = None) -> Source:
    """Source of one GPU, the device ``name``. The driver is opened anew whenever it has not answered."""

    def source(repeat: Callable[[Read], None]) -> None:
        with opened_nvml(nvml) as library:
            if library is None:
                raise OSError("the NVIDIA driver is not there any more")
            repeat(Watch(name, gpu, library).read)

    return source


class Watch:
    """Reads one GPU in one life of its driver."""

    def __init__(self, name: str, gpu: Gpu, library: Any) -> None:
        self._name = name
        self._gpu = gpu
        self._library = library
        self._handles: tuple[Any, Any] | None = None  # its own, and its GPU's

    def read(self) -> list[News]:
        """What there is to say of it. Raises NVMLError when it does not answer."""
        try:
            return [*self._look()]
        except self._library.NVMLError as error:
            if getattr(error, "value", None) not in DEAD:
                raise
            self._handles = None
            return [DeviceLost(self._name, str(error))]

    def _look(self) -> Iterator[News]:
        if self._handles is None:
            self._handles = self._open()
        handle, whole = self._handles
        if self._gpu.tells_memory:
            taken_at = now()
            memory = self._library.nvmlDeviceGetMemoryInfo(handle)
            held = _processes(self._library, handle)
            yield Reading(self._name, int(memory.total), int(memory.free), taken_at, held)
        errors = self._ecc_errors(whole) - self._gpu.ecc_errors
        if errors > 0:
            yield DeviceLost(self._name, f"{errors} uncorrectable ECC error{'s' if errors > 1 else ''} in its memory")

    def _open(self) -> tuple[Any, Any]:
        uuid = self._gpu.uuid
        handle = self._library.nvmlDeviceGetHandleByUUID(uuid)
        instance = uuid.startswith("MIG-")
        return handle, self._library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if instance else handle

    def _ecc_errors(self, handle: Any) -> int:
        """Uncorrectable errors since the driver was loaded; 0 where there is no ECC."""
        try:
            return int(self._library.nvmlDeviceGetTotalEccErrors(handle, *VOLATILE_UNCORRECTED))
        except self._library.NVMLError as error:
            if getattr(error, "value", None) in DEAD:
                raise
            return 0


def _processes(library: Any, handle: Any) -> dict[int, int] | None:
    """Bytes by process; None: it does not tell. In a container it tells of nobody, or by numbers that mean nothing."""
    try:
        rows = library.nvmlDeviceGetComputeRunningProcesses(handle)
    except library.NVMLError:
        return None
    told = {int(row.pid): int(row.usedGpuMemory) for row in rows if row.usedGpuMemory is not None}
    return told if told or not rows else None
