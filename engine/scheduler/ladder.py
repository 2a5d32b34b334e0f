"""Back up again: from a smaller variant to a better one, from a worker on standby to the one it stands in for. Pure.

Down is the fleet's business (``Fleet.denied``): a refused lease or a failed load walks down the variants of a worker's
model, then to the stage's workers on standby, another GPU first and then the CPU. Up is this file's. The arbiter says
how much room there is on each device (``Room``), and when it has been enough for ``promote_s`` without a break

* a worker that others stand in for loads, while they go on serving; when it has loaded they get no more work, and are
  parked after their last batch;
* a worker that runs a smaller variant, and has nothing to do, starts anew with the best one that fits; one that rests
  (parked) will come back with that. Its own memory counts as room, and nothing better is tried than what the plan
  would begin with on otherwise empty devices.

And one of several workers of a stage that rests comes back at once when work waits and there is room for it.

All of them ask only for room that is there: nobody has to leave for it, and if somebody was faster it goes back to
where it was. A change to something better costs at least ``promote_s`` of quiet: nothing goes up and down with every
breath.
"""

from __future__ import annotations

from engine.scheduler.book import Book
from engine.scheduler.fleet import Fleet
from engine.scheduler.workers import Life, Worker
from ipc.messages import Room


class Ladder:
    """See the module's docstring."""

    def __init__(self, book: Book, fleet: Fleet) -> None:
        self.book = book
        self.fleet = fleet
        self.promoted_total = 0
        self._arbiter = 0  # the life of it that has spoken last
        self._rooms: dict[str, int] = {}
        spared = {worker.plan.stage for worker in book.workers.values() if worker.plan.standby}
        self._stages = [
            stage for stage in book.stages if stage in spared or any(w.plan.smaller for w in book.regulars_of(stage))
        ]

        self._several = [
            stage for stage in book.stages if sum(not w.plan.standby for w in book.regulars_of(stage)) > 1
        ]  # fmt: skip

    def room(self, arbiter: int, message: Room) -> None:
        """The newest word of this life of the arbiter on a device."""
        if arbiter > self._arbiter:
            self._arbiter = arbiter
            self._rooms.clear()
        if arbiter == self._arbiter:
            self._rooms[message.device] = message.nbytes

    def forget(self, arbiter: int) -> None:
        """This life of the arbiter is dead; the next one says anew how much room there is."""
        if arbiter >= self._arbiter:
            self._rooms.clear()

    def room_at(self, device: str) -> int:
        """Bytes that may be granted there now, and nobody waits for; 0: not told."""
        return self._rooms.get(self.book.boot.books.get(device, device), 0)

    def held_back(self, device: str, nbytes: int) -> Worker | None:
        """Who could do better if there were so many bytes more on a device."""
        for worker in self.book.at(device):
            if worker.plan.stage in self._stages and not worker.plan.extra:
                workers = self.book.regulars_of(worker.plan.stage)
                if self._target(worker, workers, nbytes) != self._target(worker, workers):
                    return worker
        return None

    def turn(self, now: float) -> float | None:
        """Let up who may go up, and let go who stood in for them; returns when time alone changes something."""
        for stage in self._several:
            self._bring_back(stage)
        dues = []
        for stage in self._stages:
            workers = self.book.regulars_of(stage)
            self._dismiss(workers)
            dues += [self._look(worker, workers, now) for worker in workers]
        return min((due for due in dues if due is not None), default=None)

    def _bring_back(self, stage: str) -> None:
        """While work waits, the others of several workers come back that rest, as far as there is room for them."""
        workers = self.book.regulars_of(stage)
        lives = [worker.life for worker in workers]
        if not self.book.queues[stage].waiting or Life.LOADED not in lives or Life.LOADING in lives:
            return
        for worker in workers:
            rests = worker.parked and worker.life is Life.EMPTY and not worker.plan.standby
            if rests and not self._is_closed(worker):
                if worker.needs(worker.variant) <= self.room_at(worker.plan.device):
                    worker.returns = True
                    return self.fleet.climb(worker)

    def _dismiss(self, workers: list[Worker]) -> None:
        """Those on standby end their work when one that they stand in for has its model."""
        for number, worker in enumerate(workers):
            if not (worker.plan.standby and worker.life is Life.LOADED) or worker.dismissed:
                continue
            if any(w.life is Life.LOADED and not w.leaving and not w.condemned for w in workers[:number]):
                worker.leaving = True
                if not worker.batches:
                    worker.parked = True
                    worker.waiting_for = "parked: the worker that it stood in for has its model again"
                    self.book.note("info", f"{worker.plan.role} is {worker.waiting_for}")
                    self.fleet.dismiss(worker)

    def _look(self, worker: Worker, workers: list[Worker], now: float) -> float | None:
        """Promote this worker if it is time; returns when it will be."""
        target = self._target(worker, workers)
        if target is None:
            worker.room_since = None
            return self.book.shortages.held_until(worker.plan.device)
        if worker.room_since is None:
            worker.room_since = now
        due = worker.room_since + self.book.deadlines.promote_s
        if now < due:
            return due
        if worker.life is Life.LOADED and (worker.batches or self.book.queues[worker.plan.stage].waiting):
            return None  # the end of its last run is an event
        self._promote(worker, target)
        return None

    def _promote(self, worker: Worker, target: int) -> None:
        loaded, worker.variant, worker.room_since = worker.life is Life.LOADED, target, None
        if worker.parked:
            return None
        self.promoted_total += 1
        what = worker.plan.smaller[target - 1].name if target else "its own model"
        self.book.note("info", f"{worker.plan.role} has room for {what} again")
        if loaded:
            worker.modest = True
            return self.fleet.renew(worker, "there is room for a better variant")
        return self.fleet.climb(worker)

    def _target(self, worker: Worker, workers: list[Worker], more: int = 0) -> int | None:
        """The best variant that there is room for, if that is better than what is; None: nothing is.

        ``more``: bytes beside what there is.
        """
        if worker.leaving or worker.condemned or worker.hopeless or worker.ordered or self._is_closed(worker):
            return None
        room = self.room_at(worker.plan.device) + more
        if worker.life is Life.LOADED:
            better = range(worker.plan.best, worker.variant)
            room += worker.needs(worker.variant)
        elif worker.parked and worker.life is Life.EMPTY:
            better = range(worker.plan.best, worker.variant)
        elif worker.life is Life.EMPTY and worker.load_again_at is None and self._is_stood_in_for(worker, workers):
            better = range(worker.plan.best, len(worker.plan.smaller) + 1)
        else:
            return None
        return next((variant for variant in better if worker.needs(variant) <= room), None)

    def _is_closed(self, worker: Worker) -> bool:
        """Whether nothing may begin on its device: an operator drains it, or it has run out of memory."""
        return self.book.is_drained(worker) or self.book.shortages.held_until(worker.plan.device) is not None

    def _is_stood_in_for(self, worker: Worker, workers: list[Worker]) -> bool:
        """Whether a worker further down serves in its place, and none before it does."""
        number = workers.index(worker)
        serving = [other for other, one in enumerate(workers) if one.life in (Life.LOADING, Life.LOADED)]
        return bool(serving) and number < min(serving) and workers[min(serving)].plan.standby
