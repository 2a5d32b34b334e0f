"""When to try again, and when not: two counters that never mix.

*Reported failures* (the stage said so) wait d/2, d, 2d (the last repeats when more retries are configured). *Out of
memory* has a ladder of its own: the worker has halved the batch down to this one before it says so; then another device
where the stage has its model, at once; then whole tries after d, 3d, 9d, while its worker asks for a larger lease; then
it ends as no_vram. A model that does not load for want of memory waits the same, the last wait again and again. Each
wait of an utterance is up to ``JITTER`` longer, so that those that failed together do not all come back together.

*Worker deaths* cost nothing but time: the job runs again at once. Only the batch that had begun is suspect; a suspect
runs alone, a death while alone is charged, and after the third charge the job is poison.
"""

from __future__ import annotations

REPORTED = (0.5, 1.0, 2.0)  # multiples of retry_delay_s
OOM = (1.0, 3.0, 9.0)
JITTER = 0.1  # share of a wait
RAISE = 1.25  # an estimate that was too low is raised by this, each time
MOST_RAISED = 2.0  # ... up to this many times itself
MAX_CHARGES = 3


def reported_wait(failures: int, max_retries: int, delay_s: float) -> float | None:
    """Seconds to wait after the n-th reported failure (n from 1), or None: no more tries."""
    if failures > max_retries:
        return None
    return REPORTED[min(failures, len(REPORTED)) - 1] * delay_s


def oom_wait(failures: int, delay_s: float) -> float | None:
    """Seconds to wait after the n-th out-of-memory failure (n from 1), or None: no more tries."""
    return OOM[failures - 1] * delay_s if failures <= len(OOM) else None


def spread(wait_s: float, chance: float) -> float:
    """A wait with its jitter; ``chance``: from 0 to 1."""
    return wait_s * (1 + JITTER * chance)


def load_wait(failures: int, delay_s: float) -> float:
    """Seconds to wait after the n-th load in a row that ran out of memory (n from 1)."""
    return OOM[min(failures, len(OOM)) - 1] * delay_s


def raised(before: float) -> float:
    """How many times its estimate a model asks for next."""
    return min(MOST_RAISED, before * RAISE)


def is_poison(charges: int) -> bool:
    """Whether so many deaths while alone end the job."""
    return charges >= MAX_CHARGES
