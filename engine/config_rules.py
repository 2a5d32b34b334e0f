"""What a configuration may say: types, bounds, choices, and what must fit together. One table, one check.

``check`` turns a tree of plain values (from TOML, the environment or a caller's dict) into a ``Config`` or raises
``Problem`` with the one field that is wrong and the nearest value that would be right. Pure but for importing stage
modules, which are import-light.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args

import msgspec

import stages
from engine import policies
from engine.choices import OWN, field_of, spread
from engine.config import Config, ModelSection, StageSection, VariantSection
from engine.profiles import PROFILES
from ipc.ring import BLOCK

MIB = 2**20
LONGEST_UTTERANCE_S = 600
LEAST_DEADLINE_S = 0.01
DAY_S = 86_400
MANY_BYTES = 2**50
HIGHEST_PORT = 65_535
MAX_PATH_BYTES = 107  # of a Unix socket


class Problem(Exception):
    """One field is wrong. ``field`` is its dotted name, ``text`` goes on after it."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field} {text}")
        self.field = field
        self.text = text


# ---------------------------------------------------------------- rules for one value


@dataclass(frozen=True)
class OneOf:
    choices: tuple[str, ...]

    def complaint(self, value: Any) -> str | None:
        if value in self.choices:
            return None
        return f"is {value!r}; {nearest(value, self.choices)}use {' or '.join(self.choices)}"


@dataclass(frozen=True)
class Between:
    low: float
    high: float
    why: str = ""

    def complaint(self, value: Any) -> str | None:
        if self.low <= value <= self.high:
            return None
        edge, word = (self.high, "highest") if value > self.high else (self.low, "lowest")
        return f"is {value}; the {word} is {edge:.15g}{self.why}"


@dataclass(frozen=True)
class Like:
    pattern: str
    examples: str

    def complaint(self, value: Any) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"has {value!r}; write {self.examples}"


@dataclass(frozen=True)
class Endpoint:
    """Where clients may connect: a file of this machine, or loopback. A client is not asked who it is, so the
    addresses that other machines reach are not served."""

    examples: str = "ipc://PATH or tcp://127.0.0.1:PORT"

    def complaint(self, value: Any) -> str | None:
        if local := re.fullmatch(r"ipc://(.+)", value):
            size = len(local[1].encode())
            return (
                None if size <= MAX_PATH_BYTES else f"has a path of {size} bytes; a socket's may have {MAX_PATH_BYTES}"
            )
        parts = re.fullmatch(r"tcp://(.*):(.*)", value)
        if parts is None:
            return f"has {value!r}; write {self.examples}"
        host, port = parts.groups()
        if not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= HIGHEST_PORT):
            return f"has {value!r}; the port must be from 1 to {HIGHEST_PORT}"
        if not is_loopback(host):
            return f"has {value!r}, which other machines may reach; only tcp://127.0.0.1:{port} (loopback) is served"
        return None


def is_loopback(host: str) -> bool:
    """Whether a host, as an endpoint writes it, is this machine for certain."""
    try:
        return host == "localhost" or ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


Rule = Union[OneOf, Between, Like, Endpoint]

DEVICE = Like(r"auto|cpu|cuda:\d+|(GPU|MIG)-[0-9A-Za-z/-]+", "auto, cpu, cuda:0 or a GPU's UUID")
NAME = Like(r"[a-z][a-z0-9_-]{0,31}", "a small letter, then small letters, digits, - or _ (at most 32)")
ENDPOINT = Endpoint()
DEADLINE = Between(LEAST_DEADLINE_S, DAY_S, " s")
BYTES = Between(0, MANY_BYTES, " bytes")
LANGUAGES = Like(r"[a-z]{2,3}([_-][0-9A-Za-z]+)*", "codes like en, de or zh")
SHARE_OF_AUDIO = Between(0, 1000)

