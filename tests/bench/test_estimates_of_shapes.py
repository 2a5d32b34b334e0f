"""What the node asks for before a model's first start is within 15 % of what the model then takes, on the CPU.

Models of published sizes are written, loaded and run by ``bench models``, each in a process of its own. Here stand the
two that take seconds; ``DRAGOMAN_TEST_SHAPES=all`` adds the others, up to 8 GB of memory and a quarter of an hour each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from models.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]
QUICK = [("piper-medium", "--chars 60"), ("m2m100-418m-int8", "--chars 60")]
LONG = [
    ("piper-medium", ""),
    ("whisper-small", "--audio-s 10"),
    ("whisper-small", ""),
    ("whisper-large-v3", "--audio-s 10"),
    ("m2m100-418m", "--chars 60"),
    ("m2m100-418m-int8", ""),
    ("qwen2.5-3b", "--limit-s 60"),  # its memory is taken with the prompt, whatever it answers
]
LIMIT_S = 1800
WRITERS = {"repair": ("gguf",)}  # what writes a shape besides the stage's own libraries


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize(("shape", "length"), QUICK + (LONG if os.environ.get("DRAGOMAN_TEST_SHAPES") == "all" else []))
def test_an_estimate_is_within_15_percent_of_the_measured_peak(shape: str, length: str, tmp_path: Path) -> None:
    kind = SHAPES[shape].kind
    for library in (*stages.find(kind).declaration.requires, *WRITERS.get(kind, ())):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    command = [sys.executable, "run_node.py", "bench", "models", "--shape", shape, *length.split(), "--json"]
    if "--limit-s" not in length:
        command += ["--limit-s", str(LIMIT_S - 300)]
    done = subprocess.run([*command, "--folder", tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = {row["metric"]: row["value"] for row in json.loads(done.stdout)["results"]}
    (ratio,) = [value for name, value in found.items() if name.endswith("_estimate_over_peak")]
    assert 0.85 <= ratio <= 1.15, found
