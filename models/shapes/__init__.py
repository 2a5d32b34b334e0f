"""Models of real size that mean nothing: the architecture, number format and file format of a published model.

What a model takes of memory, and how long it takes to load, follows from its layers, widths, vocabulary and number
format; what its weights say does not matter. So these are written here, in place of a download of gigabytes, wherever
memory and load time are measured. Every file is read by the unmodified library, which runs it at the published
model's cost and gets nonsense.

Weights are a short block of small random numbers, over and over, not zeros: a file system keeps zeros as holes and a
compressing swap or a page merger keeps them for nothing, while numbers of ordinary size cost what real ones cost. Where
it decides how long a run lasts, a few rows are set so that a model never ends its text by itself: the longest output
is the one to measure. Weights go to the disk as they are made; memory holds one tensor.

==================== ====== ============================================ ==========
shape                kind   format                                       published
==================== ====== ============================================ ==========
whisper-large-v3     asr    CTranslate2, float16                         3.09 GB
whisper-small        asr    CTranslate2, float16                         484 MB
m2m100-418m          nmt    CTranslate2, float16                         970 MB
m2m100-418m-int8     nmt    CTranslate2, int8                            490 MB
qwen2.5-3b           repair GGUF, Q4_K_M                                 1.93 GB
piper-medium         tts    ONNX, float32                                63.2 MB
==================== ====== ============================================ ==========
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

Wrote = Callable[[int], None]  # told of every so many bytes that are in the file


@dataclass(frozen=True)
class Plan:
    """What will be written, known before the first byte is.

    ``weights_bytes``: the file with the weights; ``nbytes``: all files. Both to within some kilobytes of what comes.
    ``write``: makes the model in a folder (made if missing) and returns the path that a stage's ``model`` takes.
    """

    weights_bytes: int
    nbytes: int
    write: Callable[[Path, Wrote], Path]


@dataclass(frozen=True)
class Shape:
    """A published model. ``published_bytes``: the size of its file of weights where it can be downloaded."""

    kind: str  # of stage
    module: str
    published_bytes: int

    def plan(self, name: str) -> Plan:
        """Raises ImportError where the library that writes the format is missing."""
        found: Plan = import_module(self.module).plan(name)
        return found


SHAPES: dict[str, Shape] = {
    "whisper-large-v3": Shape("asr", "models.shapes.whisper", 3_087_284_237),
    "whisper-small": Shape("asr", "models.shapes.whisper", 483_546_902),
    "m2m100-418m": Shape("nmt", "models.shapes.m2m100", 970_000_000),
    "m2m100-418m-int8": Shape("nmt", "models.shapes.m2m100", 490_000_000),
    "qwen2.5-3b": Shape("repair", "models.shapes.qwen", 1_930_000_000),
    "piper-medium": Shape("tts", "models.shapes.piper", 63_201_294),
}


def plan(name: str) -> Plan:
    """The plan of the shape ``name``. Raises KeyError for an unknown one and ImportError for a missing library."""
    return SHAPES[name].plan(name)


def silent(_: int) -> None:
    """Nobody watches."""
