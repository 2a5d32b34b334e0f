"""Which devices a node finds, and how much memory it believes it may use."""

from __future__ import annotations

import threading

import pytest

from engine import devices
from engine.arbiter.events import Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.devices import Device, HostMemory, discover, host_memory
from engine.limits import Limits
from ipc.errors import ConfigError, DragomanError

GIB = 2**30


class FakeNvml:
    """NVML with a few GPUs: {uuid: total bytes}; ``mig``: GPU index -> {uuid: bytes}."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        def __init__(self, text, value=0):
            super().__init__(text)
            self.value = value

    def __init__(self, gpus, mig=None, error=""):
        self.gpus, self.mig, self.error = dict(gpus), mig or {}, error
        self.open = 0
        self.modes = {}  # uuid -> compute mode

    def nvmlInit(self):
        if self.error:
            raise self.NVMLError(self.error)
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return list(self.gpus)[index]

    def nvmlDeviceGetUUID(self, handle):
        return handle

    def nvmlDeviceGetName(self, handle):
        return b"Test GPU"

    def nvmlDeviceGetMemoryInfo(self, handle):
        sizes = self.gpus | {uuid: size for parts in self.mig.values() for uuid, size in parts.items()}
        return type("Memory", (), {"total": sizes[handle], "free": sizes[handle], "used": 0})

    def nvmlDeviceGetComputeMode(self, handle):
        return self.modes.get(handle, 0)

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetMigMode(self, handle):
        index = list(self.gpus).index(handle)
        if index not in self.mig:
            raise self.NVMLError("Not Supported")
        return 1, 1

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, slot):
        parts = list(self.mig[list(self.gpus).index(handle)])
        if slot >= len(parts):
            raise self.NVMLError("Not Found")
        return parts[slot]


TWO = {"GPU-aaaa": 24 * GIB, "GPU-bbbb": 12 * GIB}


def names(found):
    return [(device.name, device.uuid) for device in found]


def test_auto_is_every_gpu_and_then_the_cpu():
    nvml = FakeNvml(TWO)
    found = discover(environ={}, nvml=nvml)
    assert names(found) == [("cuda:0", "GPU-aaaa"), ("cuda:1", "GPU-bbbb"), ("cpu", "")]
    assert found[0] == Device(
        "cuda:0", "GPU-aaaa", "cuda", 24 * GIB, "nvml", "Test GPU", index=0, free_bytes=found[0].free_bytes
    )
    assert 0 <= found[0].free_bytes <= 24 * GIB
    assert (found[2].kind, found[2].memory_source) == ("cpu", "host")
    assert nvml.open == 0  # the driver is let go of


@pytest.mark.parametrize("error", ["NVML Shared Library Not Found", "Driver Not Loaded"])
def test_without_a_driver_there_is_only_the_cpu(error):
    assert names(discover(environ={}, nvml=FakeNvml({}, error=error))) == [("cpu", "")]


def test_devices_are_named_by_number_or_uuid_in_the_users_order_each_once():
    found = discover(("GPU-bbbb", "cpu", "cuda:1", "cuda:0"), environ={}, nvml=FakeNvml(TWO))
    assert names(found) == [("cuda:1", "GPU-bbbb"), ("cpu", ""), ("cuda:0", "GPU-aaaa")]


@pytest.mark.parametrize("entry", ["cuda:2", "GPU-cccc", "gpu", ""])
def test_a_device_that_is_not_there_is_named_with_those_that_are(entry):
    with pytest.raises(ConfigError) as caught:
        discover((entry,), environ={}, nvml=FakeNvml(TWO))
    assert repr(entry) in str(caught.value) and "cuda:0, cuda:1, cpu" in str(caught.value)


class Hanging(FakeNvml):
    """The driver, or some GPUs of its, never answer; ``asked``: GPUs that were asked."""

    def __init__(self, gpus, hanging=(), *, everything=False, **more):
        super().__init__(gpus, **more)
        self.hanging, self.everything = hanging, everything
        self.asked = []

    def nvmlInit(self):
        if self.everything:
            threading.Event().wait()
        super().nvmlInit()

    def nvmlDeviceGetHandleByIndex(self, index):
        self.asked.append(index)
        if index in self.hanging:
            threading.Event().wait()
        return super().nvmlDeviceGetHandleByIndex(index)


def test_the_cpu_has_what_is_available_free_and_no_gpu_s_number():
    (cpu,) = devices.look(["cpu"])
    assert cpu.index == -1 and 0 < cpu.free_bytes <= cpu.total_bytes


def test_a_driver_that_hangs_leaves_the_cpu_and_who_needs_no_gpu_does_not_ask_it(caplog):
    for use in (("auto",), ("cuda:1", "cpu"), ("GPU-aaaa", "cpu")):
        nvml = Hanging(TWO, everything=True)
        assert names(discover(use, environ={}, nvml=nvml, limit_s=0.05)) == [("cpu", "")]
        assert "every GPU is left out: the driver has not answered for 0.05 s" in caplog.text
        caplog.clear()
    with pytest.raises(DragomanError, match="every GPU: the driver has not answered"):
        discover(["cuda:0"], environ={}, nvml=Hanging(TWO, everything=True), limit_s=0.05)
    assert names(discover(["cpu"], environ={}, nvml=Hanging(TWO, everything=True))) == [("cpu", "")]


@pytest.mark.parametrize("visible", [None, "0,1", "GPU-aaaa,GPU-bbbb"])
@pytest.mark.parametrize("use", [("auto",), ("cuda:0", "cuda:1", "cpu"), ("GPU-bbbb", "cuda:0", "cpu")])
@pytest.mark.parametrize("hanging", [0, 1])
def test_a_gpu_that_hangs_is_left_out_and_the_others_keep_their_numbers(hanging, use, visible, caplog):
    nvml = Hanging(TWO, {hanging})
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = devices.look(use, environ=environ, nvml=nvml, limit_s=0.2)
    others = [("cuda:0", "GPU-aaaa"), ("cuda:1", "GPU-bbbb")]
    others.remove(others[hanging])
    assert names(devices.usable(found)) == [*others, ("cpu", "")]
    assert f"cuda:{hanging} is left out: the driver has not answered for 0.2 s" in caplog.text
    assert devices.silent(found).keys() == {f"cuda:{hanging}"}
    assert "left out" in devices.complaint(next(device for device in found if device.silent)).text
    assert nvml.open == 1  # nobody closes the driver under a call


def test_all_gpus_are_asked_at_once_and_one_that_hangs_once_only():
    nvml = Hanging({f"GPU-{n}": GIB for n in range(8)}, set(range(7)))
    for _ in range(2):
        found = discover(environ={}, nvml=nvml, limit_s=0.2)
        assert names(found) == [("cuda:7", "GPU-7"), ("cpu", "")]
    assert sorted(nvml.asked) == [*range(8), 7]
    with pytest.raises(DragomanError, match="cuda:3: the driver has not answered"):
        discover(["cuda:3"], environ={}, nvml=nvml, limit_s=0.2)


@pytest.mark.parametrize(
    ("use", "visible", "asked"),
    [
        (("cuda:0", "cpu"), None, [0]),
        (("cuda:1",), None, [0, 1]),  # instances of GPU 0 may come before it
        (("auto",), "0", [0]),
        (("auto",), "2,0", [0, 2]),
        (("cuda:0",), "2,0", [2]),
        (("auto",), "2,-1,0", [2]),
        (("auto",), "-1", []),
        (("auto",), "", []),
        (("GPU-cccc",), "2,0", [0, 2]),
        (("GPU-cccc",), None, [0, 1, 2]),
        (("cuda:0",), "GPU-aa", [0, 1, 2]),  # who knows which one that is
        (("auto",), None, [0, 1, 2]),
    ],
)
def test_gpus_that_are_not_named_are_not_asked(use, visible, asked):
    nvml = Hanging({**TWO, "GPU-cccc": GIB})
    devices.look(use, environ={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, nvml=nvml)
    assert sorted(nvml.asked) == asked and nvml.open == 0


def test_what_is_wrong_with_an_answer_is_raised():
    class Broken(FakeNvml):
        def nvmlDeviceGetName(self, handle):
            raise RuntimeError("no such function")

    with pytest.raises(RuntimeError, match="no such function"):
        discover(environ={}, nvml=Broken(TWO))


def test_names_that_mean_no_device_in_use_are_found():
    found = discover(environ={}, nvml=FakeNvml(TWO))
    assert devices.unknown(["cuda:0", "GPU-bbbb", "cuda:9", "cpu"], found) == ["cuda:9"]


def test_an_empty_list_is_refused():
    with pytest.raises(ConfigError):
        discover((), environ={}, nvml=FakeNvml(TWO))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-bb", ["GPU-bbbb"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["GPU-bbbb"]),  # it ends the list
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_hides_gpus_as_it_does_for_any_cuda_program(visible, uuids):
    found = discover(environ={"CUDA_VISIBLE_DEVICES": visible}, nvml=FakeNvml(TWO))
    assert [device.uuid for device in found if device.kind == "cuda"] == uuids
    assert [device.name for device in found] == [f"cuda:{n}" for n in range(len(uuids))] + ["cpu"]


def test_a_divided_gpu_is_its_instances():
    nvml = FakeNvml(TWO, mig={1: {"MIG-x": 5 * GIB, "MIG-y": 5 * GIB}})
    assert [device.uuid for device in discover(environ={}, nvml=nvml)] == ["GPU-aaaa", "MIG-x", "MIG-y", ""]
    found = discover(environ={"CUDA_VISIBLE_DEVICES": "MIG-y"}, nvml=nvml)
    assert (found[0].name, found[0].uuid, found[0].total_bytes) == ("cuda:0", "MIG-y", 5 * GIB)
    assert (found[0].memory_source, found[0].index) == ("mig", 1)


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("0,7", "'7', which is no GPU here; there are: 0 (GPU-aaaa), 1 (GPU-bbbb)"),
        ("GPU-cc", "'GPU-cc', which is no GPU here"),
        ("GPU-", "'GPU-', which may be any of GPU-aaaa, GPU-bbbb"),
        ("0,GPU-aaaa", "names 0 (GPU-aaaa) twice"),
        ("0,,1", "'', which is no GPU here"),
        ("0,--x", "'--x', which is no GPU here"),
        pytest.param("9" * 5000, "99', which is no GPU here", id="5000 digits"),
    ],
)
def test_an_entry_that_means_nothing_is_told_in_one_line(visible, words):
    """Where CUDA would compute on fewer GPUs than its user believes."""
    with pytest.raises(DragomanError) as refused:
        discover(environ={"CUDA_VISIBLE_DEVICES": visible}, nvml=FakeNvml(TWO))
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["MIG-x"]),  # as in CUDA: the first instance
        ("GPU-bbbb", ["MIG-x"]),
        ("MIG-y,0", ["MIG-y", "GPU-aaaa"]),
        ("MIG-x,MIG-y", ["MIG-x", "MIG-y"]),
    ],
)
def test_instances_are_named_like_gpus(visible, uuids):
    nvml = FakeNvml(TWO, mig={1: {"MIG-x": 5 * GIB, "MIG-y": 5 * GIB}})
    found = discover(environ={"CUDA_VISIBLE_DEVICES": visible}, nvml=nvml)
    assert [device.uuid for device in found if device.kind == "cuda"] == uuids


def test_who_names_a_gpu_that_does_not_answer_is_not_told_off():
    class OneLost(FakeNvml):
        def nvmlDeviceGetHandleByIndex(self, index):
            if index == 1:
                raise self.NVMLError("GPU is lost", 15)
            return super().nvmlDeviceGetHandleByIndex(index)

    for visible, name in {"0,1": "cuda:0", "GPU-bbbb,GPU-aaaa": "cuda:1"}.items():
        found = discover(environ={"CUDA_VISIBLE_DEVICES": visible}, nvml=OneLost(TWO))
        assert names(found) == [(name, "GPU-aaaa"), ("cpu", "")]
    with pytest.raises(DragomanError, match="CUDA_VISIBLE_DEVICES has '2', which is no GPU here"):
        discover(environ={"CUDA_VISIBLE_DEVICES": "0,2"}, nvml=OneLost(TWO))  # that was never one


# ---------------------------------------------------------------- what cannot be used, and where memory is read


@pytest.mark.parametrize(("mode", "word"), [(1, "EXCLUSIVE_THREAD"), (2, "PROHIBITED"), (3, "EXCLUSIVE_PROCESS")])
def test_a_gpu_that_not_all_may_use_is_refused_with_the_command_that_mends_it(mode, word):
    nvml = FakeNvml(TWO)
    nvml.modes["GPU-bbbb"] = mode
    for use in ("auto", "cuda:1"):
        with pytest.raises(DragomanError) as refused:
            discover([use], environ={}, nvml=nvml)
        assert word in refused.value.text and "nvidia-smi -i 1 -c DEFAULT" in refused.value.mend
        assert "\n" not in str(refused.value)
    assert [device.name for device in discover(["cuda:0"], environ={}, nvml=nvml)] == ["cuda:0"]


def test_mps_may_have_a_gpu_for_itself(monkeypatch):
    nvml = FakeNvml(TWO)
    nvml.modes["GPU-aaaa"] = 3
    monkeypatch.setattr(devices.mps, "is_served", lambda environ: True)
    found = discover(environ={}, nvml=nvml)
    assert [device.mps for device in found] == [True, True, False]


class Untold(FakeNvml):
    """GPUs whose memory the driver does not tell."""

    code = 3  # not supported

    def nvmlDeviceGetMemoryInfo(self, handle):
        raise self.NVMLError("Not Supported", self.code)


def test_a_gpu_without_memory_of_its_own_has_the_machine_s():
    (gpu, _) = discover(environ={}, nvml=Untold({"GPU-aaaa": 0}))
    assert (gpu.memory_source, gpu.total_bytes) == ("unified", host_memory().total_bytes)


def test_where_the_driver_does_not_tell_the_configuration_may():
    nvml = Untold(TWO)
    nvml.code = 999
    assert names(discover(environ={}, nvml=nvml)) == [("cpu", "")]
    found = discover(declared={"GPU-bbbb": 10 * GIB}, environ={}, nvml=nvml)
    assert [(device.name, device.memory_source, device.total_bytes) for device in found[:-1]] == [
        ("cuda:1", "declared", 10 * GIB)
    ]


# ---------------------------------------------------------------- memory


class Machine:
    """Files as the kernel would show them."""

    def __init__(self, root):
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.write("proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n", root)
        self.root = root

    def write(self, name, text, root=None):
        path = (root or self.root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))

    def v2(self, group, limit, used, cache=0):
        self.write(f"cgroup{group}/memory.max", f"{limit}\n")
        self.write(f"cgroup{group}/memory.current", f"{used}\n")
        self.write(f"cgroup{group}/memory.stat", f"anon 1\ninactive_file {cache}\n")

    def v1(self, group, limit, used, cache=0):
        self.write(f"cgroup/memory{group}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"cgroup/memory{group}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"cgroup/memory{group}/memory.stat", f"inactive_file 5\ntotal_inactive_file {cache}\n")

    def memory(self):
        return host_memory(self.proc, self.cgroup)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_a_limit_it_is_the_machines(machine):
    assert machine.memory() == HostMemory(64 * GIB, 32 * GIB)
    machine.write("proc/self/cgroup", "0::/\n")
    machine.v2("", "max", 60 * GIB)
    assert machine.memory() == HostMemory(64 * GIB, 32 * GIB)


def test_a_v2_limit_counts_without_the_file_cache(machine):
    machine.write("proc/self/cgroup", "0::/user/app\n")
    machine.v2("/user/app", 8 * GIB, 7 * GIB, cache=3 * GIB)
    assert machine.memory() == HostMemory(8 * GIB, 4 * GIB)


def test_the_tightest_group_above_counts(machine):
    machine.write("proc/self/cgroup", "0::/user/app\n")
    machine.v2("/user/app", 16 * GIB, 2 * GIB)
    machine.v2("/user", 8 * GIB, 7 * GIB)
    assert machine.memory() == HostMemory(8 * GIB, 1 * GIB)


def test_a_v1_limit_counts_and_its_no_limit_does_not(machine):
    machine.write("proc/self/cgroup", "5:cpu:/x\n4:cpuacct,memory:/job\n0::/\n")
    machine.v1("", 9223372036854771712, 20 * GIB)
    machine.v1("/job", 8 * GIB, 5 * GIB, cache=GIB)
    assert machine.memory() == HostMemory(8 * GIB, 4 * GIB)


def test_inside_a_container_the_groups_path_may_be_the_hosts(machine):
    machine.write("proc/self/cgroup", "4:memory:/docker/abc\n")
    machine.v1("", 4 * GIB, GIB)
    assert machine.memory() == HostMemory(4 * GIB, 3 * GIB)


def test_v1_and_v2_side_by_side_both_count(machine):
    """As systemd's hybrid layout has them: memory under v1, and a v2 tree beside it, without or with a limit."""
    machine.write("proc/self/cgroup", "4:memory:/job\n0::/job\n")
    machine.v1("/job", 8 * GIB, 5 * GIB)
    assert machine.memory() == HostMemory(8 * GIB, 3 * GIB)
    machine.v2("/unified/job", 6 * GIB, 4 * GIB, cache=GIB)
    assert machine.memory() == HostMemory(6 * GIB, 3 * GIB)


