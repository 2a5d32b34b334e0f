"""``models make-demo``: train the demo models anew, from the phrase book and espeak-ng alone, one after another."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.commands.tables import nbytes, table
from ipc.errors import DragomanError

STEPS = {
    "asr": "asr",
    "nmt": "nmt",
    "repair": "repair.gguf",
    "tts": "tts",
    "clips": "clips",
}  # program in models.train -> what it writes
NEEDS = {"torch": "torch", "espeakng_loader": "espeakng-loader"}  # module -> package


def make(out: Path, only: Sequence[str], seed: int, threads: int, quick: bool) -> str:
    """Train the chosen models (none: all) into ``out``; returns a table of what took how long. Raises DragomanError."""
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DragomanError(f"training needs {', '.join(missing)}", f"pip install {' '.join(missing)}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DragomanError(f"cannot write to {out}: {error.strerror}", "give another --out") from error
    rows = []
    for name in only or STEPS:
        path = out / STEPS[name]
        print(f"training {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        _train(name, path, seed, threads, quick)
        rows.append([name, str(path), nbytes(_size(path)), f"{(time.monotonic() - began) / 60:.1f} min"])
    return table(["model", "written to", "size", "time"], rows)


def _train(name: str, path: Path, seed: int, threads: int, quick: bool) -> None:
    """In a process of its own: each has its own libraries, and gives its memory back."""
    command = [sys.executable, "-m", f"models.train.{name}", "--out", str(path), "--seed", str(seed)]
    command += ["--threads", str(threads)] if threads else []
    command += ["--quick"] if quick else []
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise DragomanError(f"training {name} ended with code {code}", "what it said stands above")


def _size(path: Path) -> int:
    from stages.base import weights_bytes

    return weights_bytes(str(path))
