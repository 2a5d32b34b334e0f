"""How many workers of a stage run on a device: an extra one while work piles up and there is room for it. Pure.

A stage has ``instances`` workers on each of its devices and up to ``max_instances``; the others are *extra*. Their
processes wait without a model, and nobody counts on them: who serves a stage, who stands in for whom, whether a stage
is lost are questions about its regular workers alone.

**Called** when the time saved is worth the load. With ``n`` workers at it, so many seconds of work W end after W / n;
with one more they end W / n(n + 1) sooner, less what is missed during the load L. So one is called when ::

    W > L n (n + 1)        with  W = what waits x mean time / max_batch  +  n x how long they have been pressed

The node takes in only so much at once, so most of what is to be done may not be seen yet; the second term says that
work which has piled up for so long is expected to for as long again. *Pressed*: all of the stage's workers are busy,
and more waits. One comes at a time, and loads what the regular workers there have loaded.

**Modest**: only where the arbiter's ``Room`` holds it *besides* everything that regular workers of that device may yet
ask for: models that are away or on their way, better variants of those that are there. It asks without waiting.

**Leaving**: first of all when anybody wants memory there (``residency``); when another worker could do better with its
bytes (``ladder``); when it ran out of memory itself; when the others run a better variant; when it has been idle for
``promote_s``, or ``keep_alive_s`` if that is shorter. Whatever it was, none of the stage is called on that device again
for ``promote_s``: a change costs at least so long, and nothing comes and goes with every breath.
"""

from __future__ import annotations

from typing import Any

from engine.scheduler.book import Book
from engine.scheduler.dispatch import Dispatch
from engine.scheduler.fleet import Fleet
from engine.scheduler.ladder import Ladder
from engine.scheduler.residency import Residency
from engine.scheduler.workers import Life, Worker

LEAST_LOAD_S = 1.0  # of a load: a process, a lease and a reading of memory come to that with the smallest model
HERE = (Life.LOADING, Life.LOADED)

Place = tuple[str, str]  # stage, device


