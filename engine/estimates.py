"""What a model will need on a device, before it is loaded: context + (weights + workspace) x 1.2.

Pure. A stage reads what decides its memory (layers, widths, number format) from its model's files and says what weights
and workspace come to (``Stage.memory``): of windows for a recogniser, of tokens for translation and repair, of the
length of what is made at once for a voice. A lease is standing, so it is that of the largest batch of the longest
inputs. Here stand the libraries around it: a GPU context with its kernels, the process on the host.

On the CPU such an estimate was measured (``bench models``, ``docs/vram.md``) and stands as it is. On a GPU libraries
take more than they need (``bench card``, one card so far), so 1.2 times as much is asked for; and where a model's files
do not say, a table by *runtime library* (a stage's ``requires``) has first guesses that err upward. Once a model has
been loaded, what was measured takes the guess's place (``engine.corrections``), and a configuration's
``estimate_bytes`` goes before both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from stages.base import Memory

MIB = 2**20
START_FACTOR = 1.2  # on what was never measured on that kind of device
ALLOCATION = MIB  # drivers hand out memory in pieces


@dataclass(frozen=True)
class Runtime:
    """What one library takes besides the weights, in bytes."""

    context_bytes: int  # a process's context on a GPU, with the library's kernels
    host_bytes: int  # a process with the library imported, without a model
    workspace_bytes: int  # buffers for one utterance
    per_item_bytes: int  # ... for each further one in a batch
    converts: bool = False  # it may hold the weights in another number format than the file


class Start(msgspec.Struct, frozen=True):
    """The first estimate, before anything was measured. ``later_bytes`` of it are taken by runs, not by the load.

    ``context_bytes`` of it are the library's and not the model's. ``loaded_bytes``: what the model's files say that the
    load takes of its own, without a factor; 0: they do not.
    """

    nbytes: int = 0
    later_bytes: int = 0
    source: Literal["files", "table"] = "files"
    library: str = ""  # or several; "": none that has a context of its own
    context_bytes: int = 0
    loaded_bytes: int = 0


# Contexts grow with a GPU's number of multiprocessors. These are for cards of 8 to 24 GB. The largest card measured (an
# H100, 132 of them) took 600, 700 and 720 MiB; there a tenth of 80 GB is left free anyway, and the first load measures.
PLAIN = Runtime(context_bytes=0, host_bytes=48 * MIB, workspace_bytes=0, per_item_bytes=0)
RUNTIMES = {
    "faster_whisper": Runtime(500 * MIB, 115 * MIB, 400 * MIB, 250 * MIB, converts=True),
    "ctranslate2": Runtime(500 * MIB, 60 * MIB, 100 * MIB, 30 * MIB, converts=True),
    "llama_cpp": Runtime(550 * MIB, 60 * MIB, 400 * MIB, 120 * MIB),
    "onnxruntime": Runtime(550 * MIB, 85 * MIB, 150 * MIB, 100 * MIB),
    "piper": Runtime(550 * MIB, 85 * MIB, 150 * MIB, 100 * MIB),
}

# Number formats a converting library may hold, in bytes a weight; files are taken to hold two (float16).
_BYTES_A_WEIGHT = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int16": 2.0}
_FILE_BYTES_A_WEIGHT = 2.0


def estimate(weights_bytes: int, **what: Any) -> int:
    """Bytes a worker will need on its device; arguments as ``start`` takes them."""
    return start(weights_bytes, **what).nbytes


def start(
    weights_bytes: int,
    *,
    kind: Literal["cpu", "cuda"],
    libraries: Iterable[str] = (),
    compute_type: str = "default",
    max_batch: int = 1,
    memory: Memory | None = None,
    factor: float = START_FACTOR,
) -> Start:
    """What a worker will need on its device: ``kind`` of device, ``libraries`` the stage requires.

    Of several known libraries the most demanding figure counts, each for itself; unknown ones count nothing, so that a
    stage without a runtime (a simulated one) is its weights and its process. ``memory``: what the model's files say
    through its stage, which goes before the table; with the other arguments it says the same thing twice.
    ``factor``: on what was never measured.
    """
    names = sorted(name for name in libraries if name in RUNTIMES)
    known = [RUNTIMES[name] for name in names] or [PLAIN]
    library = "+".join(names)
    around = max(r.context_bytes if kind == "cuda" else r.host_bytes for r in known)
    if memory is not None:
        factor = factor if kind == "cuda" else 1.0
        total = around + (memory.weights_bytes + memory.workspace_bytes) * factor
        later = (memory.workspace_bytes - memory.at_load_bytes) * factor
        loaded = memory.weights_bytes + memory.at_load_bytes
        return Start(whole(total), int(later), "files", library, around, loaded)
    workspace = max(r.workspace_bytes + (max_batch - 1) * r.per_item_bytes for r in known)
    growth = _growth(kind, compute_type) if any(r.converts for r in known) else 1.0
    total = around + (weights_bytes * growth + workspace) * factor
    return Start(whole(total), int(workspace * factor), "table" if names else "files", library, around)


def whole(nbytes: float) -> int:
    """As many bytes in whole pieces of a driver's."""
    return -(-int(nbytes) // ALLOCATION) * ALLOCATION


def _growth(kind: str, compute_type: str) -> float:
    """Weights in memory over weights in the file. An 8-bit format is counted like the file: it is loaded first."""
    if compute_type in ("default", "auto", ""):
        compute_type = "float32" if kind == "cpu" else "float16"  # a CPU has no float16 arithmetic
    return max(1.0, _BYTES_A_WEIGHT.get(compute_type, _FILE_BYTES_A_WEIGHT) / _FILE_BYTES_A_WEIGHT)
