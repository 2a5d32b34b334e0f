"""Codes: vectors that match themselves and hardly anything else, so that attention can look one up.

Both kinds have one norm, which keeps layer norms harmless. The random numbers are seeded: the same codes every time.
"""

from __future__ import annotations

import numpy as np

WIDTH = 64
PAIRS = WIDTH // 2


def positions(count: int) -> np.ndarray:
    """Codes of the numbers 0 to count - 1, float64 of shape (count, 64): cos(w n), sin(w n) for 32 frequencies w.

    n and m match with sum cos(w (n - m)): 32 when equal, at most 10 for any other two up to 1,026 apart.
    The frequencies lie in (0.05, pi), one at random in each 32nd part: evenly spaced ones would repeat themselves.
    """
    random = np.random.Generator(np.random.PCG64(5))
    frequencies = 0.05 + (np.pi - 0.05) * (np.arange(PAIRS) + random.random(PAIRS)) / PAIRS
    angles = np.arange(count)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def signs(count: int) -> np.ndarray:
    """``count`` codes of 64 signs, float32 of shape (count, 64): as many +1 as -1, so that their mean is 0.

    Two different ones match with at most 32 of 64, either way.
    """
    random = np.random.Generator(np.random.PCG64(20))
    half = np.repeat([1.0, -1.0], WIDTH // 2)
    found = np.empty((count, WIDTH), dtype=np.float32)
    done = 0
    while done < count:
        code = random.permutation(half)
        if done == 0 or np.abs(found[:done] @ code).max() <= WIDTH / 2:
            found[done] = code
            done += 1
    return found
