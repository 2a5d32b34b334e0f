"""bench overload: ten times as much as the node can do, for a while. (Stages of 30/5/30/5 ms.)

First one session floods the node alone: what it ends a second is its capacity. Then plain clients, which know nothing
of their share, speak at random (Poisson) at ten times that, each utterance with a deadline of two seconds. Who is told
Busy comes back when it was told to, and skips what it could not get in within its deadline. Judged by the clients' own
logs: every utterance must be accounted for, those taken in must end, in time, and the node must do about as much as it
can instead of working on what is late anyhow.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import command, workloads
from bench.drive import arrived, progress, within
from bench.plain_session import PlainSession
from bench.report import ZERO, Goal, Report, at_least
from stages.simulated import mark_samples

SPEAKERS, TIMES = 20, 10.0
BUDGET_S = 2.0  # of each utterance
SAMPLES = 16_000  # int16: a second
WARM_S, CAPACITY_S = 2.0, 4.0
SETTLES_S = 10.0  # for what is under way at the end
LIMIT_S = 300.0
GOALS = {
    "goodput": Goal(at_least=0.9),
    "unexplained": ZERO,
    "rss_growth_mib": Goal(at_most=5.0),
    "p99_over_deadline": Goal(at_most=1.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when an utterance is unaccounted for, else 0."""
    args = parser().parse_args(argv)
    report = Report("overload")
    for metric, (value, unit) in measure(args.seconds, args.seed).items():
        report.add(metric, value, unit, GOALS.get(metric))
    report.show(args.json)
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "overload", (__doc__ or "").partition("\n")[0], done=command.STRICT,
        wrong="an utterance is unaccounted for",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--strict", action="store_true", help="a goal that is missed is a failure too")
    found.add_argument("--seconds", type=at_least(1.0), default=30.0, help="of overload (default 30)")
    found.add_argument("--seed", type=int, default=1, help="of the speakers (default 1)")
    return found


def measure(seconds: float, seed: int) -> dict[str, tuple[float, str]]:
    """Metric -> (value, unit)."""
    from engine.node import Node

    with within(LIMIT_S, "overload"), Node(workloads.translation()) as node:
        capacity = alone(node)
        speakers = crowd(node.endpoint, WARM_S, capacity, seed=-1, what="warm-up")
        before = resident_mib(node)
        speakers = crowd(node.endpoint, seconds, capacity, seed, what="overload")
        grown = resident_mib(node) - before
    said = Counter[str]()
    for one in speakers:
        said.update(one.said)
    over = [took / BUDGET_S for one in speakers for took in one.took_s]
    return {
        "goodput": (sum(one.good for one in speakers) / seconds / capacity, "of capacity"),
        "unexplained": (float(said["unexplained"]), "utterances"),
        "rss_growth_mib": (grown, "MiB"),
        "p99_over_deadline": (float(np.percentile(over, 99)) if over else float("nan"), "ratio"),
        "capacity": (capacity, "1/s"),
        "offered": (said["offered"] / seconds, "1/s"),
        "taken_in": (float(said["accepted"]), "utterances"),
        "ok": (float(said["ok"]), "utterances"),
        "late": (float(said["expired"]), "utterances"),
        "refused": (float(said["skipped"]), "utterances"),
        "busy": (float(said["busy"]), "answers"),
    }


def alone(node: Any) -> float:
    """Utterances a second that one session gets out of an otherwise idle node which always has enough to do."""
    utterance, ended, begun = mark_samples(5, SAMPLES), 0, 0.0
    with node.client() as client, client.session() as session:
        for _ in range(8):
            session.submit(utterance)
        start = time.monotonic()
        while (now := time.monotonic()) < start + 1.0 + CAPACITY_S:
            for _ in arrived(session):
                session.submit(utterance)
                begun, ended = begun or now, ended + 1
            time.sleep(0.001)
        session.close("abort")
    return (ended - 1) / (time.monotonic() - begun)


