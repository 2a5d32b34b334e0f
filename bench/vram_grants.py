"""Whether a real node's grants were right, judged by its driver's true figures and never by the book. Pure.

At a grant, what is *committed* on a GPU is

* of each living process what it holds, or what its leases let it hold if that is more;
* what the dead have left and the driver still shows as used;
* what outsiders hold.

More than the GPU is ``overcommitted``; more than its ceiling (``devices.max_bytes``) is ``above_ceiling``. The arbiter
says when it has granted each lease, and says so up to a second later; so what the driver held is remembered, and a
grant judged by the first sample after it. Leases that were over by then are not in it, so it is never too much.

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

    @property
    def judged(self) -> int:
        """How many leases were judged: those that lived to be in a report."""
        return len(self._judged)

    def sample(self, gpu: int, sample: Sample) -> None:
        """What is there now."""
        self._samples[gpu].append(sample)

    def judge(self, leases: Iterable[Mapping[str, Any]]) -> None:
        """``leases``: as the arbiter reports them. Those granted since the last sample are judged another time."""
        alive = [row for row in leases if row["state"] in ("granted", "held")]
        for gpu, samples in enumerate(self._samples):
            here = [row for row in alive if row["device"] == self._limits[gpu].name]
            for row in here:
                if row["lease"] not in self._judged and samples and samples[-1].at > row["granted_s"]:
                    self._judged.add(row["lease"])
                    self._judge(gpu, row["granted_s"], [one for one in here if one["granted_s"] <= row["granted_s"]])
            while samples and samples[0].at < samples[-1].at - self._known_s - REPORTS_S:
                samples.popleft()

    def _judge(self, gpu: int, granted_s: float, leases: Iterable[Mapping[str, Any]]) -> None:
        limits = self._limits[gpu]
        after = next(one for one in self._samples[gpu] if one.at > granted_s)
        known = [one for one in self._samples[gpu] if granted_s - self._known_s <= one.at <= after.at]
        granted: Counter[int] = Counter()
        for row in leases:
            granted[row["pid"]] += row["nbytes"]
        held = {pid: min(one.held.get(pid, 0) for one in known) for pid in after.held}
        ours = after.lagging + sum(max(granted[pid], held.get(pid, 0)) for pid in granted.keys() | held.keys())
        foreign = min(one.foreign for one in known)
        self.counts["overcommitted"] += ours + foreign > limits.total_bytes
        self.counts["above_ceiling"] += ours + (0 if limits.ceiling_is_own else foreign) > limits.usable_bytes
