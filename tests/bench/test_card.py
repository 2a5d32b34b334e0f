"""What ``bench card`` tells of a GPU is what its driver says: shown on the stand-in driver, whose memory is known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.card import Life, add
from bench.report import Report
from bench.standin_driver import GIB, Driver, Gpu

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
CONTEXT, WEIGHTS, RUN = 300 * MIB, GIB, 200 * MIB
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")


@needs_gcc
def test_two_lives_of_a_model(tmp_path: Path) -> None:
    options = {
        "accepts": "audio",
        "vram_bytes": WEIGHTS,
        "vram_run_bytes": RUN,
        "sleep_ms": 50,
        "stated_bytes": 2 * GIB,
    }
    config = {
        "stages": {"stage": {"kind": "simulated", "devices": ["cuda:0"], "options": options}},
        "pipelines": {"one": ["stage"]},
        "devices": {"use": ["cuda:0"], "estimates_file": str(tmp_path / "estimates.json")},
    }
    with Driver([Gpu(16 * GIB, context_bytes=CONTEXT)]) as driver:
        driver.set_foreign(0, GIB)  # another program, there all the time
        argv = [sys.executable, "-m", "tests.bench.card_program", json.dumps(config)]
        done = subprocess.run(argv, cwd=ROOT, env=driver.environ(os.environ), stdout=subprocess.PIPE, check=True)
    first, second = (Life(**one) for one in json.loads(done.stdout))
    assert (first.source, second.source) == ("files", "measured")
    for one in (first, second):
        assert one.loaded_bytes == WEIGHTS + CONTEXT
        assert one.peak_bytes == WEIGHTS + CONTEXT + RUN
        assert (one.waiting_bytes, one.waiting_users) == (0, 0)
    assert first.asked_bytes > 2 * GIB > second.asked_bytes >= first.peak_bytes
    report = Report("card")
    add(report, "model", first, second)
    assert report["model_measured_over_peak"] == second.asked_bytes / first.peak_bytes
    assert report.exit_code == 0


def test_a_model_that_leaves_something_behind_is_a_failure() -> None:
    clean = Life(2, "files", 1, 2, 0.1, 0.1, 0, 0, 0.1, "")
    left = Life(2, "measured", 1, 2, 0.1, 0.1, MIB, 0, 0.1, "")
    listed = Life(2, "measured", 1, 2, 0.1, 0.1, 0, 1, 0.1, "")
    for second, code in ((clean, 0), (left, 1), (listed, 1)):
        report = Report("card")
        add(report, "model", clean, second)
        assert report.exit_code == code


@needs_gcc
def test_no_such_gpu_is_one_line() -> None:
    with Driver([Gpu(GIB)]) as driver:
        argv = [sys.executable, "run_node.py", "bench", "card", "--device", "cuda:3", "--shape", "piper-medium"]
        done = subprocess.run(argv, cwd=ROOT, env=driver.environ(os.environ), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: there is no GPU cuda:3 here (cuda:0)")
