"""CTranslate2 files of any size from a specification, one tensor of it in memory at a time.

The library's own writer asks each variable of a specification for its bytes when it writes them. ``freeze`` puts
variables there that make their bytes only then. The specification is filled first, as clockwork models are, but with
matrices that are ``hollow``: a shape around a single zero.

Vectors (norms, biases) keep what they hold; matrices become the filling; what is given as ``aliases`` is stored once,
as the library's converters do with tied weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from ctranslate2.specs.model_spec import NumpyVariable, Variable, index_spec

from models.shapes import Wrote, filling

Precision = Literal["float16", "int8"]
INT8_SCALE = np.float32(127 / (3 * filling.SPREAD))  # weight x scale is what is stored

Rows = tuple[slice, float]  # rows of a matrix that are one number


def hollow(*shape: int) -> np.ndarray:
    """A float32 array of zeros that holds one of them, whatever its shape; cannot be written to."""
    return np.broadcast_to(np.float32(0), shape)


class Patterned(Variable):
    """A matrix that does not exist yet. ``rows``: which of its rows are set to one number, later ones last."""

    def __init__(self, shape: tuple[int, ...], dtype: str, wrote: Wrote, rows: tuple[Rows, ...] = ()) -> None:
        self._shape = shape
        self._dtype = dtype
        self._wrote = wrote
        self._rows = rows

    @property
    def shape(self) -> Any:
        return self._shape

    @property
    def dtype(self) -> str:
        return self._dtype

    def num_bytes(self) -> int:
        return int(np.prod(self._shape)) * np.dtype(self._dtype).itemsize

    def to_bytes(self) -> Any:
        made = filling.fill(self.num_bytes(), filling.block(self._dtype))
        matrix = np.frombuffer(made, self._dtype).reshape(self._shape)
        for rows, value in self._rows:
            matrix[rows] = value * (INT8_SCALE if self._dtype == "int8" else 1)
        self._wrote(len(made))
        return made

    def numpy(self) -> np.ndarray:
        return np.frombuffer(self.to_bytes(), self._dtype).reshape(self._shape)

    def _to(self, dtype: str) -> Variable:
        return Patterned(self._shape, dtype, self._wrote, self._rows)

    def _equal(self, other: Variable) -> bool:
        return self is other


def freeze(
    spec: Any, precision: Precision, wrote: Wrote, aliases: Mapping[str, str], rows: Mapping[str, tuple[Rows, ...]]
) -> None:
    """Turn a filled specification into one that writes itself. Names as in the file: "decoder/embeddings/weight".

    ``precision``: of matrices that the library would quantise; everything else is float16.
    """
    spec.validate()
    for name, value in spec.variables(ordered=True):
        scope, _, attribute = name.rpartition("/")
        if not isinstance(value, NumpyVariable) or value.is_scalar() or value.dtype not in ("float32", "float16"):
            continue
        owner = index_spec(spec, scope)
        if len(value.shape) == 1:
            setattr(owner, attribute, value.to("float16"))
            continue
        quantised = precision == "int8" and hasattr(owner, f"{attribute}_scale")
        dtype = "int8" if quantised else "float16"
        setattr(owner, attribute, Patterned(tuple(value.shape), dtype, wrote, rows.get(name, ())))
        if quantised:
            setattr(owner, f"{attribute}_scale", NumpyVariable(np.full(value.shape[0], INT8_SCALE)))
    for name, target in aliases.items():
        scope, _, attribute = name.rpartition("/")
        owner = index_spec(spec, scope)
        setattr(owner, attribute, target)
        if precision == "int8" and hasattr(owner, f"{attribute}_scale"):
            setattr(owner, f"{attribute}_scale", f"{target}_scale")


def file_bytes(spec: Any) -> int:
    """Length of ``model.bin`` for a frozen specification, in the library's binary version 6."""
    total = 4 + 2 + len(spec.name) + 1 + 4 + 4 + 4
    for name, value in spec.variables(ordered=True):
        total += 2 + len(name) + 1
        if isinstance(value, str):
            total += 2 + len(value) + 1
        else:
            total += 1 + 4 * len(value.shape) + 1 + 4 + value.num_bytes()
    return total
