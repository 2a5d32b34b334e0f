"""What is to be simulated: a node, those who speak to it, and what goes wrong meanwhile. Plain data.

``load`` says how much is spoken, as a share of what the stage with the least capacity can do at most with full batches;
the pauses follow from it. Where it is None the pauses are given, and the load follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bench.capacity_times import SEED_TIMES, Speech, StageTime, rates


@dataclass(frozen=True)
class Day:
    """See the module's docstring. Raises ValueError for what cannot be."""

    gpus: int = 8
    sessions: int = 1000
    hours: float = 24.0
    load: float | None = 0.8
    pause_s: float = 60.0  # mean, between two utterances of a session; where ``load`` is None
    speech: Speech = field(default_factory=Speech)
    times: Mapping[str, StageTime] = field(default_factory=lambda: dict(SEED_TIMES))
    batch: int = 4
    factor: float = 0.3  # see ``bench.capacity_times``
    send_ahead: int = 1
    capacity_factor: int = 10
    worker_mtbf_h: float = 0.0  # mean time between two deaths of one worker; 0: none die
    gpu_mtbf_h: float = 0.0  # ... between two failures of one GPU; 0: none fail
    gpu_away_s: float = 1800.0  # how long a GPU that has failed is away
    seed: int = 1

    def __post_init__(self) -> None:
        if self.mean_pause_s < 0:
            most = self.sessions / self.speech.mean_s
            raise ValueError(
                f"{self.sessions} sessions that never pause speak {most:.3g} utterances a second, and that load is "
                f"{self.rate:.3g}: give more sessions or a lower load"
            )

    @cached_property
    def rates(self) -> dict[str, float]:
        """Stage -> utterances a second at most."""
        return rates(self.times, self.speech, self.gpus, self.batch, self.factor)

    @cached_property
    def rate(self) -> float:
        """Utterances spoken a second."""
        if self.load is None:
            return self.sessions / (self.speech.mean_s + self.pause_s)
        return self.load * min(self.rates.values())

    @cached_property
    def offered(self) -> float:
        """What is spoken, as a share of what the node can do."""
        return self.rate / min(self.rates.values())

    @cached_property
    def mean_pause_s(self) -> float:
        return self.pause_s if self.load is None else self.sessions / self.rate - self.speech.mean_s

    def alone_s(self, audio_s: float) -> float:
        """What all stages take for an utterance that has the node for itself."""
        return sum(time.alone_s(audio_s) for time in self.times.values())
