"""Which of a stage's workers gets the next batch. Pure.

A policy is made once a node and asked for each batch. It sees only workers that have their model and take another
batch, and says them in order of preference. ``node.placement`` names one: of those below, or of an installed package
that has it under the entry-point group ``dragoman.placement`` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

GROUP = "dragoman.placement"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as a policy sees it. Times in seconds.

    ``mean_s``: what its runs took, over about the last 50 (0: none yet). ``free_in_s``: until what is on board should
    have run. ``given_at``: when it was last given a batch (monotonic). ``on_device``: utterances that workers of its
    device, this one included, have been given and not ended.
    """

    role: str
    device: str
    batches: int
    items: int
    mean_s: float
    free_in_s: float
    given_at: float
    on_device: int


class Policy(Protocol):
    """What ``node.placement`` names."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        """Roles of ``workers``, the best first. One that is left out gets nothing this time; where all are, it is asked
        again with the next event, or after a while. One that goes on so while all of them rest is replaced.
        """


class Earliest:
    """Where it should be done first: after what is on board and a run, at each worker's own measured speed.

    Differences below ``SAME`` of a run are none; then the less busy device, then who has had the least. A worker that
    has not been measured counts as the fastest, so that each is tried.
    """

    SAME = 0.2

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        del stage
        step = self.SAME * min((w.mean_s for w in workers if w.mean_s), default=1.0)
        ranked = sorted(workers, key=lambda w: (int((w.free_in_s + w.mean_s) / step), w.on_device, w.items))
        return [w.role for w in ranked]


class LeastQueue:
    """On the device with the fewest utterances given out and not ended."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        del stage
        return [w.role for w in sorted(workers, key=lambda w: (w.on_device, w.batches, w.items))]


class RoundRobin:
    """One after the other, whatever they have to do."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        del stage
        return [w.role for w in sorted(workers, key=lambda w: w.given_at)]


BUILT_IN: dict[str, Callable[[], Policy]] = {
    "earliest": Earliest, "least_queue": LeastQueue, "round_robin": RoundRobin,
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Those that there are. An installed one may still prove to be unusable."""
    return (*BUILT_IN, *sorted(entry.name for entry in entry_points(group=GROUP)))


def find(name: str) -> Callable[[], Policy]:
    """What makes the policy of this name. Raises LookupError: the names that there are, or why it cannot be used."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        raise LookupError(f"no placement {name!r}; there are {', '.join([*BUILT_IN, *sorted(installed)])}")
    try:
        found = installed[name].load()
    except Exception as error:  # whatever a stranger's module does
        raise LookupError(f"placement {name!r} is installed and cannot be used: {error!r}") from error
    return found  # type: ignore[no-any-return]
