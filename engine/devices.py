"""Devices: what this machine offers to run stages on, and how much memory it has.

A device is a GPU (or a MIG instance of one) that NVML knows, or the CPU with the machine's memory. Everything here is
asked once at the start, before any process exists; the arbiter watches the memory afterwards.

Names follow CUDA's habit: ``cuda:0`` is the first GPU *this user sees*: of those that ``CUDA_VISIBLE_DEVICES`` leaves
(``engine.visible``), or of all in PCI order. Nothing outside this machine's drivers is told these numbers: a worker
sees exactly one GPU, by its UUID.

Where a device's memory is read (``memory_source``):

* ``nvml``: the driver says how much is free;
* ``mig``: the same, of an instance of a divided GPU;
* ``unified``: the GPU has no memory of its own, and its driver says so: it is the machine's;
* ``declared``: the configuration says how much there is (``devices.declared_bytes``), and nobody how much is free: for
  drivers that do not tell;
* ``host``: the machine's memory.

A GPU whose driver does not answer, or only with an error, is *silent*: it is left out, and the others go on. It keeps
its number, so that ``cuda:1`` never means another GPU than it did. GPUs that nobody names are not asked.

Host memory is what a process here may really use: under a cgroup (v1 or v2, its own or any above it) the room is
limit - (current - inactive file cache), and never more than the kernel's MemAvailable.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from engine import logs, mps, questions
from engine.visible import VARIABLE, Instance, named, visible
from ipc.errors import ConfigError, DragomanError

DRIVER_S = 20.0  # for the driver to answer; a GPU that sleeps takes some seconds
EVERY_GPU = "every GPU"  # what is silent where the driver does not even say which GPUs there are
MEND_SILENT = 'see: nvidia-smi; to go on without GPUs: devices.use = ["cpu"]'
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
COMPUTE_MODES = {1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}  # by NVML's numbers; the rest: DEFAULT
NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED
VOLATILE_UNCORRECTED = (1, 0)  # NVML's numbers of the error type and of the counter since the driver was loaded

Source = Literal["nvml", "mig", "unified", "declared", "host"]


@dataclass(frozen=True)
class Device:
    """One device. ``name`` is the node's word for it, ``uuid`` the driver's ("" for the CPU)."""

    name: str  # "cpu", "cuda:0"
    uuid: str
    kind: Literal["cpu", "cuda"]
    total_bytes: int
    memory_source: Source  # where the arbiter reads its memory: see this module
    label: str  # for people: "NVIDIA L4", "CPU, 8 cores"
    index: int = -1  # nvidia-smi's number of the GPU
    compute_mode: str = "DEFAULT"  # who may compute on it
    mps: bool = False  # its programs share one context server: what breaks one breaks all
    ecc_errors: int = 0  # uncorrectable ones since the driver was loaded
    free_bytes: int = -1  # when it was found; -1: not known
    silent: str = ""  # why nothing is known of it


@dataclass(frozen=True)
class HostMemory:
    """Main memory as this process may use it."""

    total_bytes: int  # the machine's, or the tightest cgroup limit above this process
    available_bytes: int  # what could still be taken now without swapping


# ---------------------------------------------------------------- devices


def discover(
    use: Iterable[str] = ("auto",),
    *,
    declared: Mapping[str, int] | None = None,
    environ: Mapping[str, str] | None = None,
    nvml: Any = None,
    limit_s: float = DRIVER_S,
) -> list[Device]:
    """The devices that ``use`` names, in its order, each once, fit to be used: ``usable`` of ``look``."""
    return usable(look(use, declared=declared, environ=environ, nvml=nvml, limit_s=limit_s))


def usable(found: Iterable[Device]) -> list[Device]:
    """Those that are not silent; a warning tells of each that is.

    Raises DragomanError when all are, or another one cannot be used.
    """
    left_out, answering = silent(found), [device for device in found if not device.silent]
    for name, why in left_out.items():
        logs.get().warning("%s is left out: %s", name, why)
    for device in answering:
        if (error := complaint(device)) is not None:
            raise error
    if left_out and not answering:
        raise DragomanError("; ".join(f"{name}: {why}" for name, why in left_out.items()), MEND_SILENT)
    return answering


def silent(found: Iterable[Device]) -> dict[str, str]:
    """The silent ones, and why they are."""
    return {device.name: device.silent for device in found if device.silent}


def look(
    use: Iterable[str] = ("auto",),
    *,
    declared: Mapping[str, int] | None = None,
    environ: Mapping[str, str] | None = None,
    nvml: Any = None,
    limit_s: float = DRIVER_S,
) -> list[Device]:
    """The devices that ``use`` names, in its order, each once: also those that are silent or cannot be used.

    Entries: "auto" (every visible GPU, then the CPU), "cpu", "cuda:N", or a GPU or MIG UUID. Without an NVIDIA driver
    there is only the CPU; who names only the CPU does not ask the driver. ``declared``: device -> bytes, instead of
    what its driver says. ``nvml`` stands in for the NVML module in tests. ``limit_s``: for the driver, and then for
    its GPUs, to answer.
    Raises ConfigError naming the entry and what there is, DragomanError for CUDA_VISIBLE_DEVICES.
    """
    environ = os.environ if environ is None else environ
    use = tuple(use)
    if not use:
        raise ConfigError("devices.use is empty", 'set it to ["auto"]')
    if set(use) == {"cpu"}:
        return [_cpu()]
    with _Driver(nvml, limit_s) as driver:
        there = driver.visible(use, environ.get(VARIABLE))
        names = list(dict.fromkeys(name for entry in use for name in _matching(entry, there)))
        wanted = {name: there[name] for name in names if name in there}
        gpus = driver.describe(wanted, bool(wanted) and mps.is_served(environ), declared or {})
        return [gpus[name] if name in gpus else _cpu() for name in names]


def unknown(named: Iterable[str], found: Iterable[Device]) -> list[str]:
    """Those of the names (or UUIDs) that mean none of these devices."""
    there = {word for device in found for word in (device.name, device.uuid)}
    return [name for name in named if name not in there]


def complaint(device: Device) -> DragomanError | None:
    """Why a device cannot be used, and what mends it; None: it can.

    Several processes compute on a GPU here, one for each stage. MPS computes for all of its clients in one.
    """
    if device.silent:
        return DragomanError(f"it is left out: {device.silent}", MEND_SILENT)
    if device.compute_mode == "DEFAULT" or (device.compute_mode == "EXCLUSIVE_PROCESS" and device.mps):
        return None
    allowed = "no process" if device.compute_mode == "PROHIBITED" else "only one process"
    text = f"{device.name} ({device.label}) is in compute mode {device.compute_mode}: {allowed} may use it"
    return DragomanError(text, f"run: nvidia-smi -i {device.index} -c DEFAULT (or leave it out of devices.use)")


def _matching(entry: str, there: Mapping[str, Instance]) -> list[str]:
    """Names of the devices that an entry means: of these GPUs, or "cpu". A UUID may be that of a silent one."""
    if entry == "auto":
        return [*there, "cpu"]
    if entry == "cpu" or entry in there:
        return [entry]
    found = [name for name, one in there.items() if entry and one.uuid == entry]
    if not found and (EVERY_GPU in there or entry.startswith(("GPU-", "MIG-"))):
        found = [name for name, one in there.items() if one.silent]
    if not found:
        names = ", ".join([*there, "cpu"])
        raise ConfigError(f"devices.use names {entry!r}", f"this machine has {names} (or use auto)")
    return found


def _cpu() -> Device:
    cores = len(os.sched_getaffinity(0))
    label = f"CPU, {cores} core{'s' if cores != 1 else ''}"
    memory = host_memory()
    return Device("cpu", "", "cpu", memory.total_bytes, "host", label, free_bytes=memory.available_bytes)


class _Driver:
    """The NVIDIA driver while it is asked which GPUs there are. Each GPU is a question of its own."""

    def __init__(self, nvml: Any, limit_s: float) -> None:
        self._nvml = nvml
        self._limit_s = limit_s
        self._library: Any = None  # None: there is no driver, or it is silent
        self._count = 0
        self._silence = ""

    def __enter__(self) -> _Driver:
        found, silent = self._ask({"": self._open})
        self._library, self._count = found.get("", (None, 0))
        self._silence = silent.get("", "")
        return self

    def __exit__(self, *_: object) -> None:
        if self._library is not None and not questions.is_busy(self._nvml):  # its end may hang behind a call
            with suppress(self._library.NVMLError):
                self._library.nvmlShutdown()

    def _open(self) -> tuple[Any, int]:
        library = open_nvml(self._nvml)
        return library, 0 if library is None else library.nvmlDeviceGetCount()

    def visible(self, use: Iterable[str], variable: str | None) -> dict[str, Instance]:
        """What CUDA_VISIBLE_DEVICES leaves, by name. What ``use`` cannot mean is not asked, and stands there silent."""
        if self._silence:
            return {EVERY_GPU: Instance("", -1, "", silent=self._silence)}
        asked = named(use, variable, self._count)
        found, silent = self._ask({index: partial(_instances, self._library, index) for index in asked})
        there = [
            one
            for index in range(self._count)
            for one in found.get(index, [Instance("", index, "", silent=silent.get(index, "not asked"))])
        ]
        return {f"cuda:{number}": one for number, one in enumerate(visible(there, variable))}

    def describe(self, gpus: Mapping[str, Instance], served: bool, declared: Mapping[str, int]) -> dict[str, Device]:
        """The devices of these names."""
        found, silent = self._ask({
            name: partial(_gpu, self._library, name, one, served, declared)
            for name, one in gpus.items()
            if not one.silent
        })  # fmt: skip
        silent |= {name: one.silent for name, one in gpus.items() if one.silent}
        return found | {name: _silent(name, gpus[name], why) for name, why in silent.items()}

    def _ask(self, asked: Mapping[Any, Callable[[], Any]]) -> tuple[dict[Any, Any], dict[Any, str]]:
        refusal = Exception if self._library is None else self._library.NVMLError
        return questions.answers(self._nvml, asked, self._limit_s, refusal)


def _silent(name: str, one: Instance, why: str) -> Device:
    return Device(name, one.uuid, "cuda", 0, "nvml", "GPU", one.index, silent=why)


def _gpu(library: Any, name: str, one: Instance, served: bool, declared: Mapping[str, int]) -> Device:
    """The device; silent where its driver does not tell its memory."""
    try:
        source, total, free = _memory_of(library, name, one, declared)
        label = _text(library.nvmlDeviceGetName(one.handle))
    except library.NVMLError as error:
        mend = f"to use it all the same, say how much memory it has: devices.declared_bytes.{name!r}"
        return _silent(name, one, f"{error}; {mend}")
    mode = COMPUTE_MODES.get(_asked(library, "nvmlDeviceGetComputeMode", one.gpu_handle), "DEFAULT")
    errors = _asked(library, "nvmlDeviceGetTotalEccErrors", one.gpu_handle, *VOLATILE_UNCORRECTED)
    return Device(name, one.uuid, "cuda", total, source, label, one.index, mode, served, errors, free)


def _memory_of(library: Any, name: str, one: Instance, declared: Mapping[str, int]) -> tuple[Source, int, int]:
    """Where its memory is read, how much it has and how much is free, in bytes.

    Raises NVMLError when that cannot be said.
    """
    if nbytes := declared.get(name, declared.get(one.uuid, 0)):
        return "declared", nbytes, nbytes
    try:
        memory = library.nvmlDeviceGetMemoryInfo(one.handle)
    except library.NVMLError as error:
        if getattr(error, "value", None) == NOT_SUPPORTED and one.uuid == one.gpu_uuid:
            host = host_memory()
            return "unified", host.total_bytes, host.available_bytes
        raise
    return "nvml" if one.uuid == one.gpu_uuid else "mig", int(memory.total), int(memory.free)


def _asked(library: Any, call: str, *arguments: Any) -> int:
    """A figure that not every GPU has; 0 then."""
    try:
        return int(getattr(library, call)(*arguments))
    except library.NVMLError:
        return 0


def _instances(library: Any, index: int) -> list[Instance]:
    """What CUDA could compute on of the GPU with this number. Raises NVMLError."""
    gpu = library.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(library.nvmlDeviceGetUUID(gpu))
    parts = [(_text(library.nvmlDeviceGetUUID(part)), part) for part in _mig(library, gpu)]
    return [Instance(name, index, uuid, handle, gpu) for name, handle in parts or [(uuid, gpu)]]


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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def open_nvml(module: Any = None) -> Any:
    """The NVML module, initialised, or None where there is no NVIDIA driver."""
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return None
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        if "not found" not in str(error).lower():
            logs.get().warning("the NVIDIA driver does not answer (%s): running on the CPU", error)
        return None
    return module


@contextmanager
def opened_nvml(module: Any = None) -> Iterator[Any]:
    """The NVML module, initialised for the time of the block, or None where there is no NVIDIA driver."""
    library = open_nvml(module)
    try:
        yield library
    finally:
        if library is not None:
            with suppress(library.NVMLError):
                library.nvmlShutdown()


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
