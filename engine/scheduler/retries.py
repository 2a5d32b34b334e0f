"""When to try again, and when not: two counters that never mix.

*Reported failures* (the stage said so) wait d/2, d, 2d (the last repeats when more retries are configured); running
out of memory waits d, 3d, 9d and then ends as no_vram. *Worker deaths* cost nothing but time: the job runs again at
once. Only the batch that had begun is suspect; a suspect runs alone, a death while alone is charged, and after the
third charge the job is poison.
"""

from __future__ import annotations

REPORTED = (0.5, 1.0, 2.0)  # multiples of retry_delay_s
OOM = (1.0, 3.0, 9.0)
MAX_CHARGES = 3


def reported_wait(failures: int, max_retries: int, delay_s: float) -> float | None:
    """Seconds to wait after the n-th reported failure (n from 1), or None: no more tries."""
    if failures > max_retries:
        return None
    return REPORTED[min(failures, len(REPORTED)) - 1] * delay_s


def oom_wait(failures: int, delay_s: float) -> float | None:
    """Seconds to wait after the n-th out-of-memory failure (n from 1), or None: no more tries."""
    return OOM[failures - 1] * delay_s if failures <= len(OOM) else None


def is_poison(charges: int) -> bool:
    """Whether so many deaths while alone end the job."""
    return charges >= MAX_CHARGES
