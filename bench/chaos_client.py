"""A client for ``bench chaos``, in a process of its own: submits marked utterances for ever and logs what it is told.

    python -m bench.chaos_client ENDPOINT engine|plain full|echo LOG SEED

``engine`` is ``engine.Client``, and some of its utterances it cancels, leaves out or wants at once; ``plain`` is the
documented example in plain pyzmq, as it stands. The log, a JSON object a line, is all that the judge sees: ``submit``
(index, and what it ``may`` or ``must`` end as besides ok), ``outcome`` (index, outcome, code, whether it is right: its
own mark came back), ``error`` (the client gave up), ``end``, and of ``engine`` each ``wire`` arrival. Times are of the
machine's monotonic clock. It ends when standard input does: nothing more is submitted then, and everything outstanding
is waited for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.client import Client
from stages.simulated import mark_samples, read_mark

SAMPLES = 4_000
RESULT_SAMPLES = {"full": 16_000, "echo": SAMPLES}
PATIENCE_S = 30.0
WISHES = {"": 90, "cancel": 4, "hurry": 4, "leave out": 2}  # what becomes of an utterance -> how often, in percent
HURRY_S = (0.01, 0.1)
ENDS = {"cancel": {"may": "skipped/cancelled"}, "hurry": {"may": "error/expired"}, "leave out": {"must": "skipped/gap"}}
EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "plain_client.py"


class Log:
    """Lines that are in the kernel's hands when the call returns."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, kind: str, **fields: Any) -> None:
        os.write(self._fd, json.dumps({"kind": kind, "at": time.monotonic(), **fields}).encode() + b"\n")


class Utterances(Sequence[bytes]):
    """Marked utterances without end, until standard input ends; then as many as were taken."""

    def __init__(self, log: Log, seed: int, pipeline: str) -> None:
        self.log = log
        self.pipeline = pipeline
        self.chance = random.Random(seed)
        self.marks: list[str] = []
        self._limit = sys.maxsize

    def __len__(self) -> int:
        if self._limit == sys.maxsize and select.select([0], [], [], 0)[0]:
            self._limit = len(self.marks)
        return self._limit

    def __getitem__(self, index: Any) -> Any:
        """int16 samples as bytes; asked for again (after Busy), the same."""
        if index == len(self.marks):
            self.make()
        mark = int.from_bytes(bytes.fromhex(self.marks[index].partition(":")[2]), "little")
        return mark_samples(mark, SAMPLES).tobytes()

    def make(self, wish: str = "") -> None:
        """One more, of which its client wishes something."""
        index = len(self.marks)
        self.marks.append(read_mark(mark_samples(self.chance.getrandbits(64), SAMPLES)))
        self.log("submit", index=index, **ENDS.get(wish, {}))

    def came_back(self, index: int, texts: dict[str, str], audio: np.ndarray | None) -> bool:
        """Whether an ok outcome is all of this utterance's: its samples, and of ``full`` its texts."""
        mark = self.marks[index]
        if audio is None or len(audio) != RESULT_SAMPLES[self.pipeline] or read_mark(audio) != mark:
            return False
        return self.pipeline != "full" or all(texts.get(stage) == mark for stage in ("asr", "repair", "nmt"))


def run() -> None:
    endpoint, kind, pipeline, path, seed = sys.argv[1:]
    log = Log(path)
    utterances = Utterances(log, int(seed), pipeline)
    carry = _engine if kind == "engine" else _plain
    try:
        for index, outcome, code, error, texts, audio in carry(endpoint, pipeline, utterances):
            right = outcome != "ok" or utterances.came_back(index, texts, audio)
            log("outcome", index=index, outcome=outcome, code=code, error=error, right=right)
        log("end", submitted=len(utterances.marks))
    except Exception as error:  # whatever it is: the client saw the node fail
        log("error", text=f"{type(error).__name__}: {error}")
        raise


Told = tuple[int, str, str, str, dict[str, str], np.ndarray | None]


class Watched(Client):
    """``engine.Client`` that also logs what comes over the wire, before anything is sorted out."""

    log: Log

    def _take(self, message: dict[str, Any], payload: Any, now: float) -> None:
        if message["type"] in ("Outcome", "Opened"):
            self.log("wire", what=message["type"], index=message.get("index"))
        super()._take(message, payload, now)


def _engine(endpoint: str, pipeline: str, utterances: Utterances) -> Iterator[Told]:
    Watched.log = utterances.log
    chance = utterances.chance
    with Watched(endpoint, patience_s=PATIENCE_S) as client:
        with client.session(source="en", target="de", pipeline=pipeline) as session:
            coming = 0
            while coming < len(utterances):
                [wish] = chance.choices(list(WISHES), list(WISHES.values()))
                utterances.make(wish)
                if wish == "leave out":
                    session.skip(coming)
                else:
                    hurry = chance.uniform(*HURRY_S) if wish == "hurry" else None
                    session.submit(np.frombuffer(utterances[coming], "<i2"), index=coming, budget_s=hurry)
                if wish == "cancel":
                    session.cancel(coming)
                coming += 1
                yield from _told(session, 0.0)
            yield from _told(session, PATIENCE_S)


def _told(session: Any, timeout_s: float) -> Iterator[Told]:
    try:
        for o in session.outcomes(timeout_s=timeout_s):
            yield o.index, o.outcome, o.code, o.error, dict(o.texts), o.audio
    except TimeoutError:
        if timeout_s:
            raise


def _plain(endpoint: str, pipeline: str, utterances: Utterances) -> Iterator[Told]:
    for message, samples in _example().translate(endpoint, utterances, pipeline, "en", "de", PATIENCE_S):
        audio = np.frombuffer(samples, "<i2") if samples else None
        texts = message.get("texts", {})
        yield message["index"], message["outcome"], message.get("code", ""), message.get("error", ""), texts, audio


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_client", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    run()
