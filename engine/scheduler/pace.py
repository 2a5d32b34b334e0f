"""How fast the stages are, and so how many utterances the node takes in.

Capacity = factor x the concurrency of the bottleneck. The bottleneck is the stage with the least concurrency divided by
mean time; before anything was measured, the one with the least concurrency. Means are exponential, over about 50 runs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from engine.choices import stage_of
from engine.scheduler.effort import Effort

WEIGHT = 0.04
HALF_S = 30.0  # what sessions use of a stage's models changes within minutes
LEAST_RECENT = 0.01  # less than this is over
LEAD_S = 0.005  # from the decision to send until the worker has it, on a busy machine
HOP_S = 0.02  # from stage to stage and to the client, on a busy machine
STEPS_MS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)  # upper ends of a histogram's bars; the last has none


def mean_of(mean: float, value: float) -> float:
    """An exponential mean with one more value; 0 is none yet."""
    return mean + WEIGHT * (value - mean) if mean else value


class Histogram:
    """Counts of times by size. ``counts``: one more than ``STEPS_MS``."""

    def __init__(self) -> None:
        self.counts = [0] * (len(STEPS_MS) + 1)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(STEPS_MS, 1000 * seconds)] += 1


@dataclass
class StagePace:
    """Running figures of one stage; times in seconds."""

    mean_s: float = 0.0
    mean_off_s: float = 0.0  # mean distance of runs from it
    last_s: float = 0.0  # the last run
    measured_at: float = 0.0  # ... and when it ended (monotonic)
    stay_s: float = 0.0  # mean of waiting and running together
    stay_off_s: float = 0.0  # mean distance from it
    done: int = 0
    failed: int = 0
    failed_in_row: int = 0  # by the stage's own doing, since the last one that was well
    last_failure: str = ""
    waiting_sum_s: float = 0.0
    processing_sum_s: float = 0.0
    waiting: Histogram = field(default_factory=Histogram)
    processing: Histogram = field(default_factory=Histogram)
    effort: Effort = field(default_factory=Effort)
    recent: float = 0.0  # utterances done, each counting half after ``HALF_S``, as of ``measured_at``
    moved_at: float = 0.0  # when a run was last sent or ended, or work came to an empty queue (monotonic)

    def measure(self, waiting_s: float, processing_s: float, now: float) -> None:
        """One utterance has gone through, in a run of ``processing_s``."""
        self.recent = self.recent_at(now) + 1.0
        self.last_s, self.measured_at = processing_s, now
        self.done += 1
        self.failed_in_row = 0
        self.waiting_sum_s += waiting_s
        self.processing_sum_s += processing_s
        self.waiting.add(waiting_s)
        self.processing.add(processing_s)
        per_run = max(processing_s, 1e-6)
        first = not self.mean_s
        self.mean_off_s += WEIGHT * ((0.0 if first else abs(per_run - self.mean_s)) - self.mean_off_s)
        self.mean_s = mean_of(self.mean_s, per_run)
        stay = waiting_s + processing_s
        if first:
            self.stay_s = stay
        self.stay_off_s += WEIGHT * (abs(stay - self.stay_s) - self.stay_off_s)
        self.stay_s += WEIGHT * (stay - self.stay_s)

    def least_s(self, now: float, speech_s: float) -> float:
        """What a run takes at least, to judge by: 0 when nothing has run for so long that it may be another by now.

        So a wrong figure keeps nobody out for long: somebody tries, and the last run counts where it was faster. More
        speech than usual may take no longer; less may take less.
        """
        usual = min(self.mean_s, self.last_s)
        if now - self.measured_at > 2 * usual + 1:
            return 0.0
        return min(usual, self.effort.of(speech_s)) if self.effort.run else usual

    def recent_at(self, now: float) -> float:
        """``recent``, as of now."""
        return self.recent * math.exp2((self.measured_at - now) / HALF_S)

    @property
    def send_ahead_s(self) -> float:
        """How long after a run has begun the next one may be sent, so that it is there in time nearly always."""
        return self.mean_s - 2 * self.mean_off_s - LEAD_S

    @property
    def run_s(self) -> float:
        """In which a run that begins now is nearly always over; its waiting is not in it."""
        return self.mean_s + 2 * self.mean_off_s + LEAD_S

    @property
    def safe_s(self) -> float:
        """In which it is nearly always done: as TCP sets its time-out (RFC 6298), with half its distance."""
        return self.stay_s + 2 * self.stay_off_s + HOP_S


def capacity(
    paces: dict[str, StagePace], concurrency: dict[str, int], factor: int, now: float, at_work: Collection[str] = ()
) -> tuple[int, float]:
    """(utterances to take in, utterances per second) for the stages with their concurrency (instances x batch).

    ``at_work``: stages that utterances wait for, or are in.

    Of a stage with several models each counts for the share of the stage's utterances that it has done of late: one
    that has a tenth of them holds up the others when it is ten times as slow. So does a stage that not all utterances
    pass, for what is told of the rate; how many are taken in is another matter, as the next one may pass all stages.
    The rate is 0 until each stage that is at work has been measured, and any.
    """
    shares = _shares(paces, concurrency, now)
    room = {name: concurrency[name] / share for name, share in shares.items()}
    if not room:
        return factor, 0.0
    measured = [name for name in room if paces[name].mean_s]
    known = measured and all(paces[name].mean_s for name in at_work)
    rate = _rate(paces, {name: room[name] for name in measured}, now) if known else 0.0
    if len(measured) == len(room):
        return int(factor * room[min(room, key=lambda name: room[name] / paces[name].mean_s)]), rate
    return int(factor * min(room.values())), rate


def _rate(paces: dict[str, StagePace], room: dict[str, float], now: float) -> float:
    """Utterances per second, if the next ones pass the stages that those of late have passed. All are measured."""
    done: dict[str, float] = {}
    for name in room:
        stage = stage_of(name)
        done[stage] = done.get(stage, 0.0) + paces[name].recent_at(now)
    most = max(done.values())
    if most < LEAST_RECENT:  # nobody speaks: any stage may be passed
        done, most = dict.fromkeys(done, 1.0), 1.0
    used = [name for name in room if done[stage_of(name)] >= LEAST_RECENT]
    return min(room[name] / paces[name].mean_s * most / done[stage_of(name)] for name in used)


def _shares(paces: dict[str, StagePace], names: Iterable[str], now: float) -> dict[str, float]:
    """Model of a stage -> its share of the stage's utterances; of a stage that has done none, the first has all."""
    models: dict[str, list[str]] = {}
    for name in names:
        models.setdefault(stage_of(name), []).append(name)
    shares: dict[str, float] = {}
    for every in models.values():
        done = {name: count for name in every if (count := paces[name].recent_at(now)) >= LEAST_RECENT}
        in_all = sum(done.values())
        shares |= {name: count / in_all for name, count in done.items()} or {_first(every, paces): 1.0}
    return shares


def _first(names: list[str], paces: dict[str, StagePace]) -> str:
    """The model that was used last; before any was, the stage's own."""
    return max(names, key=lambda name: paces[name].measured_at)
