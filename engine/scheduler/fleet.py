"""Workers from their first word to their last: load, ready, refused, gone."""

from __future__ import annotations

from engine.choices import field_of
from engine.scheduler import retries
from engine.scheduler.book import SUPERVISOR, Book
from engine.scheduler.flow import Flow
from engine.scheduler.jobs import State
from engine.scheduler.watchdog import Watchdog
from engine.scheduler.workers import Batch, Life, Worker
from ipc.messages import Denied, Excused, Failing, Here, LeaseWait, Load, Loaded, Park, Ready
from ipc.peers import split_peer

EXCUSED_LIVES = 40  # ten utterances that kill their worker until they are poison; one that only dies is not excused


class Fleet:
    """See the module's docstring."""

    def __init__(self, book: Book, flow: Flow) -> None:
        self.book = book
        self.flow = flow
        self.watchdog = Watchdog(book)
        self.ready = False
        self.proven: set[str] = set()  # stages of which a model has been loaded, be it away again
        self._by_peer: dict[str, Worker] = {}  # every life that has spoken and is not known to be dead
        self._failing = False

    def find(self, peer: str) -> Worker | None:
        """The worker of this name, or None when the role is unknown or the incarnation is not the present one."""
        worker = self._by_peer.get(peer)
        return worker if worker is not None and worker.peer == peer else None

    def here(self, peer: str, message: Here, now: float) -> None:
        """A worker speaks for the first time in this life."""
        role, incarnation = split_peer(peer)
        worker = self.book.workers.get(role)
        if worker is None or incarnation < worker.incarnation:
            return
        if worker.life not in (Life.ABSENT, Life.LOST):
            self.gone(role, worker.incarnation, "replaced", final=False, now=now)
        self.watchdog.spoke(role, incarnation)
        worker.begin(incarnation)
        worker.spoke_at = now
        self._by_peer[peer] = worker
        worker.move(Life.EMPTY)
        worker.condemned = False
        worker.waiting_for = ""
        self.book.fleet_changed = True
        self.book.knows_its_slots(role)
        if message.state != "empty":
            worker.variant = min(message.variant, len(worker.plan.smaller))
        match message.state:
            case "loaded":  # it has lived through the death of an earlier epoch
                worker.move(Life.LOADING)
                worker.move(Life.LOADED)
                worker.loaded_at, worker.parked = now, False
                self.proven.add(worker.plan.stage)
                self._check_ready()
            case "waiting":
                worker.move(Life.LOADING)
                worker.waiting_for = message.reason
            case _ if worker.refused:  # another process after a load that failed: it tries again when it is time
                if worker.load_again_at is not None:
                    self.watchdog.watch(worker.load_again_at)
            case _ if worker.parked or self.book.is_unloaded(worker):
                worker.parked = True
                if self.book.queues[worker.plan.stage].waiting:
                    self.call(worker.plan.stage)
            case _ if self._is_to_load(worker):
                self._load(worker, modest=worker.modest)

    def call(self, stage: str) -> None:
        """There is work for a stage whose models are parked: one comes back, unless one is there or on its way."""
        workers = self.book.regulars_of(stage)
        staying = [w for w in workers if not (w.leaving or w.ordered or self.book.is_drained(w))]
        if any(w.life in (Life.LOADING, Life.LOADED) for w in staying):
            return
        may = [w for w in workers if w.parked and not (w.yields or self.book.is_drained(w))]
        parked = [w for w in may if w.life is Life.EMPTY]
        if parked:
            self._load(min(parked, key=lambda worker: (worker.plan.standby, worker.load_ms)))

    def begin(self, worker: Worker) -> None:
        """Let a worker without a model load it, unless it stands by for others that can, or is an extra one."""
        if worker.life is Life.EMPTY and self._is_to_load(worker):
            self._load(worker)

    def look_after(self, stage: str) -> None:
        """Who may serve this stage has changed by an order: somebody else may have to."""
        if self.book.queues[stage].waiting:
            self.call(stage)
        self._call_standby(stage)

    def climb(self, worker: Worker) -> None:
        """Let a worker load whose stage another one serves: only if there is room at once."""
        self._load(worker, modest=True)

    def renew(self, worker: Worker, reason: str) -> None:
        """Let its process end and the next one load at once: what the old one holds goes with it."""
        if worker.dismissed:  # by an operator, while it loaded
            return
        worker.leaving = True
        self.book.note("info", f"{worker.plan.role} starts anew: {reason}")
        self.dismiss(worker)

    def dismiss(self, worker: Worker) -> None:
        """Have its process end, which has nothing on board. Once a life."""
        worker.dismissed = True
        self.book.send(worker.peer, Park())

    def _load(self, worker: Worker, *, modest: bool = False) -> None:
        if self.book.is_drained(worker):
            worker.waiting_for, worker.load_again_at = f"{worker.plan.device} is drained", None
            if self.book.kept_empty(worker.plan.stage):
                self.tell_queue(worker.plan.stage, worker.waiting_for)
            return None
        if (until := self.book.shortages.held_until(worker.plan.device)) is not None:
            why = f"{worker.plan.device} ran out of memory more than once: nothing begins there for a while"
            worker.waiting_for, worker.load_again_at = why, until
            return self.watchdog.watch(until)
        worker.called = worker.called or worker.parked
        worker.parked, worker.yields, worker.refused, worker.modest = False, False, False, modest
        if worker.dismissed:  # its next life will
            return None
        worker.move(Life.LOADING)
        worker.loading_since = worker.load_again_at = worker.room_since = None
        # Its own old memory may still be on its way back: so long it waits at any rate. An extra one waits for nothing.
        wait_s = 0.0 if worker.plan.extra else self.book.deadlines.settle_s if modest else None
        return self.book.send(worker.peer, Load(worker.stage.model, worker.variant, wait_s, worker.raised))

    def ran_out(self, worker: Worker, phase: str, now: float) -> None:
        """Memory was short on a worker's device, in this phase of its life."""
        deadlines, device = self.book.deadlines, worker.plan.device
        hold_s = deadlines.oom_hold_s
        if self.book.shortages.happened(device, phase, now, window_s=deadlines.oom_window_s, hold_s=hold_s):
            self.book.note("warning", f"{device} ran out of memory again: nothing new begins there for {hold_s:g} s")

    def lease_wait(self, worker: Worker, message: LeaseWait) -> None:
        worker.waiting_for = message.reason
        self.book.note("info", f"{worker.plan.role} waits for memory: {message.reason}")
        self.tell_queue(worker.plan.stage, message.reason)

    def loading(self, worker: Worker, now: float) -> None:
        worker.loading_since = now
        worker.waiting_for = ""
        self.watchdog.watch(now + self.book.deadlines.load_timeout_s)

    def loaded(self, worker: Worker, message: Loaded, now: float) -> None:
        worker.move(Life.LOADED)
        worker.loaded_at = now
        worker.modest = worker.hopeless = worker.returns = worker.called = False
        self.proven.add(worker.plan.stage)
        worker.loading_since = None
        worker.waiting_for = ""
        worker.load_ms = message.load_ms
        worker.load_ooms = 0
        if self.book.absent.pop(worker.plan.stage, ""):
            self.book.fleet_changed = True
            self.book.note("info", f"stage {worker.plan.stage} is back")
        self.book.stir(worker.plan.stage)
        how = f" {worker.degraded}" if worker.degraded else ""
        self.book.note("info", f"{worker.plan.role} loaded{how} in {message.load_ms:.0f} ms")
        self._check_ready()

    def denied(self, worker: Worker, message: Denied, now: float) -> None:
        """No lease, or the load failed: the next smaller variant, else the stage's next worker on standby.

        Where there is neither, it is tried again later, unless before the first ready, which may end the node. The
        utterances of a stage that the node can do without go past it meanwhile. Its model is not tried again when it
        is the model that is bad.
        """
        worker.move(Life.EMPTY)
        worker.called = False
        worker.loading_since = None
        worker.waiting_for = message.reason
        if worker.plan.extra:
            return self._did_without(worker, message, now)
        returned, worker.returns = worker.returns, False
        if returned and message.code == "no_vram":  # somebody was faster: it rests on
            worker.parked, worker.waiting_for = True, f"parked: {message.reason}"
            return None
        self.book.note("warning", f"{worker.plan.role} cannot load: {message.reason}")
        if message.code == "no_vram" and worker.raised > 1:  # there is not so much; what was enough before may do
            worker.raised = 1.0
            return self._load(worker, modest=worker.modest)
        if message.code == "oom":
            self.ran_out(worker, message.phase, now)
        if worker.step_down():
            self.book.note("warning", f"{worker.plan.role} degrades: it tries {worker.degraded}")
            worker.raised, worker.load_ooms = 1.0, 0
            if message.code == "no_vram":  # it has touched nothing yet
                return self._load(worker, modest=worker.modest)
            return self.renew(worker, "its load failed")
        worker.modest, worker.refused = False, True
        worker.hopeless = message.code == "bad_model"
        optional = worker.stage.optional
        if message.code == "oom":
            self._load_ran_out(worker, now)
        if self._call_standby(worker.plan.stage):
            return None
        if self.ready:
            self._load_later(worker.plan.stage, now)
        if optional or not self.ready:
            self._without(worker.plan.stage, message.reason, now, worker.hopeless)
        return None

    def _did_without(self, extra: Worker, message: Denied, now: float) -> None:
        """An extra worker could not load: its stage goes on as before."""
        extra.modest = False
        extra.hopeless = message.code == "bad_model"
        self.book.note("info", f"{extra.plan.role} does not load after all: {message.reason}")
        if message.code == "oom":
            self.ran_out(extra, message.phase, now)

    def _load_later(self, stage: str, now: float) -> None:
        """Nobody serves this stage: whoever of its workers has been refused tries again after a while."""
        for worker in self.book.regulars_of(stage):
            if worker.life is Life.EMPTY and not worker.leaving and not (worker.hopeless and worker.stage.optional):
                if worker.load_again_at is None:  # after running out of memory it has a time of its own
                    worker.load_again_at = now + self.book.deadlines.retry_delay_s
                    self.watchdog.watch(worker.load_again_at)

    def _load_ran_out(self, worker: Worker, now: float) -> None:
        """It was granted what it asked for and that was not enough: later, each time, and with more."""
        worker.load_ooms += 1
        worker.raised = retries.raised(worker.raised)
        if self.ready:
            worker.load_again_at = now + retries.load_wait(worker.load_ooms, self.book.deadlines.retry_delay_s)
            self.watchdog.watch(worker.load_again_at)

    def _call_standby(self, stage: str) -> bool:
        """Whether some worker of the stage may yet load; calls the next one on standby when no other can."""
        workers = self.book.workers_of(stage)
        for worker in workers:
            rested = worker.parked or not worker.waiting_for  # else it was refused itself
            if worker.life is Life.EMPTY and rested and worker.plan.standby and self._is_called(worker):
                self.book.note("warning", f"stage {stage} degrades: {worker.plan.role} takes over")
                self._load(worker)
        return any(worker.may_serve for worker in workers)

    def _is_to_load(self, worker: Worker) -> bool:
        """Whether it loads without being told that there is work: not extra, and not on standby for nobody."""
        return not worker.plan.extra and (not worker.plan.standby or self._is_called(worker))

    def _is_called(self, standby: Worker) -> bool:
        """Whether no other worker of its stage serves, or may soon."""
        others = [worker for worker in self.book.workers_of(standby.plan.stage) if worker is not standby]
        return not any(
            (worker.life in (Life.LOADING, Life.LOADED) if worker.plan.standby else worker.may_serve)
            and not self.book.is_drained(worker)
            for worker in others
        )

    def _without(self, stage: str, reason: str, now: float, bad_model: bool = False) -> None:
        """No worker of this stage will load: the node goes on without it if it may, else it does not start."""
        if not self.book.stages[stage].optional:
            what = f"{field_of(stage)}.model cannot be used" if bad_model else f"stage {stage} cannot start"
            return self._fail(f"{what}: {reason}", bad_model)
        if stage not in self.book.absent:
            self.book.note("warning", f"stage {stage} is absent from here on, its utterances skip it: {reason}")
        self.book.absent[stage] = reason
        self.book.fleet_changed = True
        self.flow.skip_queue(stage, now)
        self._check_ready()

    def _fail(self, reason: str, configuration: bool = False) -> None:
        if not self._failing:
            self._failing = True
            self.book.send(SUPERVISOR, Failing(reason, configuration))

    def _check_ready(self) -> None:
        if self.ready or self._failing:
            return
        workers = self.book.workers.values()
        needed = {worker.plan.stage for worker in workers if not worker.plan.rests} - self.book.absent.keys()
        if needed <= self.proven:
            self.ready = True
            reason = self.book.boot.mode_reason
            if away := sorted({w.plan.stage for w in workers if w.parked and not w.plan.extra}):
                reason += f"; models take turns in memory (away at the start: {', '.join(away)})"
            self.book.send(SUPERVISOR, Ready(self.book.boot.mode, reason))

    def check_start(self) -> None:
        """A node whose every stage is absent has nobody to wait for."""
        if not self.book.workers:
            self._check_ready()

    # ---------------------------------------------------------------- trouble

    def overdue(self, now: float) -> None:
        """Condemn workers that are over their limits; load again where a wait is over."""
        for worker in self.watchdog.turn(now):
            if self._is_to_load(worker):
                others = self.book.workers_of(worker.plan.stage)
                self._load(worker, modest=any(other.life is Life.LOADED for other in others))
            else:
                worker.load_again_at, worker.waiting_for = None, ""
        self.watchdog.next()

    def parked(self, role: str, incarnation: int, now: float) -> None:
        """A worker has left as it was told; it had nothing on board."""
        worker = self.book.workers.get(role)
        if worker is None or incarnation < worker.incarnation:
            return
        if worker.batches:  # it was told so by an epoch before this one
            return self.gone(role, incarnation, "parked by an earlier scheduler", final=False, now=now)
        worker.move(Life.ABSENT)
        self._by_peer.pop(worker.peer, None)
        self.watchdog.spoke(role, incarnation)
        worker.leaving = worker.condemned = False
        worker.loading_since = None
        if not worker.refused:
            worker.load_again_at = None
        self.book.knows_its_slots(role)
        self.book.free(self.book.slots.gone(worker.peer))

    def gone(self, role: str, incarnation: int, reason: str, *, final: bool, now: float) -> None:
        """A worker is dead and everything it had sent has been read."""
        worker = self.book.workers.get(role)
        if worker is None or incarnation < worker.incarnation:
            return
        known = worker.life not in (Life.ABSENT, Life.LOST)
        worker.move(Life.LOST if final else Life.ABSENT)
        batches: list[Batch] = list(worker.batches)
        worker.batches.clear()
        self._by_peer.pop(worker.peer, None)  # what it may yet say begins nothing
        self.watchdog.spoke(role, incarnation)
        worker.loading_since = worker.load_again_at = None
        worker.condemned = worker.refused = False
        worker.waiting_for = reason
        self.book.fleet_changed = True
        if known:
            self.book.totals.deaths += 1
            again = sum(len(b.jobs) for b in batches)
            self.book.note("warning", f"{role} died ({reason}); {again} utterances run again")
        self._excuse(worker, batches)
        self.book.knows_its_slots(role)
        if final:
            self._stage_lost(worker.plan.stage, reason, now)
        self.flow.worker_died(worker, batches, reason, now)
        if not final:
            self.tell_queue(worker.plan.stage, f"its worker is starting again: {reason}")

    def _excuse(self, worker: Worker, batches: list[Batch]) -> None:
        """A death in a run is the utterance's doing and is charged to it, unless life after life ends nothing well."""
        worker.fruitless += 1
        if batches and worker.fruitless <= EXCUSED_LIVES:
            self.book.send(SUPERVISOR, Excused(worker.plan.role, worker.incarnation))

    def _stage_lost(self, stage: str, reason: str, now: float) -> None:
        """One of its workers will not come back; perhaps it was the last."""
        if self._call_standby(stage) or any(w.life is not Life.LOST for w in self.book.regulars_of(stage)):
            return
        if not self.ready or self.book.stages[stage].optional:
            return self._without(stage, reason, now)
        for key in list(self.book.queues[stage]):
            job = self.book.job(key)
            if job is not None and not job.ended:
                self.flow.end(job, "error", "failed", f"stage {stage} has no worker left: {reason}", now)

    def tell_queue(self, stage: str, reason: str = "") -> None:
        """Jobs that wait for a stage without a loaded worker are loading, and sessions that asked are told why.

        Where operators keep its devices empty nothing loads, and they are pending.
        """
        if any(w.life is Life.LOADED for w in self.book.workers_of(stage)):
            return
        empty = self.book.kept_empty(stage)
        for key in self.book.queues[stage]:
            job = self.book.job(key)
            if job is None:
                continue
            if empty and job.state in (State.PENDING, State.LOADING):
                if job.state is State.LOADING:
                    job.move(State.PENDING)
                self.flow.status(job, empty)
            elif job.state is State.PENDING:
                job.move(State.LOADING)
                self.flow.status(job, reason)