# Field -> rule; a list's or table's rule is applied to each of its values. "*" stands for any name.
RULES: dict[str, Rule] = {
    "node.mode": OneOf(("pipelined", "serial")),
    "node.profile": OneOf(tuple(PROFILES)),
    "node.endpoints": ENDPOINT,
    "node.max_utterance_s": Between(0.1, LONGEST_UTTERANCE_S, " s"),
    "node.max_text_chars": Between(1, 16_000),
    "node.window": Between(1, 4096),
    "node.max_sessions": Between(1, 65_536),
    "node.ring_budget_bytes": BYTES,
    "node.outbox_session_bytes": Between(BLOCK, MANY_BYTES, " bytes"),
    "node.outbox_node_bytes": Between(BLOCK, MANY_BYTES, " bytes"),
    "node.capacity_factor": Between(1, 10_000),
    "node.send_ahead": Between(0, 8),
    "node.restart_budget": Between(0, 100_000),
    "node.max_retries": Between(0, 100),
    "node.log_level": OneOf(("debug", "info", "warning", "error")),
    "deadlines.budget_per_audio": SHARE_OF_AUDIO,
    "deadlines.ride_s": Between(0, 1, " s"),
    "deadlines.*": DEADLINE,
    "devices.use": DEVICE,
    "devices.max_bytes": Between(MIB, MANY_BYTES, " bytes"),
    "devices.max_total_bytes": BYTES,
    "devices.reserve_bytes": BYTES,
    "devices.safety_margin": Between(0, 0.9),
    "devices.declared_bytes": Between(MIB, MANY_BYTES, " bytes"),
    "devices.max_models": Between(1, 1000),
    "devices.start_factor": Between(1, 4),
    "stages.*.devices": DEVICE,
    "stages.*.instances": Between(1, 64),
    "stages.*.max_instances": Between(0, 64),
    "stages.*.max_batch": Between(1, 256),
    "stages.*.min_batch": Between(1, 256),
    "stages.*.warm_up_runs": Between(0, 100),
    "stages.*.max_delay_ms": Between(0, 60_000, " ms"),
    "stages.*.length_ratio": Between(1, 1000),
    "stages.*.timeout_base_s": DEADLINE,
    "stages.*.timeout_per_audio": SHARE_OF_AUDIO,
    "stages.*.keep_alive_s": Between(-1, DAY_S, " s"),
    "stages.*.skip_above": Between(-100, 0),
    "stages.*.threads": Between(0, 1024),
    "stages.*.estimate_bytes": BYTES,
    "rings": Between(2 * BLOCK, MANY_BYTES, " bytes"),
    "stages.*.languages": LANGUAGES,
    "languages": LANGUAGES,
}


def rule_for(field: str) -> Rule | None:
    """The rule of a dotted field name, if it has one."""
    section, _, rest = field.partition(".")
    _, _, last = field.rpartition(".")
    for key in (field, f"{section}.*.{last}" if "." in rest else f"{section}.*"):
        if key in RULES:
            return RULES[key]
    return None


def nearest(value: Any, choices: Iterable[str]) -> str:
    """The question "did you mean ...?" with a blank after it, or nothing."""
    close = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return f"did you mean {close[0]}? " if close else ""


# ---------------------------------------------------------------- the whole tree


def check(tree: Mapping[str, Any]) -> Config:
    """The configuration that ``tree`` says. Raises Problem for the first field that is wrong."""
    _check_table(Config, tree, "")
    config = msgspec.convert(tree, Config)
    check_together(config)
    return config


def check_together(config: Config) -> None:
    """What no field says alone: names that must exist, stages whose kinds must fit. Raises Problem."""
    _check_placement(config.node.placement)
    if config.deadlines.silent_s <= config.deadlines.heartbeat_s:
        least = 2 * config.deadlines.heartbeat_s
        raise Problem("deadlines.silent_s", f"is not longer than heartbeat_s; set it to {least:g} or more")
    if config.node.outbox_node_bytes < config.node.outbox_session_bytes:
        least = config.node.outbox_session_bytes
        raise Problem("node.outbox_node_bytes", f"is smaller than outbox_session_bytes; the lowest is {least}")
    for name, section in spread(config).stages.items():
        _check_stage(field_of(name), section.kind or name, section)
    for name, section in config.stages.items():
        _check_models(name, section)
    for name, members in config.pipelines.items():
        _check_pipeline(name, members, config.stages)
    for name in config.rings:
        if name != "gateway" and name not in config.stages:
            raise Problem(f"rings.{name}", f"is no producer; {_among(name, ('gateway', *config.stages))}")
    for field in ("max_bytes", "declared_bytes"):
        for name in getattr(config.devices, field):
            if complaint := DEVICE.complaint(name):
                raise Problem(f"devices.{field}", complaint)


