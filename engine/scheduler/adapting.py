"""How many utterances a run may have, from what running them has shown. Pure.

Between a stage's ``min_batch`` and its ``max_batch`` (the operator's, or the configured one). It begins at
``start_batch`` and then follows bands, judged over the last ``RUNS`` runs since it changed:

* three of the last ten runs found too little memory: to the least at once;
* more than a tenth of the runs did: to one half; a twentieth or more: one less; a single one, and fewer, are what
  retries are for;
* fewer than 90 % of the utterances were well, memory apart: one less;
* at least 95 % were, the runs were full and twice as many as fit into one wait: one more.

What ran out of memory is not tried again for ``TIGHT_S``, the next time for twice as long, up to ``TIGHT_MOST_S``: a
device that bears two and never three would else be asked for three again and again. That ends when it has borne it.

So it rises by one and falls by half, as TCP's window does (AIMD: Chiu and Jain 1989), which finds the most that a
device bears and leaves room fast. But more in a run is worth something only where that costs less for each: what was
raised is taken back when an utterance costs nearly as much as before, and not tried again for ``USELESS_S``. A stage
that carries out its utterances one by one would otherwise make the first wait for the last, for nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

RUNS = 40  # of which one that ran out of memory is 2.5 %
FEWEST = 10  # by which anything is judged; OOM rates by twice as many
FREQUENT = 3  # of the last ``FEWEST``
OOM_HIGH, OOM_LOW = 0.10, 0.05
WELL_LOW, WELL_HIGH = 0.90, 0.95
FULL = 0.8  # share of runs that must be full for more to be of use
GAIN = 0.05  # by which an utterance must cost less
USELESS_S = 300.0
TIGHT_S, TIGHT_MOST_S = 300.0, 3600.0


@dataclass(frozen=True)
class Tally:
    """One run: utterances, how many failed (not for memory or their own fault), whether memory ran out, its seconds."""

    size: int
    failed: int
    ran_out: bool
    seconds: float


@dataclass(eq=False)
class Limit:
    """A stage's limit. ``why``: of the last change, in words."""

    n: int
    why: str = "as it began"
    runs: deque[Tally] = field(default_factory=lambda: deque(maxlen=RUNS))
    before_s: float | None = None  # what an utterance cost before it was raised, until that is judged
    useless_until: float = 0.0
    tight: int = 0  # so many have run out of memory; 0: none have
    tight_s: float = 0  # for how long they were not to be tried again, the last time
    tight_until: float = 0.0

    def ran(self, tally: Tally, waiting: int, least: int, most: int, now: float) -> bool:
        """Take a run in; ``waiting``: utterances in front of the stage. Returns whether the limit changed."""
        self.runs.append(tally)
        before = self.within(least, most)
        n, why, is_short = self._judge(before, waiting, least, most, now)
        if is_short and n < before:
            self._keep_below(before, now)
        elif n > before >= self.tight:
            self.tight = self.tight_s = 0  # it bears what it did not
        changed = n != before
        if changed:
            self.before_s = self.before_s if n > before else None
            self.n, self.why = n, why
            self.runs.clear()
        return changed

    def within(self, least: int, most: int) -> int:
        """As far as the bounds allow; they may be another day's, and what was learnt outlives them."""
        return min(max(self.n, least), most)

    def _keep_below(self, n: int, now: float) -> None:
        self.tight_s = min(2 * self.tight_s, TIGHT_MOST_S) if self.tight_s else TIGHT_S
        self.tight, self.tight_until = n, now + self.tight_s

    def _judge(self, n: int, waiting: int, least: int, most: int, now: float) -> tuple[int, str, bool]:
        """What it should be, why, and whether that is for lack of memory."""
        runs, lower = list(self.runs), max(least, n - 1)
        if sum(run.ran_out for run in runs[-FEWEST:]) >= FREQUENT:
            return least, f"{FREQUENT} of the last {FEWEST} runs ran out of memory", True
        if len(runs) < FEWEST:
            return n, self.why, False
        ran_out = sum(run.ran_out for run in runs)
        rate = ran_out / len(runs) if ran_out > 1 and len(runs) >= 2 * FEWEST else 0.0
        if rate > OOM_HIGH:
            return max(least, n // 2), f"{rate:.0%} of the runs ran out of memory", True
        if rate >= OOM_LOW:
            return lower, f"{rate:.0%} of the runs ran out of memory", True
        well = 1 - sum(run.failed for run in runs) / sum(run.size for run in runs)
        if well < WELL_LOW:
            return lower, f"only {well:.0%} of the utterances were well", False
        full = [run for run in runs if run.size >= n]
        if self.before_s is not None and len(full) >= FEWEST:
            before, self.before_s = self.before_s, None
            if _cost_s(full) > (1 - GAIN) * before:
                self.useless_until = now + USELESS_S
                why = f"in runs of {n} an utterance takes {_cost_s(full):.2f} s, in smaller ones {before:.2f}"
                return lower, why, False
        longs_for_more = well >= WELL_HIGH and waiting >= 2 * n and len(full) >= FULL * len(runs)
        is_tight = 0 < self.tight <= n + 1 and now < self.tight_until
        if longs_for_more and n < most and now >= self.useless_until and not is_tight:
            self.before_s = _cost_s(full)
            return n + 1, f"{waiting} wait, and {well:.0%} were well", False
        return n, self.why, False


def _cost_s(runs: list[Tally]) -> float:
    """Seconds of a run for each utterance."""
    return median(run.seconds / run.size for run in runs)
