"""Jobs from admission to their one end: what follows what, what is skipped, tried again, or given up."""

from __future__ import annotations

from collections.abc import Callable

from engine.boot import StagePlan
from engine.choices import model_of
from engine.scheduler import haste, retries
from engine.scheduler.book import GATEWAY, Book, Line
from engine.scheduler.jobs import Job, Key, State
from engine.scheduler.pace import mean_of
from engine.scheduler.workers import Batch, Life, Worker
from ipc.errors import ERROR_CODES
from ipc.messages import (
    Admit,
    Grow,
    Held,
    JobOutcome,
    Outcome,
    Partial,
    Progress,
    RunResult,
    Session,
    StageRecord,
    Status,
)

NOTHING_SAID = "nothing was said"


class Flow:
    """See the module's docstring."""

    def __init__(self, book: Book, chance: Callable[[], float]) -> None:
        self.book = book
        self._chance = chance

    # ---------------------------------------------------------------- in

    def open(self, session: Session) -> None:
        self.book.lines.setdefault(session.id, Line(session))

    def admit(self, message: Admit, now: float) -> None:
        """A job the gateway has already decided to take; never refused."""
        book = self.book
        line = book.lines[message.session]
        if (known := line.jobs.get(message.index)) is not None:
            if known.waiting and not message.waiting:
                self._begin(known, now)
            return
        job = Job(line.session, message, now + message.budget_ms / 1000, message.ref, message.text)
        line.jobs[job.index] = job
        line.unended.add(job.index)
        book.totals.total += 1
        if message.ref is not None:
            book.adopt(Held(message.session, message.index, message.ref))
        book.accepted[job.key] = None
        book.timer(job.deadline, "deadline", job.key)
        if not message.waiting:
            return self._begin(job, now)
        job.waiting = True
        return None

    def _begin(self, job: Job, now: float) -> None:
        job.waiting = False
        self.enter(job, now)

    def begin_waiting(self, now: float) -> None:
        """Whoever was to say when they may begin is dead."""
        for line in self.book.lines.values():
            for index in sorted(line.unended):
                if line.jobs[index].waiting:
                    self._begin(line.jobs[index], now)

    def acked(self, session: str, through: int) -> None:
        """The client has every outcome up to ``through``: their records go."""
        line = self.book.lines.get(session)
        if line is None:
            return
        line.acked = max(line.acked, through)
        for index in [i for i, job in line.jobs.items() if i <= through and (job.ended or job.lost)]:
            self._forget(line, line.jobs[index])
        for index in [i for i in line.elsewhere if i <= through]:
            del line.elsewhere[index]

    def _forget(self, line: Line, job: Job) -> None:
        """Nobody will ask for this job again."""
        if not job.ended:
            self._withdraw(job)
        del line.jobs[job.index]
        for ref in (job.ref, job.ingress):
            if ref is not None:
                self.book.drop((ref.ring, ref.generation))

    def close(self, session: str, now: float) -> None:
        """The session is over: what has not ended is cancelled, its records go."""
        line = self.book.lines.get(session)
        if line is None:
            return
        for index in sorted(line.unended):
            self.end(line.jobs[index], "skipped", "cancelled", "the session was closed", now)
        for job in list(line.jobs.values()):
            self._forget(line, job)
        del self.book.lines[session]

    # ---------------------------------------------------------------- from stage to stage

    def enter(self, job: Job, now: float) -> None:
        """Queue the job at its current stage, going past the stages it skips; ends it after the last."""
        while not job.passed:
            plan = self.book.stages[job.stage]
            reason = self._skip_reason(job, plan, now)
            if not reason:
                return self._queue(job, plan, now)
            self.go_past(job, reason)
        self.end(job, "ok", "", "", now)

    def go_past(self, job: Job, reason: str) -> None:
        """Skip the job's stage, wherever in it the job is; the answer of a run that goes on is nobody's."""
        self.book.queues[job.stage].remove(job.key)
        self.book.slots.forget_claims(job.key)
        job.ticket = 0
        job.move(State.SKIPPED)
        job.record(StageRecord(job.name, State.SKIPPED.value, job.attempts, reason=reason))
        self.status(job, reason)
        job.advance()

    def _skip_reason(self, job: Job, plan: StagePlan, now: float) -> str:
        if job.ref is None and not job.text:
            return NOTHING_SAID
        if job.name in job.admit.skip:
            return "requested"
        if plan.name in self.book.absent:
            return self.book.absent[plan.name]
        if plan.accepts != ("audio" if job.ref is not None else "text"):
            return f"takes {plan.accepts}, which the stage before did not make"
        if plan.skip_above < 0 and job.confidence is not None and job.confidence > plan.skip_above:
            return f"heard well enough ({job.confidence:.2f})"
        return haste.leave_out(self.book, job, now)

    def _queue(self, job: Job, plan: StagePlan, now: float) -> None:
        if job.text is not None and len(job.text) > plan.max_chars:
            return self._give_up(
                job, "bad_text", f"{len(job.text)} characters; {plan.name} takes {plan.max_chars}", now
            )
        job.queued_ns = int(now * 1e9)
        for worker in self.book.regulars_of(plan.name):
            if worker.life is Life.LOADED:
                break
        else:
            workers = self.book.regulars_of(plan.name)
            if all(worker.life is Life.LOST for worker in workers):
                why = next((worker.waiting_for for worker in workers if worker.waiting_for), "")
                return self._give_up(job, "failed", f"stage {plan.name} has no worker left: {why}", now)
            self.book.called[plan.name] = None
            if job.state is State.PENDING:
                if not (why := self.book.kept_empty(plan.name)):
                    job.move(State.LOADING)
                self.status(job, why or next((w.waiting_for for w in workers if w.waiting_for), ""))
        if not self.book.queues[plan.name].waiting:  # from now on there is something to do
            self.book.paces[plan.name].moved_at = now
        if haste.may_leave_out(job, plan):
            self.book.timer(haste.latest(self.book, job), "haste", job.key)
        session = job.session
        cost = self.book.paces[plan.name].effort.cost(job.speech_s)
        self.book.queues[plan.name].push(job.key, session.priority, now, cost, session.weight)
        self.book.stir(plan.name)

    # ---------------------------------------------------------------- what a worker answered

    def done(self, worker: Worker, result: RunResult, now: float) -> None:
        """One ticket came back."""
        book = self.book
        book.stir(worker.plan.stage)
        if result.state != "failed":
            book.paces[worker.plan.stage].moved_at = now
        hit = worker.done(result.ticket, now)
        job = book.job(hit[0]) if hit else None
        out = (worker.plan.role, result.ticket)
        if hit is None or job is None or job.ended or job.ticket != result.ticket:
            book.totals.stale += hit is None
            if hit is not None:
                self._landed(hit[0])
            book.drop(out)
            return book.release(worker.peer, result.ticket)
        job.ticket = 0
        worker.items += 1
        worker.failed += result.state == "failed"
        worker.mean_s = mean_of(worker.mean_s, (result.ended_ns - result.begun_ns) / 1e9)
        worker.busy_s += (result.ended_ns - result.begun_ns) / 1e9 / hit[1].size
        if result.state == "failed":
            book.drop(out)
            book.release(worker.peer, result.ticket)
            return self._failed(job, worker, result, now)
        worker.fruitless = 0
        self._ease(worker, now)
        self._take_output(job, worker, result)
        book.release(worker.peer, result.ticket)
        self._learn(job, result, hit[1].size)
        return self._completed(job, worker, result, now)

    def _learn(self, job: Job, result: RunResult, size: int) -> None:
        if result.state == "completed":
            run_s = (result.ended_ns - result.begun_ns) / 1e9
            self.book.paces[job.stage].effort.learn(job.speech_s, run_s / size)

    def _landed(self, key: Key) -> None:
        """The last run of a job that had ended before is over: serial mode may go on."""
        job = self.book.job(key)
        if job is not None and not job.ended:
            return  # only a stage of it was given up
        self.book.in_flight.discard(key)
        if self.book.boot.mode == "serial":
            self.book.stir_all()

    def _take_output(self, job: Job, worker: Worker, result: RunResult) -> None:
        book, out, before = self.book, (worker.plan.role, result.ticket), job.ref
        if result.text is not None:
            job.texts[job.name] = result.text
        if result.same:
            return book.drop(out)
        if result.ref is not None:
            book.slots.shrink(out, result.ref.nbytes)
            job.ref, job.text = result.ref, None
        else:
            book.drop(out)
            job.ref, job.text = None, result.text
        if before is not None and before != job.ingress:
            book.drop((before.ring, before.generation))
        return None

    def _completed(self, job: Job, worker: Worker, result: RunResult, now: float) -> None:
        pace = self.book.paces[job.stage]
        pace.measure(max(0.0, result.begun_ns - job.queued_ns) / 1e9, (result.ended_ns - result.begun_ns) / 1e9, now)
        state = State.SKIPPED if result.state == "skipped" else State.COMPLETED
        job.move(state)
        self._record(job, worker, result, state.value, result.reason)
        job.language = job.language or result.language
        job.confidence = result.confidence if result.confidence is not None else job.confidence
        if result.degraded:
            job.degraded.append(f"{job.name}: {result.degraded}")
        if how := worker.degraded:
            job.degraded.append(f"{job.name}: {how}")
        if job.session.partials and result.text and not job.at_last:
            self.book.send(GATEWAY, Progress(Partial(*job.key, job.name, result.text)))
        self.status(job, result.reason)
        job.advance()
        self.enter(job, now)

    def _failed(self, job: Job, worker: Worker, result: RunResult, now: float) -> None:
        """A reported failure: wait and try again, or end with its cause."""
        deadlines = self.book.deadlines
        pace = self.book.paces[job.stage]
        pace.failed += 1
        if result.retry:  # else it is the utterance that cannot be done
            pace.failed_in_row, pace.last_failure = pace.failed_in_row + 1, result.error
        if result.code == "oom":
            return self._starved(job, worker, result, now)
        job.failures += 1
        wait = retries.reported_wait(job.failures, self.book.boot.max_retries, deadlines.retry_delay_s)
        code = result.code if result.code in ERROR_CODES else "failed"
        return self._wait(job, worker, result, wait if result.retry else None, code, now)

    def _starved(self, job: Job, worker: Worker, result: RunResult, now: float) -> None:
        """Out of memory, in a batch of its own: once on each device that has its model, then whole tries later."""
        job.starved_on.add(worker.plan.device)
        if result.retry and self.has_elsewhere(job):
            self.book.totals.retries += 1
            self._record(job, worker, result, State.RETRYING.value, result.error)
            self.status(job, f"{result.error}; at once on another device")
            job.move(State.PENDING)
            return self.enter(job, now)
        job.oom_failures += 1
        wait = retries.oom_wait(job.oom_failures, self.book.deadlines.retry_delay_s) if result.retry else None
        if wait is not None:
            self._raise_estimate(worker, wait, now)
            wait = max(wait, self._held_for(job.stage, now))
        return self._wait(job, worker, result, wait, "no_vram", now)

    def has_elsewhere(self, job: Job) -> bool:
        """Whether its stage has a model where this job has not run out of memory."""
        return any(
            worker.life is Life.LOADED and not (worker.leaving or worker.ordered or worker.condemned)
            and worker.plan.device not in job.starved_on
            for worker in self.book.workers_of(job.stage)
        )  # fmt: skip

    def _held_for(self, stage: str, now: float) -> float:
        """How long all devices of a stage pause."""
        ends = [self.book.shortages.held_until(w.plan.device) or now for w in self.book.workers_of(stage)]
        return min(ends) - now

    def _raise_estimate(self, worker: Worker, wait: float, now: float) -> None:
        """What it has leased was not enough: until the next try it asks for more, at most once in a while."""
        before, after = worker.raised, retries.raised(worker.raised)
        if after > before and now >= worker.raised_at + self.book.deadlines.retry_delay_s:
            worker.raised, worker.raised_at = after, now
            if worker.plan.extra:  # nobody makes room for it: it leaves instead
                return
            self.book.send(worker.peer, Grow(round((after - before) * worker.plan.estimate_bytes), wait))

    def _ease(self, worker: Worker, now: float) -> None:
        """Where runs have fitted for a while, the usual estimate is enough again, and the rest is for others."""
        if worker.raised > 1 and worker.has_fitted(self.book.deadlines.oom_window_s, now):
            worker.raised = 1.0
            self.book.send(worker.peer, Grow(0, 0.0))

    def ease_idle(self, now: float) -> None:
        """Likewise where there is nothing to run, and nothing that will be tried again."""
        for worker in self.book.workers.values():
            if worker.raised > 1 and worker.life is Life.LOADED and not worker.batches:
                if not self._is_retried(worker.plan.stage):
                    self._ease(worker, now)

    def _is_retried(self, stage: str) -> bool:
        jobs = (line.jobs[index] for line in self.book.lines.values() for index in line.unended)
        return any(job.stage == stage and job.state is State.RETRYING for job in jobs)

    def _wait(self, job: Job, worker: Worker, result: RunResult, wait: float | None, code: str, now: float) -> None:
        """Try again after ``wait``; end now, with the cause, when there is no more try, or it would come too late."""
        wait = None if wait is None else retries.spread(wait, self._chance())
        if wait is None or now + wait >= job.deadline:
            self._record(job, worker, result, State.FAILED.value, result.error)
            leased = round(worker.raised * worker.plan.estimate_bytes / 2**20)
            why = f"; {worker.plan.role} asked for {leased} MiB in all" if code == "no_vram" else ""
            why += f"; the next try, in {wait:.1f} s, would come after its deadline" if wait is not None else ""
            if wait is not None and haste.relieve(self, job, now):
                return None
            return self._give_up(job, code, result.error + why, now)
        job.move(State.RETRYING)
        job.retry_at = now + wait
        self.book.totals.retries += 1
        self._record(job, worker, result, State.RETRYING.value, result.error)
        self.book.note("info", f"session {job.session.id} index {job.index} stage {job.stage}: attempt {job.attempts} "
                               f"failed ({result.error}), again in {wait:.1f} s")  # fmt: skip
        self.status(job, f"{result.error}; again in {wait:.1f} s")
        return self.book.timer(job.retry_at, "retry", job.key)

    def retry(self, key: Key, now: float) -> None:
        """The back-off is over."""
        job = self.book.job(key)
        if job is not None and not job.ended and job.state is State.RETRYING and job.retry_at <= now:
            job.move(State.PENDING)
            job.starved_on.clear()
            self.enter(job, now)

    def skip_queue(self, stage: str, now: float) -> None:
        """The stage has become absent: what waits for it goes past it."""
        for key in list(self.book.queues[stage]):
            self.book.queues[stage].remove(key)
            if (job := self.book.job(key)) is not None and not job.ended:
                self.enter(job, now)

    # ---------------------------------------------------------------- a worker died

    def worker_died(self, worker: Worker, batches: list[Batch], reason: str, now: float) -> None:
        """Its jobs run again at once; of the batch that had begun, each is suspect."""
        begun = 2 if batches and batches[0].overtakes else 1  # or one of two: which, nobody knows
        for position, batch in enumerate(batches):
            for ticket, key in batch.jobs.items():
                self.book.free(self.book.slots.drop((worker.plan.role, ticket)))
                job = self.book.job(key)
                if job is not None and not job.ended and job.ticket == ticket:
                    job.ticket = 0
                    self._again(job, worker, batch, position < begun, reason, now)
                else:
                    self._landed(key)
        self.book.free(self.book.slots.gone(worker.peer))

    def _again(self, job: Job, worker: Worker, batch: Batch, begun: bool, reason: str, now: float) -> None:
        if begun:
            job.charges += job.suspect  # and so it ran alone
            job.suspect = True
            job.record(
                StageRecord(
                    job.name, "failed", job.attempts, worker.plan.role, worker.plan.device, f"worker died: {reason}",
                    job.queued_ns, int((batch.began or now) * 1e9), int(now * 1e9), model_of(job.stage),
                )
            )  # fmt: skip
            self.status(job, f"worker died: {reason}; again at once")
            if retries.is_poison(job.charges):
                return self._give_up(job, "poison", f"its worker died {job.charges} times while it ran alone", now)
        job.move(State.PENDING)
        self.enter(job, now)

    # ---------------------------------------------------------------- the end

    def expire(self, key: Key, now: float) -> None:
        """The deadline: the outcome goes out now; a running worker is not touched."""
        job = self.book.job(key)
        if job is not None and not job.ended and job.deadline <= now and not haste.without_speech(self, job, now):
            self.book.totals.expired += 1
            self.end(job, "error", "expired", f"not done by its deadline; it was {self._where(job)}", now)

    def give_up_late(self, job: Job, now: float) -> None:
        """Its deadline cannot be kept any more: said now, before anybody works for nothing."""
        self.book.totals.expired += 1
        left = max(0.0, job.deadline - now)
        error = f"cannot be done by its deadline, {left:.1f} s from now; it was {self._where(job)}"
        self.end(job, "error", "expired", error, now)

    def cancel(self, key: Key, now: float) -> None:
        job = self.book.job(key)
        if job is not None and not job.ended:
            self.book.totals.cancelled += 1
            self.end(job, "skipped", "cancelled", "", now)

    def _where(self, job: Job) -> str:
        if job.passed:
            return "done"
        workers = self.book.workers_of(job.stage) if job.state is State.LOADING else []
        why = self.book.kept_empty(job.stage) if job.state in (State.PENDING, State.LOADING) else ""
        why = why or next((worker.waiting_for for worker in workers if worker.waiting_for), "") or self._pause(job)
        return f"{job.state.value} at {job.stage}{f' ({why})' if why else ''}"

    def _pause(self, job: Job) -> str:
        """That it waits because each device of its stage pauses, in words, or ""."""
        waits = job.state in (State.PENDING, State.LOADING) and not job.ticket
        devices = dict.fromkeys(worker.plan.device for worker in self.book.workers_of(job.stage) if waits)
        if not devices or any(self.book.shortages.held_until(device) is None for device in devices):
            return ""
        return f"nothing begins on {' and '.join(devices)} for a while: memory ran out there"

    def _give_up(self, job: Job, code: str, error: str, now: float) -> None:
        job.move(State.FAILED)
        self.status(job, error)
        self.end(job, "error", code, error, now)

    def end(self, job: Job, outcome: str, code: str, error: str, now: float) -> None:
        """The one end of an accepted utterance."""
        book = self.book
        self._withdraw(job)
        ref = job.ref if outcome == "ok" and (job.ref != job.ingress or self._passed_on(job)) else None
        ticket, job.has_audio = 0, ref is not None
        if ref is not None and book.gateway:
            ticket = book.next_ticket()
            book.slots.pin((ref.ring, ref.generation), book.gateway, ticket)
        elif outcome != "ok" and not job.passed:
            self._record_unfinished(job, now)
        job.outcome = told = Outcome(
            *job.key, outcome, code, error, dict(job.texts), job.language, "; ".join(job.degraded),
            stages=tuple(job.records),
        )  # fmt: skip
        book.accepted.pop(job.key, None)  # its outcome says so too
        book.send(GATEWAY, JobOutcome(told, ref, ticket))
        kept = job.ingress if book.is_kept(job) else None
        for held in (job.ref, job.ingress):
            if held is not None and held != kept:
                book.drop((held.ring, held.generation))
        if job.lost is None:
            self._count(outcome)
            if outcome == "error" and code != "expired":
                self.book.note("info", f"session {job.session.id} index {job.index} ended as error({code}): {error}")

    def _withdraw(self, job: Job) -> None:
        line = self.book.lines[job.session.id]
        job.ended, job.waiting = True, False
        line.unended.discard(job.index)
        line.highest_ended = max(line.highest_ended, job.index)
        if not job.ticket:  # else its run goes on, and serial mode waits for it
            self.book.in_flight.discard(job.key)
        if self.book.over or self.book.boot.mode == "serial":
            self.book.stir_all()  # an end lets others through
        self.book.slots.forget_claims(job.key)
        if not job.passed:
            self.book.queues[job.stage].remove(job.key)

    def _passed_on(self, job: Job) -> bool:
        """Whether some stage really handed the client's own samples on (rather than every stage being skipped)."""
        return any(record.state == State.COMPLETED.value for record in job.records)

    def _record_unfinished(self, job: Job, now: float) -> None:
        if not any(r.stage == job.name and r.attempt == job.attempts and r.ended_ns for r in job.records):
            job.record(
                StageRecord(
                    job.name, job.state.value, job.attempts, queued_ns=job.queued_ns, model=model_of(job.stage)
                )
            )  # fmt: skip
        for name in job.names[job.at + 1 :]:
            job.record(StageRecord(name, State.PENDING.value))

    def _count(self, outcome: str) -> None:
        totals = self.book.totals
        totals.completed += outcome == "ok"
        totals.failed += outcome == "error"
        totals.skipped += outcome == "skipped"

    # ---------------------------------------------------------------- told

    def _record(self, job: Job, worker: Worker, result: RunResult, state: str, reason: str) -> None:
        job.record(
            StageRecord(
                job.name, state, job.attempts, worker.plan.role, worker.plan.device, reason,
                job.queued_ns, result.begun_ns, result.ended_ns, model_of(job.stage),
            )
        )  # fmt: skip

    def status(self, job: Job, reason: str = "") -> None:
        """A stage's transition: told to a session that asked, and logged where every transition is."""
        if self.book.trace:
            self.book.note("debug", self._transition(job, reason))
        if job.session.partials and not job.ended:
            self.book.send(GATEWAY, Progress(Status(*job.key, job.name, job.state.value, job.attempts, reason)))

    def _transition(self, job: Job, reason: str) -> str:
        workers, queue = self.book.workers_of(job.stage), self.book.queues[job.stage]
        active, room = sum(len(b.jobs) for w in workers for b in w.batches), sum(w.stage.max_batch for w in workers)
        return (
            f"session {job.session.id} index {job.index} stage {job.stage}: {job.state.value}"
            f"{f' attempt {job.attempts}' if job.attempts else ''}{f' ({reason})' if reason else ''}"
            f", active {active}/{room} queued {len(queue)}"
        )
