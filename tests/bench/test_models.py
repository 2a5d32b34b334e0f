"""A model is weighed in a process of its own, on an input of the length asked for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.model_run import longest
from engine import embedded

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")
@pytest.mark.parametrize("limit_s", [60, 0])
def test_a_model_is_weighed_also_when_its_run_is_stopped(limit_s: float) -> None:
    options = json.dumps({"chars": 100, "threads": 1, "limit_s": limit_s})
    argv = [sys.executable, "-m", "bench.model_run", "nmt", str(embedded.DEMO / "nmt"), options]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    found = json.loads(done.stdout)
    assert 0 < found["empty_bytes"] < found["loaded_bytes"] <= found["peak_bytes"]
    assert found["private_bytes"] <= found["peak_bytes"]
    assert found["load_s"] >= 0
    assert limit_s == 0 or "characters" in found["outcome"]


def test_the_longest_input_is_as_long_as_the_stage_takes() -> None:
    assert len(longest("nmt", {}, 0).text or "") == 4000
    assert len(longest("tts", {}, 0).text or "") == 2500
    assert len(longest("tts", {}, 0, chars=60).text or "") in (59, 60)
    audio = longest("asr", {}, 12).audio
    assert audio is not None and audio.shape == (12 * 16_000,)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["models", "--folder", "/no/such/one"], "'/no/such/one' is no folder that can be written to"),
        (["models", "--threads", "0"], "0 is too small; the lowest is 1"),
        (["models", "--shape", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], says: str) -> None:
    done = subprocess.run([sys.executable, "run_node.py", "bench", *argv], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert says in done.stderr


def test_a_model_that_is_none_is_said_in_one_line() -> None:
    argv = [sys.executable, "-m", "bench.model_run", "nmt", "/no/such/one", "{}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
