"""What the scheduler tells of itself: its statistics as plain values (``docs/operations.md`` names each)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.scheduler.pace import STEPS_MS
from engine.scheduler.utilisation import Utilisation, bottleneck
from engine.scheduler.workers import Life, Worker

if TYPE_CHECKING:
    from engine.scheduler.scheduler import Scheduler

MOST_JOBS = 200  # of those under way, the oldest sessions' first
STALL_GRACE_S = 5.0  # beyond the longest a run may take: a hung worker is condemned by then


class Figures:
    """Reads the scheduler's cores, and changes none of them."""

    def __init__(self, core: Scheduler) -> None:
        self.core = core
        self.book = core.book
        self._utilisation = Utilisation()

    def snapshot(self, now: float) -> dict[str, Any]:
        """All of them, as of ``now`` (seconds, monotonic)."""
        book, totals = self.book, self.book.totals
        n, rate = self.core.capacity(now)
        active = sum(len(batch.jobs) for worker in book.workers.values() for batch in worker.batches)
        unended = sum(len(line.unended) for line in book.lines.values())
        shares = self._utilisation.look(book.workers, now)
        return {
            "mode": book.boot.mode,
            "mode_reason": book.boot.mode_reason,
            "capacity": n,
            "rate": round(rate, 3),
            "active": active,
            "queued": max(0, unended - active),
            "total": totals.total,
            "completed": totals.completed,
            "failed": totals.failed,
            "skipped": totals.skipped,
            "cancelled": totals.cancelled,
            "expired": totals.expired,
            "oom_errors": book.shortages.total,
            "oom": book.shortages.snapshot(now),
            "last_oom_s": None if book.shortages.last is None else round(now - book.shortages.last, 1),
            "runs": sum(worker.runs for worker in book.workers.values()),
            "retries": totals.retries,
            "stale": totals.stale,
            "deaths": totals.deaths,
            "parked": self.core.residency.parked_total,
            "promoted": self.core.ladder.promoted_total,
            "concurrency": self.core.concurrency(),
            "utilisation": {name: round(share, 3) for name, share in shares.items()},
            "bottleneck": bottleneck(shares, self._stuck(), book.boot.mode == "serial"),
            "histogram_ms": list(STEPS_MS),
            "jobs": self._jobs(now, MOST_JOBS),
            "slots": book.slots.snapshot(),
            "slots_idle": book.slots.idle,
            "slots_unknown": book.slots.unknown,
            "slots_unknown_s": round(now - self.core.began, 1) if book.slots.unknown else 0.0,
            "handed_over": self.core.handover.complete,
            "per_device": self._per_device(),
            "stages": {name: self._stage(name, now) for name in book.stages},
            "workers": {role: self._worker(role, now) for role in book.workers},
            "orders": {"drained": list(book.orders.drained), "knobs": book.orders.knobs},
        }

    def _jobs(self, now: float, most: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for line in self.book.lines.values():
            for index in sorted(line.unended):
                if len(rows) == most:
                    return rows
                job = line.jobs[index]
                states = {name: state.value for name, state in zip(job.stages, job.states, strict=True)}
                left = None if job.lost else round(job.deadline - now, 2)
                rows.append({"session": line.session.id, "index": index, "stages": states, "deadline_in_s": left})
        return rows

    def _stuck(self) -> dict[str, int]:
        """Stages that have work and no worker with a model, and how much."""
        loaded = {worker.plan.stage for worker in self.book.workers.values() if worker.life is Life.LOADED}
        return {name: len(queue) for name, queue in self.book.queues.items() if len(queue) and name not in loaded}

    def _per_device(self) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for worker in self.book.workers.values():
            row = out.setdefault(worker.plan.device, {"requests": 0, "busy_s": 0.0, "queue": 0})
            row["requests"] += worker.items
            row["busy_s"] = round(row["busy_s"] + worker.busy_s, 3)
            row["queue"] += sum(len(batch.jobs) for batch in worker.batches)
        return out

    def _stage(self, name: str, now: float) -> dict[str, Any]:
        pace, plan, workers = self.book.paces[name], self.book.stages[name], self.book.workers_of(name)
        empty = self.book.kept_empty(name)
        to_come = [worker for worker in self.book.regulars_of(name) if worker.life is not Life.LOST]
        done = max(1, pace.done)
        batches = [batch for worker in workers for batch in worker.batches]
        running = sum(len(batch.jobs) for batch in batches)
        has_work = bool(batches) or any(map(self.core.dispatch.may_run, self.book.queues[name]))
        return {
            "optional": plan.optional,
            "workers": len(workers),
            "lost": sum(worker.life is Life.LOST for worker in workers),
            "loaded": sum(worker.life is Life.LOADED for worker in workers),
            "parked": sum(worker.parked for worker in to_come),
            "called": sum(worker.called for worker in to_come),
            "instances": self.core.extras.snapshot(name),
            "degraded": "; ".join(
                f"{w.plan.role} {w.degraded}" for w in workers if w.life is Life.LOADED and w.degraded
            ),
            "why": empty or next((worker.waiting_for for worker in to_come if worker.waiting_for), ""),
            "coming": "" if empty else coming(to_come),
            "lost_why": next((w.waiting_for for w in self.book.regulars_of(name) if w.life is Life.LOST), ""),
            "failed_in_row": pace.failed_in_row,
            "last_failure": pace.last_failure,
            "stalled_s": round(now - pace.moved_at, 1) if has_work and pace.moved_at else 0.0,
            "stall_limit_s": max([plan.timeout_base_s, *(batch.limit_s for batch in batches)]) + STALL_GRACE_S,
            "max_batch": plan.max_batch,
            "max_batch_why": self.core.batches.why(name),
            **dict(zip(("send_ahead", "send_ahead_why"), self.core.dispatch.ahead(name), strict=True)),
            "waiting": len(self.book.queues[name]),
            "running": running,
            "done": pace.done,
            "failed": pace.failed,
            "avg_waiting_ms": round(1000 * pace.waiting_sum_s / done, 3),
            "avg_processing_ms": round(1000 * pace.processing_sum_s / done, 3),
            "waiting_histogram": list(pace.waiting.counts),
            "processing_histogram": list(pace.processing.counts),
            "absent": self.book.absent.get(name, ""),
        }

    def _worker(self, role: str, now: float) -> dict[str, Any]:
        worker = self.book.workers[role]
        again_at = worker.load_again_at if worker.life is Life.EMPTY else None
        return {
            "state": worker.life.value,
            "incarnation": worker.incarnation,
            "device": worker.plan.device,
            "variant": worker.variant,
            "standby": worker.plan.standby,
            "extra": worker.plan.extra,
            "waiting_for": worker.waiting_for,
            "turn": self.core.residency.whose_turn(role, now),
            "again_in_s": None if again_at is None else round(max(0.0, again_at - now), 1),
            "on_board": sum(len(batch.jobs) for batch in worker.batches),
            "runs": worker.runs,
            "utterances": worker.items,
            "load_ms": round(worker.load_ms, 1),
        }


def coming(workers: Sequence[Worker]) -> str:
    """Which of these is on its way to a model, in words; "": none is, or it waits for something (``waiting_for``)."""
    for worker in workers:
        if worker.life is Life.LOADING and not worker.waiting_for:
            return f"{worker.plan.role} loads its model"
    for worker in workers:
        if worker.life is Life.ABSENT:
            return f"{worker.plan.role} is starting" + (f": {worker.waiting_for}" if worker.waiting_for else "")
    return ""
