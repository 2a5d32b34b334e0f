"""Whose doing a shortage in a rehearsal was: judged by what the driver showed at that moment. Pure.

A shortage is *snatched* when all that the node had granted there would have fitted, and did not beside the outsiders:
they had taken bytes that were promised to somebody. No book can prevent that. Any other one is the node's own: so is
that of a model which takes more than its lease, outsiders or not.

The arbiter says which leases there are up to a second later, so a shortage is judged by the first report after it, and
by those too that have ended meanwhile: a load that found too little is over by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.vram_grants import Sample


class Shortages:
    """``totals``: bytes of each GPU. ``snatched``: how many shortages were the outsiders' doing, as far as is known."""

    def __init__(self, totals: Sequence[int]) -> None:
        self.snatched = 0
        self._totals = totals
        self._unjudged: list[tuple[int, Sample, int]] = []

    def add(self, gpu: int, sample: Sample, count: int) -> None:
        """So many allocations have failed there since the last sample."""
        self._unjudged.append((gpu, sample, count))

    def judge(self, leases: Iterable[Mapping[str, Any]], reported_at: float) -> None:
        """``leases``: the arbiter's rows as of then, of those that have just ended too."""
        due = [one for one in self._unjudged if one[1].at <= reported_at]
        self._unjudged = [one for one in self._unjudged if one[1].at > reported_at]
        rows = [*leases] if due else []
        self.snatched += sum(count for gpu, sample, count in due if self._is_snatched(gpu, sample, rows))

    def _is_snatched(self, gpu: int, sample: Sample, rows: Iterable[Mapping[str, Any]]) -> bool:
        granted: Counter[int] = Counter()
        for row in rows:
            alive = row["state"] in ("granted", "held") or row["left_s"] >= sample.at
            if row["device"] == f"cuda:{gpu}" and row["granted_s"] <= sample.at and alive:
                granted[row["pid"]] += row["nbytes"]
        held = sample.held
        ours = sample.lagging + sum(max(granted[pid], held.get(pid, 0)) for pid in granted.keys() | held.keys())
        return ours <= self._totals[gpu] < ours + sample.foreign
