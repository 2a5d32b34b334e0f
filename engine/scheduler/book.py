"""What the scheduler's cores share: sessions, jobs, queues, workers, slots, timers, and the actions decided so far.

The book decides nothing. Flow moves jobs, Fleet moves workers, Dispatch brings the two together; each changes the book
and adds actions to it, and the shell carries them out once per turn.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.boot import SchedulerBoot, StagePlan
from engine.config import DeadlinesSection
from engine.scheduler.jobs import Job, Key
from engine.scheduler.pace import StagePace
from engine.scheduler.queues import StageQueue
from engine.scheduler.shortages import Shortages
from engine.scheduler.slots import SlotKey, Slots
from engine.scheduler.workers import Life, Worker
from ipc.messages import Ended, Free, Held, JobAccepted, Orders, Session
from ipc.ring import generation

GATEWAY, SUPERVISOR = "gateway", "supervisor"


class Note(msgspec.Struct, frozen=True):
    """A log line: level (debug, info, warning), text."""

    level: str
    text: str


@dataclass
class Line:
    """One session at the scheduler: its jobs by index and which of them have not ended.

    What has ended, here or ``elsewhere`` (at the gateway), is kept until it is acknowledged, for a gateway to come.
    """

    session: Session
    acked: int = -1
    jobs: dict[int, Job] = field(default_factory=dict)
    unended: set[int] = field(default_factory=set)
    elsewhere: dict[int, Ended] = field(default_factory=dict)
    highest_ended: int = -1

    def __post_init__(self) -> None:
        self.acked = self.session.first_index - 1


@dataclass
class Totals:
    """Counters since the start."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    expired: int = 0
    cancelled: int = 0
    retries: int = 0
    stale: int = 0
    deaths: int = 0


