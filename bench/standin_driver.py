"""A GPU driver to test against: NVML as a C library of our own, whose GPUs are rows of a file.

Theory: whatever asks NVML loads ``libnvidia-ml.so.1`` by that name, so a library of that name in LD_LIBRARY_PATH is the
driver, to pynvml and to the node alike, and nothing in them is replaced. The GPUs' state is one file that all processes
map (``bench/standin/standin.h`` draws it); a killed process cannot leave it locked or wrong. Simulated stages take
their ``vram_bytes`` in it, and hit its limits. Whoever sets the stage turns its knobs while the node runs::

    with Driver([Gpu(), Gpu(total_bytes=24 * GIB)], lag_s=0.5) as driver:
        subprocess.run(command, env=driver.environ(os.environ))
        driver.set_foreign(0, 6 * GIB)
        driver.truth(0)

The library is compiled by gcc when it is first wanted, and kept in the user's cache. NVML calls of this process are not
served by the stand-in: it loads the book alone, under another name.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ipc.errors import DragomanError

GIB = 2**30
SOURCES = Path(__file__).parent / "standin"
STATE = "STANDIN_NVML_STATE"  # the environment variable that names the state file
NVML, BOOK = "libnvidia-ml.so.1", "standin-book.so"
PARTS = {NVML: ("state.c", "book.c", "nvml.c", "health.c"), BOOK: ("state.c", "book.c")}
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
FIGURES = {"shown": 0, "not_available": 1, "not_supported": 2, "empty": 3}  # of processes
MODES = {"default": 0, "prohibited": 2, "exclusive_process": 3}  # compute modes, by NVML's numbers
FOREVER_NS = 2**63 - 1
MOST_GPUS = 16  # as in standin.h


@dataclass(frozen=True)
class Gpu:
    """One GPU as it is at the start. Sizes in bytes."""

    total_bytes: int = 8 * GIB
    name: str = "Stand-in GPU"
    uuid: str = ""  # "": made from its number and what tells this driver from any other on the machine
    context_bytes: int = 0  # taken by each process's first allocation, until it ends
    reserved_bytes: int = 0  # the driver's own
    unified: bool = False  # shares main memory: NVML does not say how much is free
    instances: tuple[int, ...] = ()  # sizes of the MIG instances it is divided into


class Driver:
    """A stand-in driver with these GPUs.

    lag_s: how long memory that was given back stays used. A GPU is named by its number among all rows (an instance
    comes right after its GPU and those before it) or by its UUID; a name that is none raises KeyError.
    Use it in a ``with`` block, or call ``close``: the state file is removed, and processes that map it keep it.
    Raises DragomanError when the library cannot be compiled.
    """

    def __init__(self, gpus: Iterable[Gpu] = (Gpu(),), *, lag_s: float = 0.0) -> None:
        self.folder = build()
        self._library = _book(self.folder / BOOK)
        self._home = Path(tempfile.mkdtemp(prefix="standin-"))
        self._state = self._library.standin_create(os.fsencode(self._home / "state"))
        self._mark = hashlib.sha256(os.fsencode(self._home)).hexdigest()[:12]  # no other driver's GPUs are called so
        self.uuids: list[str] = []
        try:
            for number, gpu in enumerate(gpus):
                self._add(number, gpu)
        except DragomanError:
            self.close()
            raise
        self.lag_s = lag_s

    def _add(self, number: int, gpu: Gpu) -> None:
        uuid = gpu.uuid or f"GPU-{number:08x}-0000-4000-8000-{self._mark}"
        row = self._add_row(-1, uuid, gpu.name, gpu.total_bytes)
        self.set(
            row, context_bytes=gpu.context_bytes, reserved_bytes=gpu.reserved_bytes, unified=gpu.unified,
            mig=2 if gpu.instances else 0,
        )  # fmt: skip
        for instance, nbytes in enumerate(gpu.instances):
            uuid = f"MIG-{number:08x}-{instance:04x}-4000-8000-{self._mark}"
            child = self._add_row(row, uuid, gpu.name, nbytes)
            self.set(child, context_bytes=gpu.context_bytes, instance=instance + 1)

    def _add_row(self, parent: int, uuid: str, name: str, total_bytes: int) -> int:
        row = self._library.standin_add(self._state, parent, uuid.encode(), name.encode(), total_bytes)
        if row < 0:
            raise DragomanError(
                "the stand-in driver has no room for so many GPUs", f"at most {MOST_GPUS}, MIG instances too"
            )
        self.uuids.append(uuid)
        return row

    def environ(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` with what makes a process, and its children, find this driver."""
        path = [str(self.folder), *filter(None, [base.get("LD_LIBRARY_PATH")])]
        return {**base, "LD_LIBRARY_PATH": os.pathsep.join(path), STATE: str(self._home / "state")}

    # ------------------------------------------------------------ setting the stage

    def set(self, gpu: int | str, **knobs: int) -> None:
        """Turn knobs of a GPU; ``standin.h`` lists them (ECC counters, pages, ...). KeyError for an unknown one."""
        for name, value in knobs.items():
            if not self._library.standin_set(self._state, self._row(gpu), name.encode(), int(value)):
                raise KeyError(name)

    def get(self, gpu: int | str, knob: str) -> int:
        """Value of one knob; also ``peak_bytes``, ``allocations`` and ``out_of_memory``, which the driver counts."""
        value = self._library.standin_get(self._state, self._row(gpu), knob.encode())
        if value < 0:
            raise KeyError(knob)
        return value

    @property
    def lag_s(self) -> float:
        """Seconds for which memory that was given back, or whose owner died, stays used."""
        return self.get(0, "lag_ns") / 1e9

    @lag_s.setter
    def lag_s(self, seconds: float) -> None:
        self.set(0, lag_ns=FOREVER_NS if math.isinf(seconds) else int(seconds * 1e9))

    def set_foreign(self, gpu: int | str, nbytes: int, pid: int = 0) -> None:
        """Let other programs hold ``nbytes``, listed under ``pid`` (0: not). MemoryError if so much is not free."""
        self.set(gpu, foreign_pid=pid)
        if self._library.standin_foreign(self._state, self._row(gpu), nbytes):
            raise MemoryError(f"{nbytes} bytes are not free on GPU {gpu}")

    def set_process_figures(self, gpu: int | str, figures: str) -> None:
        """What NVML tells of processes: "shown", "not_available" (no bytes), "not_supported" (an error), "empty"."""
        self.set(gpu, process_figures=FIGURES[figures])

    def set_compute_mode(self, gpu: int | str, mode: str) -> None:
        """Who may make a context: "default" (all), "exclusive_process" (one process), "prohibited" (none)."""
        self.set(gpu, compute_mode=MODES[mode])

    def lose(self, gpu: int | str) -> None:
        """From now on NVML says that this GPU is lost, and allocations on it fail."""
        self.set(gpu, lost=1, losses=self.get(gpu, "losses") + 1)

    def restore(self, gpu: int | str) -> None:
        """Bring a lost GPU back. Processes with a context from before stay without, and hold memory, to their end."""
        self.set(gpu, lost=0)

    def hang(self, seconds: float = math.inf, gpu: int | str | None = None) -> None:
        """NVML calls that begin within ``seconds`` return only then, or after ``resume``. Allocations go on.

        ``gpu``: only those on this GPU, and on its instances; None: all.
        """
        until = FOREVER_NS if math.isinf(seconds) else time.monotonic_ns() + int(seconds * 1e9)
        if gpu is None:
            self.set(0, hang_until_ns=until)
        else:
            self.set(gpu, stuck_until_ns=until)

    def resume(self) -> None:
        """End every hang."""
        self.set(0, hang_until_ns=0)
        for gpu in range(len(self.uuids)):
            self.set(gpu, stuck_until_ns=0)

    def fail(self, code: int) -> None:
        """Every NVML call returns this NVML error code; 0: none."""
        self.set(0, failure=code)

    # ------------------------------------------------------------ looking

    def truth(self, gpu: int | str) -> int:
        """Bytes that processes really hold there: allocations, contexts, and what lags. Others' memory is not in it."""
        return self._library.standin_held(self._state, self._row(gpu), 0)

    def lagging(self, gpu: int | str) -> int:
        """Bytes of ``truth`` that are given back already and lag."""
        return self._library.standin_lagging(self._state, self._row(gpu))

    def holders(self, gpu: int | str) -> dict[int, int]:
        """Living process id -> bytes it holds there, its context included."""
        row, pids = self._row(gpu), (ctypes.c_uint64 * 1024)()
        count = self._library.standin_pids(self._state, row, pids, len(pids))
        held = {pid: self._library.standin_held(self._state, row, pid) for pid in pids[:count]}
        return {pid: nbytes for pid, nbytes in held.items() if nbytes}

    def _row(self, gpu: int | str) -> int:
        if isinstance(gpu, str):
            if gpu not in self.uuids:
                raise KeyError(gpu)
            return self.uuids.index(gpu)
        if not 0 <= gpu < len(self.uuids):
            raise KeyError(gpu)
        return gpu

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Remove the state file. May be called twice."""
        if self._state:
            self._library.standin_close(self._state)
            self._state = None
            shutil.rmtree(self._home)

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---------------------------------------------------------------- compiling and loading


def build(cache: Path | None = None) -> Path:
    """The folder with the compiled library, made if this version of it is not there. Raises DragomanError."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dragoman"
    folder = cache / f"standin-{_digest()}"
    if not all((folder / name).exists() for name in PARTS):
        folder.mkdir(parents=True, exist_ok=True)
        for name, sources in PARTS.items():
            _compile(folder / name, sources)
    return folder


