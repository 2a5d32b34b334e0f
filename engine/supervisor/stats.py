"""The statistics document: what an operator sees of the whole node, put together from each process's newest report.

Pure. The reports come at 1 Hz and are never asked for; each carries its age. Names of the first block are the ones the
users of earlier programs know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.supervisor.lifecycle import Lifecycle


def compose(
    node: str,
    lifecycle: Lifecycle,
    devices: Mapping[str, str],
    ring_bytes: int,
    health: Mapping[str, Any],
    now: float,
    pid: int = 0,
    placement: Mapping[str, Any] | None = None,
    estimates: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The document. ``devices``: name -> kind ("cpu" or "cuda"). ``health``: see ``health.judge``. ``pid``: ours.

    ``placement``: the plan from the start (``placement_words.document``). ``estimates``: what each worker's model is
    thought to need, see ``Measuring.rows``.
    """
    reports = {role: {**report, "age_ms": round((now - at) * 1000)} for role, (at, report) in lifecycle.reports.items()}
    scheduler, gateway, arbiter = (reports.get(role, {}) for role in ("scheduler", "gateway", "arbiter"))
    completed, failed = scheduler.get("completed", 0), scheduler.get("failed", 0)
    return {
        "node": node,
        "pid": pid,
        "phase": lifecycle.phase.value,
        "mode": lifecycle.mode,
        "mode_reason": lifecycle.mode_reason,
        "gpu_count": sum(kind == "cuda" for kind in devices.values()),
        "total_requests": scheduler.get("total", 0),
        "completed_requests": completed,
        "failed_requests": failed,
        "success_rate": completed / (completed + failed) if completed + failed else 1.0,
        "per_gpu": [_device(name, scheduler, gateway) for name in devices],
        "max_concurrent": scheduler.get("capacity", 0),
        "active": scheduler.get("active", 0),
        "queued": scheduler.get("queued", 0),
        "total": scheduler.get("total", 0),
        "failed": failed,
        "rejected": gateway.get("rejected", 0),
        "oom_errors": scheduler.get("oom_errors", 0),
        "oom": scheduler.get("oom", {}),
        "last_oom": scheduler.get("last_oom_s"),
        "queue_usage": _usage(scheduler),
        "jobs": scheduler.get("jobs", []),
        "slots": scheduler.get("slots", {}),
        "placement": dict(placement or {}),
        "leases": arbiter.get("leases", []),
        "estimates": list(estimates),
        "ring_bytes": ring_bytes,
        "endpoints": list(lifecycle.endpoints),
        "processes": lifecycle.roster.snapshot(now),
        "deaths": list(lifecycle.deaths),
        "health": health,
        "quarantined": dict(lifecycle.quarantined),
        "operators": lifecycle.orders.snapshot(lifecycle.roster),
        "gateway": gateway,
        "scheduler": scheduler,
        "arbiter": arbiter,
        "workers": {role: report for role, report in reports.items() if "@" in role},
    }


def load_times(lifecycle: Lifecycle) -> dict[str, float]:
    """Stage -> the longest of the last loads of its workers, in seconds."""
    _, report = lifecycle.reports.get("scheduler", (0.0, {}))
    found: dict[str, float] = {}
    for role, row in report.get("workers", {}).items():
        if row.get("load_ms"):
            stage = role.partition("@")[0]
            found[stage] = max(found.get(stage, 0.0), row["load_ms"] / 1000)
    return found


def _device(name: str, scheduler: Mapping[str, Any], gateway: Mapping[str, Any]) -> dict[str, Any]:
    """One device's line. The response queue is the node's: outcomes wait for their session, not for a device."""
    seen = scheduler.get("per_device", {}).get(name, {})
    requests = seen.get("requests", 0)
    return {
        "device": name,
        "requests": requests,
        "avg_time_s": seen.get("busy_s", 0.0) / requests if requests else 0.0,
        "request_queue": seen.get("queue", 0),
        "response_queue": gateway.get("response_queue", 0),
    }


def _usage(scheduler: Mapping[str, Any]) -> float:
    """Utterances taken in over those the node takes in at most."""
    capacity = scheduler.get("capacity", 0)
    return (scheduler.get("active", 0) + scheduler.get("queued", 0)) / capacity if capacity else 0.0
