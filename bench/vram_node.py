"""A node in virtual time, as far as memory is concerned: the real scheduler and the real lease book over true devices.

Utterances go through four stages of the seed's times (asr 3, repair 0.5, nmt 3, tts 0.5 s). A worker is a process that
starts, asks for its lease, takes context and weights while it loads, and for each run the workspace of its batch; when
it is parked, or could not load, its process ends and another one starts. A run of n utterances takes n times the run of
one, as our stages run them one by one; only nmt translates a batch at once, in 0.7 + 0.3 n times. (That factor is an
assumption; loads read 1.5 GB/s and take a second more.)

A worker answers a shortage as a real one does: a batch runs again in halves, a larger lease is asked for when it is
told to. All other answers are the scheduler's.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from bench.vram_arbiter import VirtualArbiter
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from engine.arbiter.events import FromWorker, Waits
from engine.arbiter.kept import Kept
from engine.boot import SchedulerBoot, StagePlan, WorkerPlan
from engine.choices import name_of, stage_of
from engine.config import DeadlinesSection
from engine.limits import Limits
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from engine.worker.runner import put_on_board
from ipc.messages import (
    Admit,
    Denied,
    Done,
    Gone,
    Granted,
    Grow,
    Here,
    JobOutcome,
    LeaseRequest,
    LeaseWait,
    Leave,
    Load,
    Loaded,
    Loading,
    Park,
    Release,
    Room,
    Run,
    RunItem,
    RunResult,
    Serve,
    Session,
    Settled,
    Vacate,
)

MIB, GIB = 2**20, 2**30
STAGE_S = {"asr": 3.0, "repair": 0.5, "nmt": 3.0, "tts": 0.5}
WEIGHTS = {"asr": 3 * GIB, "repair": 2 * GIB, "nmt": GIB, "tts": GIB // 2}
WORKSPACE = {"asr": 400 * MIB, "repair": 100 * MIB, "nmt": 200 * MIB, "tts": 200 * MIB}  # of each utterance of a batch
CONTEXT = 300 * MIB
AT_ONCE = frozenset({"nmt"})  # stages that run a batch in one call
READ_BYTES_S = 1.5e9
LOAD_S = PROCESS_S = 1.0
HOP_S = 0.0005
OUTSIDER_S = 120.0  # mean, between two visits of one
OOM_AFTER = 0.2  # of a run: when it has its workspace, or finds that there is none
PEER = "gateway#1"
LIMIT_S = 8000.0  # a node that takes longer has got stuck


@dataclass(frozen=True)
class Plan:
    """What kind of node, and what comes."""

    seed: int = 1
    utterances: int = 200
    gap_s: float = 3.0  # mean, between two utterances
    card_bytes: int = 12 * GIB
    cards: int = 1
    max_models: int = 5
    max_batch: int = 2
    estimate_factor: float = 1.0  # of the truth
    outsider: bool = False  # now and then a program takes nearly everything that is free, for some seconds
    pipeline: tuple[str, ...] = tuple(STAGE_S)
    models: int = 1  # of the last stage; each has a session, and the utterances come from one after the other


@dataclass
class Figures:
    """What came of it."""

    utterances: int
    makespan_s: float = 0.0
    waited_s: float = 0.0  # sum over utterances of what they took beyond their own stage times
    longest_s: float = 0.0  # the longest of these
    used_byte_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    ooms: int = 0  # runs and loads that found too little memory
    loads: int = 0

    @property
    def failed(self) -> int:
        """Utterances that did not end well, or not at all."""
        return self.utterances - self.outcomes["ok"]

    @property
    def oom_rate(self) -> float:
        return self.ooms / max(1, self.runs + self.loads)


@dataclass(eq=False)
class Batch:
    """A run on its way: what of it is still to be tried, in which parts, and what has become of the rest."""

    run: Run
    parts: deque[tuple[RunItem, ...]]
    results: dict[int, RunResult] = field(default_factory=dict)
    fits: int = 0


@dataclass(eq=False)
class Worker:
    plan: WorkerPlan
    incarnation: int = 0
    alive: bool = False
    loaded: bool = False
    busy: bool = False
    question: LeaseRequest | None = None
    lease: int = 0
    runs: deque[Run] = field(default_factory=deque)

    @property
    def peer(self) -> str:
        return f"{self.plan.role}#{self.incarnation}"


class VirtualNode:
    """See the module's docstring."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.figures = Figures(plan.utterances)
        self.clock = clock = Clock()
        self.chance = chance = random.Random(f"node {plan.seed}")
        self._others = random.Random(f"others {plan.seed}")  # of their own: they come whatever the node does
        names = [f"cuda:{number}" for number in range(plan.cards)]
        self.devices = {
            name: TrueDevice(name, plan.card_bytes, clock, lambda: chance.uniform(0.05, 0.5)) for name in names
        }
        limits = [Limits(name, plan.card_bytes, max_models=plan.max_models) for name in names]
        self.deadlines = DeadlinesSection()
        waits = Waits(
            self.deadlines.lease_wait_s, self.deadlines.settle_s, self.deadlines.unreadable_s, self.deadlines.grace_s
        )
        self.arbiter = VirtualArbiter(clock, chance, self.devices.values(), limits, waits, self, "ours")
        last = plan.pipeline[-1]
        self.models = [last, *(name_of(last, f"m{number}") for number in range(1, plan.models))]
        stages = tuple(self._stage(name, names) for name in (*plan.pipeline[:-1], *self.models))
        self.workers = {plan.role: Worker(plan) for stage in stages for plan in stage.workers}
        boot = SchedulerBoot(
            stages=stages, pipelines={"full": plan.pipeline}, mode="pipelined", mode_reason="", send_ahead=1,
            max_retries=3, capacity_factor=10,
        )  # fmt: skip
        self.scheduler = Scheduler(boot, self.deadlines, 1)
        self._turn_due = float("inf")
        self._came: dict[tuple[str, int], float] = {}
        self._question = 0
        self._begun = 0.0

    def _stage(self, name: str, devices: list[str]) -> StagePlan:
        kind = stage_of(name)
        need = CONTEXT + WEIGHTS[kind] + WORKSPACE[kind] * self.plan.max_batch
        estimate = int(need * self.plan.estimate_factor)
        plans = tuple(
            WorkerPlan(role=f"{name}@{device}/0", stage=name, device=device, estimate_bytes=estimate)
            for device in devices
        )
        return StagePlan(
            name=name, kind="simulated", accepts="text", emits="text", max_batch=self.plan.max_batch, workers=plans,
            timeout_base_s=1000.0,
        )  # fmt: skip

    def run(self) -> Figures:
        """Until every utterance has ended, or none will."""
        self._begin()
        while self.figures.outcomes.total() < self.plan.utterances and self.clock.now < self._begun + LIMIT_S:
            self.clock.step()
        self.figures.makespan_s = self.clock.now - self._begun
        for device in self.devices.values():
            device.settle()
            self.figures.used_byte_s += device.used_byte_s
        return self.figures

    def _begin(self) -> None:
        self.arbiter.start()
        self._tell(PEER, Here("empty"))
        self._tell(SUPERVISOR, Serve())
        for model in self.models:
            self._tell(PEER, Session(model, "local", (*self.plan.pipeline[:-1], model)))
        for worker in self.workers.values():
            self._start(worker)
        self._begun = self.clock.now
        self._next(0)
        if self.plan.outsider:
            self._plan_outsider()

    def _next(self, number: int) -> None:
        """An utterance comes."""
        index, turn = divmod(number, self.plan.models)
        self._came[self.models[turn], index] = self.clock.now
        self._tell(PEER, Admit(self.models[turn], index, 10**9, text="hello"))
        if number + 1 < self.plan.utterances:
            self.clock.after(self.chance.expovariate(1 / self.plan.gap_s), self._next, number + 1)

    # ------------------------------------------------------------ the scheduler's shell

    def _tell(self, peer: str, message: Any) -> None:
        self.scheduler.handle(peer, message, self.clock.now)
        self._turn_at(self.clock.now + HOP_S)

    def _turn_at(self, time: float) -> None:
        if time < self._turn_due:
            self._turn_due = time
            self.clock.after(max(0.0, time - self.clock.now), self._turn, time)

    def _turn(self, due: float) -> None:
        if due != self._turn_due:
            return
        self._turn_due = float("inf")
        mail, _ = self.scheduler.turn(self.clock.now)
        for peer, batch in mail.items():
            for message in batch:
                if peer == GATEWAY and isinstance(message, JobOutcome):
                    self._ended(message)
                elif peer.rpartition("#")[0] in self.workers:
                    self.clock.after(HOP_S, self._command, peer, message)
        if (wake := self.scheduler.next_deadline()) is not None:
            self._turn_at(max(wake, self.clock.now + HOP_S))

    def _ended(self, message: JobOutcome) -> None:
        outcome = message.outcome
        self.figures.outcomes[outcome.outcome] += 1
        took = self.clock.now - self._came[outcome.session, outcome.index]
        waited_s = took - sum(STAGE_S[stage] for stage in self.plan.pipeline)
        self.figures.waited_s += waited_s
        self.figures.longest_s = max(self.figures.longest_s, waited_s)

    # ------------------------------------------------------------ workers

    def _start(self, worker: Worker) -> None:
        worker.incarnation += 1
        worker.alive, worker.loaded, worker.busy, worker.lease, worker.question = True, False, False, 0, None
        worker.runs.clear()
        self.clock.after(PROCESS_S, self._speak, worker, worker.incarnation, Here())

    def _speak(self, worker: Worker, life: int, message: Any) -> None:
        if worker.alive and worker.incarnation == life:
            self._tell(worker.peer, message)

    def _command(self, peer: str, message: Any) -> None:
        worker = self.workers[peer.rpartition("#")[0]]
        if worker.peer != peer or not worker.alive:
            return
        match message:
            case Load(wait_s=wait_s, raised=raised):
                self._ask(worker, round(worker.plan.estimate_bytes * raised), wait_s)
            case Grow(nbytes=0) if worker.loaded:
                worker.question = None
                self.arbiter.hear(FromWorker(peer, Release(worker.lease, keep_bytes=worker.plan.estimate_bytes)))
            case Grow(nbytes=nbytes, wait_s=wait_s) if worker.loaded and worker.question is None:
                self._ask(worker, nbytes, wait_s, grows=True)
            case Run():
                put_on_board(worker.runs, message)
                self._run(worker)
            case Park():
                self._leave(worker)

    def _ask(self, worker: Worker, nbytes: int, wait_s: float | None, *, grows: bool = False) -> None:
        self._question += 1
        plan = worker.plan
        worker.question = LeaseRequest(
            self._question, plan.role, plan.device, nbytes, plan.stage, wait_s, grows=grows,
            pid=self.arbiter.pid(worker.peer),
        )  # fmt: skip
        self.arbiter.hear(FromWorker(worker.peer, worker.question))

    def _leave(self, worker: Worker) -> None:
        worker.alive = False
        self.devices[worker.plan.device].give_back(worker.peer)
        self.clock.after(0.01, self._left, worker, worker.incarnation)

    def _left(self, worker: Worker, life: int) -> None:
        gone = Gone(worker.plan.role, life, "parked", parked=True)
        self.arbiter.hear(gone)
        self._tell(SUPERVISOR, gone)
        self._start(worker)

    def _load(self, worker: Worker, life: int) -> None:
        """The lease is there: context and weights."""
        self.figures.loads += 1
        self._speak(worker, life, Loading())
        weights = WEIGHTS[stage_of(worker.plan.stage)]
        self.clock.after(LOAD_S + weights / READ_BYTES_S, self._loaded, worker, life, CONTEXT + weights)

    def _loaded(self, worker: Worker, life: int, nbytes: int) -> None:
        device = self.devices[worker.plan.device]
        if device.take(worker.peer, nbytes):
            worker.loaded = True
            self._speak(worker, life, Loaded("", load_ms=1000.0 * (LOAD_S + nbytes / READ_BYTES_S)))
            self.arbiter.hear(FromWorker(worker.peer, Settled(worker.lease)))
            return
        self.figures.ooms += 1
        for words in (Settled(worker.lease, -1, ok=False), Release(worker.lease)):
            self.arbiter.hear(FromWorker(worker.peer, words))
        self._speak(worker, life, Denied("out of memory while loading", "oom", phase="load"))
        self._leave(worker)

    def _run(self, worker: Worker) -> None:
        if worker.runs and worker.loaded and not worker.busy:
            run = worker.runs.popleft()
            worker.busy = True
            self._next_part(worker, worker.incarnation, Batch(run, deque([run.items])))

    def _next_part(self, worker: Worker, life: int, batch: Batch) -> None:
        if not batch.parts:
            return self._done(worker, batch)
        part = batch.parts.popleft()
        self.figures.runs += 1
        stage = stage_of(worker.plan.stage)
        times = 0.7 + 0.3 * len(part) if stage in AT_ONCE else len(part)
        seconds = STAGE_S[stage] * times
        return self.clock.after(OOM_AFTER * seconds, self._work, worker, life, batch, part, seconds)

    def _work(self, worker: Worker, life: int, batch: Batch, part: tuple[RunItem, ...], seconds: float) -> None:
        if not worker.alive or worker.incarnation != life:
            return
        nbytes = WORKSPACE[stage_of(worker.plan.stage)] * len(part)
        if self.devices[worker.plan.device].take(worker.peer, nbytes):
            if len(part) < len(batch.run.items):
                batch.fits = len(part)
            return self.clock.after((1 - OOM_AFTER) * seconds, self._ran, worker, life, batch, part, nbytes)
        self.figures.ooms += 1
        if half := len(part) // 2:
            batch.parts.extendleft((part[half:], part[:half]))
        for item in part if len(part) == 1 else ():
            batch.results[item.ticket] = self._result(item, fits=False)
        return self._next_part(worker, life, batch)

    def _ran(self, worker: Worker, life: int, batch: Batch, part: tuple[RunItem, ...], nbytes: int) -> None:
        """The workspace goes back to the driver, as with a runtime that keeps none."""
        if not worker.alive or worker.incarnation != life:
            return
        self.devices[worker.plan.device].shrink(worker.peer, nbytes)
        batch.results |= {item.ticket: self._result(item, fits=True) for item in part}
        self._next_part(worker, life, batch)

    def _result(self, item: RunItem, *, fits: bool) -> RunResult:
        now = int(self.clock.now * 1e9)
        if fits:
            return RunResult(item.ticket, "completed", text="x", begun_ns=now, ended_ns=now)
        return RunResult(item.ticket, "failed", "oom", "out of memory", True, begun_ns=now, ended_ns=now)

    def _done(self, worker: Worker, batch: Batch) -> None:
        worker.busy = False
        self._tell(worker.peer, Done(tuple(batch.results[item.ticket] for item in batch.run.items), batch.fits))
        self._run(worker)

    # ------------------------------------------------------------ the arbiter's words

    def decided(self, peer: str, granted: Granted) -> None:
        pass

    def told(self, peer: str, message: Any) -> None:
        worker = self.workers[peer.rpartition("#")[0]]
        if worker.peer != peer or worker.question is None or message.id != worker.question.id:
            return
        life, grows = worker.incarnation, worker.question.grows
        match message:
            case Granted() | Denied() if grows:
                worker.question = None
            case LeaseWait() if grows:
                pass
            case Granted(lease=lease):
                worker.lease, worker.question = lease, None
                self.clock.after(HOP_S, self._load, worker, life)
            case Denied() | LeaseWait():
                if isinstance(message, Denied):
                    worker.question = None
                self.clock.after(HOP_S, self._speak, worker, life, message)

    def wanted(self, message: Vacate | Room) -> None:
        self.clock.after(HOP_S, self._tell, "arbiter#1", message)

    def asked_to_leave(self, peer: str, message: Leave) -> None:
        pass

    def arbiter_is_up(self, known: Kept) -> None:
        pass

    # ------------------------------------------------------------ somebody else's program

    def _plan_outsider(self) -> None:
        self.clock.after(self._others.expovariate(1 / OUTSIDER_S), self._outsider_comes)

    def _outsider_comes(self) -> None:
        device = self._others.choice(list(self.devices.values()))
        device.others(device.free_bytes - 100 * MIB)
        self.clock.after(self._others.uniform(5.0, 15.0), self._outsider_goes, device)

    def _outsider_goes(self, device: TrueDevice) -> None:
        device.others(0)
        self._plan_outsider()
