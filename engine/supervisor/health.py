"""Is the node well? Judged by progress, never by "the process is there". Pure.

A stage is **alive** when one of its workers has its model, or has parked it to give others room, and **progressing**
unless it has work of which nothing has begun or ended for longer than a run may take. The node is **ready** when it
serves, its core processes are up and heard, and every stage that it cannot do without is alive and progressing.
"""

from __future__ import annotations

from typing import Any

from engine.config import DeadlinesSection
from engine.supervisor.lifecycle import Lifecycle, Phase
from engine.supervisor.roster import State

STALE_S = 5.0  # a scheduler's report older than this is no news of any stage


def judge(life: Lifecycle, deadlines: DeadlinesSection, now: float) -> dict[str, Any]:
    """{"ready", "reason", "phase", "stages": {name: {"alive", "progressing", "reason"}}}."""
    reported_at, report = life.reports.get("scheduler", (now, {}))
    stages = {name: of_stage(row) for name, row in report.get("stages", {}).items()}
    reasons = [life.phase.value] if life.phase is not Phase.SERVING else []
    reasons += [
        text for role in ("arbiter", "scheduler", "gateway") if (text := _of_process(life, role, deadlines, now))
    ]
    if not reasons and now - reported_at > STALE_S:
        reasons.append(f"the scheduler has reported nothing for {now - reported_at:.0f} s")
    optional = {name for name, row in report.get("stages", {}).items() if row.get("optional") or row.get("absent")}
    if life.phase is Phase.SERVING:
        reasons += [
            f"stage {name}: {row['reason']}" for name, row in stages.items() if row["reason"] and name not in optional
        ]
    return {"ready": not reasons, "reason": "; ".join(reasons), "phase": life.phase.value, "stages": stages}


def of_stage(row: dict[str, Any]) -> dict[str, Any]:
    """One stage of the scheduler's report."""
    if row.get("absent"):
        return {"alive": False, "progressing": False, "reason": f"absent: {row['absent']}"}
    if not row.get("loaded") and not row.get("parked"):
        return {"alive": False, "progressing": False, "reason": row.get("why") or "no worker has its model yet"}
    stalled = row.get("stalled_s", 0.0)
    if stalled > row.get("stall_limit_s", float("inf")):
        return {"alive": True, "progressing": False, "reason": f"has work and made no progress for {stalled:.0f} s"}
    return {"alive": True, "progressing": True, "reason": ""}


def _of_process(life: Lifecycle, role: str, deadlines: DeadlinesSection, now: float) -> str:
    record = life.roster[role]
    if record.state is not State.UP:
        return f"{role} is not up ({record.reason or record.state.value})"
    silent_s = now - record.heard
    return f"{role} has been silent for {silent_s:.1f} s" if silent_s > deadlines.silent_s else ""
