"""Is the node well? Judged by progress, never by "the process is there". Pure.

A stage is **alive** when one of its workers has its model, or has parked it to give others room, or is on its way
back from that, and **progressing** unless it has work of which nothing has begun or ended for longer than a run may
take. The node is **ready** when it serves, its core processes are up and heard, and every stage that it cannot do
without is alive and progressing. What else an operator should know, a device that is lost or whose driver does not
answer, or a worker that cannot be killed, is in ``notes``.
"""

from __future__ import annotations

import math
from typing import Any

from engine.config import DeadlinesSection
from engine.supervisor.lifecycle import MEND_LOST, Lifecycle, Phase
from engine.supervisor.roster import State

STALE_S = 5.0  # a scheduler's report older than this is no news of any stage
UNKNOWN_S = 5.0  # memory of which nobody knows whether it is in use is free again before this, or somebody hangs
FAILED_IN_ROW = 10  # a stage whose last runs all failed, so many, is not well


def judge(life: Lifecycle, deadlines: DeadlinesSection, now: float) -> dict[str, Any]:
    """{"ready", "reason", "phase", "stages": {name: {"alive", "progressing", "reason"}}, "notes": [text],
    "unreadable": [device]}."""
    report: dict[str, Any]
    reported_at, report = life.reports.get("scheduler", (math.inf, {}))
    stages = {
        name: of_stage(row, life.way_back(name), _all_drained(life, name))
        for name, row in report.get("stages", {}).items()
    }
    reasons = [life.phase.value] if life.phase is not Phase.SERVING else []
    reasons += [
        text for role in ("arbiter", "scheduler", "gateway") if (text := _of_process(life, role, deadlines, now))
    ]
    if not reasons and reported_at == math.inf:
        reasons.append("the scheduler has just begun and not reported yet")
    elif not reasons and now - reported_at > STALE_S:
        reasons.append(f"the scheduler has reported nothing for {now - reported_at:.0f} s")
    if report.get("slots_unknown_s", 0.0) > UNKNOWN_S:
        who = sorted({role for roles in report["slots_unknown"].values() for role in roles})
        reasons.append(f"new utterances may wait for memory: {', '.join(who)} has not said what it uses")
    optional = {name for name, row in report.get("stages", {}).items() if row.get("optional") or row.get("absent")}
    if life.phase is Phase.SERVING:
        reasons += [
            f"stage {name}: {row['reason']}" for name, row in stages.items() if row["reason"] and name not in optional
        ]
    return {
        "ready": not reasons,
        "reason": "; ".join(reasons),
        "phase": life.phase.value,
        "stages": stages,
        "notes": notes(life, deadlines, now),
        "unreadable": list(_unreadable(life, deadlines, now)),
    }


def notes(life: Lifecycle, deadlines: DeadlinesSection, now: float) -> list[str]:
    """Of devices that are lost or cannot be read, and of workers that are lost, one line each."""
    lost = [f"device {device} is quarantined: {reason}; {MEND_LOST}" for device, reason in life.quarantined.items()]
    stuck = [
        f"{r.role} (pid {r.pid}) cannot be killed, a driver holds it: its memory counts as lost until it ends"
        for r in life.roster
        if r.state is State.STUCK
    ]
    unreadable = [
        f"device {device} cannot be read, its driver has said nothing for {age_s:.0f} s:"
        " what runs there goes on, and nothing new is loaded"
        for device, age_s in _unreadable(life, deadlines, now).items()
    ]
    return lost + unreadable + stuck


def _unreadable(life: Lifecycle, deadlines: DeadlinesSection, now: float) -> dict[str, float]:
    """Devices on which the arbiter grants nothing, and for how many seconds it has not read their memory."""
    reported_at, report = life.reports.get("arbiter", (now, {}))
    ages = {
        device: row["snapshot_age_ms"] / 1000
        for device, row in report.get("devices", {}).items()
        if device not in life.quarantined
    }
    return {device: age_s + now - reported_at for device, age_s in ages.items() if age_s > deadlines.unreadable_s}


def _all_drained(life: Lifecycle, stage: str) -> tuple[str, ...]:
    """The devices of a stage, where operators have drained all of them."""
    devices = {record.device for record in life.roster if record.stage == stage}
    return tuple(sorted(devices)) if devices and devices <= life.orders.drained else ()


def of_stage(row: dict[str, Any], mend: str, drained: tuple[str, ...] = ()) -> dict[str, Any]:
    """One stage of the scheduler's report. ``mend``: what brings its lost workers back. ``drained``: its devices,
    where all are.
    """
    if row.get("absent"):
        return {"alive": False, "progressing": False, "reason": f"absent: {row['absent']}"}
    if not (row.get("loaded") or row.get("parked") or row.get("called")):
        if why := row.get("coming") or row.get("why"):  # of a worker that can come, be others lost
            return {"alive": False, "progressing": False, "reason": why, "note": _lost(row, mend)}
        why = (
            f"{row.get('lost_why') or 'no worker is left'}; {mend}"
            if row.get("lost")
            else "no worker has its model yet"
        )
        return {"alive": False, "progressing": False, "reason": why}
    stalled = row.get("stalled_s", 0.0)
    if stalled > row.get("stall_limit_s", float("inf")):
        return {"alive": True, "progressing": False, "reason": f"has work and made no progress for {stalled:.0f} s"}
    if row.get("failed_in_row", 0) >= FAILED_IN_ROW:
        reason = f"its last {row['failed_in_row']} runs failed, the last one with: {row.get('last_failure')}"
        return {"alive": True, "progressing": False, "reason": reason}
    return {
        "alive": True,
        "progressing": True,
        "reason": "",
        "note": "; ".join(filter(None, [_lost(row, mend), _drained(drained) or _resting(row), _degraded(row)])),
    }


def _lost(row: dict[str, Any], mend: str) -> str:
    """What an operator should know of a stage that is well all the same."""
    lost, workers = row.get("lost", 0), row.get("workers", 0)
    why = f": {row['lost_why']}" if row.get("lost_why") else ""
    return f"{lost} of {workers} workers will not come back by themselves{why}; {mend}" if lost else ""


def _resting(row: dict[str, Any]) -> str:
    parked, workers = row.get("parked", 0), row.get("workers", 0)
    comes = "1 comes" if parked == 1 else f"{parked} come"
    why = f" ({row['why']})" if row.get("why") else ""
    has = f"{row.get('loaded', 0)} of {workers} workers have their model"
    return f"{has}, {comes} back when there is work{why}" if parked else ""


def _drained(devices: tuple[str, ...]) -> str:
    what = " and ".join(devices)
    return f"its work waits, operators have drained {what}: run_node.py ctl resume {devices[0]}" if devices else ""


def _degraded(row: dict[str, Any]) -> str:
    return f"degraded: {row['degraded']}" if row.get("degraded") else ""


def _of_process(life: Lifecycle, role: str, deadlines: DeadlinesSection, now: float) -> str:
    record = life.roster[role]
    if record.state is not State.UP:
        return f"{role} is not up ({record.reason or record.state.value})"
    if role == "gateway" and life.phase is Phase.SERVING and record.phase != "serving":
        return f"gateway does not serve yet ({record.phase or 'starting'})"
    silent_s = now - record.heard
    return f"{role} has been silent for {silent_s:.1f} s" if silent_s > deadlines.silent_s else ""
