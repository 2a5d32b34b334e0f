"""CTranslate2 layers that do nothing yet: zero weights and plain norms, to be filled in by hand.

Hand-set weights rest on two habits, used by every clockwork model of this format.

*A sublayer with a zero output matrix is off*: the residual stream passes it unchanged.

*The layer norm is made harmless.* ``LN(x) = gamma (x - mean) / sigma`` would mix all features. But when a
few large constants dominate the sum of squares (or all codes have the same norm), sigma is nearly the
same number everywhere, and ``gamma = sigma`` cancels it: ``LN(x) = x - mean``. The mean goes in one of two
ways: whatever is written to the stream also writes minus its sum to a *dump* that nobody reads, or every row
that reads the stream also reads minus its sum from features that are always zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Make = Callable[..., Array]  # an array of zeros of the shape given as arguments


def zeros(*shape: int) -> Array:
    """A float32 array of zeros."""
    return np.zeros(shape, dtype=np.float32)


class Features:
    """Names for the features (dimensions) of a residual stream of width ``size``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0

    def take(self, count: int) -> Array:
        """The indices of the next ``count`` features, int64 of shape (count,)."""
        if self.used + count > self.size:
            raise ValueError(f"{self.used + count} features do not fit in {self.size}")
        self.used += count
        return np.arange(self.used - count, self.used)

    def one(self) -> int:
        """The index of the next feature."""
        return int(self.take(1)[0])


def balance(rows: Array, through: Array) -> None:
    """Make each row's sum zero in place by setting its features ``through`` (shape of rows: (n, size)).

    Of written rows ``through`` are the dump, of reading rows features that are always zero.
    """
    rows[:, through] = 0
    rows[:, through] = -rows.sum(axis=1, keepdims=True) / len(through)


def fill_linear(linear: Any, outputs: int, inputs: int, make: Make = zeros) -> None:
    """Give a LinearSpec a zero weight of shape (outputs, inputs), from ``make``, and a zero bias."""
    linear.weight = make(outputs, inputs)
    linear.bias = zeros(outputs)


def fill_norm(norm: Any, size: int, gamma: float = 1.0) -> None:
    """Give a LayerNormSpec one gamma for all features, and no beta."""
    norm.gamma = np.full(size, gamma, dtype=np.float32)
    norm.beta = zeros(size)


def fill_self_attention(attention: Any, size: int, gamma: float = 1.0, make: Make = zeros) -> None:
    """Rows of ``linear[0]``: queries, keys, values, each of ``size``; ``linear[1]`` is the output."""
    fill_norm(attention.layer_norm, size, gamma)
    fill_linear(attention.linear[0], 3 * size, size, make)
    fill_linear(attention.linear[1], size, size, make)


def fill_cross_attention(attention: Any, size: int, gamma: float = 1.0, make: Make = zeros) -> None:
    """``linear[0]``: queries; ``linear[1]``: keys, then values; ``linear[2]``: the output."""
    fill_norm(attention.layer_norm, size, gamma)
    fill_linear(attention.linear[0], size, size, make)
    fill_linear(attention.linear[1], 2 * size, size, make)
    fill_linear(attention.linear[2], size, size, make)


def fill_ffn(ffn: Any, size: int, hidden: int, gamma: float = 1.0, make: Make = zeros) -> None:
    """A feed-forward sublayer with ``hidden`` units."""
    fill_norm(ffn.layer_norm, size, gamma)
    fill_linear(ffn.linear_0, hidden, size, make)
    fill_linear(ffn.linear_1, size, hidden, make)
