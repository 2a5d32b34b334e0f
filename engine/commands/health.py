"""``health``: is the node serving? One line, and an exit code for scripts and health checks."""

from __future__ import annotations

import argparse

from engine.commands import FAILED, OK, asking, finding


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "health",
        help="is the node serving? (exit code)",
        description="Ask the running node whether it serves; for health checks.",
        epilog="examples:\n  run_node.py health && echo serving\n\nexit codes: 0 serving, 1 not (or no node)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--connect", metavar="CTL", help="the node's ctl endpoint (default: the running node's)")


def run(args: argparse.Namespace) -> int:
    endpoint = finding.ctl_endpoint(args.connect)
    answer = asking.ask(endpoint, "health")
    for name, stage in answer.get("stages", {}).items():
        if note := stage.get("note"):
            print(f"stage {name}: {note}")
    for note in answer.get("notes", []):
        print(note)
    if answer["ready"]:
        print(f"serving at {endpoint}")
        return OK
    print(f"not serving: {answer.get('reason') or answer.get('phase', 'it does not say why')} ({endpoint})")
    return FAILED
