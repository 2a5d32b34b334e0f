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


# A worker that makes itself at home on its GPU when it begins, before it has a lease.
EARLY = f"""
import ctypes, os
library = ctypes.CDLL("libnvidia-ml.so.1")
library.standin_allocate.restype = ctypes.c_int64
library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
assert library.standin_allocate(os.environb[b"CUDA_VISIBLE_DEVICES"], {7 * MIB}) > 0
from engine.worker.main import main
main()
"""


def two_lives(tmp_path: Path, modules: dict[str, str]) -> tuple[Life, Life]:
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
        argv = [sys.executable, "-m", "tests.bench.card_program", json.dumps(config), json.dumps(modules)]
        environ = driver.environ({**os.environ, "PYTHONPATH": str(tmp_path)})
        done = subprocess.run(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    first, second = (Life(**one) for one in json.loads(done.stdout))
    return first, second


@needs_gcc
def test_two_lives_of_a_model(tmp_path: Path) -> None:
    first, second = two_lives(tmp_path, {})
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


@needs_gcc
def test_what_a_worker_has_on_the_card_without_a_lease_is_told(tmp_path: Path) -> None:
    """Each of the two figures that are to be 0 is seen not to be; the driver lists the worker that waits."""
    (tmp_path / "early_worker.py").write_text(EARLY)
    lives = two_lives(tmp_path, {"worker": "early_worker"})
    assert [(one.waiting_bytes, one.waiting_users) for one in lives] == [(CONTEXT + 7 * MIB, 1)] * 2
    report = Report("card")
    add(report, "model", *lives)
    failed = [one.metric for one in report.results if one.fails]
    assert failed == ["model_waiting", "model_waiting_users"] and report.exit_code == 1


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
