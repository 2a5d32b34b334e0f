"""A whole node in one thread and in virtual time: the real cores, everything around them simulated, all from one seed.

Real are the cores of supervisor (``Lifecycle``), scheduler, gateway and client (``SessionCore``). Simulated are the
network (each message takes its own time, each link keeps its order; what a process had sent before its death still
arrives), the shells, the workers, shared memory (a slot's generation and content), and death: at any moment, or frozen
for a while and going on.

A **history** is one run of such a world: clients submit, processes die, and at the end every client must hold exactly
one outcome for each utterance, in order, ok, with its own samples, and no slot may be left taken.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from engine.boot import GatewayBoot, SchedulerBoot, StagePlan, WorkerPlan
from engine.client_core import SessionCore, State
from engine.client_utterance import Utterance
from engine.config import DeadlinesSection
from engine.gateway.books import Books
from engine.gateway.events import Arrived, ClientLost, JobEnded, NewEpoch, Post, Tell, TurnEnd, Write
from engine.gateway.gateway import Gateway
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.past import GIVEN_UP
from engine.scheduler.scheduler import Scheduler
from engine.supervisor import roster
from engine.supervisor.events import Exited, Heard, Spawned, Tick
from engine.supervisor.lifecycle import Lifecycle, Phase
from engine.supervisor.roster import Roster
from ipc.messages import (
    Alive,
    ClientMessage,
    Done,
    Gone,
    Here,
    JobOutcome,
    Load,
    Loaded,
    Loading,
    Ref,
    Run,
    RunItem,
    RunResult,
    Serve,
    Serving,
    Up,
)
from ipc.peers import peer_name, split_peer
from ipc.ring import generation

PIPELINES = (("asr", "nmt", "tts"), ("asr", "nmt", "tts"), ("pass1", "pass2"))  # the last: samples from end to end
DEADLINES = DeadlinesSection(
    heartbeat_s=0.5, silent_s=3.0, backoff_first_s=0.05, gap_s=10.0, budget_base_s=120.0, retry_delay_s=0.5
)
KINDS = {"asr": ("audio", "text"), "nmt": ("text", "text"), "tts": ("text", "audio"),
         "pass1": ("audio", "same"), "pass2": ("audio", "same")}  # fmt: skip
SAMPLES = 8  # of an utterance, int16: its mark
PING_S = 0.5
CANCELS = 0.08  # share of utterances
LATEST_S = 120.0  # virtual; a history that takes longer has got stuck
CORES = ("scheduler", "gateway")


class Stuck(AssertionError):
    """A history that does not end well: what is wrong, and the seed that shows it."""


class World:
    """One history. ``paths`` counts which recoveries it took."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.paths: Counter[str] = Counter()
        self.memory: dict[tuple[str, int], tuple[int, bytes]] = {}  # (ring, offset) -> generation, content
        self.lives: dict[str, Life] = {}  # role -> its present process
        self.wires: dict[tuple[str, str], deque[tuple[float, Any]]] = {}  # (from, to) -> what is on its way
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self.pipeline = self.chance.choice(PIPELINES)
        self.workers = tuple(
            f"{stage}@cpu/{n}" for stage in self.pipeline for n in range(self.chance.choice((1, 1, 2)))
        )
        self.ring_blocks = self.chance.choice((2, 4, 16))
        self.stages = tuple(self._stage(name) for name in self.pipeline)
        self.supervisor = Supervisor(self)
        self.clients = [Client(self, n) for n in range(self.chance.randint(1, 3))]

    def _stage(self, name: str) -> StagePlan:
        ring = self.ring_blocks if name == "tts" else 0
        plans = tuple(
            WorkerPlan(role=role, stage=name, device="cpu", ring_blocks=ring)
            for role in self.workers if role.startswith(f"{name}@")
        )  # fmt: skip
        accepts, emits = KINDS[name]
        return StagePlan(
            name=name, kind="simulated", accepts=accepts, emits=emits, workers=plans, output_base=1000,
            max_batch=self.chance.choice((1, 1, 2)),
        )  # fmt: skip

    # ---------------------------------------------------------------- time

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._order), do))

    def after(self, low: float, high: float, do: Callable[[], None]) -> None:
        self.at(self.now + self.chance.uniform(low, high), do)

    def run(self) -> None:
        """Until every client has what it wants and nothing is going on. Raises Stuck, AssertionError."""
        end = self.now + LATEST_S
        self.supervisor.begin()
        self._plan_faults()
        while not self._is_over():
            if not self._due or self._due[0][0] > end:
                raise Stuck(f"seed {self.seed}: {self._state()}")
            self.now, _, do = heapq.heappop(self._due)
            do()
        self._settle()
        for client in self.clients:
            client.check()

    def _settle(self) -> None:
        """Acknowledgements and what they set free are on their way for a moment more.

        A client that is through does not come back for a session whose last acknowledgement died with the gateway: that
        one is kept as long as any other whose client is gone.
        """
        self._pass(8.0)
        scheduler, gateway = self.lives["scheduler"], self.lives["gateway"]
        assert isinstance(scheduler, SchedulerLife) and isinstance(gateway, GatewayLife)
        if len(gateway.core.books.sessions):
            self.paths["a session is kept for a client that does not come back"] += 1
            self._pass(DEADLINES.detach_s + DEADLINES.keep_s + 1.0)
        scheduler.core.check()
        gateway.core.check()
        if not scheduler.core.book.slots.idle:
            raise Stuck(f"seed {self.seed}: slots are left: {scheduler.core.book.slots._slots}")
        blocks = gateway.core.books.ingress.blocks
        if blocks.free != blocks.count:
            raise Stuck(f"seed {self.seed}: the gateway's ring keeps {blocks.count - blocks.free} blocks")

    def _pass(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, do = heapq.heappop(self._due)
            do()

    def _is_over(self) -> bool:
        return all(client.done for client in self.clients) and self.supervisor.life.phase is Phase.SERVING

    def _state(self) -> str:
        waiting = {client.core.tag: sorted(client.core.unended) for client in self.clients}
        return f"not over after {LATEST_S:g} s; unended {waiting}"

    # ---------------------------------------------------------------- faults

    def _plan_faults(self) -> None:
        for _ in range(self.chance.choice((0, 1, 1, 2, 3, 4))):
            self.after(0.5, 6.0, self._fault)

    def _fault(self) -> None:
        """Kill or freeze somebody; scheduler and gateway never while either is not whole."""
        role = self.chance.choice((*CORES, *CORES, *self.workers))
        life = self.lives.get(role)
        if life is None or not life.alive or self.supervisor.life.phase is not Phase.SERVING:
            return
        if role in CORES and not self.is_whole():
            return self.after(0.2, 1.0, self._fault)
        if self.chance.random() < 0.25:
            self.paths[f"frozen {role.partition('@')[0]}"] += 1
            seconds = self.chance.choice((0.2, 1.0, 2.0)) if role in CORES else self.chance.choice((0.2, 2.0, 6.0))
            return life.freeze(seconds)
        return self.kill(role)

    def is_whole(self) -> bool:
        """Whether scheduler and gateway both know everything."""
        scheduler, gateway = self.lives.get("scheduler"), self.lives.get("gateway")
        if not isinstance(scheduler, SchedulerLife) or not isinstance(gateway, GatewayLife):
            return False
        both = scheduler.alive and gateway.alive
        linked = scheduler.core.book.gateway == gateway.peer and gateway.epoch == scheduler.incarnation
        return both and linked and scheduler.core.handover.complete and gateway.core.handover.whole

    def kill(self, role: str) -> None:
        """SIGKILL."""
        life = self.lives[role]
        self.paths[f"killed {role.partition('@')[0]}"] += 1
        life.note_paths()
        life.alive = False
        self.after(0.0001, 0.002, lambda: self.supervisor.exited(life))

    # ---------------------------------------------------------------- the network

    def send(self, sender: str, receiver: str, thing: Any) -> None:
        """Put something on its way; a link keeps its order."""
        wire = self.wires.setdefault((sender, receiver), deque())
        slow = 0.5 if self.chance.random() < 0.01 else 0.003
        time = max(self.now + self.chance.uniform(0.0001, slow), wire[-1][0] if wire else 0.0)
        wire.append((time, thing))
        self.at(time, lambda: self._arrive(sender, receiver))

    def _arrive(self, sender: str, receiver: str) -> None:
        wire = self.wires.get((sender, receiver))
        if not wire or wire[0][0] > self.now:
            return  # read already, as somebody's last words
        _, thing = wire.popleft()
        life = self._whose(receiver)
        if life is not None and life.alive:
            life.receive(sender, thing)

    def _whose(self, peer: str) -> Any:
        if peer == "supervisor":
            return self.supervisor
        if peer.startswith("client"):
            return self.clients[int(peer.removeprefix("client"))]
        role, incarnation = split_peer(peer)
        life = self.lives.get(role)
        return life if life is not None and life.incarnation == incarnation else None

    def last_words(self, sender: str, receiver: str) -> list[Any]:
        """Everything the dead sender had sent, now."""
        return [thing for _, thing in self.wires.pop((sender, receiver), ())]

    def nothing_from(self, sender: str, receiver: str) -> bool:
        return not self.wires.get((sender, receiver))

    # ---------------------------------------------------------------- shared memory

    def write(self, ref: Ref, content: bytes) -> None:
        self.memory[ref.ring, ref.offset] = (ref.generation, content)

    def read(self, ref: Ref) -> bytes:
        """The content of a slot. Raises Stuck when it has been given to somebody else."""
        mark, content = self.memory.get((ref.ring, ref.offset), (0, b""))
        if mark != ref.generation:
            raise Stuck(f"seed {self.seed}: a slot of {ref.ring} was given away while somebody needed it")
        return content


class Life:
    """One process: it takes in what has arrived when it has its turn, like the shells do."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        self.world = world
        self.role = role
        self.incarnation = incarnation
        self.peer = peer_name(role, incarnation)
        self.alive = True
        self.frozen_until = 0.0
        self.inbox: list[tuple[str, Any]] = []
        self._turn_at = float("inf")

    def freeze(self, seconds: float) -> None:
        self.frozen_until = self.world.now + seconds

    def receive(self, sender: str, thing: Any) -> None:
        self.inbox.append((sender, thing))
        self.wake(self.world.now + 0.0001)

    def wake(self, time: float) -> None:
        """Have a turn at this time at the latest."""
        time = max(time, self.frozen_until, self.world.now)
        if time < self._turn_at:
            self._turn_at = time
            self.world.at(time, self._have_turn)

    def _have_turn(self) -> None:
        if not self.alive or self.world.now < self._turn_at:
            return
        self._turn_at = float("inf")
        if self.world.now < self.frozen_until:
            return self.wake(self.frozen_until)
        inbox, self.inbox = self.inbox, []
        self.turn(inbox)
        return None

    def beat(self) -> None:
        """Say that it is alive, from time to time."""
        if self.alive:
            if self.world.now >= self.frozen_until:
                self.tell_supervisor(Alive(self.phase()))
            self.world.at(self.world.now + DEADLINES.heartbeat_s, self.beat)

    def tell_supervisor(self, message: Any) -> None:
        self.world.send(self.peer, "supervisor", message)

    def phase(self) -> str:
        return "running"

    def note_paths(self) -> None:
        """It is about to be killed: which recovery will be needed."""

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        raise NotImplementedError


class Supervisor:
    """The real lifecycle; starting takes a while, deaths are seen at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        roles = ("arbiter", *CORES, *world.workers)
        self.life = Lifecycle(Roster(roles, DEADLINES, 1000), {}, DEADLINES)

    def begin(self) -> None:
        self.tick()

    def tick(self) -> None:
        self.handle(Tick())
        self.world.at(max(self.world.now + 0.01, self.life.next_due(self.world.now)), self.tick)

    def receive(self, sender: str, message: Any) -> None:
        role, incarnation = split_peer(sender)
        self.handle(Heard(role, incarnation, message))

    alive = True  # it is not killed here: nothing outlives it

    def exited(self, life: Life) -> None:
        self.handle(Exited(life.role, -9))
        for client in self.world.clients:
            client.connection_lost(life)

    def handle(self, event: Any) -> None:
        world = self.world
        for action in self.life.handle(event, world.now):
            match action:
                case roster.Post(role, incarnation, message):
                    world.send("supervisor", peer_name(role, incarnation), message)
                case roster.Spawn(role, incarnation):
                    world.after(0.05, 0.4, partial(self._start, role, incarnation))
                    self.handle(Spawned(role, 1, 1))
                case roster.Signal(role) if world.lives[role].alive:
                    world.paths["condemned"] += 1
                    world.kill(role)

    def _start(self, role: str, incarnation: int) -> None:
        kinds: dict[str, type[Life]] = {"scheduler": SchedulerLife, "gateway": GatewayLife, "arbiter": ArbiterLife}
        life = kinds.get(role, WorkerLife)(self.world, role, incarnation)
        self.world.lives[role] = life
        life.tell_supervisor(Alive("started"))
        self.world.at(self.world.now + DEADLINES.heartbeat_s, life.beat)


class ArbiterLife(Life):
    """Its leases are tested elsewhere; here every model has its memory."""

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        inbox.clear()


class SchedulerLife(Life):
    """The real scheduler, with its shell's rules about epochs and the dead."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        users = {"gateway": ("gateway", *(r for r in world.workers if KINDS[r.partition("@")[0]][0] == "audio")),
                 **{role: (role, "gateway") for role in world.workers if role.startswith("tts")}}  # fmt: skip
        boot = SchedulerBoot(
            stages=world.stages, pipelines={"full": world.pipeline}, mode="pipelined", mode_reason="", send_ahead=1,
            max_retries=3, capacity_factor=10, ring_users=users,
        )  # fmt: skip
        self.core = Scheduler(boot, DEADLINES, incarnation)
        self.gateway = ""
        self.dying: dict[str, Gone] = {}

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        world, now = self.world, self.world.now
        for sender, thing in inbox:
            if sender == "supervisor":
                self._obey(thing)
                continue
            epoch, batch = thing
            if epoch != self.incarnation:
                continue
            if sender.startswith("gateway#"):
                self.gateway = sender
            for message in batch:
                self.core.handle(sender, message, now)
        for peer in [peer for peer in self.dying if world.nothing_from(peer, self.peer)]:
            self.core.handle(SUPERVISOR, self.dying.pop(peer), now)
        mail, _ = self.core.turn(now)
        self.core.check()
        for message in mail.pop(SUPERVISOR, ()):
            self.tell_supervisor(message)
        if (told := mail.pop(GATEWAY, None)) is not None:
            mail[self.gateway] = told
        for peer, batch in mail.items():
            world.send(self.peer, peer, (self.incarnation, batch))
        due = self.core.next_deadline()
        if self.dying:
            due = min(due or now + 1.0, now + 0.01)
        if due is not None:
            self.wake(max(due, now + 0.0005))

    def _obey(self, message: Any) -> None:
        match message:
            case Gone(role=role, incarnation=incarnation):
                self.dying[peer_name(role, incarnation)] = message
            case Up():
                return
            case _:
                self.core.handle(SUPERVISOR, message, self.world.now)

    def note_paths(self) -> None:
        jobs = [job for line in self.core.book.lines.values() for job in line.jobs.values()]
        self.world.paths["scheduler dies with unended jobs"] += any(not job.ended for job in jobs)
        self.world.paths["scheduler dies with unacknowledged ends"] += any(job.ended for job in jobs)
        self.world.paths["scheduler dies with runs on board"] += any(w.batches for w in self.core.book.workers.values())


class GatewayLife(Life):
    """The real gateway, with its shell's rules about links, and clients by their number."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        boot = GatewayBoot(
            stages=world.stages, pipelines={"full": world.pipeline}, sources={}, targets={}, endpoints=(),
            max_utterance_s=10.0, max_text_chars=1000, window=8, max_sessions=8,
            outbox_session_bytes=2**20, outbox_node_bytes=2**22,
        )  # fmt: skip
        books = Books(
            boot, DEADLINES, incarnation, lambda: f"{world.chance.getrandbits(128):032x}", "gateway", 8,
            generation(incarnation, 0),
        )  # fmt: skip
        self.core = Gateway(books)
        self.epoch = 0
        self.scheduler = ""
        self.wanted = self.open = False

    def phase(self) -> str:
        return "serving"

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        now = self.world.now
        self._posts: list[Any] = []
        for sender, thing in inbox:
            if sender == "supervisor":
                self._obey(thing)
            elif sender.startswith("client"):
                if self.open:
                    self._feed(thing if isinstance(thing, ClientLost) else Arrived(sender.encode(), *thing))
            elif sender == self.scheduler:
                self._hear(thing)
        self._feed(TurnEnd())
        self.core.check()
        self._flush()
        if self.wanted and not self.open and self.core.handover.whole:
            self.open = True
            self.tell_supervisor(Serving(()))
        if (due := self.core.deadline()) < float("inf"):
            self.wake(max(due, now + 0.0005))

    def _obey(self, message: Any) -> None:
        match message:
            case Up(role="scheduler", incarnation=incarnation):
                self._meet(incarnation)
            case Serve():
                self.wanted = True

    def _meet(self, incarnation: int) -> None:
        if self.scheduler:
            self._flush()
            for thing in self.world.last_words(self.scheduler, self.peer):
                self.world.paths["a dead scheduler's last words are heard"] += 1
                self._hear(thing)
        self._posts.clear()
        self.scheduler, self.epoch = peer_name("scheduler", incarnation), incarnation
        self._posts.append(Here("whole" if self.core.handover.whole else "empty"))
        self._feed(NewEpoch())
        self._flush()

    def _flush(self) -> None:
        if self._posts and self.scheduler:
            self.world.send(self.peer, self.scheduler, (self.epoch, self._posts))
        self._posts = []

    def _hear(self, thing: Any) -> None:
        epoch, batch = thing
        for message in batch if epoch == self.epoch else ():
            if isinstance(message, JobOutcome):
                payload = None if message.ref is None else self.world.read(message.ref)
                outcome = message.outcome
                if payload is not None:
                    outcome = msgspec.structs.replace(outcome, dtype="s16le", nbytes=len(payload))
                message = JobEnded(outcome, payload, message.ticket)
            self._feed(message)

    def _feed(self, event: Any) -> None:
        for action in self.core.handle(event, self.world.now):
            match action:
                case Post(message):
                    self._posts.append(message)
                case Tell(client, message, payload):
                    self.world.send(self.peer, client.decode(), (self.incarnation, message, payload))
                case Write(ref, payload):
                    self.world.write(ref, payload)

    def note_paths(self) -> None:
        outbox = self.core.books.outbox
        self.world.paths["gateway dies with unacknowledged outcomes"] += outbox.count > 0
        self.world.paths["gateway dies with unended utterances"] += self.core.books.ledger.total > 0


