"""The command line of a benchmark: how it is called, how it ends, and what is said when it is cut short."""

from __future__ import annotations

import argparse
import sys
import textwrap

WIDTH = 120
STRICT = "done (goals for times count with --strict only)"  # of a benchmark that has that option
LENIENT = "done (goals for times may be missed)"


class CutShort(KeyboardInterrupt):
    """Ctrl-C, and what there is to say about it has been said."""


def cut_short(what: str) -> CutShort:
    """To be raised after Ctrl-C: says on standard error what becomes of what was measured until then."""
    print(f"cut short: {what}", file=sys.stderr)
    return CutShort()


def parser(
    name: str,
    about: str | None,
    *,
    done: str,
    wrong: str,
    cut: str = "nothing is reported",
    epilog: str = "",
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """A parser whose help ends with the exit codes. ``done``, ``wrong``, ``cut``: what 0, 1 and 130 mean."""
    codes = textwrap.fill(f"exit codes: 0 {done}, 1 {wrong}, 2 usage, 130 Ctrl-C ({cut})", WIDTH)
    return kind(
        prog=f"run_node.py bench {name}",
        description=about,
        epilog="\n\n".join(filter(None, [epilog, codes])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
