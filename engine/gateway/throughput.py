"""How fast utterances leave the node when it has enough to do: what is told of waiting is counted in ends. Pure.

It is measured here, from the ends, and not taken from the scheduler, whose rate is that of the slowest of all stages:
unknown while one of them is never used, and too low while another pipeline or a skip keeps the load from the slowest.
Weighting stages by their use would mend that, but still suppose full batches, and stages that do not slow each other
down. The scheduler's figure serves until enough ends were seen.

Time counts while more than half of the places are taken, or somebody waits for memory: fewer do not keep the stages
busy, and who is told too long a time and comes late would make the node look slow. Only what ended ok counts: a client
can end as many others as it likes.
"""

from __future__ import annotations

ENOUGH = 4.5  # the weights of five ends: they say more than the scheduler does
LEAST_MEMORY = 20  # ends that make up the mean, roughly
MEMORY = 2  # ... and by place: batches end at once, and a mean over few of them would jump


class Throughput:
    """An exponentially weighted mean, by end."""

    def __init__(self) -> None:
        self._ends = self._time_s = 0.0  # weighted sums
        self._since_s = 0.0  # of enough to do, since the last end

    def worked(self, time_s: float) -> None:
        """For so long there was enough to do."""
        self._since_s += time_s

    def ended(self, places: int) -> None:
        """An utterance has gone through while there was, on a node of so many places."""
        keep = 1 - 1 / max(LEAST_MEMORY, MEMORY * places)
        self._ends = keep * self._ends + 1
        self._time_s = keep * self._time_s + self._since_s
        self._since_s = 0.0

    def per_s(self, unmeasured: float) -> float:
        """Ends per second; ``unmeasured`` while too few were seen."""
        return self._ends / self._time_s if self._ends >= ENOUGH and self._time_s > 0 else unmeasured
