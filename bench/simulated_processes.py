"""The processes of a simulated node: the real cores in shells that have their turns in virtual time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from bench.simulated import (
    ARBITER,
    DEADLINES,
    KINDS,
    MARGIN,
    MODEL_BYTES,
    Stuck,
)
from engine.arbiter import kept
from engine.arbiter.events import FromWorker, Waits
from engine.arbiter.events import Send as Answer
from engine.arbiter.events import Tick as LookAgain
from engine.arbiter.leases import Leases
from engine.arbiter.room import Limits, Reading
from engine.boot import GatewayBoot, SchedulerBoot
from engine.gateway.books import Books
from engine.gateway.events import Arrived, ClientLost, JobEnded, NewEpoch, Post, Tell, TurnEnd, Write
from engine.gateway.gateway import Gateway
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from ipc.messages import (
    Alive,
    Denied,
    Done,
    Gone,
    Granted,
    Here,
    JobOutcome,
    LeaseRequest,
    Load,
    Loaded,
    Loading,
    Ref,
    Run,
    RunItem,
    RunResult,
    Serve,
    Serving,
    Settled,
    Up,
)
from ipc.peers import peer_name
from ipc.ring import generation

if TYPE_CHECKING:
    from bench.simulation import World


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


class ArbiterLife(Life):
    """The real lease book, on a device that holds every model just once; its journal is the world's."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        total = int(MODEL_BYTES * (len(world.workers) + 0.5) / (1 - MARGIN))
        limits = Limits("cpu", total, safety_margin=MARGIN, max_models=100, returns_at_once=True)
        self.core = Leases([limits], Waits())
        self.total = total
        if world.journal:
            world.paths["an arbiter goes on from the journal"] += 1
            self.core.restore(kept.decode(world.journal))

    def phase(self) -> str:
        return "serving"

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        world, now = self.world, self.world.now
        free = self.total - MODEL_BYTES * len(world.resident)
        actions = self.core.handle(Reading("cpu", self.total, free, now), now)
        for sender, thing in inbox:
            if sender != "supervisor":
                actions += self.core.handle(FromWorker(sender, thing[1]), now)
            elif isinstance(thing, Gone):
                actions += self.core.handle(thing, now)
        actions += self.core.handle(LookAgain(), now)
        self.core.check()
        world.journal = kept.encode(self.core.keep())
        for action in actions:
            if isinstance(action, Answer):
                world.send(self.peer, action.peer, (ARBITER, action.message))
        self.wake(now + 0.25)  # its sampler


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
        if self.wanted and not self.open and self.core.books.whole:
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
        self._posts.append(Here("whole" if self.core.books.whole else "empty"))
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
        self.arbiter = ""
        self.request: LeaseRequest | None = None
        self.last_words: Any = None

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
                elif isinstance(thing, Up) and thing.role == ARBITER:
                    self.arbiter = peer_name(ARBITER, thing.incarnation)
                    for message in filter(None, (self.last_words, self.request)):
                        self.world.send(self.peer, self.arbiter, (ARBITER, message))
            elif thing[0] == ARBITER:
                self._hear_arbiter(thing[1])
                if self.state == "loading":  # deaf to whatever else has come
                    rest = inbox[inbox.index((sender, thing)) + 1 :]
                    self.inbox = rest + self.inbox
                    return self.wake(self.busy_until)
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
                self.state = "waiting"
                number = self.world.chance.getrandbits(48)
                self.request = LeaseRequest(number, self.role, "cpu", MODEL_BYTES, self.role)
                if self.arbiter:
                    self.world.send(self.peer, self.arbiter, (ARBITER, self.request))

    def _hear_arbiter(self, message: Any) -> None:
        match message:
            case Granted(id, lease) if self.request is not None and id == self.request.id:
                self.request, self.last_words = None, None
                self.state = "loading"
                if self.world.loading:
                    raise Stuck(f"seed {self.world.seed}: {self.peer} and {self.world.loading} load at once")
                self.world.loading.add(self.peer)
                self._say(Loading())
                self.busy_until = self.world.now + self.world.chance.uniform(0.01, 0.3)
                self.world.at(self.busy_until, lambda: self._loaded(lease))
            case Denied():
                raise Stuck(f"seed {self.world.seed}: {self.peer} is denied its lease: {message.reason}")

    def _loaded(self, lease: int) -> None:
        if self.alive:
            self.world.loading.discard(self.peer)
            self.world.resident.add(self.peer)
            self.state = "loaded"
            self.last_words = Settled(lease, MODEL_BYTES)
            self.world.send(self.peer, self.arbiter, (ARBITER, self.last_words))
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
