"""The stand-in driver, asked by the real pynvml in processes that find it as they would find NVIDIA's."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from ipc.errors import DragomanError

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

ROOT = Path(__file__).parents[2]
MIB = 2**20
NOT_SUPPORTED, INSUFFICIENT_DRIVER, LOST = 3, 9, 15
OUT_OF_MEMORY, NO_GPU, CONTEXT_LOST, FORBIDDEN, NO_HANDLE = -1, -2, -3, -4, -6

PROGRAM = """
import ctypes, json, os, sys
import pynvml
library = ctypes.CDLL("libnvidia-ml.so.1")
library.standin_allocate.restype = ctypes.c_int64
library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
library.standin_free.argtypes = [ctypes.c_int64]
gpu = pynvml.nvmlDeviceGetHandleByIndex
uuid = pynvml.nvmlDeviceGetHandleByUUID

def allocate(where, nbytes):
    return library.standin_allocate(str(where).encode(), nbytes)

def fill(where, nbytes):
    taken = 0
    while library.standin_allocate(str(where).encode(), nbytes) > 0:
        taken += nbytes
    return taken

def memory(handle, version=None):
    found = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
    return {name: getattr(found, name) for name, _ in found._fields_}

def processes(handle):
    return {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}

def fields(handle, *ids):
    return [(v.nvmlReturn, v.value.uiVal) for v in pynvml.nvmlDeviceGetFieldValues(handle, ids)]

def stall():
    library.standin_open.restype = ctypes.c_void_p
    library.standin_stall.argtypes = [ctypes.c_void_p]
    library.standin_stall(library.standin_open(os.environb[b"STANDIN_NVML_STATE"]))

for line in sys.stdin:
    try:
        answer = eval(line)
    except pynvml.NVMLError as error:
        answer = {"error": error.value}
    print(json.dumps(answer, default=str), flush=True)
"""


class Program:
    """A process on the stand-in that evaluates expressions; NVML errors come back as {"error": code}."""

    def __init__(self, driver: Driver) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=driver.environ(os.environ), cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self("pynvml.nvmlInit()")

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, expression: str) -> Any:
        self.begin(expression)
        return self.end()

    def begin(self, expression: str) -> None:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill it and leave it unreaped: the driver takes a zombie for dead."""
        self.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def stage() -> Iterator[Callable[..., tuple[Driver, Callable[[], Program]]]]:
    """``stage(gpu, ..., lag_s=0)`` -> the driver, and what starts programs on it."""
    with ExitStack() as ends:

        def start(driver: Driver) -> Program:
            program = Program(driver)
            ends.callback(program.close)
            return program

        def make(*gpus: Gpu, **options: Any) -> tuple[Driver, Callable[[], Program]]:
            driver = ends.enter_context(Driver(gpus or (Gpu(),), **options))
            return driver, lambda: start(driver)

        yield make


# ---------------------------------------------------------------- what there is


def test_gpus_are_what_they_were_made(stage):
    _, start = stage(Gpu(name="One", uuid="GPU-one"), Gpu(total_bytes=24 * GIB, name="Two"))
    program = start()
    assert program("pynvml.nvmlDeviceGetCount()") == 2
    assert (
        program("pynvml.nvmlDeviceGetName(gpu(0))") == "One"
        and program("pynvml.nvmlDeviceGetUUID(gpu(0))") == "GPU-one"
    )
    assert program("pynvml.nvmlDeviceGetIndex(uuid(pynvml.nvmlDeviceGetUUID(gpu(1))))") == 1
    assert program("memory(gpu(1))") == {"total": 24 * GIB, "free": 24 * GIB, "used": 0}
    assert program("gpu(2)") == {"error": 2} and program("uuid('GPU-none')") == {"error": 6}


