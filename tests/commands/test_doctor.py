"""The doctor: a machine that can run the node is healthy, and whatever is missing comes with what mends it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine.commands import doctor
from engine.commands.doctor import FLOORS, Facts, Finding, examine

GIB = 2**30
CPU = {"name": "cpu", "kind": "cpu", "label": "CPU, 8 cores", "total_bytes": 16 * GIB}
GPU = {"name": "cuda:0", "kind": "cuda", "label": "NVIDIA L4", "total_bytes": 24 * GIB}
GOOD = Facts(
    python=(3, 12, 1),
    system="Linux",
    kernel="6.1.0-18-amd64",
    cores=8,
    packages=dict.fromkeys([*FLOORS, "llama-cpp-python"], "99.1.0"),
    libzmq="4.3.5",
    onnx_dists={"onnxruntime": "1.31.1"},
    onnx_version="1.31.1",
    onnx_providers=("CPUExecutionProvider",),
    memory_total=16 * GIB,
    memory_available=12 * GIB,
    devices=[CPU],
)


def about(topic: str, **changes: Any) -> Finding:
    facts = dataclasses.replace(GOOD, **changes)
    return next(f for f in examine(facts) if f.topic == topic)


def packages(**changes: str | None) -> dict[str, str | None]:
    return GOOD.packages | {name.replace("_", "-"): version for name, version in changes.items()}


def test_a_good_machine_without_a_gpu_is_healthy_and_told_that_it_has_none() -> None:
    findings = examine(GOOD)
    assert all(f.state != "bad" for f in findings)
    assert [f.topic for f in findings if f.state == "note"] == ["GPU"]


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"memory_source": "unified"}, "unified: it is the machine's"),
        ({"memory_source": "mig"}, "MIG instance"),
        ({"memory_source": "declared"}, "as declared"),
        ({"mps": True}, "an MPS daemon serves it"),
    ],
)
def test_where_a_gpu_s_memory_is_read_is_said(gpu: dict[str, Any], words: str) -> None:
    found = about("cuda:0", devices=[{**GPU, **gpu}, CPU])
    assert found.state == "ok" and words in found.text


def test_a_gpu_that_cannot_be_used_is_told_with_its_mend() -> None:
    found = about("cuda:0", devices=[{**GPU, "trouble": "is PROHIBITED", "mend": "run: nvidia-smi"}, CPU])
    assert (found.state, found.text, found.mend) == ("note", "is PROHIBITED", "run: nvidia-smi")


def test_a_silent_gpu_is_none_to_advise_on() -> None:
    silent = {**GPU, "total_bytes": 0, "trouble": "left out: it does not answer", "mend": "see: nvidia-smi"}
    assert about("cuda:0", devices=[silent, CPU]).text == "left out: it does not answer"
    found = about("GPU", devices=[silent, CPU])
    assert found.text.startswith("none that answers: every stage runs on the CPU") and "nvidia-smi" in found.mend


def test_other_makers_gpus_are_seen_and_not_used(tmp_path: Path) -> None:
    assert doctor.other_gpus("Linux", "x86_64", tmp_path) == ()
    for card, vendor in (("card0", "0x8086"), ("card1", "0x1002")):
        (tmp_path / "class/drm" / card / "device").mkdir(parents=True)
        (tmp_path / "class/drm" / card / "device/vendor").write_text(f"{vendor}\n")
    assert doctor.other_gpus("Linux", "x86_64", tmp_path) == ("AMD GPU",)
    assert doctor.other_gpus("Darwin", "arm64", tmp_path) == ("Apple GPU",)
    found = about("GPU", other_gpus=("AMD GPU",))
    assert found.state == "note" and "AMD GPU, which the node does not use: every stage runs on the CPU" in found.text


def test_every_finding_that_is_not_ok_has_a_mend() -> None:
    worst = Facts((3, 10, 0), "Darwin", "23.1", 4, dict.fromkeys([*FLOORS, "llama-cpp-python"]), None, {}, None)
    for finding in examine(worst):
        assert finding.state == "ok" or finding.mend, finding


@pytest.mark.parametrize(
    ("topic", "changes"),
    [
        ("python", {"python": (3, 10, 9)}),
        ("python", {"python": (3, 14, 0)}),
        ("kernel", {"kernel": "5.3.18"}),
        ("kernel", {"system": "Darwin", "kernel": "23.1"}),
        ("libzmq", {"libzmq": "4.3.4"}),
        ("libzmq", {"libzmq": None}),
        ("ctranslate2", {"packages": packages(ctranslate2="4.8.0")}),
        ("msgpack", {"packages": packages(msgpack="1.2.0")}),
        ("msgspec", {"packages": packages(msgspec=None)}),
        ("onnxruntime", {"onnx_dists": {}, "onnx_version": None}),
        ("onnxruntime", {"onnx_version": None, "onnx_error": "half removed"}),
    ],
)
def test_what_stops_the_node_is_bad(topic: str, changes: dict[str, Any]) -> None:
    assert about(topic, **changes).state == "bad"


@pytest.mark.parametrize(
    ("topic", "changes"),
    [
        ("python", {"python": (3, 11, 0)}),
        ("python", {"python": (3, 13, 9)}),
        ("kernel", {"kernel": "5.4.0-generic"}),
        ("kernel", {"kernel": "10.0"}),
        ("ctranslate2", {"packages": packages(ctranslate2="4.8.1")}),
        ("ctranslate2", {"packages": packages(ctranslate2="4.10.0")}),
        ("msgpack", {"packages": packages(msgpack="1.2.1")}),
    ],
)
def test_floors_themselves_are_good_enough(topic: str, changes: dict[str, Any]) -> None:
    assert about(topic, **changes).state == "ok"


def test_repair_may_be_missing() -> None:
    finding = about("llama-cpp-python", packages=packages(llama_cpp_python=None))
    assert finding.state == "note"
    assert "skipped" in finding.text
    assert "make repair" in finding.mend


def test_a_gpu_with_the_cpu_onnxruntime_in_force_is_noted() -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.26.0"}
    finding = about("onnxruntime", devices=[GPU, CPU], onnx_dists=both)
    assert finding.state == "note"
    assert "in force is the CPU one" in finding.text
    assert "onnxruntime-gpu" in finding.mend
    cuda = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert about("onnxruntime", devices=[GPU, CPU], onnx_dists=both, onnx_providers=cuda).state == "ok"


def test_devices_are_shown_with_their_memory_and_a_sick_driver_is_noted() -> None:
    assert about("cuda:0", devices=[GPU, CPU]).text == "NVIDIA L4, 24.0 GiB"
    assert about("devices", devices=[], device_error="driver mismatch").state == "note"


@pytest.mark.parametrize(("gib", "state"), [(8, "note"), (12, "ok"), (16, "ok")])
def test_less_than_twelve_gigabytes_on_a_gpu_is_noted_with_the_advice(gib: int, state: str) -> None:
    found = about("GPU memory", devices=[{**GPU, "total_bytes": gib * GIB - 200 * 2**20}, CPU])
    assert found.state == state and "12 GB or more are advised, 16 GB recommended" in found.text


def test_little_memory_is_noted() -> None:
    assert about("memory", memory_available=GIB).state == "note"


@pytest.mark.parametrize(
    ("version", "floor", "enough"),
    [("4.8.1", "4.8.1", True), ("4.8", "4.8.1", False), ("10.0", "5.4", True), ("5.4.0-150-generic", "5.4", True),
     ("4.8.1rc1", "4.8.1", True), ("1.2.1+cu12", "1.2.1", True), ("", "1", False)],
)  # fmt: skip
def test_versions_compare_by_their_numbers(version: str, floor: str, enough: bool) -> None:
    assert doctor.at_least(version, floor) is enough


def test_this_machine_can_be_looked_at() -> None:
    facts = doctor.collect()
    assert facts.python[:2] >= (3, 11)
    assert facts.packages["numpy"]
    assert facts.memory_total > 0
    assert any(d["kind"] == "cpu" for d in facts.devices)
