"""Writing what ``bench tune`` found: the configuration file with a few numbers changed, and nothing else.

The file is edited line by line, so that its order, its blanks and its comments stay. What comes out is read again and
compared with what was meant; a file that is written in a way these few rules do not know is left alone, and its user
is told what to set.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from engine.config_env import variable
from ipc.errors import DragomanError

Number = int | float


def edited(text: str, changes: Mapping[str, Number]) -> str:
    """A TOML file's text with these dotted fields set. Raises DragomanError when it cannot be done."""
    lines = text.splitlines()
    for field, number in changes.items():
        table, _, key = field.rpartition(".")
        _set(lines, table, key, number)
    made = "\n".join(lines) + "\n"
    meant = _with(tomllib.loads(text), changes)
    try:
        if tomllib.loads(made) == meant:
            return made
    except tomllib.TOMLDecodeError:
        pass  # said below
    listed = ", ".join(f"{field} = {number}" for field, number in changes.items())
    raise DragomanError("this configuration file cannot be changed line by line", f"set in it: {listed}")


def env_file(changes: Mapping[str, Number]) -> str:
    """The same as lines for ``--env-file``, where there is no file to change."""
    return "".join(f"{variable(field)}={number}\n" for field, number in changes.items())


def _set(lines: list[str], table: str, key: str, number: Number) -> None:
    begin, end = _table(lines, table)
    if begin is None:
        lines += ["", f"[{table}]", f"{key} = {number}"]
        return
    for at in range(begin, end):
        if found := re.fullmatch(rf"(\s*{re.escape(key)}\s*=\s*)[^#]*?(\s*(#.*)?)", lines[at]):
            lines[at] = f"{found[1]}{number}{found[2]}"
            return
    for at in range(begin, end):  # a default that the sample shows
        if found := re.fullmatch(rf"#\s*({re.escape(key)}\s*=\s*)[-+.\w]+(\s*(#.*)?)", lines[at]):
            lines[at] = f"{found[1]}{number}{found[2]}"
            return
    lines.insert(begin, f"{key} = {number}")


def _table(lines: list[str], name: str) -> tuple[int | None, int]:
    """Where a table's lines begin and end; None: there is no such table."""
    begin = None
    for at, line in enumerate(lines):
        if not line.lstrip().startswith("["):
            continue
        if begin is not None:
            return begin, at
        if re.fullmatch(rf"\s*\[\s*{re.escape(name)}\s*\]\s*(#.*)?", line):
            begin = at + 1
    return begin, len(lines)


def _with(tree: dict[str, Any], changes: Mapping[str, Number]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for field, number in changes.items():
        *path, last = field.split(".")
        table = tree
        for name in path:
            table = table.setdefault(name, {})
        table[last] = number
    return tree