def _check_placement(name: str) -> None:
    if complaint := OneOf(policies.names()).complaint(name):
        raise Problem("node.placement", complaint)


def check_complete(config: Config) -> None:
    """That there is something to run. Raises Problem."""
    if not config.stages:
        example = 'is empty; name at least one, for example [stages.asr] model = "models/asr"'
        demo = "; for one knob of the demo models' node begin with: run_node.py serve --print-config > node.toml"
        raise Problem("stages", example + demo)
    if not config.pipelines:
        example = ", ".join(f'"{name}"' for name in config.stages)
        raise Problem("pipelines", f"is empty; name at least one, for example full = [{example}]")


def _check_table(struct: type[msgspec.Struct], table: Any, prefix: str) -> None:
    if not isinstance(table, Mapping):
        raise Problem(prefix.rstrip("."), f"is {table!r}; write a table [{prefix.rstrip('.')}]")
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for name, value in table.items():
        if name not in known:
            raise Problem(prefix + name, f"is unknown; {_among(name, known)}")
        _check_value(prefix + name, value, known[name])


def _check_value(field: str, value: Any, type_: Any) -> None:
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return _check_table(type_, value, f"{field}.")
    if type_ == dict[str, StageSection] and isinstance(value, Mapping):
        for name, table in value.items():
            if complaint := NAME.complaint(name):
                raise Problem(f"stages.{name}", complaint)
            _check_table(StageSection, table, f"{field}.{name}.")
        return None
    if type_ == tuple[VariantSection, ...] and isinstance(value, list | tuple):
        for number, table in enumerate(value):
            if not isinstance(table, Mapping):
                raise Problem(f"{field}[{number}]", f'is {table!r}; write it like {{ compute_type = "int8" }}')
            _check_table(VariantSection, table, f"{field}[{number}].")
            _check_says(f"{field}[{number}]", table)
        return None
    if type_ == dict[str, ModelSection] and isinstance(value, Mapping):
        for name, table in value.items():
            _check_model(f"{field}.{name}", name, table)
        return None
    try:
        typed = msgspec.convert(value, type_)
    except msgspec.ValidationError:
        raise Problem(field, f"is {value!r}; it must be {words(type_)}") from None
    _check_rule(field, typed)
    return None


def _check_model(field: str, name: str, table: Any) -> None:
    if complaint := NAME.complaint(name):
        raise Problem(field, complaint)
    if name == OWN:
        raise Problem(field, "is what the stage's own model is called; choose another name")
    _check_table(ModelSection, table, f"{field}.")
    _check_says(field, table)


def _check_says(field: str, table: Mapping[str, Any]) -> None:
    """That a variant, or a further model, is another than the stage's own."""
    if not any(table.get(name) for name in ("model", "compute_type", "options")):
        raise Problem(field, "is the stage as it is; give it a model, a compute_type or options")


def _check_rule(field: str, value: Any) -> None:
    """A field's rule, on each value of a list or a table."""
    rule = rule_for(field)
    if rule is None or value is None:
        return
    for name, one in _each(field, value):
        if complaint := rule.complaint(one):
            raise Problem(name, complaint)


