"""What can be known of a stage before anything is loaded: its declaration, its model's files, whether it can run.

An *absent* stage gets no worker and its utterances skip it; that is allowed for stages the node can do without (they
say ``optional``, or the configuration says ``required = false``). For any other stage the same finding ends the start
with one line that names what is missing and the command that mends it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine import estimates
from engine.config import Config, NodeSection, StageSection
from ipc.errors import ConfigError, DragomanError
from stages import find
from stages.base import Declaration, Longest, Memory, ModelFacts, Stage, StageConfig, StageError

KINDS_OF_DEVICE = ("cpu", "cuda")


@dataclass(frozen=True)
class Variant:
    """One way to load a stage's model. ``estimates``: memory it needs, by kind of device."""

    name: str  # what sets it apart: its file, compute type, options
    model: str
    compute_type: str
    options: Mapping[str, Any]
    estimates: Mapping[str, int]
    weights_bytes: int


@dataclass(frozen=True)
class Survey:
    """One stage. ``estimates``: memory its model needs, by kind of device. ``smaller``: its other variants."""

    declaration: Declaration
    facts: ModelFacts = field(default_factory=ModelFacts)
    estimates: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS_OF_DEVICE, 0))
    absent: str = ""  # why it cannot run
    smaller: tuple[Variant, ...] = ()  # to be loaded where that has no room, best first


def is_installed(module: str) -> bool:
    """Whether a module could be imported (it is not)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def survey(config: Config, installed: Callable[[str], bool] = is_installed) -> dict[str, Survey]:
    """Look at every stage of the configuration. Raises ConfigError or DragomanError in one line."""
    return {name: _survey(name, section, config.node, installed) for name, section in config.stages.items()}


def _survey(name: str, section: StageSection, node: NodeSection, installed: Callable[[str], bool]) -> Survey:
    kind = section.kind or name
    try:
        stage = find(kind)
        declaration = stage.declare(section.options)
        stage.check_options(section.options)
    except KeyError as error:
        raise ConfigError(f"stages.{name}: {error.args[0]}", f"set stages.{name}.kind") from error
    except ValueError as error:
        raise ConfigError(f"stages.{name}: {error}") from error
    dispensable = declaration.optional or not section.required
    missing = [module for module in declaration.requires if not installed(module)]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if not dispensable:
            raise DragomanError(f"stage {name} cannot run: {reason}", declaration.install_hint)
        return Survey(declaration, absent=reason)
    try:
        facts = stage.describe(section.model, section.options)
    except StageError as error:
        if not dispensable:
            raise ConfigError(f"stages.{name}.model cannot be used: {error.text}") from error
        return Survey(declaration, absent=error.text)
    longest = Longest(node.max_utterance_s, min(node.max_text_chars, declaration.max_chars))
    smaller = tuple(_variant(name, number, stage, section, longest) for number in range(len(section.variants)))
    return Survey(declaration, facts, _estimates(stage, facts, section, longest), smaller=smaller)


def _variant(name: str, number: int, stage: type[Stage], section: StageSection, longest: Longest) -> Variant:
    """One of the section's variants. Raises ConfigError when its model cannot be used."""
    given = section.variants[number]
    section = msgspec.structs.replace(
        section,
        model=given.model or section.model,
        compute_type=given.compute_type or section.compute_type,
        estimate_bytes=given.estimate_bytes,
        options={**section.options, **given.options},
    )
    try:
        facts = stage.describe(section.model, section.options)
    except StageError as error:
        raise ConfigError(f"stages.{name}.variants[{number}].model cannot be used: {error.text}") from error
    parts = [Path(given.model).name, given.compute_type, *(f"{key}={value}" for key, value in given.options.items())]
    return Variant(
        name=" ".join(filter(None, parts)),
        model=section.model,
        compute_type=section.compute_type,
        options=section.options,
        estimates=_estimates(stage, facts, section, longest),
        weights_bytes=facts.weights_bytes,
    )


def _estimates(stage: type[Stage], facts: ModelFacts, section: StageSection, longest: Longest) -> dict[str, int]:
    """Kind of device -> what is asked for there; the configuration's own figure goes before all others."""
    if section.estimate_bytes:
        return dict.fromkeys(KINDS_OF_DEVICE, section.estimate_bytes)
    memory = {k: stage.memory(_loaded(section, k), longest) for k in KINDS_OF_DEVICE}
    declaration = stage.declare(section.options)
    return {k: _estimate(declaration, facts, section, k, memory[k]) for k in memory}


def _loaded(section: StageSection, kind: str) -> StageConfig:
    """As a worker on a device of this kind would be told to load it."""
    return StageConfig(
        section.model, kind, section.compute_type, max_batch=section.max_batch, options=section.options
    )  # fmt: skip


def _estimate(
    declaration: Declaration, facts: ModelFacts, section: StageSection, kind: str, memory: Memory | None
) -> int:
    return estimates.estimate(
        facts.weights_bytes,
        kind=kind,  # type: ignore[arg-type]
        libraries=declaration.requires,
        compute_type=section.compute_type,
        max_batch=section.max_batch,
        memory=memory,
    )