def test_the_second_memory_struct_tells_reserved_from_used(stage):
    driver, start = stage(Gpu(reserved_bytes=300 * MIB))
    program = start()
    program(f"allocate(0, {GIB})")
    free = 7 * GIB - 300 * MIB
    assert program("memory(gpu(0))") == {"total": 8 * GIB, "free": free, "used": GIB + 300 * MIB}
    told = program("memory(gpu(0), pynvml.nvmlMemory_v2)")
    assert (told["reserved"], told["free"], told["used"]) == (300 * MIB, free, GIB)
    assert driver.truth(0) == GIB


def test_a_process_without_a_state_file_has_no_driver(stage):
    driver, _ = stage()
    environ = {**driver.environ(os.environ), "STANDIN_NVML_STATE": __file__}
    script = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(error.value)"
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) == INSUFFICIENT_DRIVER


def test_without_init_nothing_is_told_and_every_call_can_be_made_to_fail(stage):
    driver, start = stage()
    program = start()
    driver.fail(999)
    assert program("memory(gpu(0))") == {"error": 999}
    driver.fail(0)
    program("pynvml.nvmlShutdown()")
    assert program("pynvml.nvmlDeviceGetCount()") == {"error": 1}


def test_a_knob_or_gpu_that_is_not_there_is_an_error(stage):
    driver, _ = stage()
    for wrong in (lambda: driver.set(0, ecc_wrong=1), lambda: driver.get(0, "no"), lambda: driver.truth(1)):
        with pytest.raises(KeyError):
            wrong()
    with pytest.raises(DragomanError, match="so many"):
        Driver([Gpu()] * 17)


# ---------------------------------------------------------------- memory


def test_memory_is_taken_and_given_back_by_its_owner_only(stage):
    driver, start = stage()
    one, other = start(), start()
    handle = one(f"allocate('{driver.uuids[0]}', {GIB})")
    assert handle > 0 and driver.truth(0) == GIB
    assert other(f"library.standin_free({handle})") == NO_HANDLE
    assert one(f"library.standin_free({handle})") == 0 and driver.truth(0) == 0
    assert one(f"library.standin_free({handle})") == NO_HANDLE
    assert one("allocate(0, 1)") != handle  # the row is used again, the handle is not
    assert (
        one("allocate(1, 1)") == NO_GPU and one("allocate('', 1)") == NO_GPU and one("allocate('GPU-x', 1)") == NO_GPU
    )


def test_each_process_pays_for_a_context_once_and_until_it_ends(stage):
    driver, start = stage(Gpu(context_bytes=400 * MIB))
    one, other = start(), start()
    handles = [one("allocate(0, 100)"), one("allocate(0, 100)")]
    other("allocate(0, 50)")
    assert driver.holders(0) == {one.pid: 400 * MIB + 200, other.pid: 400 * MIB + 50}
    for handle in handles:
        one(f"library.standin_free({handle})")
    assert driver.holders(0)[one.pid] == 400 * MIB
    one.kill()
    assert driver.holders(0) == {other.pid: 400 * MIB + 50} and driver.truth(0) == 400 * MIB + 50


def test_what_does_not_fit_is_out_of_memory_and_counted(stage):
    driver, start = stage(Gpu(total_bytes=GIB, context_bytes=100 * MIB))
    program = start()
    assert program(f"allocate(0, {GIB})") == OUT_OF_MEMORY
    assert driver.truth(0) == 100 * MIB  # the context was made
    assert program(f"allocate(0, {GIB - 100 * MIB})") > 0 and program("allocate(0, 1)") == OUT_OF_MEMORY
    assert (driver.get(0, "out_of_memory"), driver.get(0, "allocations")) == (2, 1)
    assert driver.get(0, "peak_bytes") == GIB


def test_two_processes_that_fill_a_gpu_at_once_share_all_of_it_and_no_more(stage):
    driver, start = stage(Gpu(total_bytes=800 * MIB))
    programs = [start(), start()]
    for program in programs:
        program.begin(f"fill(0, {2 * MIB})")
    taken = [program.end() for program in programs]
    assert sum(taken) == driver.truth(0) == driver.get(0, "peak_bytes") == 800 * MIB
    assert driver.get(0, "out_of_memory") == 2


