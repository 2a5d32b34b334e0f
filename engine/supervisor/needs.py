"""How much memory each worker asks for, and why: configured, measured, or guessed from files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import DeviceSection, StageSection
from engine.corrections import Estimate, History, Subject
from engine.devices import Device
from engine.estimates import Start
from engine.supervisor.survey import Survey


@dataclass(frozen=True)
class Need:
    """One stage on one device. ``key``: where the history keeps what is measured of it."""

    key: str
    subject: Subject
    guess: Start
    estimate: Estimate


Needs = Mapping[tuple[str, str], tuple[Need, ...]]  # (stage, device) -> of each variant of its model, the first first


def needs_of(
    name: str, section: StageSection, survey: Survey, device: Device, limits: DeviceSection, history: History
) -> tuple[Need, ...]:
    """What a worker of this stage asks for on this device, by variant."""
    variants = [(section, survey.starts, survey.identity), *((v.section, v.starts, v.identity) for v in survey.smaller)]
    most = most_bytes(device, limits)
    return tuple(_need(name, chosen, starts, identity, device, most, history) for chosen, starts, identity in variants)


def _need(
    name: str,
    section: StageSection,
    starts: Mapping[str, Start],
    identity: str,
    device: Device,
    most: int,
    history: History,
) -> Need:
    where = device.label if device.kind == "cuda" else device.kind
    key = f"{identity}@{where}"
    subject = Subject(name, section.kind or name, section.model, where, section.compute_type, section.max_batch)
    guess = history.first(starts[device.kind], where)
    if section.estimate_bytes:
        record = history.models.get(key)
        times, last = (record.loads, record.last) if record else (0, None)
        estimate = Estimate(section.estimate_bytes, "configured", times, last)
    else:
        estimate = history.estimate(key, guess, most)
    return Need(key, subject, guess, estimate)


def most_bytes(device: Device, limits: DeviceSection) -> int:
    """The largest lease that would ever fit: on the otherwise empty device."""
    ceiling = limits.max_bytes.get(device.name) or limits.max_bytes.get(device.uuid) or device.total_bytes
    usable = min(device.total_bytes, ceiling)
    return usable - max(int(limits.safety_margin * usable), limits.reserve_bytes)
