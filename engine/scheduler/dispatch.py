"""Which worker gets which jobs next.

A worker with room (its running batch and ``send_ahead`` more) takes from its stage's queue; among several the one
with the fewest batches on board. A run is never interrupted by a more important one. A batch closes when it is full,
when its oldest job has waited ``max_delay``, when one of them must go to be in time for its deadline, or at once when
the worker idles and there is nothing to wait for. A suspect (its worker died) runs alone. A run takes as long as its
longest job, so a batch takes only jobs whose length is within ``length_ratio`` of its first one's; the others keep
their places and are first in the next.

A batch that is not full is not sent ahead: while its worker is busy it may yet fill. Nor is anything where a stage has
several workers and runs take longer than ``LONG_S``: that would spare the worker a millisecond between two of them, and
bind the jobs to this one although another may be free before it (``docs/decisions/0019-what-is-sent-ahead.md``).

Who comes while something sent ahead waits, and would be before it in the queue, overtakes it, one at a time: so neither
a flood nor a lower priority costs anybody more than the run that has begun. Not in batches, which would be torn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from engine.boot import StagePlan
from engine.policies import Candidate, Earliest, Policy
from engine.scheduler import haste
from engine.scheduler.book import Book
from engine.scheduler.fleet import Fleet
from engine.scheduler.flow import Flow
from engine.scheduler.jobs import Job, Key, State
from engine.scheduler.queues import Place, StageQueue
from engine.scheduler.workers import Batch, Life, Worker
from ipc.messages import Run, RunItem

SHORT_S = 1.0  # of speech; whatever is shorter counts as this long, when lengths are compared
ASK_AGAIN_S = 1.0  # after a policy has left out every worker
PATIENCE = 4  # times that it may do so while none of them has anything to do, so long apart
LONG_S = 0.25  # a mean run beyond which nothing is sent ahead to one of several workers


class Dispatch:
    """See the module's docstring."""

    def __init__(self, book: Book, flow: Flow, fleet: Fleet, policy: Policy) -> None:
        self.book = book
        self.flow = flow
        self.fleet = fleet
        self.policy = policy
        self.serial = book.boot.mode == "serial"
        self.eager = False  # without those two rules: for histories, where much is to be on board of those who die
        self._left_out: set[str] = set()  # stages of which the policy wanted no worker
        self._complained: set[str] = set()  # those of which that was said
        self._refused: dict[
            str, tuple[int, float]
        ] = {}  # stage -> how often in a row it left out all at rest, when last
        self._granted: dict[Key, tuple[Job, int, int, int]] = {}  # job, ticket, offset, nbytes

    @property
    def send_ahead(self) -> int:
        """Most batches that a worker may have behind the one it runs."""
        return 0 if self.serial else self.book.boot.send_ahead

    def turn(self, now: float) -> float | None:
        """Fill every worker that has room; returns when to look again for a batch that waits to fill, or None."""
        wakes = self._serve_stirred(now)
        if self.book.over and self.book.slots.wanted:  # somebody was turned away: see ``_gives_room``
            wakes += self._serve_stirred(now)
        return min(wakes, default=None)

    def _serve_stirred(self, now: float) -> list[float]:
        wakes: list[float] = []
        stirred, self.book.stirred = self.book.stirred, {}
        for name in stirred:
            queue = self.book.queues[name]
            if queue.waiting and (due := self._serve(self.book.stages[name], queue, now)) is not None:
                wakes.append(due)
        return wakes

    def _serve(self, plan: StagePlan, queue: StageQueue, now: float) -> float | None:
        """Fill the stage's workers; returns when a batch that still fills closes."""
        while queue.waiting and (workers := self._with_room(plan, now)):
            if plan.max_batch > 1 and (due := self._fills_until(plan, now)) is not None:
                self.book.stir(plan.name)
                return due
            if len(queue) < plan.max_batch and not self.eager:
                workers = [worker for worker in workers if not worker.batches]
                if not workers:  # the end of a run is an event
                    break
            for worker in workers:
                if self._fill(plan, worker, now):
                    break
            else:
                self.book.stir(plan.name)  # work and room, but no slot or no permission yet: look again next turn
                break
        if plan.max_batch == 1 and self.send_ahead and self._is_shared:
            for worker in self.book.workers_of(plan.name):
                self._let_pass(plan, queue, worker, now)
        return self._look_again(plan, now) if queue.waiting else None

    def _let_pass(self, plan: StagePlan, queue: StageQueue, worker: Worker, now: float) -> None:
        """Let whoever is first go before what was sent ahead and has not begun, if it would have been before that."""
        unbegun = [batch for batch in worker.batches if batch.began is None]
        if len(unbegun) != self.send_ahead or unbegun[-1].overtakes or not worker.takes_work(self.send_ahead + 1):
            return
        first, ahead = queue.first(now), unbegun[-1].place
        if first is None or ahead is None or first[0] >= ahead:
            return
        if queue.pick(1, lambda key: key == first[1] and self._eligible(key, plan, worker, now, alone=False), now):
            self._send(plan, worker, [self._granted.pop(first[1])], queue.place, now, overtakes=True)

    def _look_again(self, plan: StagePlan, now: float) -> float | None:
        """When there may be more room: a device that pauses begins again, or a run is near its end."""
        workers = self.book.workers_of(plan.name)
        ends = [self.book.shortages.held_until(w.plan.device) for w in workers]
        times = [end for end in ends if end is not None]
        if self._is_shared:
            sends = [self._send_at(w) for w in workers if w.batches and w.takes_work(self.send_ahead)]
            times += [at for at in sends if at > now]
        if plan.name in self._left_out:
            self._left_out.discard(plan.name)
            times.append(now + ASK_AGAIN_S)
        if times:
            self.book.stir(plan.name)
        return min(times, default=None)

    @property
    def _is_shared(self) -> bool:
        """Whether what is sent ahead may stand in the way of another session's next utterance."""
        return len(self.book.lines) > 1

    def _send_at(self, worker: Worker) -> float:
        """When the batch behind the running one is sent: as late as it can be without the worker having to wait."""
        began = worker.batches[-1].began
        return -math.inf if began is None else began + self.book.paces[worker.plan.stage].send_ahead_s

    def _with_room(self, plan: StagePlan, now: float) -> list[Worker]:
        """Workers that take another batch, the least loaded first."""
        ahead, _ = self.ahead(plan.name)
        workers = [w for w in self.book.workers_of(plan.name) if len(w.batches) <= ahead and w.takes_work(ahead)]
        if self._is_shared:
            workers = [w for w in workers if not w.batches or self._send_at(w) <= now]
        if self.book.shortages.holds:
            workers = [w for w in workers if self.book.shortages.held_until(w.plan.device) is None]
        return self._by_preference(plan, workers, now) if len(workers) > 1 else workers

    def _by_preference(self, plan: StagePlan, workers: list[Worker], now: float) -> list[Worker]:
        """As the policy orders them; extra ones after regular ones that are idle, those on standby after all others."""
        on_device: Counter[str] = Counter()
        for worker in self.book.workers.values():
            on_device[worker.plan.device] += sum(len(batch.jobs) for batch in worker.batches)
        found: list[Worker] = []
        by_role = {worker.plan.role: worker for worker in sorted(workers, key=Worker.load_of)}
        is_regular_idle = any(not (w.batches or w.plan.extra or w.plan.standby) for w in workers)
        rank = {w.plan.role: 2 if w.plan.standby else int(w.plan.extra and is_regular_idle) for w in workers}
        for group in range(3):
            candidates = [
                Candidate(
                    role, w.plan.device, len(w.batches), w.items, w.mean_s, w.free_in_s(now), w.given_at,
                    on_device[w.plan.device],
                )
                for role, w in by_role.items() if rank[role] == group
            ]  # fmt: skip
            if candidates:
                found += [by_role[role] for role in self._order(plan.name, candidates)]
        if found:
            self._refused.pop(plan.name, None)
        elif self._has_left_out(plan.name, now):
            return self._by_preference(plan, workers, now)
        return found

    def _has_left_out(self, stage: str, now: float) -> bool:
        """The policy wants none of a stage's workers: it is asked again, and that is said once.

        True: it has done so often enough, while all were at rest and nothing could come of waiting: it is replaced.
        """
        self._left_out.add(stage)
        times, last = self._refused.get(stage, (0, -math.inf))
        if now >= last + ASK_AGAIN_S and not any(worker.batches for worker in self.book.workers_of(stage)):
            self._refused[stage] = times + 1, now
            if times + 1 >= PATIENCE:
                self._replace(f"names no worker of stage {stage}, all of which are free")
                return True
        if stage not in self._complained:
            self._complained.add(stage)
            who = self.book.boot.placement
            self.book.note(
                "warning", f"placement {who} names no worker of stage {stage} that is free: it is asked again"
            )
        return False

    def _replace(self, why: str) -> None:
        self.book.note("warning", f"placement {self.book.boot.placement} {why}; earliest from now on")
        self.policy = Earliest()

    def _order(self, stage: str, candidates: list[Candidate]) -> Sequence[str]:
        """Roles of theirs alone, whatever the policy names."""
        known = {candidate.role for candidate in candidates}
        try:
            return [role for role in self.policy.order(stage, candidates) if role in known]
        except Exception as error:  # a stranger's policy must not stop the node
            self._replace(f"failed ({error!r})")
            return self.policy.order(stage, candidates)

    def ahead(self, stage: str) -> tuple[int, str]:
        """Batches that a worker of this stage may have behind the one it runs, and why so many."""
        book = self.book
        mean_s = book.paces[stage].mean_s
        if mean_s <= LONG_S or self.eager or not book.boot.adaptive or not self.send_ahead:
            return self.send_ahead, "as configured"
        if sum(worker.life is Life.LOADED for worker in book.workers_of(stage)) > 1:
            return 0, f"runs take {mean_s:.1f} s, and whoever is free first takes the next"
        return self.send_ahead, "as configured"

    def _fill(self, plan: StagePlan, worker: Worker, now: float) -> bool:
        keys, place = self._pick(plan, worker, now)
        if keys:
            self._send(plan, worker, [self._granted.pop(key) for key in keys], place, now)
        return bool(keys)

    def _fills_until(self, plan: StagePlan, now: float) -> float | None:
        """When a batch that is still filling closes, or None: it closes now."""
        queue = self.book.queues[plan.name]
        if plan.max_batch <= 1 or not plan.max_delay_ms or len(queue) >= plan.max_batch:
            return None
        jobs = [job for key in queue if (job := self.book.job(key)) is not None and self.may_run(key)]
        if not jobs:
            return None
        oldest = min(job.queued_ns for job in jobs) / 1e9
        run_s = self.book.paces[plan.name].run_s
        closes = min(oldest + plan.max_delay_ms / 1000, min(haste.latest(self.book, job) for job in jobs) - run_s)
        return closes if closes > now else None

    def _pick(self, plan: StagePlan, worker: Worker, now: float) -> tuple[list[Key], Place]:
        queue = self.book.queues[plan.name]
        keys = queue.pick(1, lambda key: self._eligible(key, plan, worker, now, alone=True), now)
        place = queue.place
        if plan.max_batch <= 1 or not keys or self._job(keys[0]).suspect:
            return keys, place
        if self.serial:
            self.book.in_flight.add(keys[0])
        rest = worker.batch_limit(self.book.deadlines.oom_window_s, now) - 1
        first = self._job(keys[0])

        def joins(key: Key) -> bool:
            return _alike(first, self._job(key), plan.length_ratio) and self._eligible(
                key, plan, worker, now, alone=False
            )

        return keys + queue.pick(rest, joins, now), place

    def may_run(self, key: Key) -> bool:
        """Whether it only lacks a worker or memory; False: its client, or its gateway, is what it waits for."""
        job = self._job(key)
        if not job.at_last:
            return True
        if key[0] not in self.book.over:
            return bool(self.book.gateway)
        return bool(self.book.gateway) and (self._unblocks(key) or self._gives_room(job))

    def _eligible(self, key: Key, plan: StagePlan, worker: Worker, now: float, *, alone: bool) -> bool:
        job = self._job(key)
        if haste.is_hopeless(self.book, job, now):
            self.flow.give_up_late(job, now)
            return False
        if job.suspect and not alone:
            return False
        if worker.plan.device in job.starved_on and self.flow.has_elsewhere(job):
            return False
        if self.serial and not job.started and self.book.in_flight - {key}:
            return False
        return self.may_run(key) and self._grant(job, plan, worker, now)

    def _unblocks(self, key: Key) -> bool:
        """A session over its byte budget gets its lowest unended index done while a higher one has ended."""
        line = self.book.lines[key[0]]
        return key[1] == min(line.unended) and line.highest_ended > key[1]

    def _gives_room(self, job: Job) -> bool:
        """It keeps a slot that somebody waits for, perhaps the very index that its session must end first."""
        return job.ref is not None and self.book.slots.is_wanted(job.ref.ring)

    def _grant(self, job: Job, plan: StagePlan, worker: Worker, now: float) -> bool:
        """Take a slot in the worker's ring for the job's output, if it emits an array."""
        ticket = self.book.next_ticket()
        if not worker.plan.ring_blocks:
            self._granted[job.key] = (job, ticket, -1, 0)
            return True
        nbytes = plan.output_base + plan.output_per_char * len(job.text or "")
        if job.ref is not None:
            nbytes += int(plan.output_per_byte * job.ref.nbytes)
        ring = worker.plan.role
        if not self.book.slots.fits(ring, nbytes):
            nbytes = worker.plan.ring_blocks * 65_536  # the whole ring; a longer result ends as output_too_long
        offset = self.book.slots.grant(ring, nbytes, ticket, job.key, now)
        if offset is None:
            return False
        self._granted[job.key] = (job, ticket, offset, nbytes)
        return True

    def _send(
        self, plan: StagePlan, worker: Worker, granted: list[tuple[Job, int, int, int]], place: Place, now: float,
        *, overtakes: bool = False,
    ) -> None:  # fmt: skip
        items = tuple([self._item(worker, *grant) for grant in granted])
        # Of all, not of the longest: many stages run a batch's items one after the other.
        limit = plan.timeout_base_s + plan.timeout_per_audio * sum([job.audio_s for job, *_ in granted])
        batch = Batch(
            {ticket: job.key for job, ticket, *_ in granted}, now, limit, alone=granted[0][0].suspect, place=place,
            overtakes=overtakes,
        )  # fmt: skip
        worker.send(batch)
        worker.runs += 1
        self.book.paces[plan.name].moved_at = now
        self.book.send(worker.peer, Run(items, overtakes))
        if batch.began is not None:
            self.book.queues[plan.name].begun(place)
            self.fleet.watchdog.watch(batch.began + limit)
            for job, *_ in granted:
                self.flow.status(job)

    def _item(self, worker: Worker, job: Job, ticket: int, offset: int, nbytes: int) -> RunItem:
        job.attempts += 1
        job.ticket = ticket
        job.started = True
        job.move(State.PROCESSING)
        self.book.in_flight.add(job.key)
        if offset >= 0:
            self.book.slots.pin((worker.plan.role, ticket), worker.peer, ticket)
        if job.ref is not None:
            self.book.slots.pin((job.ref.ring, job.ref.generation), worker.peer, ticket)
        session = job.session
        return RunItem(
            ticket, session.id, job.index, job.attempts, self._source(job), session.target,
            job.text if job.ref is None else None, job.ref, offset, nbytes,
        )  # fmt: skip

    def _source(self, job: Job) -> str:
        """The session's source language; where it left that open, the one an earlier stage heard."""
        asked = job.session.source
        return job.language if asked in ("", "auto") and job.language else asked

    def _job(self, key: Key) -> Job:
        job = self.book.job(key)
        assert job is not None, key
        return job


def _alike(job: Job, other: Job, ratio: float) -> bool:
    """Whether two are of about one length."""
    short, long = sorted((job.speech_s, other.speech_s))
    return long <= ratio * max(short, SHORT_S)
