"""Readings arrive; a driver that hangs or fails stops only its own thread; what was asked for is read afterwards."""

from __future__ import annotations

import select
import threading

import pytest

from engine.arbiter.events import DeviceLost
from engine.arbiter.main import samplers
from engine.arbiter.resident import Resident
from engine.arbiter.room import Reading
from engine.arbiter.sampler import Gpu, Sampler, declared_source, host_source, nvml_source
from engine.boot import DevicePlan
from engine.devices import HostMemory

LONG_S = 600.0  # a period no test waits for
PATIENCE_S = 10.0


def await_readings(sampler: Sampler) -> tuple[list[Reading], str]:
    assert select.select([sampler.fileno()], [], [], PATIENCE_S)[0], "no reading came"
    return sampler.take()


def test_host_memory_is_read_at_once_and_again_when_asked():
    sampler = Sampler("host", host_source(["cpu"], lambda: HostMemory(100, 40)), LONG_S)
    sampler.start()
    (first,), failure = await_readings(sampler)
    assert (first.device, first.total_bytes, first.free_bytes, failure) == ("cpu", 100, 40, "")
    assert sampler.take() == ([], "")  # nothing new, and no waiting
    sampler.ask()
    (second,), _ = await_readings(sampler)
    assert second.taken_at > first.taken_at


def test_only_the_newest_reading_of_a_device_is_kept():
    sizes = iter(range(1, 4))
    done = threading.Event()

    def memory():
        size = next(sizes, None)
        if size is None:
            done.set()
            threading.Event().wait()
        return HostMemory(size, size)

    sampler = Sampler("host", host_source(["cpu"], memory), 0.001)
    sampler.start()
    assert done.wait(PATIENCE_S)
    (reading,), _ = await_readings(sampler)
    assert reading.total_bytes == 3


def test_a_source_that_hangs_leaves_the_caller_free():
    sampler = Sampler("host", host_source(["cpu"], lambda: threading.Event().wait()), 0.001)
    sampler.start()
    sampler.ask()
    assert sampler.take() == ([], "")


