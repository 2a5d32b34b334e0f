"""The doctor's look at a configuration: could a node with it start here, as far as files and devices tell?

The supervisor's own survey and plan judge, stage by stage, so the doctor cannot come to another verdict than the start.
Nothing is loaded, made or started.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine import placement_words
from engine.choices import field_of, spread
from engine.config import Config
from engine.placement import Placement, Verdict
from ipc.errors import DragomanError

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
    return [Finding("ok", "configuration", str(path or EMBEDDED)), *_stages(config)]


def _stages(config: Config) -> Iterator[Finding]:
    from engine.supervisor import survey

    config = spread(config)
    surveys: dict[str, survey.Survey] = {}
    for name, section in config.stages.items():
        alone = msgspec.structs.replace(config, stages={name: section})
        try:
            surveys |= survey.survey(alone)
        except DragomanError as error:
            yield Finding("bad", f"stage {name}", error.text, error.mend or f"set {field_of(name)}.model")
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
        yield from _plan(config, surveys)


def _plan(config: Config, surveys: dict[str, Any]) -> Iterator[Finding]:
    """Whether devices, memory and languages allow all stages together, and where their models would go."""
    from engine import corrections_file, devices
    from engine.supervisor import plan

    try:
        section = config.devices
        seen = devices.look(section.use, declared=section.declared_bytes, limit_s=config.deadlines.driver_s)
        found, left_out = devices.usable(seen), devices.silent(seen)
        history = corrections_file.read(corrections_file.place(section.estimates_file, os.environ))
        cores, memory = os.cpu_count() or 1, devices.host_memory()
        made = plan.make(config, found, memory, cores, surveys, "ipc://doctor", history, left_out)
    except DragomanError as error:
        yield Finding("bad", "plan", error.text, error.mend or "mend the field it names")
        return
    yield Finding("ok", "plan", f"{len(made.workers)} workers, {made.ring_bytes / 2**20:.1f} MiB of shared memory")
    yield placed(made.placement)


def placed(made: Placement) -> Finding:
    """The placement plan; models that have no room together, or wait for other programs, are a note."""
    head, *rest = placement_words.lines(made)
    text = "; ".join([head.removeprefix("placement: "), *map(str.strip, rest)])
    details = placement_words.document(made)
    if made.waits:
        return Finding("note", "placement", text, "end the programs that hold the memory: nvidia-smi", details)
    if made.verdict is Verdict.TURNS:
        mend = "for all at once: smaller models (stages.X.variants), another GPU, or one of 12 GB or more"
        return Finding("note", "placement", text, mend, details)
    return Finding("ok", "placement", text, details=details)
