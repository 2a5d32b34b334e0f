"""Devices: what this machine offers to run stages on, and how much memory it has.

A device is a GPU (or a MIG instance of one) that NVML knows, or the CPU with the machine's memory. Everything here is
asked once at the start, before any process exists; the arbiter watches the memory afterwards.

Names follow CUDA's habit: ``cuda:0`` is the first GPU *this user sees*, in PCI order. ``CUDA_VISIBLE_DEVICES`` hides
GPUs here as it does for any CUDA program. Nothing outside this machine's drivers is told these numbers: a worker sees
exactly one GPU, by its UUID.

Host memory is what a process here may really use: under a cgroup (v1 or v2, its own or any above it) the room is
limit - (current - inactive file cache), and never more than the kernel's MemAvailable.
"""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine import logs
from ipc.errors import ConfigError, DragomanError

DRIVER_S = 20.0  # for the driver to say which GPUs there are; a sleeping one takes some seconds
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Device:
    """One device. ``name`` is the node's word for it, ``uuid`` the driver's ("" for the CPU)."""

    name: str  # "cpu", "cuda:0"
    uuid: str
    kind: Literal["cpu", "cuda"]
    total_bytes: int
    memory_source: Literal["nvml", "host"]  # where the arbiter reads its memory
    label: str  # for people: "NVIDIA L4", "CPU, 8 cores"
    free_bytes: int = -1  # when it was found; -1: not known


@dataclass(frozen=True)
class HostMemory:
    """Main memory as this process may use it."""

    total_bytes: int  # the machine's, or the tightest cgroup limit above this process
    available_bytes: int  # what could still be taken now without swapping


# ---------------------------------------------------------------- devices


def discover(
    use: Iterable[str] = ("auto",), *, environ: Mapping[str, str] | None = None, nvml: Any = None
) -> list[Device]:
    """The devices that ``use`` names, in its order, each once.

    Entries: "auto" (every visible GPU, then the CPU), "cpu", "cuda:N", or a GPU or MIG UUID. Without an NVIDIA driver
    there is only the CPU. ``nvml`` stands in for the NVML module in tests.
    Raises ConfigError naming the entry and what there is, DragomanError when the driver does not answer; who names only
    the CPU does not ask it.
    """
    environ = os.environ if environ is None else environ
    use = tuple(use)
    gpus = _answered(lambda: _gpus(environ, nvml)) if set(use) != {"cpu"} else []
    there = {device.name: device for device in [*gpus, _cpu()]}
    chosen: dict[str, Device] = {}
    for entry in use:
        for device in _matching(entry, there):
            chosen[device.name] = device
    if not chosen:
        raise ConfigError("devices.use is empty", 'set it to ["auto"]')
    return list(chosen.values())