def test_a_container_that_sees_only_its_own_group(machine):
    """A cgroup namespace shows "/" and the limit lies at the root of the mount."""
    machine.write("proc/self/cgroup", "0::/\n")
    machine.v2("", 2 * GIB, GIB, cache=GIB // 2)
    assert machine.memory() == HostMemory(2 * GIB, GIB + GIB // 2)


@pytest.mark.parametrize("text", ["", "max\n", "-1\n", "rubbish\n"])
def test_a_limit_that_is_none_is_none(machine, text):
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.v2("/app", 8 * GIB, GIB)
    machine.write("cgroup/app/memory.max", text)
    assert machine.memory() == HostMemory(64 * GIB, 32 * GIB)


def test_the_book_of_the_cpu_follows_a_limit_that_is_changed_while_it_runs(machine):
    """Grants, reserve and margin are the same as for any device; only where the figures come from differs."""
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.v2("/app", 8 * GIB, 2 * GIB, cache=GIB)
    book = Leases([Limits("cpu", machine.memory().total_bytes, reserve_bytes=GIB, safety_margin=0.0)], Waits())

    def grantable(now):
        seen = machine.memory()
        book.handle(Reading("cpu", seen.total_bytes, seen.available_bytes, now), now)
        book.check()
        return book.snapshot(now)["devices"]["cpu"]["grantable_bytes"]

    assert grantable(1.0) == 6 * GIB  # 8 - (2 - 1) used, 1 reserved
    machine.v2("/app", 4 * GIB, 2 * GIB, cache=GIB)
    assert grantable(2.0) == 2 * GIB


def test_available_is_never_more_than_the_kernel_says_nor_less_than_nothing(machine):
    machine.write("proc/self/cgroup", "0::/\n")
    machine.v2("", 60 * GIB, GIB)
    assert machine.memory() == HostMemory(60 * GIB, 32 * GIB)
    machine.v2("", 8 * GIB, 9 * GIB)
    assert machine.memory() == HostMemory(8 * GIB, 0)


def test_this_machine_has_memory():
    memory = devices.host_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
