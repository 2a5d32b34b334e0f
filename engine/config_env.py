"""The environment's half of the configuration: ``DRAGOMAN_<SECTION>_<FIELD>``, and files of such lines.

Names are those of the file, in capitals, with ``_`` for ``.`` and ``-``::

    DRAGOMAN_NODE_MODE=serial                    node.mode
    DRAGOMAN_STAGES_ASR_MAX_BATCH=4              stages.asr.max_batch
    DRAGOMAN_STAGES_ASR_OPTIONS_BEAM_SIZE=2      stages.asr.options.beam_size
    DRAGOMAN_STAGES_TTS_MODELS_DE_MODEL=voice    stages.tts.models.de.model
    DRAGOMAN_PIPELINES_FULL=asr,nmt,tts          pipelines.full
    DRAGOMAN_DEVICES_MAX_BYTES=cuda:0=8589934592 devices.max_bytes

A value is read by its field's type: lists as ``a,b``, tables as ``name=value,name=value``. A name in one of the node's
sections that is no field is an error; other ``DRAGOMAN_`` names are left alone unless they look like a slip.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine import logs
from engine.config import Config, ModelSection, StageSection, VariantSection
from engine.config_rules import Problem, nearest, said, words
from ipc.errors import ConfigError

PREFIX = "DRAGOMAN_"
LEASE_BYTES = "DRAGOMAN_LEASE_BYTES"  # tells a program that was started under a lease how much it may use
# Not configuration: a process's mark, a test's hooks, a lease, and what docs/examples/plain_lease.py finds a node by.
OTHERS = frozenset({"DRAGOMAN_NODE", "DRAGOMAN_TEST_HOOKS", LEASE_BYTES, "DRAGOMAN_FOLDER"})
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
TABLES = {"PIPELINES": tuple[str, ...], "RINGS": int}  # sections whose fields have free names


def variable(field: str) -> str:
    """Name of the variable that sets a dotted field."""
    return PREFIX + field.upper().replace(".", "_").replace("-", "_")


def apply(tree: dict[str, Any], variables: Mapping[str, str], origin: str) -> dict[str, str]:
    """Put what ``variables`` say into ``tree``. Returns dotted field -> where its value comes from, for messages.

    Raises ConfigError naming the variable.
    """
    sources = {}
    for name, text in sorted(variables.items()):
        if not name.startswith(PREFIX) or name in OTHERS:
            continue
        try:
            found = _locate(name.removeprefix(PREFIX), tree)
            if found is None:
                logs.get().warning("%s %s sets nothing; the nearest name is %s", origin, name, nearest_name(name, tree))
                continue
            path, type_ = found
            _put(tree, path, parse(text, type_))
        except Problem as problem:
            raise ConfigError(f"{origin} {name} {problem.text}") from problem
        sources[".".join(path)] = f"{origin} {name}"
    return sources


def nearest_name(name: str, tree: Mapping[str, Any]) -> str:
    """The variable whose name is most like this one."""
    sections = {field.name: field.type for field in msgspec.structs.fields(Config) if _is_struct(field.type)}
    sections |= {f"stages.{stage}": StageSection for stage in tree.get("stages", {})}
    fields = [f"{section}.{field}" for section, type_ in sections.items() for field in type_.__struct_fields__]
    known = [variable(field) for field in ("languages", *fields)]
    return difflib.get_close_matches(name, known, n=1, cutoff=0)[0]


def _locate(rest: str, tree: Mapping[str, Any]) -> tuple[tuple[str, ...], Any] | None:
    """Path and type of the field a variable means (``rest``: its name without the prefix); None: not ours."""
    section, _, field = rest.partition("_")
    sections = {one.name.upper(): one for one in msgspec.structs.fields(Config)}
    if section not in sections:
        close = difflib.get_close_matches(section, sections, n=1, cutoff=0.75)
        if close:
            raise Problem(rest, f"names no section of the configuration; did you mean {PREFIX}{close[0]}_...?")
        return None
    if section == "STAGES":
        return _locate_stage(field, tree)
    if section in TABLES and field:
        names = {_capitals(name): name for name in tree.get(section.lower(), {})}
        return (section.lower(), names.get(field, field.lower())), TABLES[section]
    if not field:
        return (section.lower(),), sections[section].type
    return (section.lower(), *_field(field, sections[section].type))[:2], _type(field, sections[section].type)


def _locate_stage(rest: str, tree: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    stages = tree.get("stages", {})
    if (named := _named(rest, stages)) is None:
        raise Problem("stages", f"names a stage that is not configured; there are {', '.join(stages) or 'none'}")
    stage, field = named
    struct: type[msgspec.Struct] = StageSection
    path: tuple[str, ...] = ("stages", stage)
    if field.startswith("MODELS_"):
        models = stages[stage].get("models", {})
        if (named := _named(field.removeprefix("MODELS_"), models)) is None:
            there = ", ".join(models) or "none"
            raise Problem("stages", f"names a model that stage {stage} does not have; there are {there}")
        model, field = named
        struct, path = ModelSection, (*path, "models", model)
    if field.startswith("OPTIONS_"):
        return (*path, "options", field.removeprefix("OPTIONS_").lower()), Any
    return (*path, *_field(field, struct)), _type(field, struct)


def _named(rest: str, names: Iterable[str]) -> tuple[str, str] | None:
    """The longest of these names that a variable's name begins with, and what follows it; None: there is none."""
    for name in sorted(names, key=len, reverse=True):
        if rest.startswith(_capitals(name) + "_"):
            return name, rest.removeprefix(_capitals(name) + "_")
    return None


