"""bench fairness: does a flood leave the others alone, and does Busy say when to come back? (Stages of 30/5/30/5 ms.)

Four sessions speak at random (Poisson, one seed) at half of what the node can do, first alone, then beside a fifth that
keeps to no share: a plain client that submits a hundred times what each of them does, and again at once when the node
says Busy. How long their utterances wait is what their clients feel: from the submit to the end of the last stage, less
the times for which stages worked on them.

Then a crowd of plain clients, which know nothing of their share, wants four times what the node takes. Each comes back
before it was told to, again and again, so that it is seen when there really was room: what was told is compared with
that, whichever is longer. That is promised under steady load: what is told in the crowd's first second does not count.
Then the same with a crowd of other weights and priorities, for which nothing is promised yet.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from bench import command, line, workloads
from bench.drive import arrived, progress, within
from bench.plain_session import PlainSession
from bench.report import ZERO, Goal, Report, at_least
from stages.simulated import mark_samples

GOOD, LOAD = 4, 0.5  # sessions, and their part of what the bottleneck can do
SERVICE_S = max(workloads.W1_MS.values()) / 1000
SAMPLES = 16_000  # int16: a second
FLOOD = 100  # times what a good one submits
WANTED = 8  # utterances that one of a crowd would have under way
Specs = Sequence[tuple[int, Mapping[str, Any]]]  # of a crowd: how many each wants, and how it opens its session
EQUAL: Specs = ((WANTED, {}),) * 5
WEIGHTED: Specs = (
    (1, {"priority": "high"}),
    (WANTED, {"weight": 8}),
    (WANTED, {}),
    (WANTED, {}),
    (WANTED, {"priority": "low"}),
)
FLOOD_STEP_S = 0.002
STEADY_S = 1.0  # after which its load is
PROBES = 4  # times that a refused one comes back before it was told to
LIMIT_S = 300.0
GOALS = {
    "p99_growth_over_service": Goal(at_most=1.0),
    "retry_after_ratio_p90": Goal(at_most=2.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when outcomes were lost or out of order, else 0."""
    args = parser().parse_args(argv)
    report = Report("fairness")
    rounds = [play(number, args.seconds) for number in range(args.rounds)]
    for metric, unit in (("p99_growth_over_service", "ratio"), ("p99_alone_s", "s"), ("p99_beside_flood_s", "s"),
                         ("median_growth_over_service", "ratio"), ("flood_per_session", "ratio"),
                         ("retry_after_ratio_p90", "ratio"), ("retry_after_ratio_p50", "ratio"),
                         ("told", "answers"), ("retry_after_ratio_p90_weighted", "ratio"),
                         ("told_weighted", "answers")):  # fmt: skip
        report.add(metric, median(one[metric] for one in rounds), unit, GOALS.get(metric))
    report.add("reordered", sum(one["reordered"] for one in rounds), "outcomes", ZERO)
    report.add("not_ok", sum(one["not_ok"] for one in rounds), "outcomes", ZERO)
    report.show(args.json)
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "fairness", (__doc__ or "").partition("\n")[0], done=command.STRICT,
        wrong="an outcome was not ok, or out of order",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--strict", action="store_true", help="a goal that is missed is a failure too")
    found.add_argument(
        "--seconds", type=at_least(1.0), default=10.0, help="of speech, alone and beside the flood (default 10)"
    )
    found.add_argument("--rounds", type=at_least(1), default=3, help="of which the median is reported (default 3)")
    return found


def play(number: int, seconds: float) -> dict[str, float]:
    """One round: a node of its own, the good ones alone, beside the flood, and the crowds."""
    from engine.node import Node

    with within(LIMIT_S, "fairness"), Node(workloads.translation()) as node:
        with node.client() as client:
            speak(client, 1.0, seed=-1, what="warm-up")
            alone = speak(client, seconds, seed=number, what="alone")
            with Flood(node.endpoint, FLOOD * LOAD / SERVICE_S / GOOD) as flood:
                beside = speak(client, seconds, seed=number, what="beside a flood")
        told, weighted = (crowd(node.endpoint, seconds / 3, specs) for specs in (EQUAL, WEIGHTED))
    grown = [np.percentile(beside.waits, q) - np.percentile(alone.waits, q) for q in (50, 99)]
    return {
        "p99_growth_over_service": grown[1] / SERVICE_S,
        "median_growth_over_service": grown[0] / SERVICE_S,
        "p99_alone_s": float(np.percentile(alone.waits, 99)),
        "p99_beside_flood_s": float(np.percentile(beside.waits, 99)),
        "flood_per_session": flood.submitted / (beside.submitted / GOOD),
        "retry_after_ratio_p90": quantile(told, 0.9),
        "retry_after_ratio_p50": quantile(told, 0.5),
        "told": len(told),
        "retry_after_ratio_p90_weighted": quantile(weighted, 0.9),
        "told_weighted": len(weighted),
        "reordered": alone.reordered + beside.reordered + flood.reordered,
        "not_ok": alone.not_ok + beside.not_ok + flood.not_ok,
    }


@dataclass
class Heard:
    """What the good ones got. ``waits``: seconds that each utterance waited, from its submit on."""

    waits: list[float] = field(default_factory=list)
    submitted: int = 0
    reordered: int = 0
    not_ok: int = 0