def _each(field: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{field}.{name}", one) for name, one in value.items()]
    return [(field, one) for one in (value if isinstance(value, tuple) else (value,))]


def _check_stage(where: str, kind: str, section: StageSection) -> None:
    """One stage, or a further model of one. ``where``: its field."""
    if kind not in stages.kinds():
        field = f"{where}.kind" if section.kind else where
        what = f"is {kind!r}, which is" if section.kind else "is"
        raise Problem(field, f"{what} no kind of stage; {_among(kind, stages.kinds())}")
    try:
        found = stages.find(kind)
    except KeyError as error:
        raise Problem(f"{where}.kind" if section.kind else where, f"is no use: {error.args[0]}") from error
    if section.min_batch > section.max_batch:
        raise Problem(f"{where}.min_batch", f"is {section.min_batch}, more than max_batch, {section.max_batch}")
    if section.max_instances and section.max_instances < section.instances:
        least = f"is {section.max_instances}, less than instances; set it to {section.instances} or more"
        raise Problem(f"{where}.max_instances", least)
    every = {"options": section.options}
    every |= {f"variants[{n}].options": {**section.options, **one.options} for n, one in enumerate(section.variants)}
    for field, options in every.items():
        try:
            found.check_options(options)
        except ValueError as error:
            raise Problem(f"{where}.{field}", f"cannot be used: {error}") from error
    _check_compute_types(where, found.declare(section.options).compute_types, section)


def _check_compute_types(where: str, known: tuple[str, ...], section: StageSection) -> None:
    """Of the stage and of its variants: those are loaded only where room is short, which is too late for an error."""
    given = {"compute_type": section.compute_type}
    given |= {f"variants[{n}].compute_type": one.compute_type for n, one in enumerate(section.variants)}
    for field, value in given.items():
        if known and value and value not in known:
            raise Problem(f"{where}.{field}", f"is {value!r}; {_among(value, known)}")


def _check_models(name: str, section: StageSection) -> None:
    """That every model of a stage takes and gives the same, so that one can stand in another's place."""
    kind = stages.find(section.kind or name)
    own = kind.declare(section.options)
    for model, one in section.models.items():
        declared = kind.declare({**section.options, **one.options})
        if (declared.accepts, declared.emits, declared.translates) != (own.accepts, own.emits, own.translates):
            text = f"make it another stage than {name}: what it takes or gives differs"
            raise Problem(f"stages.{name}.models.{model}.options", text)


def _check_pipeline(name: str, members: tuple[str, ...], sections: Mapping[str, StageSection]) -> None:
    field = f"pipelines.{name}"
    if complaint := NAME.complaint(name):
        raise Problem(field, complaint)
    if not members:
        raise Problem(field, "is empty; name at least one stage")
    for member in members:
        if member not in sections:
            raise Problem(field, f"names stage {member!r}, which is not configured; {_among(member, sections)}")
        if members.count(member) > 1:
            raise Problem(field, f"names stage {member!r} twice; once is enough")
    flowing, before = "", ""
    for member in members:
        declaration = stages.find(sections[member].kind or member).declare(sections[member].options)
        if flowing and declaration.accepts != flowing:
            raise Problem(field, f"does not fit: {before} gives {flowing}, {member} takes {declaration.accepts}")
        flowing = declaration.accepts if declaration.emits == "same" else declaration.emits
        before = member


def _among(name: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    return f"{nearest(name, choices)}there {'is' if len(choices) == 1 else 'are'} {', '.join(choices) or 'none'}"


def words(type_: Any) -> str:
    """A field's type for people."""
    plain = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if said(type_) in plain:
        return plain[said(type_)]
    if type_ == tuple[str, ...]:
        return "a list of texts"
    if type_ == tuple[VariantSection, ...]:
        return "a list of tables"
    if type_ == dict[str, int]:
        return "a table of whole numbers"
    if type_ == dict[str, tuple[str, ...]]:
        return "a table of lists of texts"
    if type_ == dict[str, ModelSection]:
        return "a table of tables"
    return "a table"


def said(type_: Any) -> Any:
    """A field's type where it is given: without the None that stands for "as the stage says"."""
    kinds = [one for one in get_args(type_) if one is not type(None)]
    return kinds[0] if type(None) in get_args(type_) else type_
