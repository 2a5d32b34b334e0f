"""What the placement plan (``engine.placement``) is asked: this configuration's stages, on these devices. Pure.

A stage on "auto" may be on any GPU, or on the CPU where there is none; one whose devices are named is on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from engine import placement, placement_words
from engine.boot import DevicePlan
from engine.choices import field_of, models_in
from engine.config import Config, DeviceSection, StageSection
from engine.devices import EVERY_GPU, Device, HostMemory
from engine.limits import limits
from engine.placement import LOAD_BYTES_PER_S, Placement, Room, Variant, Wish
from engine.supervisor.needs import Needs
from engine.supervisor.rings import default_budget
from engine.supervisor.survey import Survey
from ipc.errors import ConfigError, DragomanError

Surveys = Mapping[str, Survey]


def place(
    config: Config,
    devices: Sequence[Device],
    memory: HostMemory,
    surveys: Surveys,
    needs: Needs,
    shared: Mapping[str, str],
) -> Placement:
    """The plan.

    Raises ConfigError for a device that is not there, DragomanError when a stage fits nowhere: a ConfigError where that
    is by its ``estimate_bytes``.
    """
    rings = config.node.ring_budget_bytes or default_budget(memory.total_bytes)
    rooms = [_room(config, device, devices, memory.available_bytes - rings, shared) for device in devices]
    made = placement.plan(
        rooms, [_wish(config, name, surveys[name], devices, needs) for name in _order(config, surveys)]
    )
    if made.verdict is placement.Verdict.NOWHERE:
        text, mend = placement_words.headline(made), placement_words.mend(made)
        for lack in made.nowhere:
            if (
                not (lack.full or lack.bound or lack.beside)
                and lack.needs_bytes == config.stages[lack.stage].estimate_bytes
            ):
                raise ConfigError(f"{field_of(lack.stage)}.estimate_bytes: {text}", f"lower it, or {mend}")
        raise DragomanError(text, mend)
    return made


def _room(
    config: Config, device: Device, devices: Sequence[Device], host_bytes: int, shared: Mapping[str, str]
) -> Room:
    """A device as the plan sees it, with the bounds and the free bytes of the one whose memory it shares."""
    owner = next(one for one in devices if one.name == shared.get(device.name, device.name))
    bounds = replace(limits(plan_device(config, owner, devices, shared)), name=device.name)
    return Room(bounds, device.kind, _free(owner, host_bytes), shared.get(device.name, ""))


def books(devices: Sequence[Device]) -> dict[str, str]:
    """Device -> the one in whose book its leases stand: GPUs without memory of their own share the machine's."""
    unified = [device.name for device in devices if device.memory_source == "unified"]
    sharing = [device.name for device in devices if device.memory_source == "host"] + unified
    return {name: sharing[0] for name in unified if name != sharing[0]}


def plan_device(config: Config, device: Device, devices: Sequence[Device], shared: Mapping[str, str]) -> DevicePlan:
    """A device as the arbiter is told of it. ``shared``: see ``books``."""
    section = config.devices
    here = [one for one in devices if one == device or shared.get(one.name) == device.name]
    sharing = {name for one in here for name in (one.name, one.uuid)} - {""}
    ceilings = [nbytes for name, nbytes in section.max_bytes.items() if name in sharing]
    return DevicePlan(
        name=device.name,
        uuid=device.uuid,
        memory_source=device.memory_source,
        total_bytes=device.total_bytes,
        ceiling_bytes=min(ceilings, default=0),
        ceiling_by=_ceiling_by(section, here, devices, min(ceilings, default=0)),
        reserve_bytes=section.reserve_bytes,
        safety_margin=section.safety_margin,
        max_models=section.max_models,
        ceiling_is_own=section.share,
        ecc_errors=device.ecc_errors,
        book=shared.get(device.name, ""),
    )


def _free(device: Device, host_bytes: int) -> int:
    """Free bytes when no model is loaded yet; ``host_bytes``: of main memory, beside the node's own rings."""
    if device.memory_source in ("host", "unified"):
        return max(0, host_bytes)
    return device.total_bytes if device.free_bytes < 0 else device.free_bytes


def _order(config: Config, surveys: Surveys) -> list[str]:
    """Stages that can run, in the order in which an utterance of the longest pipeline meets them."""
    longest = [
        name
        for stage in max(config.pipelines.values(), key=len, default=())
        for name in models_in(config.stages, stage)
    ]
    names = [*longest, *(name for name in config.stages if name not in longest)]
    return [name for name in names if not surveys[name].absent]


def _wish(config: Config, name: str, survey: Survey, devices: Sequence[Device], needs: Needs) -> Wish:
    section = config.stages[name]
    found = named(section, name, survey, devices)
    return Wish(
        stage=name,
        variants=_variants(name, section, survey, devices, needs),
        devices=tuple(device.name for device in found),
        everywhere="auto" not in section.devices,
        instances=section.instances,
        spare=next((device.name for device in spares(section, survey, devices) if device not in found), ""),
        pinned=section.pinned,
        dispensable=survey.declaration.optional or not section.required,
    )