class Extras:
    """See the module's docstring."""

    def __init__(self, book: Book, fleet: Fleet, residency: Residency, ladder: Ladder, dispatch: Dispatch) -> None:
        self.book = book
        self.fleet = fleet
        self.residency = residency
        self.ladder = ladder
        self.dispatch = dispatch
        extras = [worker for worker in book.workers.values() if worker.plan.extra]
        self._of_stage = {
            name: [worker for worker in extras if worker.plan.stage == name]
            for name in dict.fromkeys(worker.plan.stage for worker in extras)
        }
        self._here: dict[str, str] = {}  # role that loaded, or had loaded, at the last look -> what it waited for then
        self._pressed_since: dict[str, float] = {}  # by stage
        self._not_before: dict[Place, float] = {}  # when one may be called again
        self._farewells: dict[str, str] = {}  # role of one that is to leave after its last batch -> why
        self._why: dict[Place, str] = {}  # the last change there

    def turn(self, now: float) -> float | None:
        """Let go who is not needed and call who is; returns when time alone changes something."""
        if not self._of_stage or self.book.boot.mode == "serial":  # serial: one utterance at a time, whatever waits
            return None
        dues = []
        for stage, extras in self._of_stage.items():
            for extra in extras:
                dues.append(self._look_after(extra, now))
                self._notice(extra, now)
            dues.append(self._look(stage, now))
        return min((due for due in dues if due is not None), default=None)

    # ---------------------------------------------------------------- those that are there

    def _notice(self, extra: Worker, now: float) -> None:
        """It has come or gone, whatever was the reason."""
        role, place = extra.plan.role, (extra.plan.stage, extra.plan.device)
        if extra.life in HERE:
            if role not in self._here:
                self._why.setdefault(place, f"{role} was there when this scheduler began")
            self._here[role] = extra.waiting_for
        elif role in self._here:
            reason = self._here.pop(role)
            self._farewells.pop(role, None)
            self._why[place] = f"{role} has left: {(extra.waiting_for or reason).removeprefix('parked: ')}"
            self._not_before[place] = now + self.book.deadlines.promote_s

    def _look_after(self, extra: Worker, now: float) -> float | None:
        """Let it go if it is time; returns when it will be."""
        if extra.life is not Life.LOADED or extra.dismissed or extra.ordered or extra.condemned:
            return None
        if not extra.leaving and (reason := self._why_leave(extra)):
            extra.leaving, self._farewells[extra.plan.role] = True, reason
        if extra.leaving:  # or for somebody whose want ``residency`` knows, and then that parks it
            if not extra.batches and (reason := self._farewells.pop(extra.plan.role, "")):
                self.residency.park(extra, reason)
            return None
        if extra.batches:
            extra.idle_since = None
            return None
        if extra.idle_since is None:
            extra.idle_since = now
        keep_s = self.book.deadlines.promote_s  # a shorter ``keep_alive_s`` is the business of ``residency``
        if now < extra.idle_since + keep_s:
            return extra.idle_since + keep_s
        self.residency.park(extra, f"idle for {keep_s:g} s")
        return None

    def _why_leave(self, extra: Worker) -> str:
        if extra.fits:
            return "it ran out of memory in a run"
        if any(w.life is Life.LOADED and w.variant < extra.variant for w in self._beside(extra)):
            return "the others run a better variant of its model"
        there = sum(w.needs(w.variant) for w in self.book.at(extra.plan.device) if w.plan.extra and w.life in HERE)
        other = self.ladder.held_back(extra.plan.device, there)
        return f"{other.plan.role} can do better with its memory" if other is not None else ""

    def _beside(self, extra: Worker) -> list[Worker]:
        """The regular workers of its stage on its device."""
        return [w for w in self.book.regulars_of(extra.plan.stage) if w.plan.device == extra.plan.device]

    # ---------------------------------------------------------------- those that may come

    def _look(self, stage: str, now: float) -> float | None:
        """Call one if it is time; returns when it will be."""
        working = [w for w in self.book.workers_of(stage) if self._takes_part(w)]
        lives = {extra.life for extra in self._of_stage[stage]}
        if Life.LOADING in lives or Life.EMPTY not in lives or not self._is_pressed(stage, working):
            self._pressed_since.pop(stage, None)
            return None
        since = self._pressed_since.setdefault(stage, now)
        extra = self._choose(stage, now)
        if extra is None:
            return min((at for (name, _), at in self._not_before.items() if name == stage and at > now), default=None)
        n, load_s = len(working), self._load_s(working)
        due = since + (n + 1) * load_s - self._waiting_s(stage) / n
        if now < due:
            return due
        waiting = len(self.book.queues[stage])
        why = f"{waiting} utterances wait, and some have for {now - since:.1f} s; a load takes {load_s:.1f} s"
        self._call(extra, why)
        return None

    def _takes_part(self, worker: Worker) -> bool:
        """Whether it has its model and is to be given work."""
        staying = not (worker.leaving or worker.ordered or worker.condemned)
        return worker.life is Life.LOADED and staying and self.book.shortages.held_until(worker.plan.device) is None

    def _is_pressed(self, stage: str, working: list[Worker]) -> bool:
        return bool(self.book.queues[stage].waiting and working) and all(worker.batches for worker in working)

    def _waiting_s(self, stage: str) -> float:
        """Seconds of work for one worker that only lack a worker; 0 until a run has been measured."""
        waiting = sum(map(self.dispatch.may_run, self.book.queues[stage]))
        return waiting * self.book.paces[stage].mean_s / self.book.stages[stage].max_batch

    @staticmethod
    def _load_s(working: list[Worker]) -> float:
        return max(LEAST_LOAD_S, *(worker.load_ms / 1000 for worker in working))

    def _choose(self, stage: str, now: float) -> Worker | None:
        """The one that may come, on the device with most room; None: none may."""
        spare = {extra.plan.device: self._spare(extra.plan.device) for extra in self._of_stage[stage]}
        found = [extra for extra in self._of_stage[stage] if self._may_come(extra, spare[extra.plan.device], now)]
        return max(found, key=lambda extra: spare[extra.plan.device], default=None)

    def _may_come(self, extra: Worker, spare: int, now: float) -> bool:
        if extra.life is not Life.EMPTY or extra.leaving or extra.ordered or extra.condemned or extra.hopeless:
            return False
        if now < self._not_before.get((extra.plan.stage, extra.plan.device), now):
            return False
        regulars = self._beside(extra)
        if not regulars or not all(map(self._takes_part, regulars)):
            return False
        return extra.needs(regulars[0].variant) <= spare

    def _spare(self, device: str) -> int:
        """Bytes of a device that nobody else may ask for."""
        return self.ladder.room_at(device) - sum(map(_claim, self.book.at(device)))

    def _call(self, extra: Worker, why: str) -> None:
        role = extra.plan.role
        extra.variant = self._beside(extra)[0].variant
        self._here[role] = ""
        self._why[extra.plan.stage, extra.plan.device] = f"{role} was called: {why}"
        self.book.note("info", f"{role} is called: {why}")
        self.fleet.climb(extra)

    # ---------------------------------------------------------------- seen

    def snapshot(self, stage: str) -> dict[str, dict[str, Any]]:
        """Device -> workers that have their model there, how many there are at least and at most, the last change."""
        found: dict[str, dict[str, Any]] = {}
        for worker in self.book.workers_of(stage):
            device = worker.plan.device
            empty = {"running": 0, "min": 0, "max": 0, "why": self._why.get((stage, device), "")}
            row = found.setdefault(device, empty)
            row["running"] += worker.life is Life.LOADED
            row["min"] += not (worker.plan.extra or worker.plan.standby)
            row["max"] += 1
        return found


def _claim(worker: Worker) -> int:
    """Bytes that a worker may yet ask for, beside those it has; on standby, or as an extra one at rest, it may not."""
    if worker.plan.extra:
        return worker.needs(worker.variant) if worker.life is Life.LOADING else 0
    if worker.plan.standby or worker.hopeless or worker.life is Life.LOST:
        return 0
    best = worker.needs(worker.plan.best)
    return max(0, best - worker.needs(worker.variant)) if worker.life is Life.LOADED else best
