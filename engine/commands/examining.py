"""The doctor's look at a configuration: could a node with it start here, as far as files and devices tell?

The supervisor's own survey and plan judge, stage by stage, so the doctor cannot come to another verdict than the start.
Nothing is loaded, made or started.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from engine import placement_words
from engine.arbiter.lease import EXTERNAL
from engine.choices import field_of, spread
from engine.commands import asking, finding, patience
from engine.config import Config
from engine.devices import Device
from engine.placement import Placement
from ipc.errors import DragomanError

LOOK_S = 2.0  # how long a running node is asked
EMBEDDED = "no configuration file: the embedded demo models"


@dataclass(frozen=True)
class Finding:
    """``state``: ok | note (the node runs, but not as well as it could) | bad (it could not run)."""

    state: str
    topic: str
    text: str
    mend: str = ""
    details: dict[str, Any] = field(default_factory=dict)  # the same for programs, where there is more to say


def configuration(args: argparse.Namespace) -> list[Finding]:
    """What there is to say about the configuration that ``args`` chooses."""
    from engine import config_file, embedded

    path = Path(args.config) if args.config else config_file.find()
    base = embedded.config() if path is None else None
    try:
        config = config_file.load(path, os.environ, Path(args.env_file) if args.env_file else None, base=base)
    except DragomanError as error:
        return [Finding("bad", "configuration", error.text, error.mend or "mend the line it names")]
    return [Finding("ok", "configuration", str(path or EMBEDDED)), *_stages(config, running(args.connect))]


@dataclass(frozen=True)
class Running:
    """A node that runs, and what its own workers hold: UUID of a GPU, "" of the CPU -> bytes."""

    node: str
    held: Mapping[str, int]


def running(connect: str | None) -> Running | None:
    """The node at this address, or the one that is found without; None when there is none, or it does not answer."""
    try:
        stats = asking.ask(finding.ctl_endpoint(connect or None), "stats", timeout_s=LOOK_S)
    except DragomanError:
        return None
    uuids = {name: row["uuid"] for name, row in stats["arbiter"].get("devices", {}).items()}
    held: Counter[str] = Counter()
    for lease in stats["leases"]:
        if not lease["worker"].startswith(EXTERNAL):
            held[uuids.get(lease["device"], "")] += lease["held_bytes"]
    return Running(stats["node"], held)


def _stages(config: Config, beside: Running | None) -> Iterator[Finding]:
    from engine.supervisor import survey

    config = spread(config)
    surveys: dict[str, survey.Survey] = {}
    for name, section in config.stages.items():
        alone = msgspec.structs.replace(config, stages={name: section})
        try:
            surveys |= survey.survey(alone)
        except DragomanError as error:
            wrong = error.text.partition(" ")[0]  # a model's or a variant's field, where it is one's
            field = wrong if wrong.startswith(field_of(name)) else f"{field_of(name)}.model"
            yield Finding("bad", f"stage {name}", error.text, error.mend or f"set {field}")
            continue
        if surveys[name].absent:
            declared = surveys[name].declaration
            installed = all(importlib.util.find_spec(module) for module in declared.requires)
            mend = (
                f"set {field_of(name)}.model" if installed else declared.install_hint or f"set {field_of(name)}.model"
            )
            yield Finding("note", f"stage {name}", f"its utterances will skip it: {surveys[name].absent}", mend)
        else:
            yield Finding("ok", f"stage {name}", section.model or "needs no model")
    if len(surveys) == len(config.stages):
        yield from _plan(config, surveys, beside)


def _plan(config: Config, surveys: dict[str, Any], beside: Running | None) -> Iterator[Finding]:
    """Whether devices, memory and languages allow all stages together, and where their models would go.

    ``beside``: a node that runs; what it holds counts as free, since it would have ended where another starts.
    """
    from engine import corrections_file, devices
    from engine.supervisor import claims, plan

    held = beside.held if beside else {}
    try:
        section = config.devices
        with patience.waiting(patience.DRIVER):
            seen = devices.look(section.use, declared=section.declared_bytes, limit_s=config.deadlines.driver_s)
        found, left_out = devices.usable(seen), devices.silent(seen)
        history = corrections_file.read(corrections_file.place(section.estimates_file, os.environ))
        free = [without(device, held.get(device.uuid, 0)) for device in found]
        memory = devices.host_memory()
        memory = replace(memory, available_bytes=memory.available_bytes + held.get("", 0))
        made = plan.make(config, free, memory, os.cpu_count() or 1, surveys, "ipc://doctor", history, left_out)
    except DragomanError as error:
        yield Finding("bad", "plan", error.text, error.mend or "mend the field it names")
        return
    aside = f", as if node {beside.node}, which runs, had ended" if beside else ""
    said = f"{len(made.workers)} workers, {made.ring_bytes / 2**20:.1f} MiB of shared memory{aside}"
    yield Finding("ok", "plan", said)
    for device in found:
        if not held.get(device.uuid) and device.uuid and (holder := claims.holder(device.uuid)):
            yield Finding("note", f"claim {device.name}", f"it is in use by {holder}", claims.SHARE)
    yield placed(made.placement)


def without(device: Device, held_bytes: int) -> Device:
    """The device as it would be without so much."""
    free = device.free_bytes + held_bytes if device.free_bytes >= 0 else -1
    return replace(device, free_bytes=min(device.total_bytes, free))


def placed(made: Placement) -> Finding:
    """The placement plan; models that have no room together, or wait for other programs, are a note."""
    head, *rest = placement_words.lines(made)
    text = "; ".join([head.removeprefix("placement: "), *map(str.strip, rest)])
    details = placement_words.document(made)
    mend = placement_words.mend(made)
    return Finding("note" if mend else "ok", "placement", text, mend, details)
