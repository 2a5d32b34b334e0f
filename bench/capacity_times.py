"""How long stages take, and so how much a node can do at most. Pure.

One utterance alone takes ``base + per_audio x seconds of audio``. A run of n takes what the longest of them takes
alone, since a batch is padded to it, times ``1 + (n - 1) x factor``: with a factor of 0 a device does n in the time of
one, with 1 batches gain nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

MOST_AUDIO_S = 120.0  # the node's default for ``max_utterance_s``
DRAWS = 4000  # of utterances, for the mean of the longest of n


@dataclass(frozen=True)
class StageTime:
    """Seconds that one utterance alone takes."""

    base_s: float
    per_audio: float = 0.0

    def alone_s(self, audio_s: float) -> float:
        return self.base_s + self.per_audio * audio_s

    def run_s(self, audios_s: Sequence[float], factor: float) -> float:
        """Of a batch of utterances of these lengths."""
        return self.alone_s(max(audios_s)) * (1 + (len(audios_s) - 1) * factor)


# The seed's 3, 0.5, 3, 0.5 s for an utterance of 5 s, half of each fixed and half with its length.
SEED_TIMES: dict[str, StageTime] = {
    "asr": StageTime(1.5, 0.3),
    "repair": StageTime(0.25, 0.05),
    "nmt": StageTime(1.5, 0.3),
    "tts": StageTime(0.25, 0.05),
}


@dataclass(frozen=True)
class Speech:
    """Lengths of utterances: log-normal, with this mean and this sigma of the logarithm."""

    mean_s: float = 5.0
    sigma: float = 0.6

    def draw(self, chance: random.Random) -> float:
        """Seconds of audio of one utterance."""
        middle = math.log(self.mean_s) - self.sigma**2 / 2
        return min(MOST_AUDIO_S, chance.lognormvariate(middle, self.sigma))

    def longest_of(self, count: int) -> float:
        """Mean of the longest of ``count`` utterances, the same at each call."""
        return _longest_of(self, count)


@cache
def _longest_of(speech: Speech, count: int) -> float:
    chance = random.Random(count)
    return sum(max(speech.draw(chance) for _ in range(count)) for _ in range(DRAWS)) / DRAWS


def full_run_s(time: StageTime, speech: Speech, batch: int, factor: float) -> float:
    """Mean time of a run of a full batch."""
    longest = speech.mean_s if batch == 1 else speech.longest_of(batch)
    return time.alone_s(longest) * (1 + (batch - 1) * factor)


def rates(times: Mapping[str, StageTime], speech: Speech, workers: int, batch: int, factor: float) -> dict[str, float]:
    """Stage -> utterances a second that ``workers`` of it can do at most, each run a full batch."""
    return {name: workers * batch / full_run_s(time, speech, batch, factor) for name, time in times.items()}


def parse_times(text: str) -> dict[str, StageTime]:
    """``asr=1.5+0.3,nmt=3`` (base, and seconds for a second of audio) over the seed's. Raises ValueError."""
    times = dict(SEED_TIMES)
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in times:
            raise ValueError(f"there is no stage {name.strip()!r}, only {', '.join(times)}")
        times[name.strip()] = _parse_time(value)
    return times


def _parse_time(text: str) -> StageTime:
    base, plus, per_audio = text.partition("+")
    try:
        time = StageTime(float(base), float(per_audio) if plus else 0.0)
    except ValueError:
        raise ValueError(f"{text!r} is no time: give seconds, as 3, or base+per second of audio, as 1.5+0.3") from None
    if not (0 <= time.base_s < math.inf and 0 <= time.per_audio < math.inf and time.base_s + time.per_audio > 0):
        raise ValueError(f"{text!r} is no time: seconds must be above 0")
    return time
