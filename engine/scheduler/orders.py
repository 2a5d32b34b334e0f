"""Carries out what operators have ordered: workers that leave on purpose, devices kept empty, knobs with new values.

The supervisor says all that holds whenever it changes, and a new scheduler is born with it, so what is to be done is
worked out from that and the workers as they are, and may be worked out as often as one likes. Pure.

A worker that is to leave gets no more batches, and is told to end when it has done those it has: no utterance fails by
an order, and none is charged. What follows it loads at once (a restart), when its stage has work (an unload), or when
its device is used again (a drained one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.scheduler.batches import Batches
from engine.scheduler.book import Book
from engine.scheduler.fleet import Fleet
from engine.scheduler.residency import Residency
from engine.scheduler.workers import Life, Worker
from ipc.messages import Orders as Standing


class Orders:
    """See the module's docstring."""

    def __init__(self, book: Book, fleet: Fleet, residency: Residency, batches: Batches) -> None:
        self.book = book
        self.batches = batches
        self.fleet = fleet
        self.residency = residency
        self._usual = book.boot, book.deadlines, dict(book.stages)
        self._leaving = False  # somebody may have to leave
        self.told(book.boot.orders)

    def told(self, standing: Standing) -> None:
        """Everything that holds from now on."""
        before, self.book.orders = self.book.orders, standing
        if standing.knobs != before.knobs:
            self._tune(standing.knobs)
        self._leaving = bool(standing.errands or standing.drained)
        for worker in self.book.workers.values():
            if worker.ordered and not worker.dismissed:  # it has not been told: perhaps it may stay
                worker.ordered = ""
                self.book.stir(worker.plan.stage)
        back = set(before.drained) - set(standing.drained)
        for worker in self.book.workers.values():
            if worker.plan.device in back and not worker.parked:
                self.fleet.begin(worker)
        for stage in self.book.stages:
            if back or before.errands != standing.errands:
                self.fleet.look_after(stage)
        for stage in self.book.stages if before.drained != standing.drained else ():
            self.fleet.tell_queue(stage)
        self.book.fleet_changed = True

    def preload(self, stage: str) -> None:
        """A stage's models are wanted, in use or not. Its extra workers go on coming and going with the work."""
        for worker in self.book.regulars_of(stage):
            worker.idle_since = None
            self.fleet.begin(worker)

    def turn(self) -> None:
        """Let go who is to leave and has nothing on board."""
        if not self._leaving:
            return
        for worker in self.book.workers.values():
            if not worker.ordered:
                worker.ordered = self._why_leave(worker)
            if worker.ordered and not worker.dismissed and not worker.batches:
                self._dismiss(worker)

    def _why_leave(self, worker: Worker) -> str:
        if worker.life not in (Life.EMPTY, Life.LOADING, Life.LOADED):
            return ""
        has_model = worker.life is not Life.EMPTY
        for errand in self.book.orders.errands:
            if errand.role == worker.plan.role and worker.incarnation <= errand.incarnation:
                if errand.back or has_model:
                    return "restarted by an operator" if errand.back else "unloaded by an operator"
        return f"{worker.plan.device} is drained" if has_model and self.book.is_drained(worker) else ""

    def _dismiss(self, worker: Worker) -> None:
        if worker.ordered.startswith("unloaded"):
            return self.residency.park(worker, worker.ordered)
        worker.waiting_for = worker.ordered
        self.book.note("info", f"{worker.plan.role} leaves: {worker.ordered}")
        return self.fleet.dismiss(worker)

    def _tune(self, knobs: Mapping[str, Any]) -> None:
        """Give every knob its value, and all others the usual one."""
        book = self.book
        changes: dict[str, dict[str, Any]] = {}
        for name, value in knobs.items():
            section, _, field = name.rpartition(".")
            changes.setdefault(section, {})[field] = value
        boot, deadlines, stages = self._usual
        book.boot = msgspec.structs.replace(boot, **changes.get("node", {}))
        book.deadlines = msgspec.structs.replace(deadlines, **changes.get("deadlines", {}))
        for name, plan in stages.items():
            self.batches.ask(name, msgspec.structs.replace(plan, **changes.get(f"stages.{name}", {})))
        book.stir_all()
