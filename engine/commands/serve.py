"""``serve``: the node as a daemon in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
from typing import Any

from engine.commands import OK, choosing, patience


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "serve",
        help="run the node until it is told to stop",
        description='Run the node in the foreground. It prints its endpoints, mode and ring budget, then "ready".\n'
        "SIGTERM or the first Ctrl-C drains: new work is refused, work in flight ends; the second stops at once.\n"
        "Under systemd: Type=notify, KillMode=mixed.",
        epilog="examples:\n  run_node.py serve\n  run_node.py serve --config node.toml --env-file .env\n"
        "  DRAGOMAN_NODE_MODE=serial run_node.py serve\n  run_node.py serve --print-config\n"
        "\nexit codes: 0 stopped in order, 1 the node could not start or had to end, 78 configuration",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choosing.add_config(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration in force as TOML, and leave"
    )


def run(args: argparse.Namespace) -> int:
    config, words = choosing.config(args)
    if args.print_config:
        print(f"# {words}\n{choosing.as_toml(config)}", end="")
        return OK
    announce(words)
    from engine.supervisor.main import run as supervise

    with choosing.named(args), patience.waiting(patience.START) as over:

        def said(line: Any) -> None:
            over()
            announce(line)

        return int(supervise(config, foreground=True, announce=said))


def announce(line: Any) -> None:
    """Print a line at once: who waits for "ready" reads a pipe."""
    print(line, flush=True)
