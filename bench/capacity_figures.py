"""What came of a simulated day: counts, waiting, and how busy the stages were."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ipc.messages import Outcome

MOST_WAITING_S = 10.0  # the seed's promise
SERVED = 0.95  # of a session's utterances, in time: the seed's success rate


@dataclass
class StageFigures:
    """One stage. ``utilisation``: the share of the time in which its workers ran something."""

    rate: float  # utterances a second at most
    utilisation: float
    batch: float  # utterances in a run, mean
    waiting_s: float  # mean, in its queue and on board behind another run


@dataclass
class Figures:
    """See the module's docstring. *Waiting*: from the last word spoken to the outcome, without the runs in between."""

    spoken: int = 0
    reordered: int = 0  # outcomes that did not come as the next of their session
    busy: int = 0  # times that a client was told so
    deaths: int = 0
    outages: int = 0  # GPUs that failed
    throughput: float = 0.0  # utterances a second that came back well while sessions spoke
    outcomes: Counter[str] = field(default_factory=Counter)  # by outcome or, of those that are not ok, code
    sessions: int = 0
    sessions_served: int = 0
    stages: dict[str, StageFigures] = field(default_factory=dict)
    _waiting: array[float] = field(default_factory=lambda: array("d"))
    _extra: array[float] = field(default_factory=lambda: array("d"))
    _latency: array[float] = field(default_factory=lambda: array("d"))

    def ended(self, outcome: Outcome, latency_s: float, worked_s: float, alone_s: float) -> bool:
        """Count an outcome; returns whether it is good and came in time."""
        ok = outcome.outcome == "ok"
        self.outcomes["ok" if ok else outcome.code] += 1
        self._latency.append(latency_s)
        self._waiting.append(_difference(latency_s, worked_s))
        self._extra.append(_difference(latency_s, alone_s))
        return ok and latency_s - worked_s <= MOST_WAITING_S

    @property
    def lost(self) -> int:
        """Utterances without an outcome."""
        return self.spoken - self.outcomes.total()

    @property
    def success_rate(self) -> float:
        return self.outcomes["ok"] / max(1, self.spoken)

    def waiting_s(self, percent: float) -> float:
        """A percentile over all outcomes; NaN without any."""
        return _percentile(self._waiting, percent)

    def latency_s(self, percent: float) -> float:
        """Of the time from the last word to the outcome."""
        return _percentile(self._latency, percent)

    def extra_s(self, percent: float) -> float:
        """Of what that is beyond the stages' times for the utterance alone: waiting, and the company in its batches."""
        return _percentile(self._extra, percent)

    @property
    def bottleneck(self) -> str:
        """The stage whose workers were the most busy."""
        return max(self.stages, key=lambda name: self.stages[name].utilisation)


def _difference(one_s: float, other_s: float) -> float:
    """To the microsecond: what sums of floats leave of equal times is no time."""
    return round(one_s - other_s, 6) + 0.0  # not -0.0


def _percentile(values: array[float], percent: float) -> float:
    return float(np.percentile(np.frombuffer(values), percent)) if values else float("nan")