class FailingNvml:
    """A driver that fails once, then answers."""

    class NVMLError(Exception):
        def __init__(self, text, value=999):
            super().__init__(text)
            self.value = value

    def __init__(self):
        self.calls = 0

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):
        self.calls += 1
        if self.calls == 1:
            raise self.NVMLError("Unknown Error")
        return type("Memory", (), {"total": 24, "free": 14})

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        raise self.NVMLError("Not Supported", 3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        raise self.NVMLError("not supported")


class Listing(FailingNvml):
    """A driver that tells what processes have; of one of them it does not."""

    def nvmlDeviceGetMemoryInfo(self, handle):
        return type("Memory", (), {"total": 24, "free": 14})

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [type("Row", (), {"pid": pid, "usedGpuMemory": used}) for pid, used in ((7, 4), (8, None))]


def test_what_processes_have_is_read_with_the_device_where_the_driver_tells_it():
    sampler = Sampler("gpu", nvml_source("cuda:0", Gpu("GPU-a"), Listing()), LONG_S)
    sampler.start()
    (reading,), _ = await_readings(sampler)
    assert reading.processes == {7: 4}


@pytest.mark.parametrize(
    ("rows", "told"), [([], {}), ([(8, None)], None), (None, None)], ids=["nobody", "no figures", "an error"]
)
def test_that_nobody_has_anything_is_not_the_same_as_not_being_told(rows, told, monkeypatch):
    def listed(self, handle):
        if rows is None:
            raise self.NVMLError("not supported")
        return [type("Row", (), {"pid": pid, "usedGpuMemory": used}) for pid, used in rows]

    monkeypatch.setattr(Listing, "nvmlDeviceGetComputeRunningProcesses", listed)
    sampler = Sampler("gpu", nvml_source("cuda:0", Gpu("GPU-a"), Listing()), LONG_S)
    sampler.start()
    (reading,), _ = await_readings(sampler)
    assert reading.processes == told


@pytest.mark.parametrize("code", [15, 16], ids=["GPU_IS_LOST", "RESET_REQUIRED"])
def test_a_gpu_that_computes_no_more_is_lost_by_either_of_the_driver_s_words(code, monkeypatch):
    def gone(self, handle):
        raise self.NVMLError("it is gone", code)

    monkeypatch.setattr(FailingNvml, "nvmlDeviceGetMemoryInfo", gone)
    sampler = Sampler("gpu", nvml_source("cuda:0", Gpu("GPU-a"), FailingNvml()), LONG_S)
    sampler.start()
    (lost,), _ = await_readings(sampler)
    assert lost == DeviceLost("cuda:0", "it is gone")


def test_a_driver_error_is_told_and_reading_goes_on():
    sampler = Sampler("gpu", nvml_source("cuda:0", Gpu("GPU-a"), FailingNvml()), LONG_S)
    sampler.start()
    assert await_readings(sampler) == ([], "Unknown Error")
    sampler.ask()
    (reading,), failure = await_readings(sampler)
    assert (reading.device, reading.total_bytes, reading.free_bytes, failure) == ("cuda:0", 24, 14, "")


class Several(FailingNvml):
    """A driver with a GPU that is lost, one that does not answer, one whose call hangs, and another."""

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle == "GPU-b":
            raise self.NVMLError("GPU is lost", 15)
        if handle == "GPU-c":
            threading.Event().wait()
        if handle == "GPU-d":
            raise self.NVMLError("Unknown Error")
        return type("Memory", (), {"total": 24, "free": 14})


def test_a_gpu_that_is_lost_or_hangs_or_fails_keeps_no_other_s_figures_from_us():
    nvml = Several()
    names = {f"cuda:{number}": f"GPU-{letter}" for number, letter in enumerate("bcda")}
    lost, hung, failing, well = (
        Sampler(name, nvml_source(name, Gpu(uuid), nvml), LONG_S) for name, uuid in names.items()
    )
    for sampler in (lost, hung, failing, well):
        sampler.start()
    assert await_readings(lost) == ([DeviceLost("cuda:0", "GPU is lost")], "")
    assert await_readings(failing) == ([], "Unknown Error")
    for _ in range(3):
        ((reading,), failure) = await_readings(well)
        assert (reading.device, reading.free_bytes, failure) == ("cuda:3", 14, "")
        well.ask()
    assert hung.take() == ([], "")


def test_a_gpu_that_tells_no_memory_is_watched_all_the_same():
    class Dumb(FailingNvml):
        errors = 2

        def nvmlDeviceGetMemoryInfo(self, handle):
            raise AssertionError("it is not asked")

        def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
            return self.errors

    nvml = Dumb()
    sampler = Sampler("gpu", nvml_source("cuda:0", Gpu("GPU-a", ecc_errors=2, tells_memory=False), nvml), LONG_S)
    sampler.start()
    assert await_readings(sampler) == ([], "")  # they were there before the node
    nvml.errors = 3
    sampler.ask()
    ((lost,), _) = await_readings(sampler)
    assert lost == DeviceLost("cuda:0", "1 uncorrectable ECC error in its memory")


def test_every_gpu_has_a_sampler_of_its_own_and_one_without_a_book_is_watched_too():
    plans = (
        DevicePlan("cpu"),
        DevicePlan("cuda:0", "GPU-a", "nvml"),
        DevicePlan("cuda:1", "MIG-b", "mig"),
        DevicePlan("cuda:2", "GPU-c", "unified", book="cpu"),
        DevicePlan("cuda:3", "GPU-d", "declared", 24),
    )
    found = samplers(plans, LONG_S, Resident())
    assert {book: sampler.name for book, sampler in found.items()} == {
        "cpu": "host", "cuda:0": "cuda:0", "cuda:1": "cuda:1", "GPU-c": "cuda:2", "cuda:3": "declared",
        "GPU-d": "cuda:3",
    }  # fmt: skip


def test_what_is_declared_is_all_free():
    sampler = Sampler("declared", declared_source({"cuda:0": 5}), LONG_S)
    sampler.start()
    ((reading,), _) = await_readings(sampler)
    assert (reading.device, reading.total_bytes, reading.free_bytes) == ("cuda:0", 5, 5)


@pytest.mark.parametrize("names", [["cpu"], ["cpu", "numa1"]])
def test_one_reading_for_each_device_of_a_source(names):
    sampler = Sampler("host", host_source(names, lambda: HostMemory(9, 8)), LONG_S)
    sampler.start()
    readings, _ = await_readings(sampler)
    assert [reading.device for reading in readings] == names
