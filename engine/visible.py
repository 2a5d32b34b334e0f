"""CUDA_VISIBLE_DEVICES: what its entries mean here. Read once, at the start; workers get UUIDs. Pure.

An entry is a GPU's number in PCI order (nvidia-smi's), a GPU's UUID or the beginning of one, or the same of a MIG
instance. A divided GPU stands for its first instance, as in CUDA. "-1" ends the list, nothing (or NoDevFiles, which
batch systems write) hides every GPU. CUDA ends the list in silence at an entry that means nothing, and the program runs
on fewer GPUs than its user believes; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ipc.errors import DragomanError

VARIABLE = "CUDA_VISIBLE_DEVICES"
NONE = ("", "NoDevFiles")


@dataclass(frozen=True)
class Instance:
    """Something that CUDA can compute on: a GPU, or a MIG instance of a divided one."""

    uuid: str
    index: int  # the GPU's number in PCI order
    gpu_uuid: str  # the GPU's own: of a GPU the same as ``uuid``
    handle: Any = None  # NVML's
    gpu_handle: Any = None


def visible(there: Sequence[Instance], wanted: str | None, lost: Collection[int] = ()) -> list[Instance]:
    """Those of ``there`` that the variable's value leaves, in its order. None: it is not set, and hides nothing.

    ``lost``: numbers of GPUs that do not answer; who names one is not mistaken, it is left out.
    Raises DragomanError for an entry that means nothing here, or more than one thing, or the same as another.
    """
    if wanted is None:
        return list(there)
    chosen: list[Instance] = []
    for entry in [] if wanted.strip() in NONE else [part.strip() for part in wanted.split(",")]:
        if re.fullmatch(r"-\d+", entry):
            break
        one = _meant(entry, there, lost)
        if one in chosen:
            raise DragomanError(f"{VARIABLE}={wanted} names {_shown(one)} twice", "name it once")
        if one is not None:
            chosen.append(one)
    return chosen


def _meant(entry: str, there: Sequence[Instance], lost: Collection[int]) -> Instance | None:
    """What an entry stands for; None: a GPU that does not answer."""
    if re.fullmatch(r"[0-9]{1,9}", entry):
        found = [one for one in there if one.index == int(entry)][:1]
        answers = int(entry) not in lost
    else:
        first = {one.gpu_uuid: one for one in reversed(there)}
        by_gpu = [one for one in first.values() if entry.startswith("GPU-") and one.gpu_uuid.startswith(entry)]
        by_instance = [one for one in there if entry.startswith("MIG-") and one.uuid.startswith(entry)]
        found = by_gpu or by_instance
        answers = not lost  # the UUID of a lost GPU is not known
    if len(found) > 1:
        names = ", ".join(sorted(one.uuid for one in found))
        raise DragomanError(f"{VARIABLE} has {entry!r}, which may be any of {names}", "write more of the UUID")
    if not found and answers:
        names = ", ".join(map(_shown, there)) or "none"
        raise DragomanError(f"{VARIABLE} has {entry[:80]!r}, which is no GPU here", f"there are: {names}")
    return found[0] if found else None


def _shown(one: Instance | None) -> str:
    return "" if one is None else f"{one.index} ({one.uuid})"
