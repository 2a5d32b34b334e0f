"""Which fields of the configuration an operator may change while the node runs, and what they may be. Pure.

The configuration is read once; these few are the exception, because nothing was sized or opened by them: whoever uses
them looks them up each time. What a field may be is said where the configuration is checked (``config_rules``); a
``max_batch`` may not pass the configured one, since the leases were taken for that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import Config, DeadlinesSection, NodeSection, StageSection
from engine.config_env import parse
from engine.config_rules import Between, Problem, nearest, rule_for
from ipc.errors import DragomanError

NODE = ("max_retries", "capacity_factor", "adaptive", "send_ahead")
DEADLINES = ("retry_delay_s", "turn_s", "load_timeout_s", "oom_hold_s", "oom_window_s")
STAGE = ("max_batch", "max_delay_ms", "length_ratio", "keep_alive_s", "timeout_base_s", "timeout_per_audio")
WHOLE = (*(f"node.{name}" for name in NODE), *(f"deadlines.{name}" for name in DEADLINES))


def names(config: Config) -> list[str]:
    """Every knob of this node, dotted; where its stages are spread, of each model too (``engine.choices``)."""
    return [*WHOLE, *(f"stages.{stage}.{name}" for stage in config.stages for name in STAGE)]


def is_one(field: str) -> bool:
    """Whether a dotted field ("stages.asr.max_batch", whatever the stage) is a knob."""
    return field in WHOLE or (field.startswith("stages.") and field.rpartition(".")[2] in STAGE)


def read(config: Config, text: str) -> tuple[str, int | float]:
    """A knob and its value from "KNOB=VALUE". Raises DragomanError: no such knob, or no value for it."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise DragomanError(f"{text!r} sets nothing", "write KNOB=VALUE, as in: set stages.asr.max_batch=1")
    known = names(config)
    if name not in known and (inside := name.replace(".models.", ".")) in known:  # as the configuration writes it
        name = inside
    if name not in known:
        raise DragomanError(f"{name} cannot be set while the node runs", f"{nearest(name, known)}{_listed(config)}")
    try:
        number = parse(value, _type(name))
    except Problem as problem:
        raise DragomanError(f"{name} {problem.text.strip()}") from problem
    rule = rule_for(name)
    for one in (rule, _as_configured(config, name)):
        if one is not None and (complaint := one.complaint(number)):
            raise DragomanError(f"{name} {complaint}")
    return name, number


def configured(config: Config, name: str) -> Any:
    """What a knob, or any field of a section, is without operators."""
    section, _, rest = name.partition(".")
    stage, _, field = rest.rpartition(".")
    return getattr(config.stages[stage] if stage else getattr(config, section), field)


def _listed(config: Config) -> str:
    return f"these can: {', '.join(WHOLE)}; of each stage ({', '.join(config.stages)}): {', '.join(STAGE)}"


def _type(name: str) -> Any:
    section, _, field = name.partition(".")
    structs: dict[str, type[msgspec.Struct]] = {
        "node": NodeSection, "deadlines": DeadlinesSection, "stages": StageSection
    }  # fmt: skip
    types = {one.name: one.type for one in msgspec.structs.fields(structs[section])}
    return types[field.rpartition(".")[2]]


def _as_configured(config: Config, name: str) -> Between | None:
    if not name.endswith(".max_batch"):
        return None
    return Between(1, configured(config, name), ", as configured: its memory was leased for that many")
