"""A worker of a simulated node: one run after another, and deaf meanwhile, as it is while it loads its model."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from bench.simulated import ARBITER, DEADLINES, MODEL_BYTES, Stuck
from bench.simulated_processes import Life
from bench.simulated_wish import NAME_BYTES, Wish
from engine.choices import stage_of
from engine.exits import PARKED
from engine.worker.runner import put_on_board
from ipc.messages import (
    Alive,
    Denied,
    Done,
    Granted,
    Here,
    LeaseRequest,
    Load,
    Loaded,
    Loading,
    Park,
    Ref,
    Run,
    RunItem,
    RunResult,
    Settled,
    Stop,
    Up,
)
from ipc.peers import peer_name

if TYPE_CHECKING:
    from bench.simulation import World

RUN_S = (0.01, 0.05, 0.3)
LONG_S = (3.5, 6.0)  # of a run or a load: longer than silence may last
LONG_RUNS, LONG_LOADS = 0.1, 0.15  # shares, where there are any


class WorkerLife(Life):
    """See the module's docstring. ``state``: empty, waiting (for its lease), loading, loaded."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        self.stage = stage_of(role.partition("@")[0])
        self.state = "empty"
        self.epoch = 0
        self.runs: deque[Run] = deque()
        self.busy_until = 0.0
        self.arbiter = ""
        self.request: LeaseRequest | None = None
        self.last_words: Any = None
        self.load_ms = 0.0

    def phase(self) -> str:
        return self.state

    def is_silent(self) -> bool:
        return self.world.now < self.busy_until or super().is_silent()

    # ---------------------------------------------------------------- what arrives

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        for position, (sender, thing) in enumerate(inbox):
            if self.world.now < self.busy_until:  # deaf to whatever else has come
                self.inbox = inbox[position:] + self.inbox
                return self.wake(self.busy_until)
            if sender == "supervisor":
                if isinstance(thing, Stop):
                    return self.die(0)
                self._obey(thing)
            elif thing[0] == ARBITER:
                self._hear_arbiter(thing[1])
            elif thing[0] == self.epoch:
                for message in thing[1]:
                    self._command(message)
                    if not self.alive:
                        return None
        if self.runs and self.state == "loaded" and self.world.now >= self.busy_until:
            self._run(self.runs.popleft())
        return None

    def _obey(self, message: Any) -> None:
        match message:
            case Up(role="scheduler", incarnation=incarnation):
                self.world.paths["a run is dropped for a new epoch"] += bool(self.runs)
                self.runs.clear()
                self.epoch = incarnation
                self._say(Here(self.state))
            case Up(role="arbiter", incarnation=incarnation):
                self.arbiter = peer_name(ARBITER, incarnation)
                for words in filter(None, (self.last_words, self.request)):
                    self._ask(words)

    def _command(self, message: Any) -> None:
        match message:
            case Run():
                self.world.paths["one sent ahead is overtaken"] += message.overtakes
                put_on_board(self.runs, message)
            case Park():
                self.world.paths["a model leaves for another"] += 1
                self.die(PARKED)
            case Load() if self.state == "empty":
                self.state = "waiting"
                number = self.world.chance.getrandbits(48)
                self.request = LeaseRequest(number, self.role, "cpu", MODEL_BYTES, self.role)
                if self.arbiter:
                    self._ask(self.request)

    # ---------------------------------------------------------------- the model

    def _hear_arbiter(self, message: Any) -> None:
        match message:
            case Granted(id, lease) if self.request is not None and id == self.request.id:
                self.request, self.last_words = None, None
                self._load(lease)
            case Denied():
                raise Stuck(f"seed {self.world.seed}: {self.peer} is denied its lease: {message.reason}")

    def _load(self, lease: int) -> None:
        world = self.world
        if world.loading:
            raise Stuck(f"seed {world.seed}: {self.peer} and {world.loading} load at once")
        world.loading.add(self.peer)
        self.state = "loading"
        self._say(Loading())
        self.tell_supervisor(Alive("loading"))  # the last word before a long silence
        seconds = self._seconds(world.chance.uniform(0.01, 0.3), LONG_LOADS)
        world.paths["a load outlasts silence"] += seconds > DEADLINES.silent_s
        self.busy_until = world.now + seconds
        self.load_ms = 1000 * seconds if world.shared else 0.0  # else nobody has a rival to wait for
        world.at(self.busy_until, self._loaded, lease)

    def _loaded(self, lease: int) -> None:
        world = self.world
        if not self.alive:
            return None
        if world.now < self.frozen_until:
            return world.at(self.frozen_until, self._loaded, lease)
        world.loading.discard(self.peer)
        world.resident.add(self.peer)
        self.state = "loaded"
        self.last_words = Settled(lease, MODEL_BYTES)
        self._ask(self.last_words)
        self.tell_supervisor(Alive("loaded"), quickly=True)  # first: who loads has nothing to do yet
        self._say(Loaded("", load_ms=self.load_ms))
        return self.wake(world.now)

    # ---------------------------------------------------------------- the work

    def _run(self, run: Run) -> None:
        world = self.world
        inputs = [world.memory.read(item.input) if item.input is not None else b"" for item in run.items]
        wishes = [self._wish(item, content) for item, content in zip(run.items, inputs, strict=True)]
        seconds = self._seconds(world.chance.choice(RUN_S), LONG_RUNS)
        self.busy_until = world.now + seconds
        if seconds > DEADLINES.silent_s:
            world.paths["a run outlasts silence"] += 1
            if world.chance.random() < 0.25:
                world.after(0.1, 2.0, world.faults.lose_scheduler)
        if any(wish.is_poison and wish.where == self.stage for wish in wishes):
            world.after(0.0, seconds, self._poisoned, len(run.items))
        else:
            world.at(self.busy_until, self._end, run, inputs, wishes)

    def _wish(self, item: RunItem, content: bytes) -> Wish:
        return self.world.wishes[content[:NAME_BYTES].hex() if item.input is not None else item.text or ""]

    def _poisoned(self, size: int) -> None:
        if self.alive:
            self.world.paths["poison kills its worker"] += 1
            self.world.paths["poison kills a batch"] += size > 1
            self.die(-9)

    def _end(self, run: Run, inputs: list[bytes], wishes: list[Wish]) -> None:
        if not self.alive:
            return None
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, self._end, run, inputs, wishes)
        for item, content in zip(run.items, inputs, strict=True):
            if item.input is not None and self.world.memory.read(item.input) != content:
                raise Stuck(f"seed {self.world.seed}: an input changed under a run")
        failed = [wish.fails(self.stage) for wish in wishes]
        if any(failed) and all(wish.can_fail(self.stage) for wish in wishes):  # then it takes all with it
            self.world.paths["a batch fails as a whole"] += len(wishes) > 1
            failed = [True] * len(wishes)
        results = [self._result(*each) for each in zip(run.items, wishes, failed, strict=True)]
        self._say(Done(tuple(results)))
        return self.wake(self.world.now)

    def _result(self, item: RunItem, wish: Wish, failed: bool) -> RunResult:
        now = int(self.world.now * 1e9)
        if failed:
            wish.failures += 1
            self.world.paths["a failure is reported"] += 1
            return RunResult(item.ticket, "failed", "failed", "as wished", True, begun_ns=now, ended_ns=now)
        if item.input is not None and self.stage.startswith("pass"):
            return RunResult(item.ticket, "completed", same=True, begun_ns=now, ended_ns=now)
        if item.slot_offset < 0:
            return RunResult(item.ticket, "completed", text=wish.name, begun_ns=now, ended_ns=now)
        made = wish.samples
        ref = Ref(self.role, item.slot_offset, len(made), "int16", (len(made) // 2,), 16000, item.ticket)
        self.world.memory.write(ref, made)
        return RunResult(item.ticket, "completed", ref=ref, begun_ns=now, ended_ns=now)

    def _seconds(self, usual: float, share: float) -> float:
        chance = self.world.chance
        return chance.uniform(*LONG_S) if self.world.is_slow and chance.random() < share else usual

    # ---------------------------------------------------------------- what is told

    def _say(self, message: Any) -> None:
        self.world.network.send(self.peer, f"scheduler#{self.epoch}", (self.epoch, [message]))

    def _ask(self, message: Any) -> None:
        self.world.network.send(self.peer, self.arbiter, (ARBITER, message))
