"""The grid that ``bench tune`` measures: knobs of the configuration, and the values each of them is tried with. Pure.

A knob is a number of the configuration by its dotted name (``stages.asr.max_batch``), by a stage's (``asr.max_batch``),
or alone (``max_batch``), which then is that of every stage that is tuned. A point of the grid sets all knobs at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.config import Config, StageSection
from engine.config_env import parse
from engine.config_rules import Problem, check, nearest, rule_for
from ipc.errors import UsageError

Number = int | float
Point = tuple[Number, ...]  # a value for each axis
BATCHES = (1, 2, 4)
EXAMPLE = "write KNOB=VALUE,VALUE,..., as in: --grid asr.max_batch=1,2,4 asr.instances=1,2"


@dataclass(frozen=True)
class Axis:
    """One knob of the grid. ``fields``: what it sets, dotted."""

    name: str
    fields: tuple[str, ...]
    values: tuple[Number, ...]


def axes(given: Sequence[str], config: Config, stages: Sequence[str]) -> list[Axis]:
    """The axes as the command line names them; ``stages``: those that a knob alone is meant for. Raises UsageError."""
    found = [axis(text, config, stages) for text in given]
    fields = [field for one in found for field in one.fields]
    if doubled := next((field for field in fields if fields.count(field) > 1), None):
        raise UsageError(f"--grid has {doubled} twice", "name each knob once")
    for point in points(found):
        configured(config, found, point)
    return found


def axis(text: str, config: Config, stages: Sequence[str]) -> Axis:
    """An axis from "KNOB=VALUE,VALUE". Raises UsageError."""
    name, _, listed = (part.strip() for part in text.partition("="))
    if "=" not in text:
        raise UsageError(f"--grid {text!r} is no KNOB=VALUE,VALUE, nor a file", f"{EXAMPLE}; AUDIO goes before --grid")
    texts = [value.strip() for value in listed.split(",") if value.strip()]
    if not name or not texts:
        raise UsageError(f"--grid {text!r} is empty", EXAMPLE)
    fields = _fields(name, config, stages)
    type_ = _number(fields[0])
    try:
        values = tuple(dict.fromkeys(parse(value, type_) for value in texts))
    except Problem as problem:
        raise UsageError(f"--grid {name} {problem.text.strip()}") from problem
    for value in values:
        if (rule := rule_for(fields[0])) and (complaint := rule.complaint(value)):
            raise UsageError(f"--grid {name} {complaint}")
    return Axis(name, fields, tuple(sorted(values)))


def usual(stage: str, config: Config, start: int) -> list[Axis]:
    """The grid for who names none: a stage's instances about ``start`` (0: not known), and its batches."""
    start = max(1, start)
    instances = sorted({1, start, start + 1})
    return axes([f"{stage}.instances={_listed(instances)}", f"{stage}.max_batch={_listed(BATCHES)}"], config, (stage,))


def start_value(total: float, reserve: float, peak: float) -> int:
    """Tasks at once to begin with on a device, all in one unit: as many as have room for their peak beside what is
    reserved, one less for safety, at least one."""
    return max(1, int((total - reserve) // peak) - 1) if peak > 0 else 1


def points(axes: Sequence[Axis]) -> Iterator[Point]:
    """Every combination of the axes' values; the last axis changes first."""
    return itertools.product(*(axis.values for axis in axes))


def present(config: Config, axes: Sequence[Axis]) -> Point | None:
    """The configuration's own values; None when an axis stands for several fields that differ."""
    found = [{value(config, field) for field in axis.fields} for axis in axes]
    return tuple(values.pop() for values in found) if all(len(values) == 1 for values in found) else None


def value(config: Config, field: str) -> Number:
    """The value of a dotted field."""
    section, *stage, last = field.split(".")
    found: Number = getattr(config.stages[stage[0]] if stage else getattr(config, section), last)
    return found


def changes(axes: Sequence[Axis], point: Point) -> dict[str, Number]:
    """Dotted field -> value, of a point."""
    return {field: value for axis, value in zip(axes, point, strict=True) for field in axis.fields}


def configured(config: Config, axes: Sequence[Axis], point: Point) -> Config:
    """The configuration with the values of a point. Raises UsageError when they do not fit together."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for field, number in changes(axes, point).items():
        *path, last = field.split(".")
        table = tree
        for name in path:
            table = table[name]
        table[last] = number
    try:
        return check(tree)
    except Problem as problem:
        raise UsageError(f"--grid: {problem}") from problem


def steps(axes: Sequence[Axis], point: Point) -> int:
    """How many steps of the grid a point is above the lowest values: less is cheaper."""
    return sum(axis.values.index(number) for axis, number in zip(axes, point, strict=True))


def words(axes: Sequence[Axis], point: Point) -> str:
    """A point for people: "asr.instances=2 asr.max_batch=4"."""
    return " ".join(f"{axis.name}={number:g}" for axis, number in zip(axes, point, strict=True))


def _fields(name: str, config: Config, stages: Sequence[str]) -> tuple[str, ...]:
    known = list(_known(config))
    meant = tuple(f"stages.{stage}.{name}" for stage in stages) if "." not in name else (name,)
    if name not in known and f"stages.{name}" in known:
        meant = (f"stages.{name}",)
    if not meant or any(field not in known for field in meant):
        short = [field.removeprefix("stages.") for field in known]
        alone = [field.name for field in msgspec.structs.fields(StageSection) if field.type in (int, float)]
        raise UsageError(f"--grid: {name} is no number of the configuration",
                         f"{nearest(name, [*alone, *short])}of a stage there are {', '.join(alone)}")  # fmt: skip
    return meant


def _known(config: Config) -> Iterator[str]:
    """Every number of the configuration, dotted."""
    for section in ("node", "deadlines", "devices"):
        for field in msgspec.structs.fields(getattr(config, section)):
            if field.type in (int, float):
                yield f"{section}.{field.name}"
    for stage in config.stages:
        for field in msgspec.structs.fields(StageSection):
            if field.type in (int, float):
                yield f"stages.{stage}.{field.name}"


def _number(field: str) -> Any:
    section, _, last = field.partition(".")
    struct = StageSection if section == "stages" else {f.name: f.type for f in msgspec.structs.fields(Config)}[section]
    return {f.name: f.type for f in msgspec.structs.fields(struct)}[last.rpartition(".")[2]]


def _listed(values: Sequence[Number]) -> str:
    return ",".join(f"{number:g}" for number in values)
