"""What a CTranslate2 ``model.bin`` says of its size, read from its headers without the weights.

Layout of binary version 6 (little endian), as the library's converters write it::

    uint32 version | name | uint32 revision | uint32 variables
    each variable: name | uint8 rank | uint32 x rank shape | uint8 type | uint32 nbytes | nbytes of data
    name: uint16 length with the closing zero | characters | zero

Types: 0 float32, 1 int8, 2 int16, 3 int32, 4 float16, 5 bfloat16.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

COMPUTE_TYPES = (  # the library's own names
    "default", "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16",
    "float32",
)  # fmt: skip
BYTES = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}
FLOATS = frozenset({0, 4, 5})
INT8 = 1
POSITIONS = "encoder/position_encodings/encodings"
MOST_VARIABLES = 1 << 16
NEWEST_VERSION = 100  # far above any; text, or another format, has a larger number here

# Bytes a number of the library's compute types; "default" keeps the file's format where the device has it.
_BYTES_BY_TYPE = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class Sizes:
    """``floats`` and ``int8s``: numbers stored in a float format (of ``float_bytes`` each) and as 8-bit integers.

    ``layers``: (encoder, decoder). ``width``: of the residual stream. ``hidden``: of a feed-forward. ``heads``: of
    attention. ``vocabulary``: tokens.
    """

    floats: int
    float_bytes: int
    int8s: int
    layers: tuple[int, int]
    width: int
    hidden: int
    heads: int
    vocabulary: int
    positions: int  # of the encoder; 0: it has as many as are asked for

    def resident_bytes(self, device: str, compute_type: str) -> int:
        """The weights in memory. A CPU has no float16 arithmetic: the library makes float32 of such files there."""
        if compute_type.startswith("int8"):
            return self.int8s + self._matrices() + self._float_bytes(device, compute_type) * self._vectors()
        whole = self._float_bytes(device, compute_type)
        integers = 1 if compute_type in ("default", "auto", "") else whole
        return integers * self.int8s + whole * self.floats

    def run_bytes(self, device: str, compute_type: str) -> int:
        """Bytes a number while the model runs: also an 8-bit model computes with floats between its matrices."""
        return self._float_bytes(device, compute_type)

    def kept_bytes(self, device: str, compute_type: str) -> int:
        """Keys and values that the decoder keeps of one position, over all its layers."""
        return 2 * self.layers[1] * self.width * self.run_bytes(device, compute_type)

    def _float_bytes(self, device: str, compute_type: str) -> int:
        wanted = _BYTES_BY_TYPE.get(compute_type, self.float_bytes)
        return max(wanted, 4) if device == "cpu" and wanted == 2 else wanted

    def _matrices(self) -> int:
        """Float numbers that become 8-bit integers on demand: nearly all, when none are yet."""
        return 0 if self.int8s else self.floats

    def _vectors(self) -> int:
        return self.floats if self.int8s else 0


def maker(path: Path) -> str:
    """What kind of model this is, in the word of the converter ("WhisperSpec", "TransformerSpec"); "": no such file."""
    try:
        with path.open("rb") as file:
            return _name(file) if _number(file, "I") < NEWEST_VERSION else ""
    except (OSError, struct.error, UnicodeDecodeError):
        return ""


def read(path: Path) -> Sizes | None:
    """The sizes of the model at ``path``; None when it is no such file, or one of another make."""
    try:
        with path.open("rb") as file:
            return _sizes(_variables(file))
    except (OSError, ValueError, struct.error, KeyError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class _Variable:
    shape: tuple[int, ...]
    type: int
    nbytes: int
    scalar: int  # its value, where it is a small integer


def _variables(file: BinaryIO) -> Mapping[str, _Variable]:
    end = os.fstat(file.fileno()).st_size
    version, _, _, count = _number(file, "I"), _name(file), _number(file, "I"), _number(file, "I")
    if not 5 <= version <= 6 or count > MOST_VARIABLES:
        raise ValueError(f"not a model of version 5 or 6: {version}")
    found = {}
    for _ in range(count):
        name = _name(file)
        shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
        kind, nbytes = _number(file, "B"), _number(file, "I")
        scalar = int.from_bytes(file.read(nbytes), "little") if not shape and nbytes <= 2 else 0
        if shape or nbytes > 2:
            file.seek(nbytes, os.SEEK_CUR)
        if file.tell() > end:
            raise ValueError("the file is cut off")
        found[name] = _Variable(shape, kind, nbytes, scalar)
    return found


def _sizes(variables: Mapping[str, _Variable]) -> Sizes:
    floats = [v for v in variables.values() if v.type in FLOATS]
    hidden, width = variables["decoder/layer_0/ffn/linear_0/weight"].shape
    return Sizes(
        floats=sum(v.nbytes // BYTES[v.type] for v in floats),
        float_bytes=max((BYTES[v.type] for v in floats if v.shape), default=4),
        int8s=sum(v.nbytes for v in variables.values() if v.type == INT8 and v.shape),
        layers=(_layers(variables, "encoder"), _layers(variables, "decoder")),
        width=width,
        hidden=hidden,
        heads=variables["decoder/num_heads"].scalar,
        vocabulary=variables["decoder/embeddings/weight"].shape[0],
        positions=next((v.shape[0] for n, v in variables.items() if n == POSITIONS and v.shape), 0),
    )


def _layers(variables: Mapping[str, _Variable], side: str) -> int:
    prefix = f"{side}/layer_"
    numbers = {name[len(prefix) :].split("/")[0] for name in variables if name.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
    return int(value)


def _name(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()
