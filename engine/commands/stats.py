"""``stats``: what a running node is doing, as a page of tables or as the whole document in JSON.

What matters first comes first: a terminal that is watched shows as much of the page as it has lines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.arbiter.lease import EXTERNAL
from engine.commands import asking, finding
from engine.commands.tables import fit, nbytes, remark, table, width

WATCH_S = 1.0
JOBS_SHOWN = 20
WAITING_SHOWN = 10
SHORT = 24  # columns of a reason that stays in its table; a longer one is a remark below


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "stats",
        help="what a running node is doing",
        description="Totals, devices, stages, jobs in flight, leases and processes of the running node.",
        epilog="examples:\n  run_node.py stats\n  run_node.py stats --json | jq .active\n  run_node.py stats --watch\n"
        "\nexit codes: 0 shown, 1 no node answered",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the whole document as one JSON object")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    parser.add_argument("--connect", metavar="CTL", help="the node's ctl endpoint (default: the running node's)")


Remarks = dict[str, list[str]]  # text -> of whom it is said


class Table(NamedTuple):
    """``remarks``: lines below it, of what is too long for a column."""

    title: str
    head: list[str]
    rows: list[list[Any]]
    remarks: Sequence[str] = ()


def run(args: argparse.Namespace) -> int:
    endpoint = finding.ctl_endpoint(args.connect)
    pause = threading.Event()
    while True:
        stats = asking.ask(endpoint, "stats")
        print(_json(stats, args.watch) if args.json else _screen(page(stats, endpoint), args.watch), flush=True)
        if not args.watch:
            return 0
        pause.wait(WATCH_S)


def page(stats: Mapping[str, Any], endpoint: str) -> str:
    """The document as text."""
    notes = (stats.get("health") or {}).get("notes", [])
    parts = [_head(stats, endpoint), _totals(stats) + _orders(stats), *notes]
    tables = (
        _stages(stats), _devices(stats), _waiting(stats), _jobs(stats), _instances(stats), _leases(stats),
        _processes(stats), _estimates(stats), _placement(stats),
    )  # fmt: skip
    for title, head, rows, remarks in tables:
        if rows or remarks:
            parts.append("\n".join([title, *([table(head, rows)] if rows else ()), *map(remark, remarks)]))
    return "\n\n".join(parts)


def _head(stats: Mapping[str, Any], endpoint: str) -> str:
    reason = f" ({stats['mode_reason']})" if stats.get("mode_reason") else ""
    mode, gpus = stats.get("mode", "?"), stats.get("gpu_count", 0)
    node, pid = stats.get("node", "?"), stats.get("pid", "?")
    return f"node {node} at {endpoint}, supervisor's pid {pid}\nmode {mode}{reason}, {gpus} GPUs"


def _totals(stats: Mapping[str, Any]) -> str:
    usage = stats.get("queue_usage")
    first = f"active {stats.get('active', 0)} and queued {stats.get('queued', 0)}"
    first += f" of {stats.get('max_concurrent', 0)} taken in at most"
    if isinstance(usage, (int, float)):
        first += f" ({usage:.0%})"
    rate = stats.get("success_rate")
    second = ", ".join(f"{name} {stats.get(name, 0)}" for name in ("total", "failed", "rejected", "oom_errors"))
    second += f", success rate {rate:.1%}" if isinstance(rate, (int, float)) else ""
    return "\n".join(filter(None, [first, second, (stats.get("scheduler") or {}).get("bottleneck")]))


def _orders(stats: Mapping[str, Any]) -> str:
    """What operators have ordered and still holds, one line each."""
    orders = stats.get("operators") or {}
    lines = [f"drained: {', '.join(orders['drained'])}"] if orders.get("drained") else []
    if knobs := orders.get("knobs"):
        lines += ["set by operators: " + ", ".join(f"{name}={json.dumps(value)}" for name, value in knobs.items())]
    if unloaded := orders.get("unloaded"):
        lines += [f"unloaded until there is work for them: {', '.join(unloaded)}"]
    if pending := orders.get("pending"):
        lines += [f"on their way by an operator's order: {', '.join(pending)}"]
    return "".join(f"\n{line}" for line in lines)


def _stages(stats: Mapping[str, Any]) -> Table:
    head = [
        "stage", "health", "at once", "busy", "waiting", "running", "done", "failed",
        "wait ms", "99 % wait", "work ms",
    ]  # fmt: skip
    report = stats.get("scheduler") or {}
    concurrency = report.get("concurrency") or {}
    health = (stats.get("health") or {}).get("stages") or {}
    busy, steps = report.get("utilisation") or {}, report.get("histogram_ms") or []
    remarks: Remarks = {}
    rows = [
        [
            name, _health(name, health.get(name) or {}, remarks), concurrency.get(name),
            f"{busy[name]:.0%}" if name in busy else None,
            *map(stage.get, ("waiting", "running", "done", "failed", "avg_waiting_ms")),
            _below(stage.get("waiting_histogram") or [], steps), stage.get("avg_processing_ms"),
        ]
        for name, stage in (report.get("stages") or {}).items()
    ]  # fmt: skip
    return Table("Stages", head, rows, _lines(remarks))


def _short(who: str, text: str, instead: str, remarks: Remarks) -> str:
    """A text for a cell; a long one goes to the remarks."""
    if width(text) <= SHORT:
        return text
    remarks.setdefault(text, []).append(who)
    return instead


def _lines(remarks: Remarks) -> list[str]:
    return [f"* {', '.join(who)}: {text}" for text, who in remarks.items()]


def _below(counts: Sequence[int], steps: Sequence[int], share: float = 0.99) -> str | None:
    """The least step, in ms, below which so many lie."""
    so_far, wanted = 0, share * sum(counts)
    for count, step in zip(counts, steps, strict=False):
        so_far += count
        if so_far >= wanted > 0:
            return f"≤ {step:g}"
    return f"> {steps[-1]:g}" if wanted and steps else None


def _instances(stats: Mapping[str, Any]) -> Table:
    """Of stages that may have more workers than for certain."""
    remarks: Remarks = {}
    rows = [
        [name, device, *map(row.get, ("running", "min", "max")),
         _short(f"{name} on {device}", row.get("why") or "", "*", remarks)]
        for name, stage in ((stats.get("scheduler") or {}).get("stages") or {}).items()
        for device, row in (stage.get("instances") or {}).items()
        if row.get("max", 0) > row.get("min", 0) > 0
    ]  # fmt: skip
    return Table("Workers", ["stage", "device", "running", "least", "most", "last change"], rows, _lines(remarks))


def _health(stage: str, row: Mapping[str, Any], remarks: Remarks) -> str:
    reason, note = row.get("reason"), row.get("note")
    text = "; ".join(filter(None, [reason, note])) if reason else ", ".join(filter(None, ["ok", note]))
    return _short(stage, text, "not well *" if reason else "ok *", remarks)


def _devices(stats: Mapping[str, Any]) -> Table:
    memory = (stats.get("arbiter") or {}).get("devices") or {}
    work = {d["device"]: d for d in stats.get("per_gpu") or []}
    unreadable = (stats.get("health") or {}).get("unreadable") or []
    rows = [[name, "quarantined"] + [None] * 7 for name in stats.get("quarantined") or {} if name not in memory]
    for name in [*memory, *(n for n in work if n not in memory)]:
        m, w = memory.get(name, {}), work.get(name, {})
        if name in unreadable:
            m = {**m, "memory_source": "unreadable", "grantable_bytes": 0}
        sizes = [nbytes(m.get(field)) for field in ("total_bytes", "free_bytes", "grantable_bytes")]
        figures = [w.get(field) for field in ("requests", "avg_time_s", "request_queue", "response_queue")]
        state = "quarantined" if m.get("quarantined") else m.get("memory_source")
        rows.append([name, state, *sizes, *figures])
    head = ["device", "state", "memory", "free", "grantable", "requests", "avg s", "queue", "response queue"]
    return Table("Devices", head, rows)


def _placement(stats: Mapping[str, Any]) -> Table:
    placed = stats.get("placement") or {}
    rows = [[one["stage"], one["device"], one["name"], nbytes(one["nbytes"])] for one in placed.get("places") or []]
    said = [placed["text"]] if placed.get("text") else []
    return Table("Placement, as planned at the start", ["stage", "device", "variant", "needs"], rows, said)


def _jobs(stats: Mapping[str, Any]) -> Table:
    jobs = stats.get("jobs") or []
    rows = [
        [j["session"], j["index"], " ".join(f"{stage}:{state}" for stage, state in j["stages"].items())]
        for j in jobs[:JOBS_SHOWN]
    ]
    return Table(f"Jobs in flight ({len(jobs)}; the first {len(rows)})", ["session", "index", "stages"], rows)


def _waiting(stats: Mapping[str, Any]) -> Table:
    """Requests for memory that wait, first those that have come first on each device."""
    arbiter = stats.get("arbiter") or {}
    waiting = arbiter.get("waiting") or []
    remarks: Remarks = {}
    rows = [
        [holder(x).partition("#")[0], x.get("device"), nbytes(x.get("needs_bytes")),
         nbytes(x.get("room_bytes")), x.get("waited_s"),
         _short(holder(x).partition("#")[0], x.get("reason") or "", "*", remarks)]
        for x in waiting[:WAITING_SHOWN]
    ]  # fmt: skip
    total = max(arbiter.get("waiting_total", 0), len(waiting))
    title = f"Waiting for memory ({total}; the first {len(rows)}; run_node.py explain tells more)"
    return Table(title, ["who", "device", "needs", "can have", "for s", "because"], rows, _lines(remarks))


def _leases(stats: Mapping[str, Any]) -> Table:
    rows = [[x.get("lease"), holder(x), x.get("device"), nbytes(x.get("nbytes")), _lease_state(x),
             nbytes(x.get("held_bytes"))]
            for x in stats.get("leases") or []]  # fmt: skip
    return Table("Leases", ["lease", "holder", "device", "granted", "state", "holds"], rows)


def holder(row: Mapping[str, Any]) -> str:
    """Who has, or wants, a lease: the worker and which of its lives, or the program by the name that it gave."""
    if not row["worker"].startswith(EXTERNAL):
        return str(row["worker"])
    pid = row["worker"].removeprefix(EXTERNAL).partition("/")[0]
    return f"{row.get('model') or 'a program'} (pid {pid})"


def _lease_state(row: Mapping[str, Any]) -> str:
    if row.get("overdue"):
        return "overdue: it was asked to leave"
    if row.get("asked_to_leave"):
        return "asked to leave"
    return f"{row.get('state')}{', may be asked to leave' if row.get('preemptible') else ''}"


def _estimates(stats: Mapping[str, Any]) -> Table:
    rows = [[x.get("worker"), nbytes(x.get("estimate_bytes")), source(x),
             nbytes(x["last_measured_bytes"]) if x.get("last_measured_bytes", -1) >= 0 else None]
            for x in stats.get("estimates") or []]  # fmt: skip
    return Table("Estimates", ["worker", "asks for", "from", "last measured"], rows)


def source(row: Mapping[str, Any]) -> str:
    """Where an estimate comes from, in words."""
    times = row.get("times", 0)
    often = f"{times} time{'s' if times != 1 else ''}"
    if row.get("source") == "measured":
        return f"measured {often}"
    return f"{row.get('source')}, measured {often} since" if times else str(row.get("source"))


def _processes(stats: Mapping[str, Any]) -> Table:
    rows = [[p.get("role"), p.get("incarnation"), p.get("pid"), p.get("phase"), p.get("age_ms")]
            for p in stats.get("processes") or []]  # fmt: skip
    return Table("Processes", ["process", "life", "pid", "phase", "heard ms ago"], rows)


def _json(stats: Mapping[str, Any], one_line: bool) -> str:
    return json.dumps(stats, ensure_ascii=False, indent=None if one_line else 2, default=str)


def _screen(text: str, watch: bool) -> str:
    if not (watch and sys.stdout.isatty()):
        return text
    terminal = shutil.get_terminal_size()
    room = terminal.columns, terminal.lines - 1  # the cursor takes the last one
    shown, left = fit(text, *room)
    if left:
        shown, left = fit(text.replace("\n\n", "\n"), *room)
    return f"\x1b[H\x1b[2J{shown}" + (f"\n… {left} more lines: run_node.py stats shows all" if left else "")
