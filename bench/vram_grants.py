"""Whether a real node's grants were right, judged by its driver's true figures and never by the book. Pure.

At a grant, what is *committed* on a GPU is

* of each living process what it holds, or what its leases let it hold if that is more;
* what the dead have left and the driver still shows as used;
* what outsiders hold.

More than the GPU is ``overcommitted``; more than its ceiling (``devices.max_bytes``) is ``above_ceiling``. The arbiter
says when it has granted each lease, and says so up to a second later, also of those that are over by then; so what the
driver held is remembered, and a grant judged by the first sample after it.

A reading may be as old as ``known_s``. What outsiders have taken since then the book could not know, nor what a process
has taken beyond its leases: of these the least in that time counts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.limits import Limits

REPORTS_S = 10.0  # the latest that a report tells of a grant


@dataclass(frozen=True)
class Sample:
    """One GPU's memory as its driver has it, in bytes. ``at``: monotonic seconds. ``held``: by living process."""

    at: float
    held: Mapping[int, int]
    lagging: int = 0  # of the dead
    foreign: int = 0


class Grants:
    """Judges each lease once. ``limits``: of the GPUs, by their number."""

    def __init__(self, limits: Sequence[Limits], known_s: float) -> None:
        self.counts: Counter[str] = Counter()  # promise -> grants that broke it
        self._limits = limits
        self._known_s = known_s
        self._samples: list[deque[Sample]] = [deque() for _ in limits]
        self._judged: set[int] = set()  # numbers of leases
        self._elsewhere: set[int] = set()  # ... that are on no GPU
        self._last = 0

    @property
    def judged(self) -> int:
        """How many leases were judged."""
        return len(self._judged)

    @property
    def granted(self) -> int:
        """How many there were on GPUs, as far as the arbiter has reported."""
        return self._last - len(self._elsewhere)

    def sample(self, gpu: int, sample: Sample) -> None:
        """What is there now."""
        self._samples[gpu].append(sample)

    def judge(self, report: Mapping[str, Any]) -> None:
        """``report``: the arbiter's. Leases granted since the last sample are judged another time."""
        rows = [*report.get("leases", ()), *report.get("over", ())]
        self._last = max(self._last, report.get("last_lease", 0))
        gpus = {limits.name for limits in self._limits}
        self._elsewhere |= {row["lease"] for row in rows if row["device"] not in gpus}
        for gpu, samples in enumerate(self._samples):
            here = [row for row in rows if row["device"] == self._limits[gpu].name]
            for row in here:
                if row["lease"] not in self._judged and samples and samples[-1].at > row["granted_s"]:
                    self._judged.add(row["lease"])
                    self._judge(gpu, row["granted_s"], here)
            while samples and samples[0].at < samples[-1].at - self._known_s - REPORTS_S:
                samples.popleft()

    def _judge(self, gpu: int, granted_s: float, leases: Iterable[Mapping[str, Any]]) -> None:
        limits = self._limits[gpu]
        after = next(one for one in self._samples[gpu] if one.at > granted_s)
        had = [one for one in leases if one["granted_s"] <= granted_s and not 0 < one["left_s"] <= after.at]
        known = [one for one in self._samples[gpu] if granted_s - self._known_s <= one.at <= after.at]
        granted: Counter[int] = Counter()
        for row in had:  # without who has left since: what that one took lags, or is there no more
            granted[row["pid"]] += row["nbytes"]
        held = {pid: min(one.held.get(pid, 0) for one in known) for pid in after.held}
        ours = after.lagging + sum(max(granted[pid], held.get(pid, 0)) for pid in granted.keys() | held.keys())
        foreign = min(one.foreign for one in known)
        self.counts["overcommitted"] += ours + foreign > limits.total_bytes
        self.counts["above_ceiling"] += ours + (0 if limits.ceiling_is_own else foreign) > limits.usable_bytes
