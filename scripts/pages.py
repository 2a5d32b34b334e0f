"""The pages that are made from the code: ``docs/states.md`` here, the configuration's papers by ``engine.config_docs``.

    python scripts/pages.py --write      make them anew (make docs)
    python scripts/pages.py --check      1 and the names of those that are old (make check)

A state machine is an Enum and a table ``{state: states it may move to}``; a state's meaning is the comment beside it.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MACHINES = (
    ("A stage of a job", "engine.scheduler.jobs", "MOVES"),
    ("A worker, as the scheduler sees it", "engine.scheduler.workers", "MOVES"),
    ("An utterance in the gateway's ledger", "engine.gateway.ledger", "MOVES"),
    ("A session and its client", "engine.gateway.sessions", "MOVES"),
    ("A lease", "engine.arbiter.lease", "MOVES"),
    ("A process", "engine.supervisor.roster", "MOVES"),
    ("The node", "engine.supervisor.lifecycle", "MOVES"),
    ("A session, in the client library", "engine.client_core", "MOVES"),
    ("An utterance, in the client library", "engine.client_utterance", "PLACES"),
)
HEAD = """\
# States

Generated from the code by `make docs`; do not edit. Each machine below is one Enum, one table of moves and one function
that applies them: a move that is not in the table raises `IllegalMove` and changes nothing.
"""
Table = Mapping[enum.Enum, frozenset[enum.Enum]]


def states_page() -> str:
    """All machines, each as a diagram and a table."""
    return "\n".join([HEAD, *(_section(*machine) for machine in MACHINES)])


def _section(title: str, module_name: str, table_name: str) -> str:
    module = importlib.import_module(module_name)
    table: Table = getattr(module, table_name)
    kind = type(next(iter(table)))
    lines = [f"## {title}", "", f"`{module_name}.{kind.__name__}`", "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    {move}" for move in _moves(table)]
    lines += ["```", "", *_table(table, _meanings(kind)), ""]
    return "\n".join(lines)


def _table(table: Table, meanings: Mapping[str, str]) -> Iterator[str]:
    columns = ["state", *(["meaning"] if meanings else []), "may become"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for state in table:
        after = ", ".join(f"`{_name(other)}`" for other in _in_order(table, state)) or "(end)"
        cells = [f"`{_name(state)}`", *([meanings.get(state.name, "")] if meanings else []), after]
        yield f"| {' | '.join(cells)} |"


def _moves(table: Table) -> Iterator[str]:
    yield f"[*] --> {_name(next(iter(table)))}"
    for state in table:
        for other in _in_order(table, state):
            yield f"{_name(state)} --> {_name(other)}"
        if not table[state]:
            yield f"{_name(state)} --> [*]"


def _in_order(table: Table, state: enum.Enum) -> list[enum.Enum]:
    """Where a state may go, in the order the Enum names them (a set has none)."""
    return [other for other in type(state) if other in table[state]]


def _name(state: enum.Enum) -> str:
    return state.name.lower()


def _meanings(kind: type[enum.Enum]) -> dict[str, str]:
    """Member -> the comment on its line."""
    found = re.findall(r"^\s+(\w+) = .*?# (.+)$", inspect.getsource(kind), re.MULTILINE)
    return {name: text.replace("|", "\\|") for name, text in found}


def pages() -> dict[str, str]:
    """Path in the repository -> what it should hold."""
    from engine import config_docs

    made = {name: getattr(config_docs, renderer)() for name, renderer in config_docs.FILES.items()}
    return {**made, "docs/states.md": states_page()}


def main(argv: list[str]) -> int:
    if argv not in (["--write"], ["--check"]):
        print("usage: scripts/pages.py --write | --check", file=sys.stderr)
        return 2
    old = [name for name, text in pages().items() if not _holds(ROOT / name, text)]
    if argv == ["--check"] and old:
        print(f"out of date: {', '.join(old)}; run: make docs", file=sys.stderr)
        return 1
    for name in old:
        (ROOT / name).write_text(pages()[name], encoding="utf-8")
        print(f"wrote {name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
