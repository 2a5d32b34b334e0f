"""What a GGUF file says of its model's size, read from the first kilobytes.

Layout (little endian): ``GGUF`` | uint32 version | uint64 tensors | uint64 pairs | pairs; a pair is a name (uint64
length, characters), a uint32 type, a value. What is asked for stands before the tokenizer's long lists in files of all
converters; where it does not, the lists are stepped over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MOST_PAIRS = 1 << 12
LONGEST_STRING = 1 << 24


@dataclass(frozen=True)
class Sizes:
    """``layers``; ``width`` of the residual stream; ``hidden`` of a feed-forward; ``keys``: numbers that a layer keeps
    of one token, keys and values; ``vocabulary``: tokens."""

    layers: int
    width: int
    hidden: int
    keys: int
    vocabulary: int


def read(path: Path) -> Sizes | None:
    """The sizes of the model at ``path``; None when it is no such file or does not say."""
    try:
        with path.open("rb") as file:
            return _sizes(_pairs(file))
    except (OSError, ValueError, struct.error, KeyError, TypeError, ZeroDivisionError):
        return None


def _sizes(pairs: Mapping[str, Any]) -> Sizes:
    kind = pairs["general.architecture"]
    heads, width = pairs[f"{kind}.attention.head_count"], pairs[f"{kind}.embedding_length"]
    head = pairs.get(f"{kind}.attention.key_length", width // heads)
    value = pairs.get(f"{kind}.attention.value_length", head)
    return Sizes(
        layers=pairs[f"{kind}.block_count"],
        width=width,
        hidden=pairs[f"{kind}.feed_forward_length"],
        keys=pairs.get(f"{kind}.attention.head_count_kv", heads) * (head + value),
        vocabulary=pairs["tokenizer.ggml.tokens"],
    )


def _pairs(file: BinaryIO) -> dict[str, Any]:
    """Scalars and strings as they are; of an array its length."""
    if file.read(4) != b"GGUF" or _number(file, "I") < 2:
        raise ValueError("not a GGUF file of version 2 or later")
    _, count = _number(file, "Q"), _number(file, "Q")
    found: dict[str, Any] = {}
    for _ in range(min(count, MOST_PAIRS)):
        name = _string(file)
        found[name] = _value(file, _number(file, "I"))
        if name == "tokenizer.ggml.tokens" and f"{found.get('general.architecture')}.block_count" in found:
            break
    return found


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, SCALARS[kind])
    inner, length = _number(file, "I"), _number(file, "Q")
    if inner == STRING:
        for _ in range(length):
            _skip(file, _number(file, "Q"))
    elif inner in SCALARS:
        _skip(file, length * struct.calcsize(f"<{SCALARS[inner]}"))
    else:
        raise ValueError("an array of arrays")
    return length


def _string(file: BinaryIO) -> str:
    length = _number(file, "Q")
    if length > LONGEST_STRING:
        raise ValueError("a string of that length is none")
    return file.read(length).decode(errors="replace")


def _skip(file: BinaryIO, nbytes: int) -> None:
    file.seek(nbytes, 1)


def _number(file: BinaryIO, kind: str) -> Any:
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
    return value