def test_memory_lags_after_it_was_given_back_and_cannot_be_taken_meanwhile(stage):
    driver, start = stage(lag_s=inf)
    program = start()
    handle = program(f"allocate(0, {5 * GIB})")
    program(f"library.standin_free({handle})")
    assert program("memory(gpu(0))")["free"] == 3 * GIB and program(f"allocate(0, {4 * GIB})") == OUT_OF_MEMORY
    assert driver.truth(0) == driver.lagging(0) == 5 * GIB and driver.holders(0) == {}
    driver.lag_s = 0
    assert driver.truth(0) == driver.lagging(0) == 0 and program(f"allocate(0, {4 * GIB})") > 0


def test_fragmented_memory_is_free_and_cannot_be_taken_in_one_piece(stage):
    driver, start = stage()
    program = start()
    driver.set(0, largest_block_bytes=GIB)
    assert program(f"allocate(0, {2 * GIB})") == OUT_OF_MEMORY and program("memory(gpu(0))")["free"] == 8 * GIB
    assert program(f"allocate(0, {GIB})") > 0 and program(f"allocate(0, {GIB})") > 0


def test_other_programs_memory_counts_and_never_more_than_there_is(stage):
    driver, start = stage()
    program = start()
    driver.set_foreign(0, 6 * GIB, pid=1)
    assert program("memory(gpu(0))")["free"] == 2 * GIB and program("processes(gpu(0))") == {"1": 6 * GIB}
    assert program(f"allocate(0, {3 * GIB})") == OUT_OF_MEMORY and program(f"allocate(0, {2 * GIB})") > 0
    with pytest.raises(MemoryError):
        driver.set_foreign(0, 6 * GIB + 1)
    assert driver.truth(0) == 2 * GIB
    driver.set_foreign(0, 0)
    assert program("memory(gpu(0))")["free"] == 6 * GIB


# ---------------------------------------------------------------- death


def test_a_killed_process_gives_its_memory_back_after_the_lag(stage):
    driver, start = stage(lag_s=inf)
    program = start()
    program(f"allocate(0, {GIB})")
    program.kill()
    assert driver.truth(0) == driver.lagging(0) == GIB and driver.holders(0) == {}
    driver.lag_s = 0
    assert driver.truth(0) == 0


def test_a_process_killed_with_the_lock_and_half_an_allocation_leaves_neither(stage):
    driver, start = stage()
    victim, other = start(), start()
    victim(f"allocate(0, {GIB})")
    victim("stall()")
    other.begin("memory(gpu(0))")  # waits for the lock
    victim.kill()
    assert other.end()["free"] >= 7 * GIB  # the kernel frees the lock before the process is seen to be dead
    assert driver.truth(0) == 0 and other(f"allocate(0, {8 * GIB})") > 0


def test_a_reused_pid_is_not_taken_for_the_process_before_it(stage):
    driver, start = stage()
    program = start()
    program(f"allocate(0, {GIB})")
    written = Path(driver.environ({})["STANDIN_NVML_STATE"])
    ticks = int(Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[19])
    owner, another = (ctypes.c_uint64 * 2)(program.pid, ticks), (ctypes.c_uint64 * 2)(program.pid, ticks - 1)
    image = written.read_bytes()
    assert image.count(bytes(owner)) == 2  # the memory's and the context's
    with written.open("r+b") as file:
        file.write(image.replace(bytes(owner), bytes(another)))
    assert driver.truth(0) == 0 and program.process.poll() is None


# ---------------------------------------------------------------- per-process figures, compute modes


def test_figures_of_processes_add_up_to_what_is_used(stage):
    driver, start = stage(Gpu(context_bytes=10 * MIB))
    programs = [start() for _ in range(3)]
    for number, program in enumerate(programs, 1):
        program(f"allocate(0, {number * MIB})")
    figures = programs[0]("processes(gpu(0))")
    assert figures == {str(program.pid): (10 + number) * MIB for number, program in enumerate(programs, 1)}
    assert sum(figures.values()) == driver.truth(0) == programs[0]("memory(gpu(0))")["used"]


