"""The scheduler's core: every event in, every action out. No sockets, clock, threads or chance.

``handle`` takes one message and who sent it, ``turn`` does what the clock and the state ask for (timers, dispatch,
capacity) and returns everything decided since the last turn. The shell calls ``handle`` for all that has arrived, then
``turn`` once, so that each peer gets at most one frame a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine import policies
from engine.boot import SchedulerBoot
from engine.config import DeadlinesSection
from engine.scheduler import haste
from engine.scheduler.adapting import Tally
from engine.scheduler.batches import Batches
from engine.scheduler.book import GATEWAY, SUPERVISOR, Book, Note
from engine.scheduler.dispatch import Dispatch
from engine.scheduler.figures import Figures
from engine.scheduler.fleet import Fleet
from engine.scheduler.flow import Flow
from engine.scheduler.handover import Handover
from engine.scheduler.instances import Extras
from engine.scheduler.jobs import Key, State
from engine.scheduler.ladder import Ladder
from engine.scheduler.orders import Orders
from engine.scheduler.pace import capacity
from engine.scheduler.past import Past
from engine.scheduler.residency import Residency
from engine.scheduler.workers import Life, Worker
from ipc.messages import (
    Acked,
    Admit,
    CancelJob,
    Capacity,
    Copied,
    Denied,
    Done,
    Drain,
    Drained,
    Ended,
    Gone,
    Held,
    Here,
    LeaseWait,
    Loaded,
    Loading,
    Over,
    Preload,
    Remade,
    Restored,
    Room,
    Serve,
    Session,
    SessionEnded,
    Silent,
    Spare,
    Vacate,
)
from ipc.messages import Orders as Standing
from ipc.peers import peer_name, split_peer

RATE_STEP = 0.2  # a changed rate is told when it moved by this share
RATE_INTERVAL_S = 1.0

FRESH_S = 0.5  # news of a silence that are older, and than a heartbeat, may have been overtaken by a word


class Scheduler:
    """See the module's docstring. ``epoch`` is this process's incarnation; ``chance`` gives numbers from 0 to 1."""

    def __init__(
        self, boot: SchedulerBoot, deadlines: DeadlinesSection, epoch: int, hooks: dict[str, str] | None = None,
        chance: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        self.book = Book(boot, deadlines, epoch, hooks)
        self.flow = Flow(self.book, chance)
        self.fleet = Fleet(self.book, self.flow)
        self.dispatch = Dispatch(self.book, self.flow, self.fleet, policies.find(boot.placement)())
        self.residency = Residency(self.book, self.fleet)
        self.batches = Batches(self.book)
        self.orders = Orders(self.book, self.fleet, self.residency, self.batches)
        self.ladder = Ladder(self.book, self.fleet)
        self.extras = Extras(self.book, self.fleet, self.residency, self.ladder, self.dispatch)
        self.past = Past(self.book, self.flow)
        self.handover = Handover(self.book, self.past)
        self._figures = Figures(self)
        self._told = (-1, 0.0)
        self._told_at = 0.0
        self.began = 0.0
        self._drain_by: float | None = None
        self._drained = False
        self._drain_wake: float | None = None
        self._wake: float | None = None
        self._look: float | None = None  # when a model may have to leave

    # ---------------------------------------------------------------- events

    def handle(self, peer: str, message: Any, now: float) -> None:
        """One message: ``peer`` is "supervisor" or a peer's name (``gateway#1``, ``asr@cpu/0#3``)."""
        if type(message) is Done:  # the most frequent one
            self._done(peer, message, now)
        elif peer == SUPERVISOR:
            self._from_supervisor(message, now)
        elif peer.startswith("gateway#"):
            self._from_gateway(peer, message, now)
        elif type(message) is Vacate:
            self.residency.wanted(split_peer(peer)[1], message, now)
        elif type(message) is Room:
            self.ladder.room(split_peer(peer)[1], message)
        else:
            self._from_worker(peer, message, now)

    def _from_gateway(self, peer: str, message: Any, now: float) -> None:
        flow = self.flow
        if peer != self.book.gateway and not isinstance(message, (Here, Copied)):
            return  # late words of a life whose memory another one has taken over: nobody would own what they begin
        match message:
            case Admit():
                flow.admit(message, now)
            case Session():
                flow.open(message)
            case Copied(tickets=tickets):
                for ticket in tickets:
                    self.book.release(peer, ticket)
            case Acked(session=session, through=through):
                flow.acked(session, through)
            case CancelJob(session=session, index=index):
                flow.cancel((session, index), now)
            case Over(sessions=sessions):
                self.book.over = frozenset(sessions)
                self.book.stir_all()
            case Ended():
                self.past.ended(message, now)
            case Remade():
                self.past.remade(message, now)
            case Held():
                self.past.hold(message)
            case Spare():
                self.past.spare()
            case SessionEnded(id=session):
                flow.close(session, now)
            case Here():
                self._told, self._drained = (-1, 0.0), False  # results may have to be made once more
                self.handover.meet(peer, message, now)
                self.fleet.check_start()
            case Restored():
                self.handover.told_all()

    def _done(self, peer: str, message: Done, now: float) -> None:
        worker = self.fleet.find(peer)
        if worker is None:  # an older life: it can only release pins
            for result in message.results:
                self.book.totals.stale += 1
                self.book.release(peer, result.ticket)
            return
        worker.spoke_at = now
        if message.fits or any(result.code == "oom" for result in message.results):
            worker.ran_out(message.fits, now)
            self.fleet.ran_out(worker, "run", now)
        self._tally(worker.plan.stage, message, now)
        running = worker.batches[0] if worker.batches else None
        for result in message.results:
            self.flow.done(worker, result, now)
        if worker.batches and worker.batches[0] is not running:
            self._announce(worker)

    def _tally(self, stage: str, message: Done, now: float) -> None:
        results = message.results
        ran_out = bool(message.fits) or any(result.code == "oom" for result in results)
        failed = sum(result.state == "failed" and result.code != "oom" and result.retry for result in results)
        seconds = max((result.ended_ns - result.begun_ns for result in results), default=0) / 1e9
        if results:
            self.batches.ran(stage, Tally(len(results), failed, ran_out, seconds), now)

    def _from_worker(self, peer: str, message: Any, now: float) -> None:
        if isinstance(message, Here):
            return self.fleet.here(peer, message, now)
        worker = self.fleet.find(peer)
        if worker is None:
            return
        worker.spoke_at = now
        match message:
            case LeaseWait():
                self.fleet.lease_wait(worker, message)
            case Loading():
                self.fleet.loading(worker, now)
            case Loaded():
                self.fleet.loaded(worker, message, now)
            case Denied():
                self.fleet.denied(worker, message, now)

    def _announce(self, worker: Worker) -> None:
        """A batch sent ahead has begun."""
        if (limit := worker.hung_at()) is not None:
            self.fleet.watchdog.watch(limit)
        batch = worker.batches[0]
        if batch.place is not None:
            self.book.queues[worker.plan.stage].begun(batch.place)
        for key in batch.jobs.values():
            if (job := self.book.job(key)) is not None:
                self.flow.status(job)

    def _from_supervisor(self, message: Any, now: float) -> None:
        match message:
            case Gone(role="gateway", incarnation=incarnation):
                self.handover.part(peer_name("gateway", incarnation))
            case Gone(role="arbiter", incarnation=incarnation):
                self.residency.forget(incarnation)
                self.ladder.forget(incarnation)
            case Gone(role=role, incarnation=incarnation, parked=True):
                self.fleet.parked(role, incarnation, now)
            case Gone(role=role, incarnation=incarnation, reason=reason, final=final):
                self.fleet.gone(role, incarnation, reason, final=final, now=now)
            case Serve():  # it does already: a load that fails is no reason to end it
                self.fleet.ready = True
            case Silent(worker=role, incarnation=incarnation, phase=phase, told_at=told_at):
                if now <= (told_at or now) + max(FRESH_S, self.book.deadlines.heartbeat_s):  # else it is told again
                    self.fleet.watchdog.silent(role, incarnation, phase, now)
            case Standing():
                self.orders.told(message)
            case Preload(stage=stage):
                self.orders.preload(stage)
            case Drain(budget_ms=budget_ms):
                if self._drain_by is None:
                    self._drain_by = now + budget_ms / 1000

    # ---------------------------------------------------------------- the turn

    def _ring(self, kind: str, key: Key, now: float) -> None:
        """A timer has come due."""
        match kind:
            case "deadline":
                self.flow.expire(key, now)
            case "haste":
                haste.hurry(self.flow, key, now)
            case _:
                self.flow.retry(key, now)

    def turn(self, now: float) -> tuple[dict[str, list[Any]], list[Note]]:
        """Do what is due, dispatch, and hand over all that was decided since the last turn: mail by peer, and notes."""
        self.began = self.began or now
        self.book.shortages.age(now)
        if self.book.timers and self.book.timers[0][0] <= now:
            for kind, key in self.book.due(now):
                self._ring(kind, key, now)
        if self.fleet.watchdog.look_at is not None and self.fleet.watchdog.look_at <= now:
            self.fleet.overdue(now)
        if self._drain_by is not None:
            self._drain(self._drain_by, now)
            self._drain_wake = self._drain_by if now < self._drain_by else None
        self.orders.turn()
        self._look = earliest(self.residency.turn(now), self.ladder.turn(now))
        self._wake = self.dispatch.turn(now)
        self._look = earliest(self._look, self.extras.turn(now))
        if self.book.fleet_changed or now >= self._told_at + RATE_INTERVAL_S:
            self._tell_capacity(now)
            self.flow.ease_idle(now)
        return self.book.take(now)

    def next_deadline(self) -> float | None:
        """When ``turn`` has something to do even if nothing arrives (seconds, monotonic)."""
        first = self.book.timers[0][0] if self.book.timers else None
        for time in (self._wake, self._look, self.book.ride_until, self.fleet.watchdog.look_at, self._drain_wake):
            if time is not None and (first is None or time < first):
                first = time
        return first

    def _drain(self, by: float, now: float) -> None:
        """Say when nothing is in flight, once; end what still is, or comes, when the time is over."""
        lines = list(self.book.lines.values())
        if now >= by:
            for line in lines:
                for index in sorted(line.unended):
                    self.flow.end(line.jobs[index], "error", "shutting_down", "the node stopped", now)
        if not self._drained and self.handover.complete and not any(line.unended for line in lines):
            self._drained = True
            self.book.send(SUPERVISOR, Drained())

    def _tell_capacity(self, now: float) -> None:
        if not self.book.gateway:
            return
        n, rate = self.capacity(now)
        told_n, told_rate = self._told
        self._told_at, self.book.fleet_changed = now, False
        if n != told_n or abs(rate - told_rate) > RATE_STEP * told_rate:
            self._told = (n, rate)
            self.book.send(GATEWAY, Capacity(n, round(rate, 3)))

    def capacity(self, now: float) -> tuple[int, float]:
        """How many utterances the node takes in, and about how many a second leave it."""
        book = self.book
        at_work = [
            name for name in book.stages
            if len(book.queues[name]) or any(worker.batches for worker in book.workers_of(name))
        ]  # fmt: skip
        return capacity(book.paces, self.concurrency(), book.boot.capacity_factor, now, at_work)

    def concurrency(self) -> dict[str, int]:
        """Stage -> workers that are there or expected x batch, for stages that have any."""
        out: dict[str, int] = {}
        for worker in self.book.workers.values():
            spare = (worker.plan.standby or worker.plan.extra) and worker.life is not Life.LOADED
            if worker.life is not Life.LOST and not spare and worker.plan.stage not in self.book.absent:
                size = 0 if self.book.is_drained(worker) else worker.stage.max_batch
                out[worker.plan.stage] = out.get(worker.plan.stage, 0) + size
        return {name: most or self.book.stages[name].max_batch for name, most in out.items()}

    # ---------------------------------------------------------------- seen

    def snapshot(self, now: float) -> dict[str, Any]:
        """Statistics as plain values."""
        return self._figures.snapshot(now)

    def check(self) -> None:
        """Invariants of all cores, and between them."""
        book = self.book
        book.slots.check()
        on_board = {key: t for w in book.workers.values() for b in w.batches for t, key in b.jobs.items()}
        for name, queue in book.queues.items():
            queue.check()
            for key in queue:
                job = book.job(key)
                assert job is not None and not job.ended and job.stage == name and not job.ticket, key
        for line in book.lines.values():
            assert line.unended == {i for i, job in line.jobs.items() if not job.ended}
            for job in line.jobs.values():
                job.check()
                if job.ended:
                    continue
                aside = job.waiting + (job.state is State.RETRYING)
                queued = any(job.key in queue for queue in book.queues.values())
                places = aside + queued + (on_board.get(job.key) == job.ticket != 0)
                assert places == 1, f"{job.key} {job.state} is in {places} places"


def earliest(*times: float | None) -> float | None:
    """The first of these points in time; None: none is set."""
    return min((time for time in times if time is not None), default=None)
