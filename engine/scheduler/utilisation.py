"""How busy each stage was of late, and which one holds up the others. Pure.

A stage's utilisation is the share of its loaded workers' time that was spent in runs, over the last ``WINDOW_S``. Where
nothing else is short the busiest stage is the bottleneck (utilisation law: Lazowska et al., Quantitative System
Performance, 1984); below ``BUSY`` none is, and more of anything would bring nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from engine.scheduler.workers import Life, Worker

WINDOW_S = 30.0
BUSY = 0.7


class Utilisation:
    """Looked at about once a second. Times in seconds, monotonic."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, float], dict[str, float]]] = deque()  # when, busy and loaded seconds
        self._loaded_s: dict[str, float] = {}

    def look(self, workers: Mapping[str, Worker], now: float) -> dict[str, float]:
        """Stage -> share of the window, from 0 to 1; stages that had no loaded worker are not in it."""
        since = now - self._seen[-1][0] if self._seen else 0.0
        busy: dict[str, float] = {}
        for worker in workers.values():
            stage = worker.plan.stage
            began = worker.batches[0].began if worker.batches else None
            busy[stage] = busy.get(stage, 0.0) + worker.busy_s + (max(0.0, now - began) if began is not None else 0.0)
            if worker.life is Life.LOADED:
                self._loaded_s[stage] = self._loaded_s.get(stage, 0.0) + since
        self._seen.append((now, busy, dict(self._loaded_s)))
        while now - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        _, busy_then, loaded_then = self._seen[0]
        shares = {}
        for stage, loaded in self._loaded_s.items():
            if (loaded_s := loaded - loaded_then.get(stage, 0.0)) > 0:
                busy_s = busy.get(stage, 0.0) - busy_then.get(stage, 0.0)
                shares[stage] = min(1.0, max(0.0, busy_s / loaded_s))
        return shares


def bottleneck(shares: Mapping[str, float], stuck: Mapping[str, int], serial: bool = False) -> str:
    """One sentence. ``stuck``: utterances that wait, by stages of which no worker has its model."""
    if stuck:
        first, waiting = max(stuck.items(), key=lambda one: one[1])
        return f"{first} is the bottleneck: {waiting} wait for it, and none of its workers has its model"
    if not shares:
        return "nothing has run yet"
    if serial:
        spent = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        return (
            f"the mode is the bottleneck: serial, one utterance after the other; of the last {WINDOW_S:.0f} s: {spent}"
        )
    (first, most), *others = sorted(shares.items(), key=lambda one: -one[1])
    after = f"; next is {others[0][0]}, {others[0][1]:.0%}" if others else ""
    if most < BUSY:
        return (
            f"no stage holds up the others: the busiest, {first}, worked {most:.0%} of the last {WINDOW_S:.0f} s{after}"
        )
    return f"{first} is the bottleneck: its workers were busy {most:.0%} of the last {WINDOW_S:.0f} s{after}"
