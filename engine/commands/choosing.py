"""Which configuration: the file given, else ``./node.toml``, else the user's, else the embedded models.

``config(args)`` gives it with the line that says which one it is. Verbs that take one call ``add_config``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config
from ipc.errors import ConfigError


def add_config(parser: argparse.ArgumentParser, note: str = "") -> None:
    """The options that choose a configuration. ``note``: what giving one means for this command."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"configuration file{note} (default: ./node.toml, the user's, embedded)"
    )
    parser.add_argument(
        "--env-file", metavar="FILE", help="file of DRAGOMAN_... variables; the environment goes before it"
    )


def config(args: argparse.Namespace) -> tuple[Config, str]:
    """The configuration in force and the line that names it. Raises ConfigError or DragomanError."""
    from engine import config_file, embedded

    path, env_file = _files(args)
    if path is not None:
        return config_file.load(path, os.environ, env_file), f"configuration: {path}"
    loaded = config_file.load(None, os.environ, env_file, base=embedded.config())
    embedded.check(loaded)
    return loaded, embedded.SAYING


@contextmanager
def named(args: argparse.Namespace) -> Iterator[None]:
    """What turns out to be wrong with the configuration in here is told with the file or variable it comes from."""
    from engine import config_file

    try:
        yield
    except ConfigError as error:
        path, env_file = _files(args)
        raise config_file.with_origin(error, path, os.environ, env_file) from error


def _files(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """(configuration file, env file) to read."""
    from engine import config_file

    env_file = Path(args.env_file) if args.env_file else None
    return Path(args.config) if args.config else config_file.find(), env_file


def as_toml(config: Config, clean: Callable[[Any], Any] = lambda tree: tree) -> str:
    """A configuration as TOML that ``--config`` reads back. ``clean``: what its plain values go through before."""
    tree = clean(msgspec.to_builtins(config))
    plain = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    lines = _pairs(plain)
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += _section(name, section)
    return "\n".join(lines) + "\n"


def _section(name: str, section: Mapping[str, Any]) -> list[str]:
    """A table: its own values, then its tables of tables ([stages.asr], [stages.asr.options])."""
    nested = {key: value for key, value in section.items() if isinstance(value, dict) and value}
    lines = ["", f"[{name}]", *_pairs({k: v for k, v in section.items() if not isinstance(v, dict)})]
    if len(lines) == 2 and nested:
        lines = []
    for key, value in nested.items():
        lines += _section(f"{name}.{_key(key)}", value)
    return lines


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None]


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else json.dumps(key)


def _value(value: Any) -> str:
    """TOML's scalars and arrays are JSON's, but for tables inside arrays."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
