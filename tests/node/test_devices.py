"""Which GPUs a node takes, and what it says of those it cannot: the stand-in driver's, through the real pynvml."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import config, identities, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, HOME, all_held, gpus, on_gpus, translate, two  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

ROOT = Path(__file__).parents[2]
Gpus = Callable[..., Driver]


def everywhere(device: str = "auto", **rest: object) -> dict:
    """The four stages on each GPU there is."""
    return config(stages={name: {"devices": [device]} for name in HOME}, **rest)


def doctor() -> dict[str, dict[str, str]]:
    """The doctor's findings by topic."""
    command = [sys.executable, str(ROOT / "run_node.py"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return {row["topic"]: row for row in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize("mode", ["exclusive_process", "prohibited"])
def test_a_gpu_that_not_all_workers_may_use_is_told_at_the_start_with_what_mends_it(mode: str, gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    driver.set_compute_mode(1, mode)
    with pytest.raises(DragomanError) as refused, Node(on_gpus()):
        pass
    assert f"cuda:1 (Stand-in GPU) is in compute mode {mode.upper()}" in refused.value.text
    assert "nvidia-smi -i 1 -c DEFAULT" in refused.value.mend and "\n" not in str(refused.value)
    found = doctor()
    assert "nvidia-smi -i 1 -c DEFAULT" in found["cuda:1"]["mend"] and found["plan"]["state"] == "bad"
    with Node(everywhere(devices={"use": ["cuda:0"]})) as node:  # the other one is not its business
        assert {o.outcome for o in translate(node, 1)} == {"ok"}


@pytest.mark.parametrize("named", ["number", "uuid", "prefix"])
def test_cuda_visible_devices_is_translated_once_and_each_worker_sees_its_one_gpu(
    named: str,
    gpus: Gpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = gpus(*two(), *two())
    uuids = [driver.uuids[3], driver.uuids[1]]
    entries = {"number": ["3", "1"], "uuid": uuids, "prefix": [uuid[:13] for uuid in uuids]}[named]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(entries))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with Node(everywhere()) as node:
        assert node.stats()["gpu_count"] == 2
        for number, uuid in enumerate(uuids):
            seen = environment_of(process_of(node, f"nmt@cuda:{number}/0")["pid"])
            assert seen["CUDA_VISIBLE_DEVICES"] == uuid and seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert {o.outcome for o in translate(node, 2)} == {"ok"}


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (pair.partition(b"=") for pair in pairs)}


def test_an_instance_of_a_divided_gpu_is_named_by_the_user_s_variable(
    gpus: Gpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = gpus(Gpu(16 * GIB, context_bytes=CONTEXT, instances=(8 * GIB, 8 * GIB)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", driver.uuids[2])
    with Node(everywhere()) as node:
        (row, _) = [node.stats()["arbiter"]["devices"][name] for name in ("cuda:0", "cpu")]
        assert (row["uuid"], row["memory_source"]) == (driver.uuids[2], "mig")


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_a_variable_that_hides_every_gpu_leaves_the_cpu(
    value: str,
    gpus: Gpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(*two())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with Node(everywhere()) as node:
        assert [row["device"] for row in node.stats()["per_gpu"]] == ["cpu"]


def test_a_variable_that_names_what_is_not_there_is_told_in_one_line(
    gpus: Gpus,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(*two())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    with pytest.raises(DragomanError) as refused, Node(everywhere()):
        pass
    assert "CUDA_VISIBLE_DEVICES has '2', which is no GPU here; there are: 0 (GPU-" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert doctor()["devices"]["text"] in str(refused.value)


# ---------------------------------------------------------------- where memory is read


def test_a_gpu_without_memory_of_its_own_shares_the_machine_s_book(gpus: Gpus) -> None:  # noqa: F811
    gpus(Gpu(64 * GIB, unified=True, context_bytes=CONTEXT))
    with Node(config(stages={"asr": {"devices": ["cuda:0"]}, "nmt": {"devices": ["cuda:0"]}})) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        leases = wait_until(lambda: all_held(node))
        devices = node.stats()["arbiter"]["devices"]
        assert (devices["cuda:0"]["memory_source"], devices["cuda:0"]["book"]) == ("unified", "cpu")
        for figure in ("total_bytes", "free_bytes", "grantable_bytes", "held_bytes"):
            assert devices["cuda:0"][figure] == devices["cpu"][figure]
        homes = {row["worker"].partition("#")[0]: row["device"] for row in leases}
        assert homes == {"asr@cuda:0/0": "cpu", "nmt@cuda:0/0": "cpu", "repair@cpu/0": "cpu", "tts@cpu/0": "cpu"}


def test_declared_memory_is_granted_and_no_more(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    declared = {"use": ["cuda:0", "cpu"], "declared_bytes": {"cuda:0": 5 * GIB}}
    sizes = {"asr": 3 * GIB, "nmt": GIB}
    placed = {name: {"devices": ["cuda:0"], "estimate_bytes": nbytes} for name, nbytes in sizes.items()}
    with Node(config(stages=placed, devices=declared)) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        driver.set_foreign(0, 7 * GIB)  # nobody reads it
        wait_until(lambda: all_held(node))
        row = node.stats()["arbiter"]["devices"]["cuda:0"]
        assert (row["memory_source"], row["total_bytes"], row["free_bytes"]) == ("declared", 5 * GIB, 5 * GIB)
        assert row["promised_bytes"] == 4 * GIB and row["grantable_bytes"] == GIB // 2
        kill(process_of(node, "asr@cuda:0/0")["pid"])
        assert {o.outcome for o in translate(node, 2)} == {"ok"}


# ---------------------------------------------------------------- MPS


@pytest.fixture
def mps_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As far as a node can see: a socket that somebody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(str(tmp_path / "control"))
        control.listen()
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
        yield


@pytest.mark.usefixtures("mps_daemon")
def test_under_mps_a_fault_of_one_worker_ends_all_of_its_device_and_of_no_other(gpus: Gpus) -> None:  # noqa: F811
    driver = gpus(*two())
    driver.set_compute_mode(0, "exclusive_process")  # as NVIDIA advises: MPS alone may enter
    driver.set_compute_mode(1, "exclusive_process")
    where = {name: {"devices": [home]} for name, home in HOME.items()}
    with Node(config(stages=where, deadlines={"abort_s": 0.3})) as node:
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        assert "an MPS daemon serves it" in doctor()["cuda:0"]["text"]
        before = identities(node)
        kill(before["asr@cuda:0/0"][0], signal.SIGSEGV)
        wait_until(lambda: changed(node, before) == {"asr@cuda:0/0", "tts@cuda:0/0"})
        wait_until(lambda: {row["phase"] for row in node.stats()["processes"] if "@" in row["role"]} == {"loaded"})
        assert {o.outcome for o in translate(node, 2)} == {"ok"}
        assert changed(node, before) == {"asr@cuda:0/0", "tts@cuda:0/0"}
        reasons = {row["role"]: row["reason"] for row in node.stats()["deaths"]}
        assert "share one context server (MPS)" in reasons["tts@cuda:0/0"]


def changed(node: Node, before: dict[str, tuple[int, int]]) -> set[str]:
    """The roles that have another process than before."""
    return {role for role, one in identities(node).items() if before[role] != one}