class Book:
    """See the module's docstring. ``epoch`` is the scheduler's incarnation; tickets carry it."""

    def __init__(
        self, boot: SchedulerBoot, deadlines: DeadlinesSection, epoch: int, hooks: dict[str, str] | None = None
    ) -> None:
        self.boot = boot
        self.epoch = epoch
        self.deadlines = deadlines
        self.stages: dict[str, StagePlan] = {stage.name: stage for stage in boot.stages}
        self.workers = {plan.role: Worker(plan, stage) for stage in boot.stages for plan in stage.workers}
        self._by_stage = {name: [w for w in self.workers.values() if w.plan.stage == name] for name in self.stages}
        self._regulars = {name: [w for w in all_ if not w.plan.extra] for name, all_ in self._by_stage.items()}
        self.absent = {name: stage.absent for name, stage in self.stages.items() if stage.absent}  # stage -> why
        self.lines: dict[str, Line] = {}
        self.queues = {name: StageQueue(deadlines.age_s) for name in self.stages}
        self.paces = {name: StagePace() for name in self.stages}
        rings = {w.plan.role: w.plan.ring_blocks for w in self.workers.values() if w.plan.ring_blocks}
        free_early = (hooks or {}).get("scheduler.slots") == "free_early"
        self.slots = Slots(rings, deadlines.reserve_after_s, free_early, boot.ring_users if epoch > 1 else None)
        self.over: frozenset[str] = frozenset()
        self.stirred: dict[str, None] = {}  # stages where a dispatch may be possible that was not before
        self.called: dict[str, None] = {}  # stages that have work and whose models are parked
        self.orders = Orders()  # of operators, as far as they have been carried out
        self.trace = False  # log every transition
        self.fleet_changed = True  # workers came or went: capacity may have changed
        self.totals = Totals()
        self.shortages = Shortages()
        self.in_flight: set[Key] = set()  # dispatched at least once and not ended
        self.ingress: dict[SlotKey, Held] = {}  # the gateway's slots that are not free yet
        self.gateway = ""  # its present name; "" while there is none that knows what we know
        self.freed: list[Key] = []
        self.mail: dict[str, list[Any]] = {}  # GATEWAY, SUPERVISOR or a worker's peer name -> what it is told
        self.notes: list[Note] = []
        self.accepted: dict[Key, None] = {}  # told to the gateway with the next message that goes there,
        self.ride_until: float | None = None  # and so are ``freed`` slots: at this time at the latest
        self.timers: list[tuple[float, int, str, Key]] = []
        self._tickets = itertools.count(generation(epoch, 1))
        self._order = itertools.count()

    def job(self, key: Key) -> Job | None:
        """The job, ended or not, or None."""
        line = self.lines.get(key[0])
        return line.jobs.get(key[1]) if line else None

    def workers_of(self, stage: str) -> list[Worker]:
        return self._by_stage[stage]

    def regulars_of(self, stage: str) -> list[Worker]:
        """Its workers without the extra ones, on whom nobody counts."""
        return self._regulars[stage]

    def at(self, device: str) -> list[Worker]:
        """The workers whose models lie in this device's memory, be it another device's too."""
        books = self.boot.books
        memory = books.get(device, device)
        return [w for w in self.workers.values() if books.get(w.plan.device, w.plan.device) == memory]

    def is_drained(self, worker: Worker) -> bool:
        """Whether an operator keeps this worker's device empty."""
        return worker.plan.device in self.orders.drained

    def kept_empty(self, stage: str) -> str:
        """That operators have drained every device on which a stage could run, in words, or ""."""
        devices = [worker.plan.device for worker in self._regulars[stage] if worker.life is not Life.LOST]
        return f"{devices[0]} is drained" if devices and set(devices) <= set(self.orders.drained) else ""

    def is_unloaded(self, worker: Worker) -> bool:
        """Whether an operator has had a life of this worker, before the present one, give its model back."""
        return any(
            not errand.back and errand.role == worker.plan.role and errand.incarnation < worker.incarnation
            for errand in self.orders.errands
        )

    def stir(self, stage: str) -> None:
        """Look at this stage's queue in the next dispatch."""
        self.stirred[stage] = None

    def stir_all(self) -> None:
        """Look at every queue: something that all depend on has changed."""
        self.stirred = dict.fromkeys(self.stages)

    def next_ticket(self) -> int:
        """A number never used before by any epoch; also the generation of the slot granted with it."""
        return next(self._tickets)

    def timer(self, at: float, kind: str, key: Key) -> None:
        """Call back at ``at``: kind "deadline", "haste" or "retry"."""
        heapq.heappush(self.timers, (at, next(self._order), kind, key))

    def due(self, now: float) -> list[tuple[str, Key]]:
        """Timers that have come due; those of ended jobs that follow them are dropped, so that none wakes us again."""
        out: list[tuple[str, Key]] = []
        while self.timers and (self.timers[0][0] <= now or (out and self._is_over(self.timers[0][3]))):
            _, _, kind, key = heapq.heappop(self.timers)
            out.append((kind, key))
        return out

    def _is_over(self, key: Key) -> bool:
        job = self.job(key)
        return job is None or job.ended

    def send(self, peer: str, message: Any) -> None:
        if peer in self.mail:
            self.mail[peer].append(message)
        else:
            self.mail[peer] = [message]

    def take(self, now: float) -> tuple[dict[str, list[Any]], list[Note]]:
        """What was decided since the last call: mail, and notes for the log."""
        if not self.gateway:  # who comes is told everything
            self.mail.pop(GATEWAY, None)
            self.accepted, self.freed, self.ride_until = {}, [], None
        if self.accepted or self.freed:
            self._send_riders(now)
        mail, self.mail = self.mail, {}
        notes, self.notes = self.notes, []
        return mail, notes

    def _send_riders(self, now: float) -> None:
        """What can wait goes along with something else, or alone after ``ride_s``."""
        if self.ride_until is None:
            self.ride_until = now + self.deadlines.ride_s
        if GATEWAY in self.mail or now >= self.ride_until:
            riders: list[Any] = [JobAccepted(*key) for key in self.accepted]
            mail = self.mail[GATEWAY] = riders + self.mail.get(GATEWAY, [])
            if self.freed:
                mail.append(Free(tuple(self.freed)))  # behind the ``Held`` of a hand-over in the same turn
            self.accepted, self.freed, self.ride_until = {}, [], None

    def note(self, level: str, text: str) -> None:
        self.notes.append(Note(level, text))

    def free(self, keys: list[SlotKey]) -> None:
        """Ingress slots nobody needs: told to the gateway at the end of the turn."""
        for key in keys:
            held = self.ingress.pop(key)
            self.freed.append((held.session, held.index))

    def knows_its_slots(self, role: str) -> None:
        """This role uses no slot that this epoch has not granted it."""
        self.free(self.slots.heard(role))
        self.stir_all()

    def is_kept(self, job: Job) -> bool:
        """Whether an ended job's input stays until the acknowledgement: a lost result is made again from it."""
        return job.has_audio and self.ends_on_samples(job)

    def ends_on_samples(self, job: Job) -> bool:
        """Whether the last stage takes samples: then what it was given is nowhere but in the rings."""
        return self.stages[job.stages[-1]].accepts == "audio"

    def adopt(self, held: Held) -> None:
        """Know a slot of the gateway's ring: it tells of it when nobody needs it any more."""
        self.slots.adopt(held.ref.ring, held.ref.generation)
        self.ingress[held.ref.ring, held.ref.generation] = held

    def release(self, peer: str, ticket: int) -> None:
        """A peer has answered for this ticket: its pins are gone."""
        if keys := self.slots.answer(peer, ticket):
            self.free(keys)

    def drop(self, key: SlotKey) -> None:
        """No job needs this slot any more."""
        if keys := self.slots.drop(key):
            self.free(keys)