def _field(name: str, struct: Any) -> tuple[str]:
    _type(name, struct)
    return (name.lower(),)


def _type(name: str, struct: Any) -> Any:
    known = {field.name.upper(): field.type for field in msgspec.structs.fields(struct)} if _is_struct(struct) else {}
    if name not in known:
        raise Problem(name, f"names no field; {nearest(name, known)}there are {', '.join(known) or 'none'}")
    return known[name]


def _is_struct(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _capitals(name: str) -> str:
    return name.upper().replace("-", "_")


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


# ---------------------------------------------------------------- values


def parse(text: str, type_: Any) -> Any:
    """A variable's text as its field's type. Raises Problem."""
    type_ = said(type_)
    try:
        if type_ is Any:
            return _guess(text)
        if type_ is bool:
            return _switch(text)
        if type_ in (int, float):
            return type_(text.strip())
        if type_ == tuple[str, ...]:
            return [part.strip() for part in text.split(",") if part.strip()]
        if type_ == dict[str, int]:
            return dict(_counts(text))
        if type_ == tuple[VariantSection, ...]:
            return _guess(text) if text.strip() else []
        if type_ == dict[str, ModelSection]:
            return _guess(text) if text.strip() else {}
        if type_ is str:
            return text
    except ValueError:
        form = " (name=value,name=value)" if type_ == dict[str, int] else ""
        raise Problem("", f"is {text!r}; it must be {words(type_)}{form}") from None
    raise Problem("", "cannot be set here; write it into the configuration file")


def _switch(text: str) -> bool:
    if text.strip().lower() not in TRUE + FALSE:
        raise ValueError(text)
    return text.strip().lower() in TRUE


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        if part.strip():
            name, equals, value = part.strip().rpartition("=")
            if not equals:
                raise ValueError(part)
            yield name, value


def _counts(text: str) -> Iterator[tuple[str, int]]:
    for name, value in _pairs(text):
        try:
            yield name, int(value)
        except ValueError:
            raise Problem("", f"has {name}={value}; {value!r} must be a whole number") from None


def _guess(text: str) -> Any:
    """A stage's own option: a TOML value if it is one (4, 0.5, true, "x", [1]), else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


# ---------------------------------------------------------------- files


def read_file(path: Path) -> dict[str, str]:
    """Variables of an env file: ``NAME=value`` lines, ``#`` comments, quotes and ``export`` allowed. ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the env file {path} ({_why(error)})", "check --env-file") from error
    variables = {}
    for number, line in enumerate(lines, 1):
        line = line.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"{path} line {number}: {line!r} is not NAME=value", "mend or remove the line")
        variables[name.strip()] = _unquoted(value.strip())
    return variables


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return "" if value.startswith("#") else value.partition(" #")[0].rstrip()


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
