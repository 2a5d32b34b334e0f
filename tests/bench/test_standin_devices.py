"""What stand-in GPUs can be: exclusive, ill, lost, hanging, divided, unified; and what they tell of processes."""

from __future__ import annotations

import select
import shutil

import pytest

from bench.standin_driver import GIB, Gpu
from tests.bench.standin_program import CONTEXT_LOST, FORBIDDEN, LOST, MIB, NO_GPU, NOT_SUPPORTED, OUT_OF_MEMORY

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")


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


def test_a_gpu_that_hangs_hangs_alone_with_its_instances(stage):
    driver, start = stage(Gpu(), Gpu(total_bytes=8 * GIB, instances=(GIB,)))
    hung, divided, other = start(), start(), start()
    driver.hang(gpu=1)
    hung.begin("memory(gpu(1))")
    divided.begin(f"pynvml.nvmlDeviceGetHandleByUUID({driver.uuids[2]!r}) and 'there'")
    for _ in range(20):
        assert other("memory(gpu(0))")["used"] == 0
    assert not select.select([hung.process.stdout, divided.process.stdout], [], [], 0)[0]
    driver.resume()
    assert hung.end()["used"] == 0 and divided.end() == "there"


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
