"""Reading the configuration: a TOML file, then the environment over it, checked once.

Later wins: defaults (those of ``node.profile``), the file, the env file, the environment. The file is the one given,
else ``./node.toml``, else ``node.toml`` in the user's configuration folder; where there is none the caller decides what
to start from.
A stage's ``model`` that is a path is meant from the file's folder, not from where the node was started.

Everything a user can get wrong here is a ``ConfigError`` of one line: the file or variable, the field, what is wrong
with it, and the nearest value that would be right.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine import config_env, logs, profiles
from engine.config import Config, ModelSection, VariantSection
from engine.config_docs import render_env_sample, render_reference, render_sample
from engine.config_rules import Problem, check, check_complete
from engine.corrections_file import OFF
from ipc.errors import ConfigError
from stages.places import is_path

__all__ = ["find", "from_dict", "load", "render_env_sample", "render_reference", "render_sample", "with_origin"]

FILE = "node.toml"


def find(env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Path | None:
    """The file to read when none is named: ./node.toml, else the user's; None: there is none."""
    env = os.environ if env is None else env
    home = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or "/nonexistent") / ".config")
    places = ((cwd or Path.cwd()) / FILE, home / "dragoman" / FILE)
    return next((path for path in places if path.is_file()), None)


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    env_file: Path | None = None,
    *,
    base: Config | None = None,
) -> Config:
    """The configuration in ``path`` (None: ``base``, or the defaults) under ``env_file`` and ``env``. ConfigError."""
    tree = msgspec.to_builtins(base or Config()) if path is None else _read(path)
    sources: dict[str, str] = {}
    if env_file is not None:
        variables = config_env.read_file(env_file)
        if others := [name for name in variables if not name.startswith(config_env.PREFIX)]:
            logs.get().warning("%s: %s: not read, names begin with %s", env_file, ", ".join(others), config_env.PREFIX)
        sources |= config_env.apply(tree, variables, f"{env_file}:")
    sources |= config_env.apply(tree, os.environ if env is None else env, "environment variable")
    if path is None and "node.profile" in sources:  # the base has every field; which of them it means cannot be told
        profiles.forget(tree, sources)
    config = _checked(tree, str(path) if path else "configuration", sources, complete=path is not None)
    return config if path is None else _from_its_folder(config, path.parent)


def from_dict(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """A configuration given as plain values, as the file would hold them. ConfigError naming ``where``."""
    return _checked(tree, where, {}, complete=True)


def with_origin(
    error: ConfigError, path: Path | None, env: Mapping[str, str] | None = None, env_file: Path | None = None
) -> ConfigError:
    """An error found only beside the machine (a device, a model's files), with the variable or file it comes from."""
    field = error.text.partition(" ")[0].rstrip(":")
    name = config_env.variable(field)
    if field.startswith(config_env.PREFIX):  # it names a variable itself
        return error
    if name in (os.environ if env is None else env):
        return ConfigError(f"environment variable {name}: {error.text}", error.mend)
    if env_file is not None and name in config_env.read_file(env_file):
        return ConfigError(f"{env_file}: {name}: {error.text}", error.mend)
    return error if path is None else ConfigError(f"{path}: {error.text}", error.mend)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path} ({error.strerror})", "check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "node.toml.sample shows how it is written") from error


def _checked(tree: Mapping[str, Any], where: str, sources: Mapping[str, str], *, complete: bool) -> Config:
    try:
        config = check(profiles.fill(tree))
        if complete:
            check_complete(config)
    except Problem as problem:
        raise ConfigError(" ".join(f"{_origin(problem, sources) or where}: {problem}".split())) from problem
    return config


def _origin(problem: Problem, sources: Mapping[str, str]) -> str:
    """The variable that says what is wrong: the field, a table that has it, or the entry of it that is named; "":
    none."""
    parts = re.split(r"\.|\[", problem.field)
    for end in range(len(parts), 0, -1):
        if (field := ".".join(parts[:end])) in sources:
            return sources[field]
    blamed, _, _ = problem.text.partition(";")  # behind that stands what would be right
    entries = {field.rpartition(".")[2]: field for field in sources if field.startswith(f"{problem.field}.")}
    return next((sources[field] for name, field in entries.items() if re.search(rf"\b{re.escape(name)}\b", blamed)), "")


def _from_its_folder(config: Config, folder: Path) -> Config:
    """What is a path gets a whole one, there or not; hub names of models stay as they are."""

    def moved(model: str) -> str:
        return str((folder / Path(model).expanduser()).resolve()) if is_path(model, folder) else model

    def variants(given: tuple[VariantSection, ...]) -> tuple[VariantSection, ...]:
        return tuple(msgspec.structs.replace(one, model=moved(one.model)) for one in given)

    def models(given: Mapping[str, ModelSection]) -> dict[str, ModelSection]:
        return {
            name: msgspec.structs.replace(one, model=moved(one.model), variants=variants(one.variants))
            for name, one in given.items()
        }

    stages = {
        name: msgspec.structs.replace(
            section, model=moved(section.model), variants=variants(section.variants), models=models(section.models)
        )
        for name, section in config.stages.items()
    }
    kept = config.devices.estimates_file
    if kept not in ("", OFF):
        kept = str((folder / Path(kept).expanduser()).resolve())
    devices = msgspec.structs.replace(config.devices, estimates_file=kept)
    return msgspec.structs.replace(config, devices=devices, stages=stages)
