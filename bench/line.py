"""The ideal line: what a pipeline reaches when its hops cost nothing. Pure.

With ``d[i][s]`` the time utterance i really spent in stage s, the best any engine can do with one worker a stage and
strict order is the permutation flow-shop recurrence ``end[i][s] = max(end[i-1][s], end[i][s-1]) + d[i][s]``: an
utterance waits for its own previous stage and for the one before it at this stage, and for nothing else. Efficiency is
the ideal makespan over the measured one. Nominal times give the same bound for a machine whose sleeps are exact.

The figures rest on the intervals the workers report, so those are checked: a worker cannot do two things at once.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

NS = 1e-9


def makespan(durations: Sequence[Sequence[float]], workers: int = 1) -> float:
    """Ideal makespan of ``durations[utterance][stage]``, all in one unit, everything waiting at time 0.

    With ``workers`` at each stage the one that is free first takes whoever came first; one worker keeps the order.
    """
    ready = [0.0] * len(durations)
    for stage in range(len(durations[0]) if durations else 0):
        free = [0.0] * workers
        for utterance in sorted(range(len(ready)), key=ready.__getitem__):
            ready[utterance] = max(ready[utterance], free[0]) + durations[utterance][stage]
            heapq.heapreplace(free, ready[utterance])
    return max(ready, default=0.0)


def completions(durations: Sequence[Sequence[float]]) -> list[float]:
    """When each utterance leaves the ideal line."""
    return [makespan(durations[: count + 1]) for count in range(len(durations))]


def serial(durations: Sequence[Sequence[float]]) -> float:
    """Makespan of one utterance after the other: the sum of all stage times."""
    return sum(sum(utterance) for utterance in durations)


def stage_times(outcomes: Iterable[Any], stages: Sequence[str]) -> list[list[float]]:
    """Seconds each utterance spent in each stage (all its attempts), from ``Outcome.stages``."""
    table = []
    for outcome in outcomes:
        spent = dict.fromkeys(stages, 0.0)
        for record in outcome.stages:
            if ran(record):
                spent[record["stage"]] += (record["ended_ns"] - record["begun_ns"]) * NS
        table.append([spent[stage] for stage in stages])
    return table


def ran(record: Mapping[str, Any]) -> bool:
    """Whether a stage record is of a run that began and ended."""
    return bool(record.get("begun_ns", 0) and record.get("ended_ns", 0))


def overlaps(outcomes: Iterable[Any]) -> int:
    """How often a worker claims to have begun a run before the previous one had ended; 0 or the clocks lie."""
    runs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for outcome in outcomes:
        for record in outcome.stages:
            if ran(record):
                runs[record["worker"]].append((record["begun_ns"], record["ended_ns"]))
    return sum(_overlaps(sorted(intervals)) for intervals in runs.values())


def _overlaps(intervals: list[tuple[int, int]]) -> int:
    backwards = sum(ended < begun for begun, ended in intervals)
    return backwards + sum(later[0] < earlier[1] for earlier, later in pairwise(intervals))


def reordered(indices: Iterable[int], first: int = 0) -> int:
    """How many outcomes of one session did not come as the next index."""
    return sum(index != expected for expected, index in enumerate(indices, start=first))
