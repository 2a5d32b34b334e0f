"""How long workers may be silent, in a run, in a load, or refused one: who is over a limit is condemned. Pure."""

from __future__ import annotations

from heapq import nlargest

from engine.scheduler.book import SUPERVISOR, Book
from engine.scheduler.workers import Life, Worker
from ipc.messages import Condemn

BUSY_PHASES = ("loading", "loaded")  # of a worker's last heartbeat: it may be in a load or a run


class Watchdog:
    """See the module's docstring."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.look_at: float | None = None  # no worker can be over a limit before this
        self._awaited: dict[tuple[str, int], float] = {}  # silent lives that have not spoken to this epoch: since when

    def silent(self, role: str, incarnation: int, phase: str, now: float) -> None:
        """The supervisor misses its heartbeat: condemned unless a run or a load keeps it busy, which have limits.

        One that has not spoken to this epoch may be in a run or a load that an earlier one gave it: it has as long as
        that may take. And news of silence may be older than the worker's last word.
        """
        worker = self.book.workers.get(role)
        if worker is None or incarnation < worker.incarnation or worker.condemned:
            return
        deadlines = self.book.deadlines
        if incarnation != worker.incarnation or worker.life is Life.ABSENT:
            self._await(worker, incarnation, phase, now)
        elif not worker.batches and worker.loading_since is None and now >= worker.spoke_at + deadlines.silent_s:
            self._condemn(worker, incarnation, "silent: no heartbeat and nothing to do")

    def _await(self, worker: Worker, incarnation: int, phase: str, now: float) -> None:
        """A life that is silent and has not spoken to this epoch."""
        if not phase.startswith(BUSY_PHASES):
            return self._condemn(worker, incarnation, "silent: no heartbeat and nothing to do")
        key = worker.plan.role, incarnation
        if key not in self._awaited:
            self._awaited[key] = now
            worker.waiting_for = f"silent since before this scheduler began: it may be in a {_doing(phase)} from then"
            self.book.note("warning", f"{worker.plan.role} is {worker.waiting_for}")
            if _doing(phase) == "load":  # it says that it is loaded before it is given anything to do
                self.book.knows_its_slots(worker.plan.role)
        limit_s = self.book.deadlines.load_timeout_s if _doing(phase) == "load" else self._longest_run_s(worker)
        if now >= self._awaited[key] + limit_s:
            self._condemn(worker, incarnation, f"hung: silent since before this scheduler began, {limit_s:.1f} s ago")
        return None

    def spoke(self, role: str, incarnation: int) -> None:
        """This life has spoken or is dead, and so are all before it."""
        for key in [key for key in self._awaited if key[0] == role and key[1] <= incarnation]:
            del self._awaited[key]

    def _longest_run_s(self, worker: Worker) -> float:
        """What a run of any utterances that are known may take at this worker's stage."""
        audio_s = (job.audio_s for line in self.book.lines.values() for job in line.jobs.values())
        longest = nlargest(worker.stage.max_batch, audio_s)
        return worker.stage.timeout_base_s + worker.stage.timeout_per_audio * sum(longest)

    def forgive(self, pause_s: float) -> None:
        """This process was stopped for so long, and the workers perhaps too: their runs and loads may take longer."""
        for worker in self.book.workers.values():
            if worker.batches and worker.batches[0].began is not None:
                worker.batches[0].began += pause_s
            if worker.loading_since is not None:
                worker.loading_since += pause_s

    def watch(self, at: float) -> None:
        """Something may be over its limit at ``at``."""
        self.look_at = at if self.look_at is None else min(self.look_at, at)

    def turn(self, now: float) -> list[Worker]:
        """Condemn workers whose running batch or load is over its limit; returns those that may load again."""
        again: list[Worker] = []
        for worker in self.book.workers.values():
            if (limit := worker.hung_at()) is not None and now >= limit:
                batch = worker.batches[0]
                allowed = f"{batch.limit_s:.1f} s that timeout_base_s and timeout_per_audio allow"
                self._condemn(worker, worker.incarnation, f"hung: a run took more than the {allowed}")
            elif self._load_overdue(worker, now):
                self._condemn(worker, worker.incarnation, "hung while loading its model")
            elif worker.load_again_at is not None and now >= worker.load_again_at and worker.life is Life.EMPTY:
                again.append(worker)
        return again

    def _load_overdue(self, worker: Worker, now: float) -> bool:
        since = worker.loading_since
        return since is not None and not worker.condemned and now >= since + self.book.deadlines.load_timeout_s

    def next(self) -> None:
        """Find when somebody may be over a limit next."""
        times = []
        for worker in self.book.workers.values():
            times.append(worker.hung_at())
            if worker.life is Life.EMPTY:  # else its process is not there yet, and says so when it is
                times.append(worker.load_again_at)
            if worker.loading_since is not None and not worker.condemned:
                times.append(worker.loading_since + self.book.deadlines.load_timeout_s)
        self.look_at = min((t for t in times if t is not None), default=None)

    def _condemn(self, worker: Worker, incarnation: int, reason: str) -> None:
        worker.condemned = True
        self.book.note("warning", f"{worker.plan.role} is condemned: {reason}")
        self.book.send(SUPERVISOR, Condemn(worker.plan.role, incarnation, reason))


def _doing(phase: str) -> str:
    """What a worker is in by its last heartbeat."""
    return "load" if phase.startswith("loading") else "run"