def speak(client: Any, seconds: float, seed: int, what: str) -> Heard:
    """All good sessions, each with its own arrivals, from one seed."""
    chance, found = random.Random(seed), Heard()
    due = []
    for number in range(GOOD):
        at = 0.0
        while (at := at + chance.expovariate(LOAD / SERVICE_S / GOOD)) < seconds:
            due.append((at, number))
    heapq.heapify(due)
    utterance = mark_samples(7, SAMPLES)
    sessions = [client.session() for _ in range(GOOD)]
    sent: list[list[int]] = [[] for _ in sessions]
    indices: list[list[int]] = [[] for _ in sessions]
    begun = time.monotonic()

    def hear(number: int, outcome: Any) -> None:
        indices[number].append(outcome.index)
        found.not_ok += outcome.outcome != "ok"
        if outcome.outcome == "ok":
            worked = sum(record["ended_ns"] - record["begun_ns"] for record in outcome.stages)
            found.waits.append((outcome.stages[-1]["ended_ns"] - sent[number][outcome.index] - worked) / 1e9)
        bar.update()

    with progress(len(due), what) as bar:
        while due:
            at, number = heapq.heappop(due)
            while (left := begun + at - time.monotonic()) > 0:
                time.sleep(min(left, 0.002))
                for one, session in enumerate(sessions):
                    for outcome in arrived(session):
                        hear(one, outcome)
            sent[number].append(time.monotonic_ns())
            sessions[number].submit(utterance)
        for one, session in enumerate(sessions):
            session.close()
            for outcome in session.outcomes(timeout_s=60.0):
                hear(one, outcome)
    found.submitted = sum(map(len, sent))
    found.reordered = sum(map(line.reordered, indices))
    return found


class Flood:
    """Submits ``rate`` utterances a second, whatever the node says, in a thread; it counts those that really went out.

    What the node has refused goes out again at once. At the end what is left is cancelled.
    """

    def __init__(self, endpoint: str, rate: float) -> None:
        self.submitted = self.reordered = self.not_ok = 0
        self._endpoint, self._rate = endpoint, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        session = PlainSession(self._endpoint, "flood", SAMPLES)
        begun, coming, indices = time.monotonic(), 0, [-1]
        while not self._over.wait(FLOOD_STEP_S):
            for message in session.heard():
                if message["type"] == "Busy":
                    coming = min(coming, message["resend_from"])
                elif message["type"] == "Outcome":
                    indices.append(message["index"])
                    self.not_ok += message["outcome"] != "ok"
                    session.say("Ack", through=indices[-1])
            due = int((time.monotonic() - begun) * self._rate)
            while session.id and self.submitted < due and coming <= indices[-1] + session.window:
                session.submit(coming)
                coming, self.submitted = coming + 1, self.submitted + 1
        session.close()
        self.reordered = line.reordered(indices[1:])


def crowd(endpoint: str, seconds: float, specs: Specs = EQUAL) -> list[float]:
    """How far off each Busy(capacity) was: what it told over what it took, or the reverse, whichever is more.

    Who still waits at the end, longer than it was told to, has waited so long at least, and counts with that.
    """
    plain = [Plain(endpoint, f"crowd{number}", *spec) for number, spec in enumerate(specs)]
    steady = time.monotonic() + STEADY_S
    end = steady + seconds
    try:
        while time.monotonic() < end:
            for one in plain:
                one.turn(time.monotonic())
            time.sleep(0.001)
    finally:
        for one in plain:
            one.close(time.monotonic())
    return [factor for one in plain for at, factor in one.factors if at >= steady]


def quantile(factors: Sequence[float], share: float) -> float:
    return float(np.quantile(factors, share)) if factors else float("nan")


class Plain:
    """A session that always wants so many utterances under way, whatever its share is."""

    def __init__(self, endpoint: str, tag: str, wanted: int, opening: Mapping[str, Any]) -> None:
        self.factors: list[tuple[float, float]] = []  # when it was told, and how far off that was
        self._session, self._wanted = PlainSession(endpoint, tag, SAMPLES, **opening), wanted
        self._coming, self._received = 0, -1
        self._again_at, self._tries = 0.0, 0
        self._waits_for: int | None = None
        self._told: list[tuple[float, float]] = []  # when, and how long it said, of the index that waits

    def turn(self, now: float) -> None:
        """Hear what has come, and say what is due."""
        for message in self._session.heard():
            self._hear(message, now)
        while self._session.id and now >= self._again_at and self._coming - self._received - 1 < self._wanted:
            self._session.submit(self._coming)
            self._coming += 1
            if self._waits_for is not None:
                self._again_at = now + 60.0  # one at a time, until it is answered
                return

    def close(self, now: float) -> None:
        self.factors += [(at, (now - at) / told) for at, told in self._told if now - at > told]
        self._session.close()

    def _hear(self, message: dict[str, Any], now: float) -> None:
        match message["type"]:
            case "Accepted" if message["index"] == self._waits_for:
                self.factors += [(at, max(told / (now - at), (now - at) / told)) for at, told in self._told]
                self._told.clear()
                self._waits_for, self._again_at = None, 0.0
            case "Outcome":
                self._received = max(self._received, message["index"])
                self._session.say("Ack", through=self._received)
            case "Busy" if message["reason"] != "held_back":
                told = message["retry_after_ms"] / 1000
                self._coming = self._waits_for = message["resend_from"]
                self._told.append((now, told))
                self._again_at = now + told / PROBES


if __name__ == "__main__":
    sys.exit(main())
