"""CUDA_VISIBLE_DEVICES: what its entries mean here. Read once, at the start; workers get UUIDs. Pure.

An entry is a GPU's number in PCI order (nvidia-smi's), a GPU's UUID or the beginning of one, or the same of a MIG
instance. A divided GPU stands for its first instance, as in CUDA. "-1" ends the list, nothing (or NoDevFiles, which
batch systems write) hides every GPU. CUDA ends the list in silence at an entry that means nothing, and the program runs
on fewer GPUs than its user believes; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ipc.errors import DragomanError

VARIABLE = "CUDA_VISIBLE_DEVICES"
NONE = ("", "NoDevFiles")
NUMBER = "[0-9]{1,9}"


@dataclass(frozen=True)
class Instance:
    """Something that CUDA can compute on: a GPU, or a MIG instance of a divided one."""

    uuid: str
    index: int  # the GPU's number in PCI order
    gpu_uuid: str  # the GPU's own: of a GPU the same as ``uuid``
    handle: Any = None  # NVML's
    gpu_handle: Any = None
    silent: str = ""  # why nothing but its number is known: it does not answer, or was not asked


def named(use: Iterable[str], wanted: str | None, count: int) -> list[int]:
    """Of so many GPUs the numbers of those that ``devices.use``, with this value of the variable, may mean.

    Who gives a UUID may mean any.
    """
    every = list(range(count))
    entries = list(map(str, every)) if wanted is None else _entries(wanted)
    if not all(re.fullmatch(NUMBER, entry) and int(entry) < count for entry in entries):
        return every
    numbers = [int(entry) for entry in entries]
    places = [re.fullmatch(rf"cuda:({NUMBER})", entry) for entry in use if entry != "cpu"]
    if not all(places):
        return sorted(numbers)
    named = {int(place[1]) for place in places if place}
    if wanted is None:  # of a divided GPU each instance counts, so that cuda:1 may lie on GPU 0
        return numbers[: max(named, default=-1) + 1]
    return sorted(number for place, number in enumerate(numbers) if place in named)


def visible(there: Sequence[Instance], wanted: str | None) -> list[Instance]:
    """Those of ``there`` that the variable's value leaves, in its order. None: it is not set, and hides nothing.

    Who names a silent one is not mistaken: it is among them.
    Raises DragomanError for an entry that means nothing here, or more than one thing, or the same as another.
    """
    if wanted is None:
        return list(there)
    chosen: list[Instance] = []
    for entry in _entries(wanted):
        one = _meant(entry, there)
        if one in chosen:
            raise DragomanError(f"{VARIABLE}={wanted} names {_shown(one)} twice", "name it once")
        chosen.append(one)
    return chosen


def _entries(wanted: str) -> list[str]:
    entries = [] if wanted.strip() in NONE else [part.strip() for part in wanted.split(",")]
    return list(takewhile(lambda entry: not re.fullmatch(r"-\d+", entry), entries))


def _meant(entry: str, there: Sequence[Instance]) -> Instance:
    """What an entry stands for."""
    lost = [one for one in there if one.silent]
    if re.fullmatch(NUMBER, entry):
        found = [one for one in there if one.index == int(entry)][:1]
    else:
        first = {one.gpu_uuid: one for one in reversed(there)}
        by_gpu = [one for one in first.values() if entry.startswith("GPU-") and one.gpu_uuid.startswith(entry)]
        by_instance = [one for one in there if entry.startswith("MIG-") and one.uuid.startswith(entry)]
        found = by_gpu or by_instance
        if not found and lost and entry.startswith(("GPU-", "MIG-")):  # the UUID of a silent GPU is not known
            return Instance(entry, -1, entry, silent=" or ".join(dict.fromkeys(one.silent for one in lost)))
    if len(found) > 1:
        names = ", ".join(sorted(one.uuid for one in found))
        raise DragomanError(f"{VARIABLE} has {entry!r}, which may be any of {names}", "write more of the UUID")
    if not found:
        names = ", ".join(map(_shown, there)) or "none"
        raise DragomanError(f"{VARIABLE} has {entry[:80]!r}, which is no GPU here", f"there are: {names}")
    return found[0]


def _shown(one: Instance) -> str:
    return f"{one.index} ({one.uuid or 'silent'})"
