"""One model in a process of its own: loaded by its stage, run on the longest input the node lets through, and weighed.

    python -m bench.model_run KIND MODEL [OPTIONS AS JSON]

prints one JSON object, in seconds and bytes: ``empty_bytes`` (resident when the stage's libraries were imported),
``load_s``, ``loaded_bytes`` (resident when the model was loaded), ``run_s``,
``peak_bytes`` (the most that was ever resident), ``private_bytes`` (the most of it that is no file's), ``outcome``.

Resident memory is what counts, mapped files included: without their pages in memory a model does not run.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import stages
from engine.config import NodeSection
from stages.base import Item, StageConfig, StageError

RATE_HZ = 16_000
WORDS = "ab cd ef gh "  # one sentence, however long
DENSE = "ABCDEFGHIJ" * 88 + ". "  # a token for each letter, in sentences of less than 900
SAMPLE_EVERY_S = 0.02


def longest(kind: str, options: dict[str, Any], audio_s: float) -> Item:
    """The input that needs most: of a stage that takes text, as long as it takes, in sentences as long as it takes."""
    declared = stages.find(kind).declare(options)
    if declared.accepts == "audio":
        noise = np.random.Generator(np.random.PCG64(0)).normal(0, 0.1, int(audio_s * RATE_HZ))
        return Item("s", 0, 1, source="en", target="de", audio=noise.astype(np.float32), sample_rate=RATE_HZ)
    chars = declared.max_chars
    text = DENSE * (chars // len(DENSE)) if kind == "nmt" else WORDS * (chars // len(WORDS))
    return Item("s", 0, 1, source="en", target="de" if kind == "nmt" else "en", text=text.strip())


class Private:
    """Watches how much of this process's memory belongs to no file: there is no high-water mark of that."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Private:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.most_bytes = max(self.most_bytes, status("RssAnon"))


def status(field: str) -> int:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def weigh(kind: str, model: str, options: dict[str, Any], audio_s: float, threads: int) -> dict[str, Any]:
    """Load and run; the object described above."""
    stage = stages.find(kind)(StageConfig(model=model, threads=threads, options=options))
    for module in stage.declaration.requires:
        importlib.import_module(module)
    empty, item = status("VmRSS"), longest(kind, options, audio_s)
    with Private() as private:
        begun = time.monotonic()
        stage.load()
        load_s, loaded = time.monotonic() - begun, status("VmRSS")
        begun = time.monotonic()
        outcome = stage.run([item])[0]
        run_s = time.monotonic() - begun
    said = f"{outcome.code}: {outcome.text}" if isinstance(outcome, StageError) else _told(outcome)
    return {
        "empty_bytes": empty,
        "load_s": round(load_s, 2),
        "loaded_bytes": loaded,
        "run_s": round(run_s, 2),
        "peak_bytes": status("VmHWM"),
        "private_bytes": private.most_bytes,
        "outcome": said,
    }


def _told(outcome: Any) -> str:
    if outcome.audio is not None:
        return f"{len(outcome.audio) / outcome.sample_rate:.1f} s of audio"
    return f"{len(outcome.text)} characters {outcome.degraded}".strip()


if __name__ == "__main__":
    given = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    seconds = given.pop("audio_s", NodeSection().max_utterance_s)
    print(json.dumps(weigh(sys.argv[1], sys.argv[2], given, seconds, given.pop("threads", 2))))