def test_figures_of_processes_can_be_missing_in_three_ways(stage):
    driver, start = stage()
    program = start()
    program("allocate(0, 100)")
    driver.set_process_figures(0, "not_available")
    assert program("processes(gpu(0))") == {str(program.pid): None}
    driver.set_process_figures(0, "empty")
    assert program("processes(gpu(0))") == {}
    driver.set_process_figures(0, "not_supported")
    assert program("processes(gpu(0))") == {"error": NOT_SUPPORTED}
    driver.set_process_figures(0, "shown")
    assert program("processes(gpu(0))") == {str(program.pid): 100}


def test_compute_modes_refuse_contexts(stage):
    driver, start = stage()
    one, other = start(), start()
    driver.set_compute_mode(0, "exclusive_process")
    assert one("pynvml.nvmlDeviceGetComputeMode(gpu(0))") == 3
    assert one("allocate(0, 1)") > 0 and one("allocate(0, 1)") > 0 and other("allocate(0, 1)") == FORBIDDEN
    one.kill()
    assert other("allocate(0, 1)") > 0
    driver.set_compute_mode(0, "prohibited")
    assert start()("allocate(0, 1)") == FORBIDDEN


# ---------------------------------------------------------------- health


def test_a_lost_gpu_says_so_and_its_contexts_are_dead_for_good(stage):
    driver, start = stage(Gpu(), Gpu())
    program = start()
    program("allocate(0, 100)")
    driver.lose(0)
    for expression in ("memory(gpu(0))", "gpu(0)", f"uuid('{driver.uuids[0]}')"):
        assert program(expression) == {"error": LOST}
    assert program("allocate(0, 1)") == CONTEXT_LOST
    assert program("pynvml.nvmlDeviceGetCount()") == 2 and program("memory(gpu(1))")["free"] == 8 * GIB
    driver.restore(0)
    assert program("memory(gpu(0))")["used"] == 100 and program("allocate(0, 1)") == CONTEXT_LOST
    assert start()("allocate(0, 1)") > 0


def test_errors_pages_rows_and_the_recovery_action_are_told(stage):
    driver, start = stage()
    program = start()
    assert program("pynvml.nvmlDeviceGetEccMode(gpu(0))") == {"error": NOT_SUPPORTED}
    assert program("pynvml.nvmlDeviceGetTotalEccErrors(gpu(0), 1, 0)") == {"error": NOT_SUPPORTED}
    driver.set(0, ecc=2, ecc_uncorrected=3, ecc_corrected_ever=40, pages_retired_uncorrected=2, pages_pending=1)
    driver.set(0, rows_remapped_uncorrected=4, rows_pending=1, recovery_action=2)
    assert program("pynvml.nvmlDeviceGetEccMode(gpu(0))") == [1, 1]
    assert program("pynvml.nvmlDeviceGetTotalEccErrors(gpu(0), 1, 0)") == 3
    assert program("pynvml.nvmlDeviceGetMemoryErrorCounter(gpu(0), 0, 1, 2)") == 40
    assert program("pynvml.nvmlDeviceGetRetiredPages(gpu(0), 1)") == [4096, 8192]
    assert program("pynvml.nvmlDeviceGetRetiredPages_v2(gpu(0), 0)") == []
    assert program("pynvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu(0))") == 1
    assert program("pynvml.nvmlDeviceGetRemappedRows(gpu(0))") == [0, 4, 1, 0]
    names = "ECC_DBE_VOL_TOTAL", "RETIRED_DBE", "REMAPPED_UNC", "GET_GPU_RECOVERY_ACTION", "ECC_CURRENT"
    told = program(f"fields(gpu(0), {', '.join(f'pynvml.NVML_FI_DEV_{name}' for name in names)})")
    assert told == [[0, 3], [0, 2], [0, 4], [0, 2], [NOT_SUPPORTED, 0]]


