"""A node in virtual time, as far as capacity is concerned: the real gateway, scheduler and lease book, and their users.

Simulated are the workers (a run takes as long as ``bench.capacity_times`` says), the devices' memory and the sessions.
Messages take no time and the supervisor starts a dead worker's successor at once; see ``docs/capacity.md`` for all that
is left out. Everything random comes from one seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from bench.capacity_cards import Cards
from bench.capacity_day import Day
from bench.capacity_figures import SERVED, Figures, StageFigures
from bench.capacity_speaker import Speaker
from bench.capacity_worker import MODEL_BYTES, VirtualWorker
from bench.vram_clock import Clock
from engine.boot import GatewayBoot, SchedulerBoot, StagePlan, WorkerPlan
from engine.config import DeadlinesSection
from engine.gateway.books import Books
from engine.gateway.events import Arrived, JobEnded, NewEpoch, Post, Tell, TurnEnd
from engine.gateway.gateway import Gateway
from engine.gateway.validate import budget_ms
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from ipc.messages import Here, JobOutcome, Orders, Serve

GATEWAY_PEER = "gateway#1"
TURN_END = TurnEnd()
NEVER = float("inf")
STEP_S = 60.0  # of progress
LONGEST_END_S = 3600.0
START_S = 600.0  # a node that has not loaded by then has got stuck
# Acknowledgements ride with whatever comes next: on the seconds' scale of the stages it is no matter when they arrive.
DEADLINES = DeadlinesSection(ride_s=1.0)


class CapacityNode:
    """See the module's docstring. ``run`` once."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.clock = Clock()
        self.chance = random.Random(day.seed)
        self.figures = Figures(sessions=day.sessions)
        self.is_over = False  # nobody speaks any more
        devices = tuple(f"cuda:{number}" for number in range(day.gpus))
        stages = tuple(self._stage(name, devices) for name in day.times)
        pipelines = {"full": tuple(day.times)}
        self.scheduler = Scheduler(
            SchedulerBoot(
                stages=stages, pipelines=pipelines, mode="pipelined", mode_reason="", send_ahead=day.send_ahead,
                max_retries=3, capacity_factor=day.capacity_factor,
            ),
            DEADLINES, 1,
        )  # fmt: skip
        self.gateway = Gateway(
            Books(
                GatewayBoot(
                    stages=stages, pipelines=pipelines, sources={}, targets={}, endpoints=(), max_utterance_s=120.0,
                    max_text_chars=4000, window=64, max_sessions=day.sessions, outbox_session_bytes=64 * 2**20,
                    outbox_node_bytes=256 * 2**20,
                ),
                DEADLINES, 1, lambda: f"{self.chance.getrandbits(128):032x}",
            )
        )  # fmt: skip
        self.cards = Cards(self.clock, devices, self._answered, lambda message: self.tell("arbiter#1", message))
        plans = [plan for stage in stages for plan in stage.workers]
        self.workers = {plan.role: VirtualWorker(self, plan) for plan in plans}
        self.speakers: dict[str, Speaker] = {}  # by session
        self._clients: dict[bytes, Speaker] = {}
        self._drained: set[str] = set()
        self._posts: list[Any] = []
        self._heard = self._fed = False  # the scheduler's core, the gateway's: it has been told something this turn
        self._wake_at = NEVER

    def _stage(self, name: str, devices: tuple[str, ...]) -> StagePlan:
        plans = tuple(
            WorkerPlan(role=f"{name}@{device}/0", stage=name, device=device, estimate_bytes=MODEL_BYTES[name])
            for device in devices
        )
        return StagePlan(
            name=name, kind="simulated", accepts="text", emits="text", max_batch=self.day.batch, workers=plans,
            timeout_base_s=1e6,
        )  # fmt: skip

    # ---------------------------------------------------------------- the day

    def run(self, progress: Callable[[float], object] = lambda seconds: None) -> Figures:
        """Load, let everybody speak for so many hours, and wait for the last outcome."""
        self._start()
        began, speaks_s = self.clock.now, 3600 * self.day.hours
        for number in range(self.day.sessions):
            self._sit_down(number)
        for worker in self.workers.values():
            worker.plan_death()
        for device in self.cards.used:
            self._plan_outage(device)
        while (left := began + speaks_s - self.clock.now) > 0:
            self._pass(min(STEP_S, left))
            progress(min(STEP_S, left))
        self.is_over = True
        self._count(speaks_s)
        latest = self.clock.now + LONGEST_END_S + 10 * speaks_s  # whatever is not over by then is lost
        while self.clock.now < latest and not all(speaker.idle for speaker in self.speakers.values()):
            self._pass(STEP_S)
        self._judge()
        return self.figures

    def _start(self) -> None:
        began = self.clock.now
        self._post(Here("empty"))
        self._feed(NewEpoch())
        self.tell(SUPERVISOR, Serve())
        for worker in self.workers.values():
            worker.start()
        self._turn()
        while not self._all_loaded():
            assert self.clock.now < began + START_S, "the models do not load"
            self._pass(1.0)

    def _all_loaded(self) -> bool:
        return all(worker.life.value == "loaded" for worker in self.scheduler.book.workers.values())

    def _sit_down(self, number: int) -> None:
        speaker = Speaker(self, number)
        self._clients[speaker.client] = speaker
        speaker.open()
        self._turn()
        self.speakers[speaker.session] = speaker
        speaker.pause()

    def _count(self, seconds: float) -> None:
        """The stages' figures of the time in which sessions spoke."""
        self.figures.throughput = self.figures.outcomes["ok"] / seconds
        for name, rate in self.day.rates.items():
            workers = [worker for worker in self.workers.values() if worker.plan.stage == name]
            busy_s = sum(worker.busy_s for worker in workers)
            runs, items = sum(w.runs_done for w in workers), sum(w.items_done for w in workers)
            pace = self.scheduler.book.paces[name]
            self.figures.stages[name] = StageFigures(
                rate, busy_s / (seconds * len(workers)), items / max(1, runs), pace.waiting_sum_s / max(1, pace.done)
            )

    def _judge(self) -> None:
        figures = self.figures
        for speaker in self.speakers.values():
            figures.spoken += speaker.spoken
            figures.sessions_served += speaker.good >= SERVED * speaker.spoken
        figures.deaths = self.scheduler.book.totals.deaths

    def check(self) -> None:
        """The invariants of the cores."""
        self.scheduler.check()
        self.gateway.check()
        self.cards.book.check()

    # ---------------------------------------------------------------- time

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        self.clock.after(seconds, do, *args)

    def _pass(self, seconds: float) -> None:
        clock, end = self.clock, self.clock.now + seconds
        clock.after(seconds, _nothing)
        while clock.now < end:
            clock.step()
            if self._heard or self._fed or self._posts:
                self._turn()

    # ---------------------------------------------------------------- the shells

    def budget_ms(self, audio_s: float) -> int:
        """What the node would give an utterance of so much audio (here it sees a text)."""
        named = DEADLINES
        return budget_ms(None, audio_s, named.budget_base_s, named.budget_per_audio, named.budget_max_s)

    def submit(self, client: bytes, message: Any) -> None:
        """A client says something."""
        self._feed(Arrived(client, (message,)))

    def tell(self, peer: str, message: Any) -> None:
        """Somebody says something to the scheduler."""
        self.scheduler.handle(peer, message, self.clock.now)
        self._heard = True

    def _post(self, message: Any) -> None:
        self._posts.append(message)

    def _feed(self, event: Any) -> None:
        self._fed = event is not TURN_END
        for action in self.gateway.handle(event, self.clock.now):
            if type(action) is Post:
                self._posts.append(action.message)
            elif type(action) is Tell:
                self._clients[action.client].hear(action.message)

    def _turn(self) -> None:
        """Turns of both shells until nobody has anything to say at this moment."""
        while self._fed or self._posts or self._heard:
            while self._fed:
                self._feed(TURN_END)
            posts, self._posts = self._posts, []
            for message in posts:
                self.tell(GATEWAY_PEER, message)
            if self._heard:
                self._heard = False
                self._deliver()
        self._plan_wake()

    def _deliver(self) -> None:
        """The scheduler's turn."""
        mail, _ = self.scheduler.turn(self.clock.now)
        for peer, batch in mail.items():
            if peer == GATEWAY:
                for message in batch:
                    self._feed(JobEnded(message.outcome) if type(message) is JobOutcome else message)
            elif peer != SUPERVISOR:
                worker = self.workers[peer.rpartition("#")[0]]
                for message in batch:
                    if worker.peer == peer:
                        worker.command(message)

    def _answered(self, peer: str, message: Any) -> None:
        """The arbiter's word to a worker."""
        worker = self.workers[peer.rpartition("#")[0]]
        if worker.peer == peer and worker.alive:
            worker.told(message)

    def _plan_wake(self) -> None:
        """Something is due even if nothing arrives."""
        due = min(self.gateway.deadline(), self.scheduler.next_deadline() or NEVER)
        if due < self._wake_at:
            self._wake_at = due
            self.clock.after(max(0.0, due - self.clock.now), self._wake, due)

    def _wake(self, due: float) -> None:
        if due != self._wake_at:
            return
        self._wake_at = NEVER
        now = self.clock.now
        self._fed = self._fed or self.gateway.deadline() <= now
        self._heard = self._heard or (self.scheduler.next_deadline() or NEVER) <= now
        self._plan_wake()

    # ---------------------------------------------------------------- trouble

    def _plan_outage(self, device: str) -> None:
        if mtbf := self.day.gpu_mtbf_h:
            self.after(self.chance.expovariate(1 / (3600 * mtbf)), self._fail, device)

    def _fail(self, device: str) -> None:
        """All workers of a GPU die at once; an operator drains it until it is back."""
        if self.is_over:
            return
        self.figures.outages += 1
        self._drained.add(device)
        self._order()
        for worker in self.workers.values():
            if worker.plan.device == device:
                worker.die("its device failed")
        self.after(self.day.gpu_away_s, self._is_back, device)

    def _is_back(self, device: str) -> None:
        self._drained.discard(device)
        self._order()
        self._plan_outage(device)

    def _order(self) -> None:
        self.tell(SUPERVISOR, Orders(drained=tuple(sorted(self._drained))))


def _nothing() -> None:
    """For a moment at which only time has passed."""