def _answered(ask: Callable[[], list[Device]]) -> list[Device]:
    """What the driver says. A call into a driver that hangs cannot be ended, so it is made in a thread of its own."""
    answers: queue.SimpleQueue[list[Device] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except Exception as error:  # to be raised where somebody waits for it
            answers.put(error)

    threading.Thread(target=run, name="devices", daemon=True).start()
    try:
        answer = answers.get(timeout=DRIVER_S)
    except queue.Empty:
        mend = 'see: nvidia-smi; to go on without GPUs: devices.use = ["cpu"]'
        raise DragomanError(f"the NVIDIA driver has not answered for {DRIVER_S:g} s", mend) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _matching(entry: str, there: Mapping[str, Device]) -> list[Device]:
    if entry == "auto":
        return list(there.values())
    if entry in there:
        return [there[entry]]
    found = [device for device in there.values() if device.uuid and device.uuid == entry]
    if not found:
        raise ConfigError(f"devices.use names {entry!r}", f"this machine has {', '.join(there)} (or use auto)")
    return found


def _cpu() -> Device:
    cores = len(os.sched_getaffinity(0))
    label = f"CPU, {cores} core{'s' if cores != 1 else ''}"
    memory = host_memory()
    return Device("cpu", "", "cpu", memory.total_bytes, "host", label, memory.available_bytes)


def _gpus(environ: Mapping[str, str], nvml: Any) -> list[Device]:
    with opened_nvml(nvml) as library:
        if library is None:
            return []
        seen = _visible(list(_instances(library)), environ.get("CUDA_VISIBLE_DEVICES"))
        return [
            device
            for number, (uuid, handle, _) in enumerate(seen)
            if (device := _gpu(library, number, handle, uuid)) is not None
        ]


def _gpu(library: Any, number: int, handle: Any, uuid: str) -> Device | None:
    """The device, or None, with a line in the log, when its driver does not tell its memory."""
    try:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        label = _text(library.nvmlDeviceGetName(handle))
    except library.NVMLError as error:
        logs.get().warning("cuda:%d (%s) is left out: %s", number, uuid, error)
        return None
    return Device(f"cuda:{number}", uuid, "cuda", int(memory.total), "nvml", label, int(memory.free))


def _instances(library: Any) -> Iterator[tuple[str, Any, int]]:
    """(UUID, handle, GPU index) of everything CUDA could compute on: GPUs, or the MIG instances of a divided one."""
    for index in range(library.nvmlDeviceGetCount()):
        try:
            parent = library.nvmlDeviceGetHandleByIndex(index)
            found = [(_text(library.nvmlDeviceGetUUID(one)), one, index) for one in _mig(library, parent) or [parent]]
        except library.NVMLError as error:
            logs.get().warning("GPU %d is left out: %s", index, error)
            found = []
        yield from found


def _mig(library: Any, parent: Any) -> list[Any]:
    """Handles of a GPU's MIG instances; [] when it is not divided (or too old to know the word)."""
    with suppress(library.NVMLError):
        if library.nvmlDeviceGetMigMode(parent)[0] != library.NVML_DEVICE_MIG_ENABLE:
            return []
        handles = []
        for slot in range(library.nvmlDeviceGetMaxMigDeviceCount(parent)):
            with suppress(library.NVMLError):
                handles.append(library.nvmlDeviceGetMigDeviceHandleByIndex(parent, slot))
        return handles
    return []


def _visible(instances: list[tuple[str, Any, int]], wanted: str | None) -> list[tuple[str, Any, int]]:
    """What CUDA_VISIBLE_DEVICES leaves, in its order; like CUDA, the first entry that means nothing ends the list."""
    if wanted is None:
        return instances
    left: list[tuple[str, Any, int]] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdecimal():
            found = [one for one in instances if one[2] == int(entry)][:1]
        else:
            found = [one for one in instances if entry and one[0].startswith(entry)]
        if len(found) != 1 or found[0] in left:
            break
        left.append(found[0])
    return left


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def opened_nvml(module: Any = None) -> Iterator[Any]:
    """The NVML module, initialised for the time of the block, or None where there is no NVIDIA driver."""
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            yield None
            return
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        if "not found" not in str(error).lower():
            logs.get().warning("the NVIDIA driver does not answer (%s): running on the CPU", error)
        yield None
        return
    try:
        yield module
    finally:
        with suppress(module.NVMLError):
            module.nvmlShutdown()


# ---------------------------------------------------------------- host memory


def host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> HostMemory:
    """Main memory: total and available bytes, within the tightest cgroup above this process."""
    meminfo = _table(proc / "meminfo")
    total = meminfo.get("MemTotal:", 0) * 1024
    available = meminfo.get("MemAvailable:", meminfo.get("MemFree:", 0)) * 1024
    for limit, room in _cgroup_rooms(proc, cgroup):
        if limit < total:
            total = limit
        available = min(available, room)
    return HostMemory(total, max(0, min(available, total)))


def _cgroup_rooms(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, room) in bytes of each cgroup this process is under that has a memory limit."""
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _rooms(cgroup, path, *names)
            yield from _rooms(cgroup / "unified", path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms(cgroup / "memory", path, *names)


def _rooms(root: Path, path: str, limit_name: str, used_name: str, cache_name: str) -> Iterator[tuple[int, int]]:
    """Walk from ``path`` up to ``root``. Inside a container the path may not exist below its root: the root counts."""
    folder = root / path.lstrip("/")
    while True:
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            cache = _table(folder / "memory.stat").get(cache_name, 0)
            yield limit, limit - (used - cache)
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The file's one number; None when it is missing or says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """``name value`` lines as a dict."""
    pairs = (line.split()[:2] for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
