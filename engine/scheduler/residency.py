"""Whose model stays on a device when not all have room there: who leaves, for whom, and who comes back. Pure.

A model that leaves is *parked*: its worker ends, since only the end of a process gives all of a device's memory back,
and the next one waits without a model until its stage has work again.

The arbiter says what it lacks for whom (``Vacate``). Who leaves for that:

* whoever no utterance of the node needs any more, at once, unless those that wait for the one who asks do not pass it
  either: such rivals are not swapped for each utterance (``engine.scheduler.swaps``), but where they can give what is
  lacking, nobody else leaves, since the others are needed again by the next utterance of who asks;
* else, when nothing on that device has anything to do, the one that will be needed last: as everybody there waits for
  the one who asks, something must go, and what is needed last comes back last (Belady's rule, with the stages still
  ahead of each utterance as the future);
* else, when the asker has waited for a turn (``engine.scheduler.swaps``): the same choice among those who have been
  here for so long. They get no more batches and leave when they have done the last one. So a stage whose work never
  ends cannot keep others out.

Before all of these go extra workers (``engine.scheduler.instances``), at once, each after its last batch; for one of
them nobody leaves. Of models that are called back at the same time the smallest loads first.

One leaves at a time, for whatever reason: the next goes when the arbiter says that a lease has ended and it still lacks
something. Until then figures change with every reading, and what is on its way may be in none of them. Who has left for
another *yields* to it: it is not called back before that one has been served or no longer asks, or it would have its
memory back while the other still lacks some; nor is it kept out for longer than ``turn_s``. Who starts anew
(``Fleet.renew``, an operator's restart) comes back at once, and makes no room for anybody. Pinned models never leave.
One with a ``keep_alive_s`` leaves when it has had nothing to do for so long, wanted or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.scheduler import haste
from engine.scheduler.book import Book
from engine.scheduler.fleet import Fleet
from engine.scheduler.jobs import Job
from engine.scheduler.swaps import leaves_at, turn_ends
from engine.scheduler.workers import Life, Worker
from ipc.messages import Vacate

FAR = math.inf  # no utterance needs it
LEAVE_S = 2.0  # for a process to end, the next to be there, and the arbiter to see the memory, nearly always


@dataclass(frozen=True)
class Want:
    """What the arbiter lacks on a device: for whom, since when, and how many bytes."""

    by: str
    since: float
    nbytes: int


class Residency:
    """See the module's docstring."""

    def __init__(self, book: Book, fleet: Fleet) -> None:
        self.book = book
        self.fleet = fleet
        self.parked_total = 0
        self._arbiter = 0  # the life of it that has spoken last
        self._wants: dict[str, Want] = {}  # device -> what is wanted there
        self._answered: set[str] = set()  # devices where somebody leaves, or has left and the arbiter may not know
        self._turns: dict[str, tuple[str, float]] = {}  # device -> whose turn it is there, and until when at most
        self._yields: dict[str, tuple[str, str, float]] = {}  # who has left -> where, for whom, until when at most

    def wanted(self, arbiter: int, message: Vacate, now: float) -> None:
        """The newest word of this life of the arbiter on a device."""
        if arbiter < self._arbiter:
            return
        if arbiter > self._arbiter:
            if self._arbiter:
                self.forget(self._arbiter)
            self._arbiter = arbiter
        before = self._wants.pop(message.device, None)
        if message.again:
            self._answered.discard(message.device)
        if message.nbytes:
            since = before.since if before is not None and before.by == message.by else now
            self._wants[message.device] = Want(message.by, since, message.nbytes)
        else:
            self._stay(message.device)

    def forget(self, arbiter: int) -> None:
        """This life of the arbiter is dead; the next one says anew what it lacks, and may have done so already."""
        if arbiter < self._arbiter:
            return
        for device in self._wants:
            self._stay(device)
        self._wants.clear()
        self._answered.clear()

    def _stay(self, device: str) -> None:
        """Nobody needs room any more: who was to leave after its last batch may stay."""
        for worker in self.book.at(device):
            if worker.leaving and not worker.dismissed:
                worker.leaving = False
                self._answered.discard(device)
                self.book.stir(worker.plan.stage)

    def whose_turn(self, role: str, now: float) -> str:
        """Who is at work where this worker waits for room, and for how long yet, in words; "": nobody that is known."""
        for device in [device for device, want in self._wants.items() if want.by == role]:
            for worker in self.book.at(device):
                if worker.leaving and not worker.dismissed:
                    return f"{worker.plan.role} leaves for it, after the batch it runs"
            if device in self._turns:
                who, until = self._turns[device]
                left_s = max(0.0, until - now)
                return f"it is the turn of {who}, for {left_s:.0f} s more at most (deadlines.turn_s) and its last batch"
        return ""

    def turn(self, now: float) -> float | None:
        """Call back whose stage has work, and let go who may; returns when time alone changes something."""
        over = self._let_back(now) if self._yields else None
        if self.book.called:
            called, self.book.called = self.book.called, {}
            for stage in sorted(called, key=self._size):
                self.fleet.call(stage)
        mortal = [worker for worker in self.book.workers.values() if worker.stage.keep_alive_s >= 0]
        if not self._wants and not mortal:
            return over
        dues = [over, *(self._make_room(device, want, now) for device, want in self._wants.items())]
        dues += [self._let_die(worker, now) for worker in mortal]
        return min((due for due in dues if due is not None), default=None)

    def _size(self, stage: str) -> int:
        """Bytes that the smallest of its workers would ask for."""
        return min((worker.needs(worker.variant) for worker in self.book.regulars_of(stage)), default=0)

    # ---------------------------------------------------------------- for somebody else

    def _make_room(self, device: str, want: Want, now: float) -> float | None:
        self._turns.pop(device, None)
        here = self.book.at(device)
        leaving = [worker for worker in here if worker.leaving and not worker.dismissed]
        for worker in leaving:
            if not worker.batches:
                self._yield(worker, want, now)
        asker = self.book.workers.get(want.by)
        if device in self._answered or leaving or (asker is not None and asker.plan.extra):
            return None
        present = [
            w for w in here
            if w.life is Life.LOADED and not (w.ordered or w.leaving or w.dismissed or w is asker)
        ]  # fmt: skip
        if extras := [w for w in present if w.plan.extra]:
            self._let_go(min(extras, key=lambda extra: len(extra.batches)), want, now)
            return None
        guests = [w for w in present if not w.stage.pinned]
        if not guests:
            return None
        distances = self._distances()
        held = self._held(guests, asker)
        rivals = [w for w in guests if w.plan.role in held]
        if sum(w.needs(w.variant) for w in rivals) >= want.nbytes:
            guests = rivals
        chosen = self._choose(here, guests, distances, held, now)
        turns = {w.plan.role: self._turn_ends(w, asker, want) for w in guests}
        if chosen is None:
            chosen = self._furthest([w for w in guests if now >= turns[w.plan.role]], distances)
        if chosen is None:
            first = min(guests, key=lambda w: (turns[w.plan.role], not w.batches)).plan.role
            self._turns[device] = first, turns[first]
            return min((end for end in (*turns.values(), *held.values()) if end > now), default=None)
        self._let_go(chosen, want, now)
        return None

    def _turn_ends(self, worker: Worker, asker: Worker | None, want: Want) -> float:
        """Until when a worker may keep out who asks."""
        paces, latest = self.book.paces, list[float]()
        if asker is not None:
            needs_s = paces[worker.plan.stage].run_s + LEAVE_S + asker.load_ms / 1000 + paces[asker.plan.stage].run_s
            latest = [haste.latest(self.book, job) - needs_s for job in self._waiting_for(asker)]
        since = max(want.since, worker.loaded_at)
        return turn_ends(since, self.book.deadlines.turn_s, _swap_s(worker, asker), latest)

    def _waiting_for(self, asker: Worker) -> list[Job]:
        jobs = [self.book.job(key) for key in self.book.queues[asker.plan.stage]]
        return [job for job in jobs if job is not None]

    def _let_go(self, worker: Worker, want: Want, now: float) -> None:
        """It leaves for this, after its last batch."""
        worker.leaving = True
        self._answered.add(self.book.boot.books.get(worker.plan.device, worker.plan.device))
        if not worker.batches:
            self._yield(worker, want, now)

    def _yield(self, worker: Worker, want: Want, now: float) -> None:
        self.park(worker, f"{want.by} needs its memory")
        device = self.book.boot.books.get(worker.plan.device, worker.plan.device)
        worker.yields = True
        self._yields[worker.plan.role] = device, want.by, now + self.book.deadlines.turn_s

    def _let_back(self, now: float) -> float | None:
        """Those who have yielded for long enough may be called; returns when the next one will have."""
        for role, (device, to, until) in list(self._yields.items()):
            if now >= until or not self._still_asks(to, device):
                del self._yields[role]
                worker = self.book.workers[role]
                worker.yields = False
                if self.book.queues[worker.plan.stage].waiting:
                    self.book.called[worker.plan.stage] = None
        return min((until for _, _, until in self._yields.values()), default=None)

    def _still_asks(self, by: str, device: str) -> bool:
        """Whether it has not got its lease: what it lacks may be on its way back, and then nothing is wanted."""
        asker = self.book.workers.get(by)
        if asker is not None and asker.life is Life.LOADING:
            return asker.loading_since is None
        want = self._wants.get(device)
        return want is not None and want.by == by

    def _held(self, guests: list[Worker], asker: Worker | None) -> dict[str, float]:
        """Rivals of the asker, whom what waits for it does not pass -> until when each stays for its own next work."""
        held: dict[str, float] = {}
        jobs = self._waiting_for(asker) if asker is not None else []
        queued = [job.queued_ns / 1e9 for job in jobs]
        passed = {stage for job in jobs for stage in job.stages}
        for worker in guests:
            if asker is not None and queued and worker.plan.stage not in passed:
                since = max(worker.loaded_at, worker.free_at)
                held[worker.plan.role] = leaves_at(since, queued, _swap_s(worker, asker))
        return held

    def _choose(
        self,
        here: list[Worker],
        guests: list[Worker],
        distances: dict[str, float],
        held: dict[str, float],
        now: float,
    ) -> Worker | None:
        """Who may leave without anybody's having to be patient."""
        idle = [worker for worker in guests if not worker.batches]
        unneeded = [worker for worker in idle if distances[worker.plan.stage] == FAR]
        if gone := [worker for worker in unneeded if held.get(worker.plan.role, now) <= now]:
            return self._furthest(gone, distances)
        at_work = any(w.batches or (w.life is Life.LOADED and not distances[w.plan.stage]) for w in here)
        last = None if at_work else self._furthest(idle, distances)
        return last if last is not None and held.get(last.plan.role, now) <= now else None

    def _furthest(self, workers: list[Worker], distances: dict[str, float]) -> Worker | None:
        """The one that will be needed last; of equals the one that is loaded again soonest for what it gives back."""
        return max(
            workers, default=None, key=lambda w: (distances[w.plan.stage], -w.load_ms / max(1, w.plan.estimate_bytes))
        )  # fmt: skip

    def _distances(self) -> dict[str, float]:
        """Stage -> how many stages the nearest unended utterance is before it. 0: it waits there or is in it.

        One that has no memory in the node yet is a step further away: nobody can work on it.
        """
        found = dict.fromkeys(self.book.stages, FAR)
        for line in self.book.lines.values():
            for index in line.unended:
                job = line.jobs[index]
                for ahead, stage in enumerate(job.stages[job.at :], start=int(job.waiting)):
                    found[stage] = min(found[stage], ahead)
        return found

    # ---------------------------------------------------------------- of old age

    def _let_die(self, worker: Worker, now: float) -> float | None:
        """Park a worker that has been idle for its ``keep_alive_s``; returns when it will have been."""
        if worker.life is not Life.LOADED or worker.stage.pinned or worker.leaving or worker.ordered:
            return None
        if worker.batches or self.book.queues[worker.plan.stage].waiting:
            worker.idle_since = None
            return None
        if worker.idle_since is None:
            worker.idle_since = now
        over = worker.idle_since + worker.stage.keep_alive_s
        if now < over:
            return over
        self.park(worker, f"idle for {worker.stage.keep_alive_s:g} s")
        return None

    # ---------------------------------------------------------------- and how

    def park(self, worker: Worker, reason: str) -> None:
        """Have an idle worker leave, and its next life wait for work. Who lacks memory waits for what that gives."""
        worker.leaving = worker.parked = True
        self._answered.add(self.book.boot.books.get(worker.plan.device, worker.plan.device))
        worker.waiting_for = f"parked: {reason}"
        self.parked_total += 1
        self.book.note("info", f"{worker.plan.role} is parked: {reason}")
        self.fleet.dismiss(worker)


def _swap_s(worker: Worker, asker: Worker | None) -> float:
    """Seconds to load both once, the one that comes and, sooner or later, the one that leaves; 0: not measured yet."""
    return (worker.load_ms + (asker.load_ms if asker is not None else 0.0)) / 1000
