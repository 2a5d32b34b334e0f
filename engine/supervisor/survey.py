"""What can be known of a stage before anything is loaded: its declaration, its model's files, whether it can run.

An *absent* stage gets no worker and its utterances skip it; that is allowed for stages the node can do without (they
say ``optional``, or the configuration says ``required = false``). For any other stage the same finding ends the start
with one line that names what is missing and the command that mends it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from engine import estimates
from engine.choices import field_of, spread
from engine.config import Config, StageSection
from engine.estimates import Start
from engine.fingerprint import fingerprint
from ipc.errors import ConfigError, DragomanError
from stages import find
from stages.base import Declaration, Longest, Memory, ModelFacts, Stage, StageConfig, StageError

KINDS_OF_DEVICE = ("cpu", "cuda")


@dataclass(frozen=True)
class Variant:
    """One way to load a stage's model: ``section`` says how. ``starts`` and ``identity``: as of a survey."""

    name: str  # what sets it apart: its file, compute type, options
    section: StageSection
    starts: Mapping[str, Start]
    weights_bytes: int
    identity: str = ""


@dataclass(frozen=True)
class Survey:
    """One stage. ``starts``: memory its model needs, by kind of device; ``identity``: a digest of what decides it.

    ``smaller``: its other variants.
    """

    declaration: Declaration
    facts: ModelFacts = field(default_factory=ModelFacts)
    starts: Mapping[str, Start] = field(default_factory=lambda: dict.fromkeys(KINDS_OF_DEVICE, Start()))
    absent: str = ""  # why it cannot run
    identity: str = ""
    smaller: tuple[Variant, ...] = ()  # to be loaded where that has no room, best first

    @property
    def estimates(self) -> dict[str, int]:
        """Bytes, by kind of device, before anything was measured."""
        return {kind: start.nbytes for kind, start in self.starts.items()}


def is_installed(module: str) -> bool:
    """Whether a module could be imported (it is not)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def survey(config: Config, installed: Callable[[str], bool] = is_installed) -> dict[str, Survey]:
    """Look at every stage of the configuration and at its further models (``engine.choices`` has their names).

    Raises ConfigError or DragomanError in one line.
    """
    return {name: _survey(name, section, config, installed) for name, section in spread(config).stages.items()}


def _survey(name: str, section: StageSection, config: Config, installed: Callable[[str], bool]) -> Survey:
    kind, where = section.kind or name, field_of(name)
    try:
        stage = find(kind)
        declaration = stage.declare(section.options)
        stage.check_options(section.options)
    except KeyError as error:
        raise ConfigError(f"{where}: {error.args[0]}", f"set {where}.kind") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
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
            raise ConfigError(f"{where}.model cannot be used: {error.text}") from error
        return Survey(declaration, absent=error.text)
    if section.languages:
        facts = replace(facts, languages=frozenset(section.languages))
    node, factor = config.node, config.devices.start_factor
    longest = Longest(node.max_utterance_s, min(node.max_text_chars, declaration.max_chars))
    return Survey(
        declaration,
        facts,
        _starts(stage, facts, section, longest, factor),
        identity=_identity(kind, section, longest),
        smaller=tuple(
            _variant(name, number, stage, section, longest, factor) for number in range(len(section.variants))
        ),
    )


def _variant(
    name: str, number: int, stage: type[Stage], section: StageSection, longest: Longest, factor: float
) -> Variant:
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
        raise ConfigError(f"{field_of(name)}.variants[{number}].model cannot be used: {error.text}") from error
    parts = [f"model {Path(given.model).name}" if given.model else "", given.compute_type]
    parts += [f"{key}={value}" for key, value in given.options.items()]
    return Variant(
        ", ".join(filter(None, parts)),
        section,
        _starts(stage, facts, section, longest, factor),
        facts.weights_bytes,
        _identity(section.kind or name, section, longest),
    )


def _starts(
    stage: type[Stage], facts: ModelFacts, section: StageSection, longest: Longest, factor: float
) -> dict[str, Start]:
    """Kind of device -> what is asked for there while nothing was measured."""
    declaration = stage.declare(section.options)
    return {
        kind: _start(declaration, facts, section, kind, stage.memory(_loaded(section, kind), longest), factor)
        for kind in KINDS_OF_DEVICE
    }


def _identity(kind: str, section: StageSection, longest: Longest) -> str:
    """A digest of what decides a model's memory, its device apart. An option that does not costs one measurement."""
    model = fingerprint(section.model)
    what = [kind, model, section.options, section.compute_type, section.max_batch, longest.audio_s, longest.chars]
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _loaded(section: StageSection, kind: str) -> StageConfig:
    """As a worker on a device of this kind would be told to load it."""
    return StageConfig(
        section.model, kind, section.compute_type, max_batch=section.max_batch, options=section.options
    )  # fmt: skip


def _start(
    declaration: Declaration, facts: ModelFacts, section: StageSection, kind: str, memory: Memory | None, factor: float
) -> Start:
    return estimates.start(
        facts.weights_bytes,
        kind=kind,  # type: ignore[arg-type]
        libraries=declaration.requires,
        compute_type=section.compute_type,
        max_batch=section.max_batch,
        memory=memory,
        factor=factor,
    )
