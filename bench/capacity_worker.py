"""A worker in virtual time: it starts, leases, loads, runs one batch after another, and dies now and then.

The text that it is given, and gives back, says how many seconds of audio the utterance has.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from bench.capacity_cards import GIB
from engine.arbiter.events import FromWorker
from engine.boot import WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.worker.runner import put_on_board
from ipc.messages import (
    Denied,
    Done,
    Gone,
    Granted,
    Here,
    LeaseRequest,
    LeaseWait,
    Load,
    Loaded,
    Loading,
    Park,
    Run,
    RunItem,
    RunResult,
    Settled,
)

if TYPE_CHECKING:
    from bench.capacity_node import CapacityNode

MODEL_BYTES = {"asr": 3 * GIB, "repair": 3 * GIB, "nmt": 2 * GIB, "tts": GIB}  # with context and workspace
READ_BYTES_S = 1.5e9
PROCESS_S = 2.0  # until a process speaks, and until it goes on to load after its grant


class VirtualWorker:
    """See the module's docstring. What is due belongs to one ``life`` and is void in the next."""

    def __init__(self, node: CapacityNode, plan: WorkerPlan) -> None:
        self.node = node
        self.plan = plan
        self.life = 0
        self.alive = False
        self.busy_s = 0.0  # of runs that ended
        self.runs_done = 0
        self.items_done = 0
        self._time = node.day.times[plan.stage]
        self._loaded = False
        self._running = False
        self._runs: deque[Run] = deque()

    @property
    def peer(self) -> str:
        return f"{self.plan.role}#{self.life}"

    def start(self) -> None:
        """Another life begins."""
        self.life += 1
        self.alive, self._loaded, self._running = True, False, False
        self._runs.clear()
        self._later(PROCESS_S, self._say, Here())

    def plan_death(self) -> None:
        """Of this life, if workers are to die at all."""
        if mtbf := self.node.day.worker_mtbf_h:
            self._later(self.node.chance.expovariate(1 / (3600 * mtbf)), self.die, "killed")

    def die(self, reason: str, *, parked: bool = False) -> None:
        """Now; another process follows at once."""
        if not self.alive:
            return
        self.alive = False
        node, device = self.node, self.plan.device
        if self._loaded:
            node.cards.give_back(device, MODEL_BYTES[self.plan.stage])
        gone = Gone(self.plan.role, self.life, reason, parked=parked)
        node.cards.hear(device, gone)
        node.tell(SUPERVISOR, gone)
        self.start()
        self.plan_death()

    def command(self, message: Any) -> None:
        """Of the scheduler, to this life."""
        match message:
            case Run():
                put_on_board(self._runs, message)
                self._next()
            case Load(raised=raised):
                nbytes = round(self.plan.estimate_bytes * raised)
                request = LeaseRequest(self.life, self.plan.role, self.plan.device, nbytes, self.plan.stage)
                self.node.cards.hear(self.plan.device, FromWorker(self.peer, request))
            case Park():
                self.die("parked", parked=True)

    def told(self, message: Any) -> None:
        """Of the arbiter, to this life."""
        match message:
            case Granted(lease=lease):
                self.node.tell(self.peer, Loading())
                seconds = PROCESS_S + MODEL_BYTES[self.plan.stage] / READ_BYTES_S
                self._later(seconds, self._has_loaded, lease, 1000 * seconds)
            case LeaseWait() | Denied():
                self.node.tell(self.peer, message)

    def _has_loaded(self, lease: int, load_ms: float) -> None:
        self._loaded = True
        self.node.cards.take(self.plan.device, MODEL_BYTES[self.plan.stage])
        self.node.cards.hear(self.plan.device, FromWorker(self.peer, Settled(lease, load_ms=load_ms)))
        self._say(Loaded("", load_ms=load_ms))

    def _next(self) -> None:
        if self._running or not self._runs:
            return
        self._running = True
        run, node = self._runs.popleft(), self.node
        audios = [float(item.text or 0) for item in run.items]
        seconds = self._time.run_s(audios, node.day.factor)
        self._later(seconds, self._ran, run, seconds)

    def _ran(self, run: Run, seconds: float) -> None:
        self._running = False
        node = self.node
        self.busy_s += seconds
        self.runs_done += 1
        self.items_done += len(run.items)
        for item in run.items:
            node.speakers[item.session].worked(item.index, seconds)
        ended = node.clock.now
        results = tuple([self._result(item, ended - seconds, ended) for item in run.items])
        node.tell(self.peer, Done(results))
        self._next()

    @staticmethod
    def _result(item: RunItem, began: float, ended: float) -> RunResult:
        return RunResult(item.ticket, "completed", text=item.text, begun_ns=int(1e9 * began), ended_ns=int(1e9 * ended))

    def _say(self, message: Any) -> None:
        self.node.tell(self.peer, message)

    def _later(self, seconds: float, do: Any, *args: Any) -> None:
        self.node.after(seconds, self._in_this_life, self.life, do, args)

    def _in_this_life(self, life: int, do: Any, args: tuple[Any, ...]) -> None:
        if self.alive and self.life == life:
            do(*args)