def crowd(endpoint: str, seconds: float, capacity: float, seed: int, what: str) -> list[Speaker]:
    """All speakers at once, for so long and until everything they have is answered."""
    chance = random.Random(seed)
    begun = time.monotonic()
    rate = TIMES * capacity / SPEAKERS
    speakers = [Speaker(endpoint, f"{what}{n}", chance, rate, begun + seconds) for n in range(SPEAKERS)]
    with progress(int(seconds), what) as bar:
        while (now := time.monotonic()) < begun + seconds or (
            now < begun + seconds + SETTLES_S and any(one.open for one in speakers)
        ):
            for one in speakers:
                one.turn(now)
            bar.update(int(now - begun) - bar.n if now < begun + seconds else 0)
            time.sleep(0.001)
    for one in speakers:
        one.close()
    return speakers


def resident_mib(node: Any) -> float:
    """Of all processes of the node, without what they share."""
    total = 0
    for row in node.stats()["processes"]:
        if row.get("pid"):
            _, resident, shared, *_ = Path(f"/proc/{row['pid']}/statm").read_text().split()
            total += (int(resident) - int(shared)) * 4096
    return total / 2**20


@dataclass
class Utterance:
    """One that somebody has said. ``accepted_at``: when its client heard so."""

    said_at: float
    sent_at: float = 0.0
    accepted_at: float = 0.0


class Speaker:
    """A plain client that says what it says whether the node keeps up or not."""

    def __init__(self, endpoint: str, tag: str, chance: random.Random, rate: float, until: float) -> None:
        self.said: Counter[str] = Counter()
        self.took_s: list[float] = []  # of those taken in, from there to their end
        self.good = 0  # ended well, in time, and before the overload was over
        self.open: dict[int, Utterance] = {}  # without an answer that ends it
        self._chance, self._rate, self._until = chance, rate, until
        self._session = PlainSession(endpoint, tag, SAMPLES)
        self._next_index = self._next_to_send = 0
        self._through = -1
        self._speaks_at = time.monotonic()
        self._again_at = 0.0

    def turn(self, now: float) -> None:
        for message in self._session.heard():
            self._hear(message, now)
        while self._speaks_at <= min(now, self._until):
            self._speaks_at += self._chance.expovariate(self._rate)
            self.open[self._next_index] = Utterance(now)
            self.said["offered"] += 1
            self._next_index += 1
        if self._session.id:
            self._send(now)

    def close(self) -> None:
        """What is still open nobody has explained."""
        self.said["unexplained"] += len(self.open)
        self._session.close()

    def _send(self, now: float) -> None:
        """In order, as far as window and Busy let it; what is too old by now is skipped."""
        while self._next_to_send < min(self._next_index, self._through + 1 + self._session.window):
            index = self._next_to_send
            one = self.open.get(index)
            if one is not None and now - one.said_at > BUDGET_S:
                self._session.say("Skip", index=index)
            elif now < self._again_at:
                return
            elif one is not None:
                one.sent_at = now
                self._session.submit(index, budget_ms=int(1000 * BUDGET_S))
            self._next_to_send += 1

    def _hear(self, message: dict[str, Any], now: float) -> None:
        match message["type"]:
            case "Accepted":
                if (one := self.open.get(message["index"])) is not None and not one.accepted_at:
                    one.accepted_at = now
                    self.said["accepted"] += 1
            case "Busy":
                self.said["busy"] += message["reason"] != "held_back"
                self._next_to_send = min(self._next_to_send, message["resend_from"])
                self._again_at = now + message["retry_after_ms"] / 1000
            case "Outcome":
                self._end(message, now)

    def _end(self, message: dict[str, Any], now: float) -> None:
        one = self.open.pop(message["index"], None)
        self._through = max(self._through, message["index"])
        self._session.say("Ack", through=self._through)
        if one is None:
            return
        ending = message["outcome"] if message["outcome"] in ("ok", "skipped") else message["code"]
        self.said[ending if ending in ("ok", "skipped", "expired") else "unexplained"] += 1
        if one.accepted_at:
            self.took_s.append(now - one.sent_at)
            self.good += message["outcome"] == "ok" and self.took_s[-1] <= BUDGET_S and now <= self._until


if __name__ == "__main__":
    sys.exit(main())
