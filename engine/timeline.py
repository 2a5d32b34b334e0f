"""A picture of a run: who worked on what, when, made from the outcomes' stage records alone.

``trace`` gives the Chrome trace format (open it in chrome://tracing or ui.perfetto.dev): one row per worker, one bar
per attempt, times in microseconds since the first utterance was queued. ``overlap_share`` measures what pipelining is
for: how much of the time two or more workers were busy at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]  # one entry of Outcome.stages: ipc.messages.StageRecord as a map
NODE_PID = 1


def trace(outcomes: Iterable[tuple[str, int, Iterable[Record]]]) -> dict[str, Any]:
    """Chrome trace of (session, index, stage records); attempts that never began have no bar."""
    bars = [(session, index, record) for session, index, records in outcomes for record in records if _ran(record)]
    start = min((_start(record) for _, _, record in bars), default=0)
    rows = {worker: row for row, worker in enumerate(sorted({_worker(record) for _, _, record in bars}), 1)}
    return {
        "displayTimeUnit": "ms",
        "traceEvents": [_name("process_name", 0, "node")]
        + [_name("thread_name", row, worker) for worker, row in rows.items()]
        + [_bar(session, index, record, rows[_worker(record)], start) for session, index, record in bars],
    }


def overlap_share(chart: Mapping[str, Any], workers: int = 2) -> float:
    """Share of the makespan (first begin to last end) during which at least ``workers`` workers were busy."""
    busy = _busy_by_worker(chart)
    edges = sorted(edge for spans in busy.values() for a, b in spans for edge in ((a, 1), (b, -1)))
    if not edges or edges[-1][0] == edges[0][0]:
        return 0.0
    shared, level, since = 0.0, 0, edges[0][0]
    for at, step in edges:
        if level >= workers:
            shared += at - since
        level, since = level + step, at
    return shared / (edges[-1][0] - edges[0][0])


def makespan_s(chart: Mapping[str, Any]) -> float:
    """Seconds from the first begin to the last end."""
    spans = [span for spans in _busy_by_worker(chart).values() for span in spans]
    return (max(b for _, b in spans) - min(a for a, _ in spans)) / 1e6 if spans else 0.0


def busy_s(chart: Mapping[str, Any]) -> dict[str, float]:
    """Seconds each worker was busy; utterances of one batch count once."""
    return {worker: sum(b - a for a, b in spans) / 1e6 for worker, spans in _busy_by_worker(chart).items()}


def _busy_by_worker(chart: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Spans of work per worker, united: utterances of one batch run at the same time on the same worker."""
    names = {e["tid"]: e["args"]["name"] for e in chart["traceEvents"] if e["name"] == "thread_name"}
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in chart["traceEvents"]:
        if event["ph"] == "X":
            spans.setdefault(names[event["tid"]], []).append((event["ts"], event["ts"] + event["dur"]))
    return {worker: _united(found) for worker, found in spans.items()}


def _united(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    united: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if united and begin < united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((begin, end))
    return united


def _bar(session: str, index: int, record: Record, row: int, start: int) -> dict[str, Any]:
    return {
        "name": f"{session}/{index} {record['stage']}",
        "cat": record["stage"],
        "ph": "X",
        "pid": NODE_PID,
        "tid": row,
        "ts": (record["begun_ns"] - start) / 1e3,
        "dur": (record["ended_ns"] - record["begun_ns"]) / 1e3,
        "args": {
            "session": session,
            "index": index,
            "stage": record["stage"],
            "attempt": record.get("attempt", 0),
            "state": record["state"],
            "device": record.get("device", ""),
            "waiting_ms": waiting_ms(record),
        },
    }


def waiting_ms(record: Record) -> float | None:
    """Milliseconds from queued to begun; None when it never began."""
    queued, begun = record.get("queued_ns", 0), record.get("begun_ns", 0)
    return max(0, begun - queued) / 1e6 if queued and begun else None


def processing_ms(record: Record) -> float | None:
    """Milliseconds from begun to ended; None when it never ran to an end."""
    begun, ended = record.get("begun_ns", 0), record.get("ended_ns", 0)
    return max(0, ended - begun) / 1e6 if begun and ended else None


def _name(kind: str, row: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": NODE_PID, "tid": row, "args": {"name": name}}


def _ran(record: Record) -> bool:
    return bool(record.get("worker")) and processing_ms(record) is not None


def _start(record: Record) -> int:
    return int(record.get("queued_ns", 0) or record["begun_ns"])


def _worker(record: Record) -> str:
    return str(record["worker"])
