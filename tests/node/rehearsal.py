"""Configurations of simulated stages for whole-node tests, and what a client does with them.

Every utterance carries a random 64-bit mark in its samples; the first stage reads it out of shared memory into its
text, the last writes it into the result, and ``Marks`` compares. A slot handed out too soon shows as a wrong or torn
mark at somebody.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from stages.simulated import mark_samples, read_mark

STAGES = ("asr", "repair", "nmt", "tts")
FAST = {"heartbeat_s": 0.1, "retry_delay_s": 0.1, "drain_s": 5.0, "flush_s": 0.5, "gap_s": 1.0, "backoff_first_s": 0.05}


def config(
    sleep_ms: dict[str, float] | float = 2.0,
    *,
    out_bytes: int = 64_000,
    cues: dict[str, list[dict[str, Any]]] | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    deadlines: dict[str, float] | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    **rest: Any,
) -> dict[str, Any]:
    """Four simulated stages: audio -> text -> text -> text -> audio, with the watermark."""
    kinds: dict[str, dict[str, Any]] = {
        "asr": {"accepts": "audio", "mark": True},
        "repair": {},
        "nmt": {},
        "tts": {"emits": "audio", "mark": True, "output_bytes": out_bytes, "sample_rate": 22050},
    }
    tables: dict[str, Any] = {}
    for name in STAGES:
        sleep = sleep_ms if isinstance(sleep_ms, int | float) else sleep_ms.get(name, 0.0)
        own = {**kinds[name], "sleep_ms": sleep, **(options or {}).get(name, {})}
        if name in (cues or {}):
            own["cues"] = cues[name]
        tables[name] = {"kind": "simulated", "devices": ["cpu"], "options": own, **(stages or {}).get(name, {})}
    return {
        "stages": tables,
        "pipelines": {"full": list(STAGES), "transcribe": ["asr"]},
        "deadlines": {**FAST, **(deadlines or {})},
        **rest,
    }


class Marks:
    """Makes marked utterances and compares what comes back."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.sent: dict[tuple[str, int], str] = {}
        self.mixed_up: list[str] = []

    def make(self, tag: str, index: int, samples: int = 16_000) -> np.ndarray:
        """int16 samples that carry a fresh mark, remembered for (tag, index)."""
        array = mark_samples(self._random.getrandbits(64), samples)
        self.sent[tag, index] = read_mark(array)
        return array

    def compare(self, tag: str, outcome: Any) -> None:
        """Note an outcome whose text or array is not of its own utterance."""
        want = self.sent[tag, outcome.index]
        if outcome.outcome != "ok":
            return
        got = outcome.texts.get("asr", want), read_mark(outcome.audio) if outcome.audio is not None else want
        if got != (want, want):
            self.mixed_up.append(f"{tag} {outcome.index}: sent {want}, came back as {got}")


def assert_in_order(outcomes: list[Any], first: int = 0) -> None:
    """One outcome for every index, once, in order."""
    assert [o.index for o in outcomes] == list(range(first, first + len(outcomes)))


def process_of(node: Any, role: str) -> dict[str, Any]:
    """The row of a role in the node's statistics; between two of its lives it is waited for."""
    found: dict[str, Any] = wait_until(
        lambda: next((row for row in node.stats()["processes"] if row["role"] == role and row["pid"]), None), 30.0
    )
    return found


def identities(node: Any) -> dict[str, tuple[int, int]]:
    """Role -> (pid, start time): what must not change when another process dies."""
    return {row["role"]: (row["pid"], row["start_time"]) for row in node.stats()["processes"]}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def wait_until(what: Any, limit_s: float = 10.0, every_s: float = 0.01) -> Any:
    """The first true value of ``what()``; fails after ``limit_s``."""
    end = time.monotonic() + limit_s
    while not (value := what()):
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(every_s)
    return value


def maps(pid: int) -> list[str]:
    """Lines of /proc/PID/maps."""
    return Path(f"/proc/{pid}/maps").read_text().splitlines()
