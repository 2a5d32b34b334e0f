"""What is measured of the node's models while it runs: taken in, shown, and kept for the next start."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from engine import corrections_file, logs
from engine.corrections import History, Sample, is_too_little
from engine.corrections_file import Busy
from engine.placement_words import gib
from engine.supervisor.needs import Need
from ipc.messages import Measured

KEEP_S = 5.0  # between two writings
UNKEPT = 100  # measurements that wait to be written; of more the oldest are lost


@dataclass
class _Seen:
    """Of one worker's model in this life of the node, since it has loaded this variant."""

    variant: int = 0
    loads: int = 0
    last: Sample | None = None  # of a load
    peak_bytes: int = -1

    def add(self, sample: Sample) -> None:
        if sample.phase == "load":
            self.loads, self.last = self.loads + 1, sample
        self.peak_bytes = max(self.peak_bytes, sample.nbytes)


class Measuring:
    """``needs``: what each worker asks for in this life, by variant. ``file``: where measurements are kept."""

    def __init__(self, needs: Mapping[str, Sequence[Need]], file: Path | None) -> None:
        self._needs = needs
        self._file = file
        self._seen: dict[str, _Seen] = {}  # by role
        self._unkept: deque[tuple[Need, Sample]] = deque(maxlen=UNKEPT)
        self._due = 0.0
        self._failed = ""

    def take(self, message: Measured, at: float) -> None:
        """Enter a measurement; ``at``: seconds since the epoch."""
        needs = self._needs.get(message.worker, ())
        if message.variant >= len(needs):
            return
        need = needs[message.variant]
        phase: Literal["load", "run"] = "load" if message.phase == "load" else "run"
        sample = Sample(phase, message.nbytes, at, message.exact, message.note, message.granted)
        if not sample.note and is_too_little(sample, need.guess):
            sample = replace(sample, note="its model had left already, or the driver does not tell")
        seen = self._seen.get(message.worker)
        if seen is None or seen.variant != message.variant:
            seen = self._seen[message.worker] = _Seen(message.variant)
        seen.add(sample)
        self._unkept.append((need, sample))
        doubt = f", not for certain: {sample.note}" if sample.note else ""
        took, granted = gib(sample.nbytes), gib(sample.asked)
        logs.get().info("%s: a %s took %s of the %s granted%s", message.worker, phase, took, granted, doubt)

    def keep_when_due(self, now: float) -> None:
        """Write what is new, not too often. The first in a while is written at once."""
        if self._unkept and now >= self._due:
            self._due = now + KEEP_S
            self.keep(wait_s=0.0)

    def keep(self, *, wait_s: float = corrections_file.LOCK_S) -> None:
        """Write what is new. What cannot be written is said once, and tried again."""
        if self._file is None or not self._unkept:
            self._unkept.clear()
            return
        try:
            corrections_file.change(self._file, self._with_ours, wait_s=wait_s)
        except Busy:
            return
        except OSError as error:
            if self._failed != str(error):
                self._failed = str(error)
                logs.get().warning("measured estimates cannot be kept in %s: %s", self._file, error.strerror)
            return
        self._unkept.clear()

    def _with_ours(self, history: History) -> History:
        for need, sample in self._unkept:
            history = history.learn(need.key, need.subject, need.guess, sample)
        return history

    def rows(self) -> list[dict[str, Any]]:
        """For the statistics: what each worker asks for, why, and what it was last seen to take. Sizes in bytes."""
        return [self._row(role, needs) for role, needs in self._needs.items()]

    def _row(self, role: str, needs: Sequence[Need]) -> dict[str, Any]:
        seen = self._seen.get(role, _Seen())
        need = needs[seen.variant]
        estimate = need.estimate
        last = seen.last or estimate.last
        return {
            "worker": role,
            "stage": need.subject.stage,
            "variant": seen.variant,
            "device": need.subject.device,
            "estimate_bytes": estimate.nbytes,
            "source": estimate.source,
            "times": estimate.times + seen.loads,
            "guess_bytes": need.guess.nbytes,
            "last_measured_bytes": last.nbytes if last else -1,
            "last_measured_exact": last.exact if last else False,
            "last_measured_note": last.note if last else "",
            "peak_bytes": seen.peak_bytes,
        }
