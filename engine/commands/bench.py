"""``bench NAME``: run a benchmark. Each is a module of the ``bench`` package with ``main(argv)``."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import textwrap
from pathlib import Path

from ipc.errors import DragomanError

COLUMNS = 80


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure this machine",
        description="Run a benchmark; without a name, list them. Everything after the name goes to the benchmark.",
        epilog="examples:\n  run_node.py bench pipeline\n  run_node.py bench hop --json\n"
        "\nexit codes: 0 done, 1 something was wrong (goals for times do not count), 2 usage, 130 Ctrl-C",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="which benchmark")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own arguments: --help tells which")


def run(args: argparse.Namespace) -> int:
    names = benchmarks()
    if args.name is None:
        print("\n".join(_listed(*one) for one in names.items()) or "no benchmarks are installed")
        return 0
    if args.name not in names:
        from engine.commands.inputs import UsageError

        raise UsageError(f"there is no benchmark {args.name!r}", f"use one of: {', '.join(names) or 'none installed'}")
    from bench.command import CutShort, cut_short

    try:
        return int(importlib.import_module(f"bench.{args.name}").main(args.rest) or 0)
    except CutShort:
        raise
    except KeyboardInterrupt:
        raise cut_short("nothing is reported") from None


def _listed(name: str, theory: str) -> str:
    text = theory.removeprefix(f"bench {name}: ")
    return textwrap.fill(text, COLUMNS, initial_indent=f"{name:11}", subsequent_indent=" " * 11)


def benchmarks() -> dict[str, str]:
    """Name -> first line of its docstring, for every module of ``bench`` that is one; none is imported."""
    spec = importlib.util.find_spec("bench")
    if spec is None or not spec.submodule_search_locations:
        raise DragomanError("the benchmarks are not installed here", "run this in a clone of the repository")
    found = {}
    for file in sorted(Path(next(iter(spec.submodule_search_locations))).glob("[a-z]*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        theory = (ast.get_docstring(tree) or "").split("\n")[0]
        if theory.startswith(f"bench {file.stem}: "):
            found[file.stem] = theory
    return found