class WorkerLife(Life):
    """One run after another, and deaf meanwhile."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        self.state = "empty"
        self.epoch = 0
        self.runs: deque[Run] = deque()
        self.busy_until = 0.0

    def phase(self) -> str:
        return self.state

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        if self.world.now < self.busy_until:
            self.inbox = inbox + self.inbox
            return self.wake(self.busy_until)
        for sender, thing in inbox:
            if sender == "supervisor":
                if isinstance(thing, Up) and thing.role == "scheduler":
                    self.world.paths["a run is dropped for a new epoch"] += bool(self.runs)
                    self.runs.clear()
                    self.epoch = thing.incarnation
                    self._say(Here(self.state))
            elif thing[0] == self.epoch:
                for message in thing[1]:
                    self._command(message)
        if self.runs and self.state == "loaded":
            self._begin(self.runs.popleft())
        return None

    def _command(self, message: Any) -> None:
        match message:
            case Run():
                self.runs.append(message)
            case Load() if self.state == "empty":
                self.state = "loading"
                self._say(Loading())
                self.busy_until = self.world.now + self.world.chance.uniform(0.01, 0.3)
                self.world.at(self.busy_until, self._loaded)

    def _loaded(self) -> None:
        if self.alive:
            self.state = "loaded"
            self._say(Loaded(""))
            self.wake(self.world.now)

    def _begin(self, run: Run) -> None:
        inputs = [self.world.read(item.input) if item.input is not None else b"" for item in run.items]
        self.busy_until = self.world.now + self.world.chance.choice((0.01, 0.05, 0.3))
        self.world.at(self.busy_until, lambda: self._end(run, inputs))

    def _end(self, run: Run, inputs: list[bytes]) -> None:
        if not self.alive:
            return None
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, lambda: self._end(run, inputs))
        results = [self._result(item, content) for item, content in zip(run.items, inputs, strict=True)]
        self._say(Done(tuple(results)))
        return self.wake(self.world.now)

    def _result(self, item: RunItem, content: bytes) -> RunResult:
        now = int(self.world.now * 1e9)
        if item.input is not None:
            if self.world.read(item.input) != content:
                raise Stuck(f"seed {self.world.seed}: an input changed under a run")
            if self.role.startswith("pass"):
                return RunResult(item.ticket, "completed", same=True, begun_ns=now, ended_ns=now)
            return RunResult(item.ticket, "completed", text=content.hex(), begun_ns=now, ended_ns=now)
        if item.slot_offset < 0:
            return RunResult(item.ticket, "completed", text=item.text, begun_ns=now, ended_ns=now)
        made = bytes.fromhex(item.text or "")
        ref = Ref(self.role, item.slot_offset, len(made), "int16", (len(made) // 2,), 16000, item.ticket)
        self.world.write(ref, made)
        return RunResult(item.ticket, "completed", ref=ref, begun_ns=now, ended_ns=now)

    def _say(self, message: Any) -> None:
        self.world.send(self.peer, f"scheduler#{self.epoch}", (self.epoch, [message]))


class Client:
    """The real session core in a shell like ``engine.Client``'s, and what its user wants."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"client{number}"
        self.core = SessionCore({"tag": f"t{number}", "pipeline": "full", "source": "en", "target": "de", "models": {},
                                 "priority": "normal", "window": 8, "first_index": 0, "partials": False})  # fmt: skip
        self.count = world.chance.randint(1, 8)
        self.marks = [world.chance.randbytes(2 * SAMPLES) for _ in range(self.count)]
        self.got: list[Any] = []
        self.cancelled: set[int] = set()
        self.alive = True
        self.gateway = ""  # who we are connected to
        self.incarnation: int | None = None
        for index, mark in enumerate(self.marks):
            world.after(0.0, 6.0, partial(self._submit, index, mark))
        world.after(0.0, 1.0, self._tick)

    @property
    def done(self) -> bool:
        return self.core.state is State.CLOSED

    def _submit(self, index: int, mark: bytes) -> None:
        fields = {"dtype": "s16le", "nbytes": len(mark), "sample_rate": 16000}
        self.core.submit(Utterance(index, fields, mark))
        self._say_all()
        if self.world.chance.random() < CANCELS:
            self.world.after(0.0, 1.5, partial(self._cancel, index))

    def _cancel(self, index: int) -> None:
        """Its user has thought better of it, which may be too late."""
        if not self.core.has_ended(index):
            self.world.paths["cancelled"] += 1
            self.cancelled.add(index)
            self._post(*self.core.cancel(index))

    def connection_lost(self, life: Life) -> None:
        if life.peer == self.gateway:
            self.gateway = ""

    def _tick(self) -> None:
        """Connect when somebody is there; ping while anything is outstanding."""
        world = self.world
        gateway = world.lives.get("gateway")
        if not self.gateway and isinstance(gateway, GatewayLife) and gateway.alive and gateway.open:
            self.gateway = gateway.peer
            if self.core.state is State.OPENING:
                self._post(*self.core.open(world.now))
        elif self.gateway and (self.core.outstanding() or self.core.unended):
            named = [self.core.still_here()] if self.core.state is State.OPEN else []
            self._post({"type": "Ping"}, *named)
        self._say_all()
        world.at(world.now + PING_S, self._tick)

    def receive(self, _: str, thing: Any) -> None:
        incarnation, message, payload = thing
        plain = msgspec.to_builtins(message) | {"type": type(message).__name__}
        if incarnation != split_peer(self.gateway or "gateway#0")[1]:
            return
        had = len(self.core.ended)
        if plain["type"] == "Pong":
            self._met(plain["incarnation"])
        else:
            if self.incarnation is None:
                self.incarnation = incarnation
            self._post(*self.core.handle(plain, payload, self.world.now))
        self.world.paths["Busy"] += plain["type"] == "Busy"
        for outcome in list(self.core.ended)[had:]:
            self.got.append(outcome)
        self._say_all()
        if (ack := self.core.ack()) is not None:
            self._post(ack)

    def _met(self, incarnation: int) -> None:
        changed = self.incarnation not in (None, incarnation)
        self.incarnation = incarnation
        if changed:
            self.world.paths["a client resumes"] += 1
        now = self.world.now
        self._post(*(self.core.resume(now) if changed else self.core.ask_again(now)))

    def _say_all(self) -> None:
        while self.gateway and (utterance := self.core.sendable(self.world.now)) is not None:
            message = self.core.message(utterance)
            self._post(message, payload=utterance.data)
            if self.world.chance.random() < 0.05 and message["type"] == "Submit":
                self.world.paths["sent twice"] += 1
                self._post(message, payload=utterance.data)
        if len(self.got) >= self.count and not self.core.closing:
            self.core.close("drain")
        if self.gateway and (closing := self.core.close_message()) is not None:
            self._post(closing)

    def _post(self, *batch: dict[str, Any], payload: Any = None) -> None:
        if batch and self.gateway:
            typed = tuple(msgspec.convert(message, ClientMessage) for message in batch)
            self.world.send(self.name, self.gateway, (typed, payload))

    def check(self) -> None:
        """One outcome for each utterance, in order, ok, and its own."""
        indices = [outcome.index for outcome in self.got]
        if indices != list(range(self.count)):
            raise Stuck(f"seed {self.world.seed}: {self.name} got {indices} of {self.count}")
        for outcome, mark in zip(self.got, self.marks, strict=True):
            if outcome.code == "cancelled" and outcome.index in self.cancelled:
                continue
            if outcome.error == GIVEN_UP:
                self.world.paths["an input was given up and then needed"] += 1
                continue
            if outcome.outcome != "ok":
                raise Stuck(f"seed {self.world.seed}: {self.name} {outcome.index}: {outcome.code} {outcome.error}")
            if outcome.audio is None or bytes(outcome.audio.tobytes()) != mark:
                raise Stuck(f"seed {self.world.seed}: {self.name} {outcome.index} got somebody else's samples")
