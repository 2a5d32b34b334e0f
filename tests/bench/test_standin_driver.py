"""The stand-in driver, asked by the real pynvml in processes that find it as they would find NVIDIA's."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest

from bench.standin_driver import BOOK, GIB, NVML, Driver, Gpu, build
from ipc.errors import DragomanError
from tests.bench.standin_program import MIB, NO_GPU, NO_HANDLE, NOT_LOADED, OUT_OF_MEMORY

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")


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


def test_too_many_gpus_are_refused_with_their_bound_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DragomanError, match="at most 16"):
        Driver([Gpu()] * 17)
    assert not list(tmp_path.glob("standin-*"))


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
    assert int(done.stdout) == NOT_LOADED


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


def test_two_processes_that_fill_a_gpu_again_and_again_share_all_of_it_and_no_more(stage):
    driver, start = stage(Gpu(total_bytes=8 * MIB))
    programs = [start(), start()]
    for program in programs:
        program.begin(f"churn(0, {MIB}, 1500)")
    held = [program.end() for program in programs]
    assert sum(held) == driver.truth(0) and driver.get(0, "peak_bytes") == 8 * MIB
    assert driver.get(0, "out_of_memory") == 3000


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
    other.begin(f"allocate(0, {GIB})")
    assert not select.select([other.process.stdout], [], [], 0.1)[0]  # it waits for the lock
    victim.kill()
    assert other.end() > 0
    assert driver.truth(0) == GIB and other(f"allocate(0, {7 * GIB})") > 0


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


# ---------------------------------------------------------------- the library


def test_it_is_compiled_once_and_a_missing_compiler_is_named(tmp_path, monkeypatch):
    folder = build(tmp_path)
    made = (folder / NVML).stat().st_mtime_ns
    assert build(tmp_path) == folder and (folder / NVML).stat().st_mtime_ns == made
    assert sorted(path.name for path in folder.iterdir()) == [NVML, BOOK]
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
