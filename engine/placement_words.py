"""The placement plan in words for people, and as plain values for programs."""

from __future__ import annotations

from typing import Any

from engine.placement import Lack, Placement, Verdict

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
    roomy = [room for room in placement.rooms if placement.left_bytes.get(room.name, -1) >= 0]
    most = [room.limits.max_models for room in roomy if room.name in placement.crowded]
    return f"; there is room for all, but devices.max_models is {min(most)}" if most else ""


def lacking(lack: Lack) -> str:
    """A stage that fits nowhere, in words."""
    where = " or ".join(lack.devices)
    return (
        f"stage {lack.stage} fits nowhere: it needs {gib(lack.needs_bytes)} on {where}, which can give at most "
        + gib(lack.there_bytes)
    )


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
