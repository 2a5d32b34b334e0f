"""Drives a session and notes when each outcome came: the client's side of a measurement.

A **backlog** is waiting as a whole when the clock starts, so each utterance's latency counts from there, its time in
the client's own queue included; that is what the speaker feels. Outcomes are taken as they come, between submits.
Checking them is left for after the clock has stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from engine.bar import bar

FRESH_S = 5.0  # processes report once a second; one that does not for so long is not waited for
LOOK_S = 0.05
PATIENCE_S = 60.0  # an outcome that takes longer is a broken node, not a slow one


@dataclass
class Run:
    """What came back, in the order received; times in seconds from the first submit."""

    outcomes: list[Any] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)

    @property
    def makespan_s(self) -> float:
        """From the first submit to the last outcome."""
        return self.received_s[-1]

    @property
    def mean_latency_s(self) -> float:
        """Mean time from the start of the backlog to each outcome."""
        return sum(self.received_s) / len(self.received_s)

    @property
    def failed(self) -> int:
        """Outcomes that are not ok."""
        return sum(outcome.outcome != "ok" for outcome in self.outcomes)


def backlog(session: Any, utterances: Sequence[Any], shown: tqdm) -> Run:
    """Send everything at once through ``session`` and wait for all outcomes."""
    run = Run()
    begun = time.perf_counter()

    def note(outcome: Any) -> None:
        run.received_s.append(time.perf_counter() - begun)
        run.outcomes.append(outcome)
        shown.update()

    for utterance in utterances:
        session.submit(utterance)
        for outcome in arrived(session):
            note(outcome)
    for outcome in session.outcomes(timeout_s=PATIENCE_S):
        note(outcome)
    return run


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError in the main thread if the block takes longer: a node that hangs must not hang a benchmark."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"{what} did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def arrived(session: Any) -> Iterator[Any]:
    """Outcomes that are here already; waits for none."""
    try:
        yield from session.outcomes(timeout_s=0)
    except TimeoutError:
        return


def newest(stats: Callable[[], Mapping[str, Any]], part: str) -> Mapping[str, Any]:
    """The node's statistics, once the report of ``part`` ("scheduler", "gateway") is of a time after this call."""
    begun = time.monotonic()
    while True:
        document, waited_s = stats(), time.monotonic() - begun
        if document[part].get("age_ms", math.inf) / 1000 < waited_s or waited_s > FRESH_S:
            return document
        time.sleep(LOOK_S)


def progress(total: int, what: str) -> tqdm:
    """A progress bar on standard error."""
    return bar(total=total, desc=what, unit="utt", mininterval=0.5)
