"""When a model at rest leaves for another that no utterance passes besides it. Pure.

Two such models, of one stage or of different pipelines, are *rivals*: the next utterance of the one that leaves may
come a moment later, and a node that swapped each time would do nothing else. It is the ski rental problem (Karlin,
Manasse, Rudolph and Sleator, Competitive snoopy caching, 1988): to go on waiting costs as long as others wait, a swap
costs both loads, sooner or later. Whoever waits until the one has come to the other pays at most twice what the best
would have paid who had known what comes. So a model leaves when what waits for its rival has waited for so long, all
together, or when it has been at rest for so long itself.

One that has work keeps its turn, which is no shorter than a swap either: else a node with short turns and long loads
would do little but load. Only for a deadline that can be met no other way it ends sooner, though not before ``turn_s``.
So swaps that no deadline asks for take at most half of a device's time, and whoever asks has its room after a turn and
a batch.
"""

from __future__ import annotations

from collections.abc import Sequence


def leaves_at(rested_at: float, queued: Sequence[float], cost_s: float) -> float:
    """When a model that has had nothing to do since ``rested_at`` may leave for work that waits since ``queued``.

    ``cost_s``: of loading both once; 0 where that was never measured, which holds up nobody.
    """
    return min(rested_at + cost_s, (cost_s + sum(queued)) / len(queued))


def turn_ends(since: float, turn_s: float, cost_s: float, latest: Sequence[float]) -> float:
    """When the turn of a model is over that has been here, and asked to leave, ``since``.

    ``latest``: when it would have to leave for each utterance that waits to be in time. What a turn of ``turn_s`` would
    make late already is no reason to hurry.
    """
    shortest = since + turn_s
    return min([max(shortest, since + cost_s), *(at for at in latest if at >= shortest)])