def _variants(
    name: str, section: StageSection, survey: Survey, devices: Sequence[Device], needs: Needs
) -> tuple[Variant, ...]:
    names = [section.compute_type, *(one.name for one in survey.smaller)]
    weights = [survey.facts.weights_bytes, *(one.weights_bytes for one in survey.smaller)]
    return tuple(
        Variant(names[number], _estimates(name, number, devices, needs), weights[number] / LOAD_BYTES_PER_S)
        for number in range(len(names))
    )


def _estimates(name: str, number: int, devices: Sequence[Device], needs: Needs) -> dict[str, int]:
    """Kind of device -> what this variant is thought to need on such a one; where several differ, the most."""
    found: dict[str, int] = {}
    for device in devices:
        nbytes = needs[name, device.name][number].estimate.nbytes
        found[device.kind] = max(nbytes, found.get(device.kind, 0))
    return found


def named(section: StageSection, stage: str, survey: Survey, devices: Sequence[Device]) -> list[Device]:
    """The devices that a stage's ``devices`` name, each once. Raises ConfigError."""
    if not section.devices:
        raise ConfigError(f"{field_of(stage)}.devices is empty", 'set it to ["auto"]')
    found = [device for entry in section.devices for device in _meant(entry, stage, devices, survey)]
    return list(dict.fromkeys(found))


def _meant(entry: str, stage: str, devices: Sequence[Device], survey: Survey) -> list[Device]:
    gpus = [device for device in devices if device.kind == "cuda"]
    if entry == "auto":
        chosen = gpus or list(devices)
    else:
        chosen = [device for device in devices if entry in (device.name, device.uuid)]
    if not chosen:
        there = ", ".join(device.name for device in devices)
        raise ConfigError(f"{field_of(stage)}.devices names {entry!r}, the node has {there}", "set it to auto")
    if not survey.declaration.cpu_allowed and any(device.kind == "cpu" for device in chosen):
        raise ConfigError(f"stage {stage} cannot run on the CPU", f"set {field_of(stage)}.devices to a GPU")
    return chosen


def without(config: Config, left_out: Mapping[str, str], devices: Sequence[Device], surveys: Surveys) -> Config:
    """The configuration without the devices that are silent; ``left_out``: their names, and why they are.

    A stage all of whose devices are goes to the CPU if it may. Raises DragomanError if it may not.
    """
    if not left_out:
        return config
    sections = {}
    for name, section in config.stages.items():
        there = tuple(entry for entry in section.devices if not _is_left_out(entry, left_out, devices))
        if not there:
            there = tuple(device.name for device in spares(section, surveys[name], devices))
        if not there and not surveys[name].absent:
            why = "; ".join(f"{silent}: {reason}" for silent, reason in left_out.items())
            text = f"stage {name} has no device, of those in {field_of(name)}.devices none answers ({why})"
            raise DragomanError(text, f"see: nvidia-smi; or allow it others, or {field_of(name)}.cpu_fallback = true")
        sections[name] = msgspec.structs.replace(section, devices=there or section.devices)
    return msgspec.structs.replace(config, stages=sections)


def bounded(config: Config, devices: Sequence[Device]) -> Config:
    """The configuration with the bound on all GPUs together as one on each."""
    section = config.devices
    most = dict(section.max_bytes)
    for name, part in _parts(section, devices).items():
        uuid = next(device.uuid for device in devices if device.name == name)
        most[name] = min(part, *(most.get(key, part) for key in (name, uuid)))
    return msgspec.structs.replace(config, devices=msgspec.structs.replace(section, max_bytes=most))


def _parts(section: DeviceSection, devices: Sequence[Device]) -> dict[str, int]:
    """GPU -> its part of the bound on all together; {}: there is none."""
    gpus = [device for device in devices if device.kind == "cuda"]
    in_all = sum(device.total_bytes for device in gpus)
    if not section.max_total_bytes or section.max_total_bytes >= in_all:
        return {}
    return {one.name: max(1, section.max_total_bytes * one.total_bytes // in_all) for one in gpus}  # 0 is no bound


def _ceiling_by(section: DeviceSection, here: Sequence[Device], devices: Sequence[Device], ceiling: int) -> str:
    parts = _parts(section, devices)
    in_all = any(parts.get(device.name) == ceiling for device in here)
    return "devices.max_total_bytes" if in_all else "devices.max_bytes"


def _is_left_out(entry: str, left_out: Mapping[str, str], devices: Sequence[Device]) -> bool:
    """A UUID that is nobody's here may be that of a silent one, which has not told its own."""
    if any(entry in (device.name, device.uuid) for device in devices):
        return False
    return entry in left_out or entry.startswith(("GPU-", "MIG-")) or (entry != "auto" and EVERY_GPU in left_out)


def spares(section: StageSection, survey: Survey, devices: Sequence[Device]) -> list[Device]:
    """The CPU, for a stage that may go there when its own devices have no room."""
    may = section.cpu_fallback or ("auto" in section.devices and survey.declaration.degrades_to_cpu)
    return [device for device in devices if may and device.kind == "cpu" and survey.declaration.cpu_allowed]
