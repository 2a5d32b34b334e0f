"""bench fairness: does a flood leave the others alone, and does Busy say when to come back? (Stages of 30/5/30/5 ms.)

Four sessions speak at random (Poisson, one seed) at half of what the node can do, first alone, then beside a fifth that
always has more to send than the node takes: a hundred times what each of them sends. How long their utterances wait is
what their clients feel: from the submit to the end of the last stage, less the times for which stages worked on them.

Then a crowd of plain clients, which know nothing of their share, wants four times what the node takes. Each comes back
before it was told to, again and again, so that it is seen when there really was room: what was told is compared with
that, whichever is longer. That is promised under steady load: what is told in the crowd's first second does not count.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from bench import line, workloads
from bench.drive import arrived, progress, within
from bench.plain_session import PlainSession
from bench.report import ZERO, Goal, Report, at_least
from stages.simulated import mark_samples

GOOD, LOAD = 4, 0.5  # sessions, and their part of what the bottleneck can do
SERVICE_S = max(workloads.W1_MS.values()) / 1000
SAMPLES = 16_000  # int16: a second
CROWD, WANTED = 5, 8  # sessions, and how many utterances each would have under way
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
                         ("told", "answers")):  # fmt: skip
        report.add(metric, median(one[metric] for one in rounds), unit, GOALS.get(metric))
    report.add("reordered", sum(one["reordered"] for one in rounds), "outcomes", ZERO)
    report.add("not_ok", sum(one["not_ok"] for one in rounds), "outcomes", ZERO)
    report.show(args.json)
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="run_node.py bench fairness", description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--strict", action="store_true", help="a goal that is missed is a failure too")
    found.add_argument(
        "--seconds", type=at_least(1), default=12, help="of speech, alone and beside the flood (default 12)"
    )
    found.add_argument("--rounds", type=at_least(1), default=3, help="of which the median is reported (default 3)")
    return found


def play(number: int, seconds: float) -> dict[str, float]:
    """One round: a node of its own, the good ones alone, beside the flood, and the crowd."""
    from engine.node import Node

    with within(LIMIT_S, "fairness"), Node(workloads.translation()) as node:
        with node.client() as client:
            speak(client, 1.0, seed=-1, what="warm-up")
            alone = speak(client, seconds, seed=number, what="alone")
            with Flood(node.endpoint, seconds * 100 * LOAD / SERVICE_S / GOOD) as flood:
                beside = speak(client, seconds, seed=number, what="beside a flood")
        told = crowd(node.endpoint, seconds / 2)
    grown = [np.percentile(beside.waits, q) - np.percentile(alone.waits, q) for q in (50, 99)]
    return {
        "p99_growth_over_service": grown[1] / SERVICE_S,
        "median_growth_over_service": grown[0] / SERVICE_S,
        "p99_alone_s": float(np.percentile(alone.waits, 99)),
        "p99_beside_flood_s": float(np.percentile(beside.waits, 99)),
        "flood_per_session": flood.offered / (len(beside.waits) / GOOD),
        "retry_after_ratio_p90": float(np.percentile(told, 90)) if told else float("nan"),
        "retry_after_ratio_p50": float(np.percentile(told, 50)) if told else float("nan"),
        "told": len(told),
        "reordered": alone.reordered + beside.reordered + flood.reordered,
        "not_ok": alone.not_ok + beside.not_ok + flood.not_ok,
    }


@dataclass
class Heard:
    """What the good ones got. ``waits``: seconds that each utterance waited, from its submit on."""

    waits: list[float] = field(default_factory=list)
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
    found.reordered = sum(map(line.reordered, indices))
    return found


class Flood:
    """Sends ``count`` utterances as fast as the node takes them, in a thread; what is left at the end is cancelled."""

    def __init__(self, endpoint: str, count: float) -> None:
        self.offered, self.reordered, self.not_ok = int(count), 0, 0
        self._endpoint = endpoint
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Flood:
        self._thread.start()
        time.sleep(0.5)  # until it floods
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        from engine.client import Client

        utterance = mark_samples(9, SAMPLES)
        indices: list[int] = []
        with Client(self._endpoint) as client, client.session() as session:
            for _ in range(self.offered):
                if self._over.is_set():
                    break
                session.submit(utterance)
                while session.outstanding > 200 and not self._over.is_set():  # as many as the window and more
                    self._hear(session, indices, 0.05)
                self._hear(session, indices, 0.0)
            session.close("abort")
        self.reordered = line.reordered(indices)

    def _hear(self, session: Any, indices: list[int], timeout_s: float) -> None:
        try:
            for outcome in session.outcomes(timeout_s=timeout_s):
                indices.append(outcome.index)
                self.not_ok += outcome.outcome != "ok"
        except TimeoutError:
            return


def crowd(endpoint: str, seconds: float) -> list[float]:
    """How far off each Busy(capacity) was: what it told over what it took, or the reverse, whichever is more."""
    plain = [Plain(endpoint, f"crowd{number}") for number in range(CROWD)]
    steady = time.monotonic() + STEADY_S
    end = steady + seconds
    try:
        while time.monotonic() < end:
            for one in plain:
                one.turn(time.monotonic())
            time.sleep(0.001)
    finally:
        for one in plain:
            one.close()
    return [factor for one in plain for at, factor in one.factors if at >= steady]


class Plain:
    """A session that always wants ``WANTED`` utterances under way, whatever its share is."""

    def __init__(self, endpoint: str, tag: str) -> None:
        self.factors: list[tuple[float, float]] = []  # when it was told, and how far off that was
        self._session = PlainSession(endpoint, tag, SAMPLES)
        self._coming, self._received = 0, -1
        self._again_at, self._tries = 0.0, 0
        self._waits_for: int | None = None
        self._told: list[tuple[float, float]] = []  # when, and how long it said, of the index that waits

    def turn(self, now: float) -> None:
        """Hear what has come, and say what is due."""
        for message in self._session.heard():
            self._hear(message, now)
        while self._session.id and now >= self._again_at and self._coming - self._received - 1 < WANTED:
            self._session.submit(self._coming)
            self._coming += 1
            if self._waits_for is not None:
                self._again_at = now + 60.0  # one at a time, until it is answered
                return

    def close(self) -> None:
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
