"""The simulated stage's GPU memory: taken in the stand-in driver, on a GPU only, and given back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import Driver, Gpu
from stages.base import StageConfig, StageError
from stages.simulated import SimulatedStage

ROOT = Path(__file__).parents[2]
MIB = 2**20
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

SCRIPT = """
import json, sys
from stages.base import Item, StageConfig, StageError
from stages.simulated import SimulatedStage
import pynvml
pynvml.nvmlInit()
used = lambda: pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used >> 20
items = [Item("s.1", index, 1, text="x") for index in range(3)]
stage = SimulatedStage(StageConfig(device="cuda", options=json.loads(sys.argv[1])))
told = []
def tell(call):
    try:
        call()
        told.append(used())
    except StageError as error:
        told.append([error.code, error.retry, used()])
for call in (stage.load, lambda: stage.run(items[:2]), lambda: stage.run(items), stage.close):
    tell(call)
print(json.dumps(told))
"""


def lives(driver: Driver, **options: Any) -> list[Any]:
    """MiB used after load, a run of two, a run of three and close; [code, retry, MiB] of a call that failed."""
    environ = driver.environ({**os.environ, "CUDA_VISIBLE_DEVICES": driver.uuids[0]})
    command = [sys.executable, "-c", SCRIPT, json.dumps(options)]
    return json.loads(subprocess.run(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


@needs_gcc
def test_memory_is_held_while_loaded_and_a_batch_that_finds_too_little_is_out_of_memory():
    with Driver([Gpu(total_bytes=1000 * MIB, context_bytes=100 * MIB)]) as driver:
        told = lives(driver, vram_bytes=300 * MIB, vram_run_bytes=250 * MIB)
        assert told == [400, 900, ["oom", True, 900], 100], "the workspace of two is kept"
        assert driver.get(0, "peak_bytes") == 900 * MIB


@needs_gcc
def test_a_load_that_finds_too_little_is_out_of_memory_and_a_lost_gpu_a_failure():
    with Driver([Gpu(total_bytes=1000 * MIB)]) as driver:
        assert lives(driver, vram_bytes=1001 * MIB)[0] == ["oom", True, 0]
        driver.set_compute_mode(0, "prohibited")
        assert lives(driver, vram_bytes=1)[0] == ["failed", True, 0]


def test_on_the_cpu_it_means_nothing_and_without_the_stand_in_it_cannot_load():
    SimulatedStage(StageConfig(options={"vram_bytes": 1})).load()
    with pytest.raises(StageError) as error:
        SimulatedStage(StageConfig(device="cuda", options={"vram_bytes": 1})).load()
    assert error.value.code == "bad_model" and "stand-in driver" in error.value.text
    SimulatedStage(StageConfig(device="cuda")).load()  # it takes none


def test_its_estimate_follows_what_it_takes():
    describe = SimulatedStage.describe
    assert describe("", {"vram_bytes": 5, "vram_run_bytes": 2}).weights_bytes == 7
    assert describe("", {"vram_bytes": 5, "ballast_bytes": 9}).weights_bytes == 9
