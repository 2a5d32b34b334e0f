"""``explain``: why does this wait? Each request for memory that waits, with the numbers that decide over it; and each
stage that has work and no model, where that waits for something else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from engine import held_up
from engine.commands import OK, asking, finding
from engine.commands.tables import nbytes
from ipc.errors import DragomanError

EPILOG = """examples:
  run_node.py explain
  run_node.py explain repair --json

exit codes: 0 shown (also that nothing waits), 1 no node answered, or it has nobody of that name"""


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "explain",
        help="why does a model or a program wait for memory?",
        description="Every request for memory that waits, who is before it, and the figures that it waits for;\n"
        "and what a stage without a model waits for, where that is no memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("who", nargs="?", default="", help="only workers and programs whose name begins so")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    parser.add_argument("--connect", metavar="CTL", help="the node's ctl endpoint (default: the running node's)")


def run(args: argparse.Namespace) -> int:
    stats = asking.ask(finding.ctl_endpoint(args.connect), "stats")
    arbiter: Mapping[str, Any] = stats.get("arbiter") or {}
    waiting = arbiter.get("waiting", [])
    turns = {role: one.get("turn", "") for role, one in (stats.get("scheduler") or {}).get("workers", {}).items()}
    waiting = [{**row, "turn": turns.get(row["worker"].rpartition("#")[0], "")} for row in waiting]
    rows = [row for row in waiting if args.who in ("", row["model"]) or row["worker"].startswith(args.who)]
    workers = sorted((stats.get("scheduler") or {}).get("workers", {}).items())
    later = [later_row(role, one) for role, one in workers if is_later(one) and role.startswith(args.who)]
    asking_now = {row["worker"].partition("@")[0] for row in (*waiting, *later)}
    stages = [row for row in held_stages(stats, asking_now) if row["stage"].startswith(args.who.partition("@")[0])]
    more = arbiter.get("waiting_total", 0) - len(waiting)
    if args.who and not more and not any(name.startswith(args.who) for name in names(stats)):
        raise DragomanError(f"no worker and no program here is called {args.who!r}", "look at: run_node.py stats")
    if args.json:
        print(json.dumps(rows + later + stages, ensure_ascii=False, indent=2))
        return OK
    said = [*map(sentence, rows), *map(later_sentence, later), *map(stage_sentence, stages)]
    print("\n\n".join(said) or f"nothing{' of that name' if args.who else ''} waits for memory")
    if more > 0:
        print(f"\n{more} more wait behind these")
    held = {row["stage"] for row in stages}
    for role, worker in workers:
        parked = worker.get("waiting_for", "").startswith("parked") and role.partition("@")[0] not in held
        if parked and role.startswith(args.who):
            print(f"\n{role} does not wait: {worker['waiting_for']}")
    return OK


def names(stats: Mapping[str, Any]) -> Iterator[str]:
    """What may be asked for: stages, their workers, and programs that wait or hold a lease, by both of their names."""
    scheduler, arbiter = stats.get("scheduler") or {}, stats.get("arbiter") or {}
    yield from (*scheduler.get("workers", {}), *scheduler.get("stages", {}))
    for row in (*arbiter.get("waiting", []), *arbiter.get("leases", []), *stats.get("leases", [])):
        yield from (row["worker"], row["model"])


def is_later(worker: Mapping[str, Any]) -> bool:
    """Whether it was refused, and asks again after a while: it is in no line until then."""
    return worker.get("again_in_s") is not None


def later_row(role: str, worker: Mapping[str, Any]) -> dict[str, Any]:
    return {"worker": role, "kind": "later", "reason": worker["waiting_for"], "again_in_s": worker["again_in_s"]}


def later_sentence(row: Mapping[str, Any]) -> str:
    return f"{row['worker']} was refused and asks again in {row['again_in_s']:.1f} s\n  because: {row['reason']}"


def held_stages(stats: Mapping[str, Any], asking: Collection[str]) -> Iterator[dict[str, Any]]:
    """Stages that have work and no model, for another reason than memory that their workers ask for (``asking``)."""
    for name, stage in held_up.stages(stats):
        reason = stage.get("coming") or stage.get("why") or ""
        if reason and name not in asking:
            yield {"stage": name, "kind": "stage", "waiting": stage["waiting"], "reason": reason}


def stage_sentence(row: Mapping[str, Any]) -> str:
    count = f"{row['waiting']} utterance{'s' if row['waiting'] != 1 else ''}"
    return f"stage {row['stage']} waits with {count}: {held_up.mended(row['reason'])}"


def sentence(row: Mapping[str, Any]) -> str:
    """One request: who, for how long, for what, and the formula with its numbers."""
    who = row["worker"].rpartition("#")[0] + (f" ({row['model']})" if row.get("model") else "")
    patience = f"gives up in {row['patience_s']:.0f} s" if row["patience_s"] > 0 else "gives up now"
    if row["kind"] == "turn":
        patience = "its patience does not run meanwhile"
    lines = [
        f"{who} has waited {row['waited_s']:.1f} s on {row['device']} "
        f"({row['priority']} priority, {row['ahead']} before it; {patience})",
        f"  because: {row['reason'] or 'the figures are being read'}",
        f"  needs {nbytes(row['needs_bytes'])}, {nbytes(row['room_bytes'])} can be granted = the smaller of",
        f"    free {nbytes(row['free_bytes'])} - promised {nbytes(row['promised_bytes'])}",
        f"    usable {nbytes(row['usable_bytes'])} - held {nbytes(row['held_bytes'])} - promised "
        f"{nbytes(row['promised_bytes'])} - other programs {nbytes(row['foreign_bytes'])}",
        f"    less a margin of {nbytes(row['margin_bytes'])}",
    ]
    if row["turn"]:
        lines.append(f"  {row['turn']}")
    if row["coming_back_bytes"]:
        lines.append(f"  {nbytes(row['coming_back_bytes'])} of the dead are not shown back yet")
    if row["leaving"]:
        lines.append(f"  asked to leave: {', '.join(row['leaving'])}")
    return "\n".join(lines)
