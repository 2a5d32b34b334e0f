"""The worker's shell: a loop around one stage, single-threaded, so that a stuck stage falls silent.

Commands come from the scheduler only; the lease comes from the arbiter. Until the lease is granted nothing of the
stage's library is loaded, so a waiting worker holds no byte of its device. Runs are carried out in the order they came.

    empty --Load--> waiting for a lease --Granted--> loads, warms up --> loaded --Park--> leaves

Scheduler and arbiter may die and come back, the model stays. A new scheduler's epoch knows nothing of what an earlier
one had sent: runs on board are dropped, so the first word to it, ``Here``, says that no slot is in use here. A new
arbiter is asked again what was not answered, and told again how the last load ended.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import suppress
from typing import Any

from engine import failpoints, logs
from engine.boot import Boot, VariantPlan, WorkerBoot
from engine.exits import FAULTED, OK, PARKED
from engine.process import BOOT_FAILED, ORPHANED, Lifeline, enter, leave, now
from engine.worker.runner import Runner, put_on_board, stage_error
from ipc.errors import PeerGone
from ipc.messages import (
    Alive,
    ArbiterToWorker,
    Denied,
    Done,
    Granted,
    Grow,
    Here,
    Inquire,
    LeaseRequest,
    LeaseWait,
    Load,
    Loaded,
    Loading,
    Park,
    Release,
    Run,
    Settled,
    Stop,
    ToWorker,
    Up,
    Used,
)
from ipc.sockets import Dealer, Poll
from stages import find
from stages.base import StageConfig

GROWN = 0.01  # its peak is told again when it has grown by this share


class Worker:
    """See the module's docstring."""

    def __init__(self, boot: Boot) -> None:
        assert isinstance(boot.body, WorkerBoot)
        self.boot = boot
        self.plan = boot.body
        self.lifeline = Lifeline(boot)
        self.poll = Poll()
        self.scheduler: Dealer | None = None
        self.arbiter: Dealer | None = None
        self.met_again = False  # without having been told of it
        self.runner: Runner | None = None
        self.state = "empty"
        self.lease = 0
        self.granted = Granted(0, 0, 0)
        self.phase = ""  # of the load
        self.variant = 0  # of its model: 0 the one configured, then the smaller ones
        self.request: LeaseRequest | None = None
        self.last_words: tuple[Any, ...] = ()  # to the arbiter, about the last lease
        self.waiting_for = ""
        self.runs: deque[Run] = deque()
        self.leaving = False
        self.parked = False  # it leaves for the sake of its memory
        self.load_ms = 0.0
        self.ran_at = 0.0  # when the last run ended
        self.base_bytes = 0  # resident before anything of the stage was loaded
        self.peak_bytes = 0  # the most that was told
        self.counts = {"runs": 0, "utterances": 0, "failed": 0}

    def run(self) -> None:
        """Start, work until told to stop."""
        self.lifeline.start()
        self.poll.add(self.lifeline.link)
        self.poll.add(self.lifeline.death_fd)
        while not self.leaving:
            readable = self.wait()
            if self.lifeline.link in readable:
                self.read_supervisor()
            if self.arbiter is not None and self.arbiter in readable:
                self.read_arbiter(self.arbiter)
            if self.scheduler is not None and self.scheduler in readable:
                self.read_scheduler(self.scheduler)
            self.work()
            self.tell()

    def wait(self) -> set[Any]:
        """What is readable, as soon as something is or a heartbeat is due; at once with a run on board."""
        timeout = 0.0 if self.runs else self.lifeline.due_in(now())
        readable = self.poll.wait(timeout)
        if self.lifeline.death_fd in readable:
            leave(ORPHANED)
        return readable

    # ---------------------------------------------------------------- what arrives

    def read_supervisor(self) -> None:
        for message in self.lifeline.read():
            match message:
                case Up(role="scheduler", incarnation=incarnation):
                    self.scheduler = self._connect("scheduler", self.scheduler, ToWorker)
                    self.scheduler.epoch = incarnation
                    self.runs.clear()
                    self.scheduler.post(Here(self.state, self.waiting_for, self.variant))
                case Up(role="arbiter"):
                    if not self.met_again or self.arbiter is None or self.arbiter.ended:
                        self._meet_arbiter()
                    self.met_again = False
                case Stop():
                    self.leaving = True

    def _meet_arbiter(self) -> None:
        self.arbiter = self._connect("arbiter", self.arbiter, ArbiterToWorker)
        for message in (*self.last_words, self.request):
            self._to_arbiter(message)

    def _connect(self, role: str, old: Dealer | None, union: object) -> Dealer:
        if old is not None:
            self.poll.remove(old)
            old.close()
        link = Dealer(self.boot.endpoints[role], self.boot.role, self.boot.incarnation, union)
        self.poll.add(link)
        return link

    def read_arbiter(self, link: Dealer) -> None:
        for _, _, batch in link.drain():
            for message in batch:
                match message:
                    case Granted(id=id_, lease=lease) if self.request and id_ == self.request.id:
                        if self.request.grows:
                            self.request = None
                            continue
                        self.granted = message
                        self.lease, self.request, self.waiting_for, self.last_words = lease, None, "", ()
                        self.load()
                    case LeaseWait() | Denied() if self.request and self.request.grows:
                        if isinstance(message, Denied):
                            self.request = None
                    case LeaseWait(reason=reason):
                        self.waiting_for = reason
                        self._to_scheduler(LeaseWait(reason))
                    case Denied(reason=reason, code=code, id=id_) if self.request and id_ == self.request.id:
                        self.state, self.request = "empty", None
                        self._to_scheduler(Denied(reason, code))
                    case Inquire(lease=lease) if lease == self.lease:
                        self._to_arbiter(Used(lease, ran_at=self.ran_at))

    def read_scheduler(self, link: Dealer) -> None:
        for _, epoch, batch in link.drain():
            if epoch != link.epoch:
                continue
            for message in batch:
                self._command(message)

    def _command(self, message: Any) -> None:
        match message:
            case Run():
                put_on_board(self.runs, message)
                failpoints.reach("worker.received")
            case Load():
                self.ask_for_lease(message)
            case Grow(nbytes=0):
                self.ask_for_no_more()
            case Grow(nbytes=nbytes, wait_s=wait_s):
                self.ask_for_more(nbytes, wait_s)
            case Park():
                self.leaving = self.parked = True

    # ---------------------------------------------------------------- the model

    def ask_for_lease(self, load: Load) -> None:
        """Nothing is loaded before the arbiter has granted the memory: the estimate, ``raised`` so many times."""
        if self.state != "empty":
            return
        self.state, self.variant = "waiting", load.variant
        chosen, on_cpu = self.chosen, self.plan.library_device == "cpu"
        self.base_bytes = _resident_bytes() if on_cpu else 0
        self.request = LeaseRequest(
            time.monotonic_ns(), self.boot.role, self.plan.device, round(chosen.estimate_bytes * load.raised),
            chosen.model, load.wait_s, priority=self.plan.priority, variant=self.variant, pid=os.getpid(),
            base_bytes=self.base_bytes,
        )  # fmt: skip
        self._to_arbiter(self.request)

    def ask_for_more(self, nbytes: int, wait_s: float) -> None:
        """It turned out that the model takes more than was leased for it. It works on, whatever the answer."""
        if self.state == "loaded" and self.request is None:
            id_, device, model = time.monotonic_ns(), self.plan.device, self.chosen.model
            self._take_back_release()
            self.request = LeaseRequest(
                id_, self.boot.role, device, nbytes, model, wait_s,
                priority=self.plan.priority, grows=True, pid=os.getpid(),
            )  # fmt: skip
            self._to_arbiter(self.request)

    def ask_for_no_more(self) -> None:
        """Its runs fit: what was leased beyond the estimate may go to others."""
        if self.state == "loaded":
            self.request = None
            self._take_back_release()
            self._tell_arbiter(*self.last_words, Release(self.lease, keep_bytes=self.chosen.estimate_bytes))

    def _take_back_release(self) -> None:
        """What it was to keep of its lease is not true any more."""
        self.last_words = tuple(message for message in self.last_words if not isinstance(message, Release))

    @property
    def chosen(self) -> VariantPlan:
        """The variant that was asked for."""
        plan = self.plan
        if self.variant:
            return plan.smaller[self.variant - 1]
        return VariantPlan(
            name=plan.compute_type,
            model=plan.model,
            compute_type=plan.compute_type,
            estimate_bytes=plan.estimate_bytes,
            options=plan.options,
        )

    def load(self) -> None:
        """Open and warm up the model; tells arbiter and scheduler how it went."""
        self.state = "loading"
        failpoints.reach("worker.granted")
        self._to_scheduler(Loading(self.chosen.model, self.variant))
        self.lifeline.post(Alive("loading"))  # the last word before a long silence
        self.tell()
        begun = now()
        try:
            self.runner = self._open()
        except Exception as error:
            self._load_failed(error)
            return
        self.load_ms = (now() - begun) * 1000
        self.state = "loaded"
        failpoints.reach("worker.loaded")
        self.lifeline.post(Alive("loaded"))  # before the first run can end this life: it has come so far
        self.lifeline.flush()
        measured = max(0, _resident_bytes() - self.base_bytes) if self.plan.library_device == "cpu" else -1
        self._tell_arbiter(Settled(self.lease, measured, load_ms=self.load_ms))
        self._tell_peak()
        self._to_scheduler(Loaded(self.chosen.model, self.variant, max_batch=self.plan.max_batch, load_ms=self.load_ms))

    def _open(self) -> Runner:
        plan, chosen = self.plan, self.chosen
        config = StageConfig(
            chosen.model, plan.library_device, chosen.compute_type, plan.threads, plan.max_batch, chosen.options,
            plan.warm_up_runs,
        )  # fmt: skip
        stage = find(plan.kind)(config)
        self.phase = "load"
        stage.load()
        self.phase = "warm_up"
        stage.warm_up()
        return Runner(self.boot, stage)

    def _load_failed(self, error: Exception) -> None:
        """Give the lease back. What the library has taken of a GPU by now, only the end of the process gives back."""
        cause = stage_error(error)
        logs.get().debug("cannot load %s: %s", self.chosen.model or self.plan.kind, cause.text)  # the scheduler tells
        self.state = "empty"
        failpoints.reach("worker.released")
        self._tell_arbiter(Settled(self.lease, ok=False), Release(self.lease))
        text = cause.text
        if cause.code == "oom":
            granted, free = gib(self.granted.nbytes), gib(self.granted.free_bytes)
            text += f" ({self.phase.replace('_', '-')} of {self.boot.role}: {granted} granted, {free} were free then)"
        self._to_scheduler(Denied(text, cause.code, phase=self.phase))
        self.leaving = self.parked = self.plan.library_device != "cpu"

    # ---------------------------------------------------------------- the work

    def work(self) -> None:
        """Carry out the oldest run on board, if any."""
        if not self.runs or self.runner is None:
            return
        run = self.runs.popleft()
        results = self.runner.run(run)
        if self.runner.fault and self.plan.library_device != "cpu":
            self._leave_broken(self.runner.fault)
        failpoints.reach("worker.ran")
        self.ran_at = now()
        self.counts["runs"] += 1
        for result in results:
            self.counts["utterances"] += 1
            self.counts["failed"] += result.state == "failed"
        self._to_scheduler(Done(tuple(results), self.runner.fits))

    def _leave_broken(self, fault: str) -> None:
        """The device answers this process with nothing but errors from here on: what it had runs again elsewhere."""
        logs.get().error("this process cannot use its GPU any more, another one follows: %s", fault)
        leave(FAULTED)

    # ---------------------------------------------------------------- what is told

    def tell(self) -> None:
        """One frame to each peer, the scheduler first, who waits for it; then heartbeat and report when due."""
        for link in (self.scheduler, self.arbiter):
            if link is not None:
                with suppress(PeerGone):  # it died; its next life is told what still matters
                    if link.flush() and link is self.scheduler and self.counts["runs"]:
                        failpoints.reach("worker.done")
        time_ = now()
        if time_ >= self.lifeline.pulse_at:
            if self.arbiter is not None and self.arbiter.ended:
                self._meet_arbiter()  # it was there, and had no place for one more; or this is its next life
                self.met_again = True
            self.lifeline.beat(self.state, time_)
            if self.lifeline.report_due(time_):
                self.lifeline.report(self.snapshot(), time_)
                self._tell_peak()
        self.lifeline.flush()

    def snapshot(self) -> dict[str, Any]:
        """Statistics as plain values."""
        plan = self.plan
        return {
            "stage": plan.stage,
            "kind": plan.kind,
            "device": plan.device,
            "model": self.chosen.model,
            "variant": self.variant,
            "state": self.state,
            "load_ms": round(self.load_ms, 1),
            "resident_bytes": _resident_bytes(),
            **self.counts,
        }

    def _tell_peak(self) -> None:
        """The most this process has had, where its memory is the device's; a GPU's is seen by the arbiter."""
        if self.state != "loaded" or self.plan.library_device != "cpu":
            return
        peak = _peak_bytes() - self.base_bytes
        if peak > self.peak_bytes * (1 + GROWN):
            self.peak_bytes = peak
            self._to_arbiter(Used(self.lease, peak, self.ran_at))

    def _to_scheduler(self, message: Any) -> None:
        if self.scheduler is not None:
            self.scheduler.post(message)

    def _tell_arbiter(self, *messages: Any) -> None:
        """How it stands with the lease: said again to each new arbiter."""
        self.last_words = messages
        for message in messages:
            self._to_arbiter(message)

    def _to_arbiter(self, message: Any) -> None:
        if self.arbiter is not None and message is not None:
            self.arbiter.post(message)


def gib(nbytes: int) -> str:
    """Bytes for people."""
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def _peak_bytes() -> int:
    """The most resident memory this process has had, without the shared mappings of now."""
    with open("/proc/self/status") as file:
        kib = dict(line.split()[:2] for line in file if line.startswith(("VmHWM:", "RssFile:", "RssShmem:")))
    return (int(kib["VmHWM:"]) - int(kib["RssFile:"]) - int(kib["RssShmem:"])) * 1024


def _resident_bytes() -> int:
    """This process's resident memory, shared mappings left out."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


def main() -> None:
    boot = enter()
    try:
        worker = Worker(boot)
    except Exception as error:
        logs.get().error("cannot start: %s", error)
        leave(BOOT_FAILED)
    worker.run()
    failpoints.reach("worker.stopping")
    if worker.runner is not None:
        worker.runner.stage.close()
    leave(PARKED if worker.parked else OK)


if __name__ == "__main__":
    main()
