"""What is given up for a deadline, and when. Pure.

An utterance has one budget for all its stages. What a session would rather lose than the whole says its
``on_deadline``: "fail" nothing; "skip_repair" the stages that the node can do without; "text" those, then the speech.

A stage that can be done without is left out, or left alone while it runs or waits, as soon as what is left of the
budget is what the stages after it nearly always take, by what they took of late, waiting included. So this sheds load,
too: queues that grow make times that grow. Speech is given up at the deadline and not before, since it may come yet.
Workers are not touched: what they still answer is nobody's.

What cannot be done in time any more is not begun: it would only take the time of those that can. So under overload a
node ends about as much as it can do, and not next to nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.boot import StagePlan
from engine.scheduler.book import Book
from engine.scheduler.jobs import Job, Key

if TYPE_CHECKING:
    from engine.scheduler.flow import Flow


def may_leave_out(job: Job, plan: StagePlan) -> bool:
    """Whether its session would rather go without this stage than be late."""
    return plan.optional and job.session.on_deadline != "fail" and math.isfinite(job.deadline)


def latest(book: Book, job: Job) -> float:
    """When the stages after its present one must have it."""
    return job.deadline - sum(book.paces[stage].safe_s for stage in _to_come(book, job, job.at + 1))


def leave_out(book: Book, job: Job, now: float) -> str:
    """Why its stage is not even begun, or ""."""
    plan = book.stages[job.stage]
    if not may_leave_out(job, plan) or now + book.paces[plan.name].mean_s <= latest(book, job):
        return ""
    return _say(job, now)


def hurry(flow: Flow, key: Key, now: float) -> None:
    """The time for a stage that can be left out may be over."""
    job = flow.book.job(key)
    if job is None or job.ended or job.passed or not may_leave_out(job, flow.book.stages[job.stage]):
        return
    if (time := latest(flow.book, job)) > now:
        flow.book.timer(time, "haste", key)
    else:
        flow.go_past(job, _say(job, now))
        flow.enter(job, now)


def is_hopeless(book: Book, job: Job, now: float) -> bool:
    """Whether the runs alone that it must have end after its deadline, by what they take now."""
    plans = [book.stages[stage] for stage in _to_come(book, job, job.at)]
    needed = [plan for plan in plans if not may_leave_out(job, plan)]
    if job.session.on_deadline == "text":  # its speech may be given up
        needed = [plan for plan in needed if plan.emits != "audio"]
    return now + sum(book.paces[plan.name].least_s(now, job.speech_s) for plan in needed) > job.deadline


def relieve(flow: Flow, job: Job, now: float) -> bool:
    """Its next try would come too late: go on without this stage, if the session lets us."""
    if not may_leave_out(job, flow.book.stages[job.stage]):
        return without_speech(flow, job, now)
    flow.go_past(job, _say(job, now))
    flow.enter(job, now)
    return True


def without_speech(flow: Flow, job: Job, now: float) -> bool:
    """End it with its text, if nothing but speech is missing and the session lets us."""
    rest = [flow.book.stages[stage] for stage in job.stages[job.at :]]
    if job.session.on_deadline != "text" or not job.text or not all(plan.emits == "audio" for plan in rest):
        return False
    ticket = job.ticket
    while not job.passed:
        job.degraded.append(f"{job.name}: no speech, the deadline came first")
        flow.go_past(job, "the deadline came first")
    job.ticket = ticket  # serial mode waits for its run
    flow.end(job, "ok", "", "", now)
    return True


def _to_come(book: Book, job: Job, first: int) -> list[str]:
    """The stages from this place on that it does not go past anyhow."""
    rest = zip(job.stages[first:], job.names[first:], strict=True)
    return [stage for stage, name in rest if stage not in book.absent and name not in job.admit.skip]


def _say(job: Job, now: float) -> str:
    reason = f"no time for it: {max(0.0, job.deadline - now):.1f} s were left for all"
    job.degraded.append(f"{job.name}: skipped, {reason}")
    return reason