def test_a_call_that_hangs_returns_when_the_hang_ends(stage):
    driver, start = stage()
    hung, other = start(), start()
    driver.hang()
    hung.begin("memory(gpu(0))")
    for number in range(20):  # the driver's memory is not concerned, nor is whoever else asks held up by it
        assert other(f"allocate(0, {number + 1})") > 0
    assert driver.truth(0) == 210 and not select.select([hung.process.stdout], [], [], 0)[0]
    driver.resume()
    assert hung.end()["used"] == 210


def test_a_hang_of_some_time_ends_by_itself(stage):
    driver, start = stage()
    program = start()
    driver.hang(0.2)
    until = driver.get(0, "hang_until_ns")
    assert program("(memory(gpu(0)), __import__('time').monotonic_ns())")[1] >= until


# ---------------------------------------------------------------- divided and unified GPUs


def test_a_divided_gpu_is_its_instances(stage):
    driver, start = stage(Gpu(), Gpu(total_bytes=8 * GIB, instances=(GIB, 2 * GIB)))
    program = start()
    whole, small, large = driver.uuids[1:]
    assert program("pynvml.nvmlDeviceGetMigMode(gpu(0))") == {"error": NOT_SUPPORTED}
    assert program("pynvml.nvmlDeviceGetMigMode(gpu(1))") == [1, 1]
    instances = "[pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu(1), n) for n in (0, 1)]"
    assert program(f"[pynvml.nvmlDeviceGetUUID(h) for h in {instances}]") == [small, large]
    assert program("pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu(1), 2)") == {"error": 6}
    assert program("pynvml.nvmlDeviceGetCount()") == 2
    assert program("allocate(1, 1)") == NO_GPU  # not on the whole
    assert (
        program(f"allocate('{small}', {GIB + 1})") == OUT_OF_MEMORY and program(f"allocate('{large}', {GIB + 1})") > 0
    )
    assert program(f"memory(uuid('{large}'))")["free"] == GIB - 1 and program(f"memory(uuid('{small}'))")["free"] == GIB
    assert program(f"memory(uuid('{whole}'))")["used"] == driver.truth(whole) == GIB + 1
    listed = "[(p.pid, p.gpuInstanceId) for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu(1))]"
    assert program(listed) == [[program.pid, 2]]
    driver.lose(whole)
    assert program(f"uuid('{small}')") == {"error": LOST} and program(f"allocate('{small}', 1)") == CONTEXT_LOST


def test_a_unified_gpu_does_not_tell_its_memory_and_has_it(stage):
    driver, start = stage(Gpu(unified=True))
    program = start()
    assert program("memory(gpu(0))") == {"error": NOT_SUPPORTED}
    assert program("memory(gpu(0), pynvml.nvmlMemory_v2)") == {"error": NOT_SUPPORTED}
    assert program(f"allocate(0, {5 * GIB})") > 0 and program(f"allocate(0, {5 * GIB})") == OUT_OF_MEMORY
    assert driver.truth(0) == 5 * GIB


# ---------------------------------------------------------------- the library


def test_it_is_compiled_once_and_a_missing_compiler_is_named(tmp_path, monkeypatch):
    from bench.standin_driver import NVML, build

    folder = build(tmp_path)
    made = (folder / NVML).stat().st_mtime_ns
    assert build(tmp_path) == folder and (folder / NVML).stat().st_mtime_ns == made
    assert sorted(path.name for path in folder.iterdir()) == [NVML, "standin-book.so"]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DragomanError, match="gcc"):
        build(tmp_path / "other")


def test_the_state_file_goes_with_its_driver():
    driver = Driver()
    written = Path(driver.environ({})["STANDIN_NVML_STATE"])
    assert written.exists()
    driver.close()
    driver.close()
    assert not written.parent.exists()