def _digest() -> str:
    """Eight hex digits that change with the sources and flags."""
    digest = hashlib.sha256(repr((FLAGS, PARTS)).encode())
    for file in sorted(SOURCES.glob("*.[ch]")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def _compile(target: Path, sources: Iterable[str]) -> None:
    """Under a name of its own first: whoever finds the target finds it whole."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise DragomanError("the stand-in driver is compiled by gcc, which is not installed", "apt-get install gcc")
    made = target.with_name(f"{target.name}.{os.getpid()}")
    command = [gcc, *FLAGS, f"-Wl,-soname,{target.name}", "-o", str(made), *(str(SOURCES / name) for name in sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        with suppress(FileNotFoundError):
            made.unlink()
        raise DragomanError(f"gcc cannot compile the stand-in driver: {done.stderr.strip()}")
    made.replace(target)


@functools.cache
def _book(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    state, text, number, row = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int
    signatures = {
        "standin_create": (state, [text]),
        "standin_close": (None, [state]),
        "standin_add": (row, [state, row, text, text, number]),
        "standin_set": (ctypes.c_bool, [state, row, text, number]),
        "standin_get": (ctypes.c_int64, [state, row, text]),
        "standin_foreign": (row, [state, row, number]),
        "standin_held": (ctypes.c_int64, [state, row, number]),
        "standin_lagging": (ctypes.c_int64, [state, row]),
        "standin_pids": (row, [state, row, ctypes.POINTER(number), row]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
