"""The placement plan in words for people, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.choices import field_of
from engine.placement import Lack, Place, Placement, Verdict

GIB = 2**30


def gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB" if abs(nbytes) >= GIB else f"{nbytes / 2**20:.0f} MiB"


def headline(placement: Placement) -> str:
    """The verdict in one line, with what belongs to it: the variants, the added latency, the bytes needed and there."""
    match placement.verdict:
        case Verdict.QUANTISED:
            chosen = dict.fromkeys(f"{one.stage} with {one.name}" for one in placement.places if one.variant)
            return f"{placement.verdict.value}: {', '.join(chosen)}"
        case Verdict.TURNS:
            if not placement.crowded:
                return f"{placement.verdict.value}, while other programs hold memory"
            where = " and ".join(placement.crowded)
            added = f"a round through all stages adds about {placement.added_s:.1f} s of loading"
            return f"{placement.verdict.value} on {where}: models unload and reload; {added}{_only_counted(placement)}"
        case Verdict.NOWHERE:
            return "; ".join(map(lacking, placement.nowhere))
    return placement.verdict.value


def _only_counted(placement: Placement) -> str:
    """That it is not for want of bytes, where it is not."""
    counted = _counted(placement)
    most = [room.limits.max_models for room in placement.rooms if room.name in counted]
    return f"; there is room for all, but devices.max_models is {min(most)}" if most else ""


def _counted(placement: Placement) -> dict[str, list[Place]]:
    """Devices that are crowded by number alone, with what is to be there."""
    memory = {room.name: room.memory for room in placement.rooms}
    return {
        name: [place for place in placement.places if memory[place.device] == name]
        for name in placement.crowded
        if placement.left_bytes.get(name, -1) >= 0
    }


def lacking(lack: Lack) -> str:
    """A stage that fits nowhere, in words."""
    where = " or ".join(lack.devices)
    pinned = f"{' and '.join(lack.beside)}, which {'are' if len(lack.beside) > 1 else 'is'} pinned"
    if lack.full:
        return f"stage {lack.stage} fits nowhere: devices.max_models is {lack.full}, and on {where} is {pinned}"
    bounds = f" beside {pinned}" if lack.beside else f" within {lack.bound}" if lack.bound else ""
    return (
        f"stage {lack.stage} fits nowhere: it needs {gib(lack.needs_bytes)} on {where}, which can give at most "
        + gib(lack.there_bytes)
        + bounds
    )


def mend(placement: Placement) -> str:
    """What would let all models be there at once, or at all; "" where they are."""
    match placement.verdict:
        case Verdict.NOWHERE:
            return ", or ".join(_ways(placement.nowhere))
        case Verdict.TURNS if placement.waits or not placement.crowded:
            return "end the programs that hold the memory: nvidia-smi"
        case Verdict.TURNS if set(placement.crowded) == set(_counted(placement)):
            return f"for all at once: devices.max_models = {max(map(len, _counted(placement).values()))}"
        case Verdict.TURNS:
            return "for all at once: smaller models (stages.X.variants), another GPU, or one of 12 GB or more"
    if placement.never:
        some = dict.fromkeys(f"{field_of(lack.stage)}.devices" for lack in placement.never)
        return f"name only GPUs that can hold it ({', '.join(some)}), or give it smaller variants"
    return ""


def _ways(lacks: Sequence[Lack]) -> Iterator[str]:
    """To make room for those that have none."""
    if full := max(lack.full for lack in lacks):
        yield f"raise devices.max_models to {full + sum(bool(lack.full) for lack in lacks)}"
    if pinned := dict.fromkeys(stage for lack in lacks for stage in lack.beside):
        yield "unpin " + ", ".join(f"{field_of(stage)}.pinned" for stage in pinned) + " = false"
    for setting in dict.fromkeys(lack.bound for lack in lacks if lack.bound):
        yield f"{'raise' if setting.startswith('devices.max') else 'lower'} {setting}"
    if short := [f"{field_of(lack.stage)}.variants" for lack in lacks if not lack.full]:
        yield f"use a smaller model, give it smaller ones ({', '.join(short)}), or another device"


def lines(placement: Placement) -> list[str]:
    """The plan for a terminal: the verdict, then a line a device, then what is special."""
    found = [f"placement: {headline(placement)}"]
    for device, left in placement.left_bytes.items():
        here = [place for place in placement.places if place.device == device]
        if not here:
            continue
        models = ", ".join(
            f"{one.stage}{f' (with {one.name})' if one.variant else ''} {gib(one.nbytes)}" for one in here
        )
        found.append(
            f"  {device}: {models}; {f'{gib(left)} left' if left >= 0 else f'{gib(-left)} too little for all'}"
        )
    if placement.verdict is not Verdict.NOWHERE:
        found += [f"  {lacking(lack)}: its utterances skip it" for lack in placement.nowhere]
    for lack in placement.never:
        most = (
            f"{lack.devices[0]} can give at most {gib(lack.there_bytes)}{f' within {lack.bound}' if lack.bound else ''}"
        )
        found.append(f"  stage {lack.stage} is not on {lack.devices[0]}: it needs {gib(lack.needs_bytes)}, {most}")
    for lack in placement.waits:
        there = f"{gib(lack.there_bytes)} can be granted now"
        found.append(f"  stage {lack.stage} needs {gib(lack.needs_bytes)}, {there}: it waits for other programs")
    return found


def document(placement: Placement) -> dict[str, Any]:
    """The plan as plain values, for ``stats`` and ``doctor --json``."""
    return {
        "verdict": placement.verdict.value,
        "text": headline(placement),
        "added_s": round(placement.added_s, 1),
        "turns_on": list(placement.crowded),
        "places": [
            {"stage": one.stage, "device": one.device, "variant": one.variant, "name": one.name, "nbytes": one.nbytes}
            for one in placement.places
        ],
        "left_bytes": dict(placement.left_bytes),
        "nowhere": [_lack_row(lack) for lack in placement.nowhere],
        "waits": [_lack_row(lack) for lack in placement.waits],
    }


def _lack_row(lack: Lack) -> dict[str, Any]:
    return {
        "stage": lack.stage,
        "devices": list(lack.devices),
        "needs_bytes": lack.needs_bytes,
        "there_bytes": lack.there_bytes,
    }
