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
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import stages
from engine.config import NodeSection
from stages.base import Item, Stage, StageConfig, StageError

RATE_HZ = 16_000
WORDS = "ab cd ef gh "  # one sentence, however long
FITTING = 1000  # characters for which, with as long an answer, repair's context has room: longer texts are passed on
DENSE = "ABCDEFGHIJ" * 88 + ". "  # a token for each letter, in sentences of less than 900
SAMPLE_EVERY_S = 0.02
LIMIT_S = 600.0


def longest(kind: str, options: dict[str, Any], audio_s: float, chars: int = 0) -> Item:
    """The input that needs most: of a stage that takes text, as long as it takes, in sentences as long as it takes.

    ``chars``: a shorter text, where the longest would run for too long or need more memory than there is.
    """
    declared = stages.find(kind).declare(options)
    if declared.accepts == "audio":
        noise = np.random.Generator(np.random.PCG64(0)).normal(0, 0.1, int(audio_s * RATE_HZ))
        return Item("s", 0, 1, source="en", target="de", audio=noise.astype(np.float32), sample_rate=RATE_HZ)
    chars = chars or (FITTING if kind == "repair" else declared.max_chars)
    text = ((DENSE if kind == "nmt" else WORDS) * chars)[:chars]
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


class Weighing:
    """What is known so far of one model, printed when the run has ended or ``limit_s`` after it began.

    A run that is stopped has shown its peak all the same where memory is taken at the start (repair); else it is a
    lower bound, and ``outcome`` says so.
    """

    def __init__(self, limit_s: float) -> None:
        self._found: dict[str, Any] = {}
        self._private = Private()
        self._limit_s = limit_s
        self._said = threading.Lock()

    def run(self, stage: Stage, item: Item) -> None:
        for module in stage.declaration.requires:
            importlib.import_module(module)
        self._found["empty_bytes"] = status("VmRSS")
        with self._private:
            begun = time.monotonic()
            stage.load()
            self._found |= {"load_s": round(time.monotonic() - begun, 2), "loaded_bytes": status("VmRSS")}
            begun = time.monotonic()
            threading.Thread(target=self._stop, args=(begun,), daemon=True).start()
            outcome = stage.run([item])[0]
        self._say(begun, f"{outcome.code}: {outcome.text}" if isinstance(outcome, StageError) else _told(outcome))

    def _stop(self, begun: float) -> None:
        time.sleep(self._limit_s)
        self._say(begun, f"stopped after {self._limit_s:g} s")

    def _say(self, begun: float, outcome: str) -> None:
        with self._said:
            run_s = round(time.monotonic() - begun, 2)
            memory = {"peak_bytes": status("VmHWM"), "private_bytes": self._private.most_bytes}
            print(json.dumps({**self._found, "run_s": run_s, **memory, "outcome": outcome}), flush=True)
            os._exit(0)  # a run cannot be stopped from outside


def _told(outcome: Any) -> str:
    if outcome.audio is not None:
        return f"{len(outcome.audio) / outcome.sample_rate:.1f} s of audio"
    return f"{len(outcome.text)} characters {outcome.degraded}".strip()


def weigh(kind: str, model: str, given: dict[str, Any]) -> None:
    """``given``: ``audio_s``, ``chars``, ``threads``, ``limit_s`` of the run; the rest are the stage's options."""
    audio_s, chars = given.pop("audio_s", NodeSection().max_utterance_s), given.pop("chars", 0)
    threads, weighing = given.pop("threads", 2), Weighing(given.pop("limit_s", LIMIT_S))
    stage = stages.find(kind)(StageConfig(model=model, threads=threads, options=given))
    weighing.run(stage, longest(kind, given, audio_s, chars))


if __name__ == "__main__":
    try:
        weigh(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    except (StageError, ImportError, KeyError) as error:
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
