"""The processes of a simulated node: the real cores in shells that have their turns in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bench.simulated import ARBITER, DEADLINES, MARGIN, MODEL_BYTES
from bench.simulated_wish import MOST_FAILURES
from engine.arbiter import kept
from engine.arbiter.events import FromWorker, Waits
from engine.arbiter.events import Send as Answer
from engine.arbiter.events import Tell as Wish
from engine.arbiter.events import Tick as LookAgain
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.boot import GatewayBoot, SchedulerBoot
from engine.gateway.books import Books
from engine.gateway.events import (
    AllFlushed,
    Arrived,
    ClientLost,
    DrainNode,
    JobEnded,
    LeaveNow,
    NewEpoch,
    Post,
    Tell,
    TurnEnd,
    Write,
)
from engine.gateway.gateway import Gateway
from engine.limits import Limits
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from ipc.messages import Alive, Closed, Drain, Flushed, Gone, Here, JobOutcome, Over, Serve, Serving, Stop, Up
from ipc.peers import peer_name
from ipc.ring import generation

if TYPE_CHECKING:
    from bench.simulation import World

SAMPLE_S = 0.5  # how often the arbiter looks at the device
WINDOW = 8
CHECKED = 4  # one turn in so many is followed by a look at the core's invariants
TURN_END = TurnEnd()


class Life:
    """One process: it takes in what has arrived when it has its turn, like the shells do."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        self.world = world
        self.role = role
        self.kind = "worker" if "@" in role else role
        self.incarnation = incarnation
        self.peer = peer_name(role, incarnation)
        self.alive = True
        self.frozen_until = 0.0
        self.inbox: list[tuple[str, Any]] = []
        self._turn_at = float("inf")
        self._turns = 0

    def begin(self) -> None:
        """It has started."""
        if self.alive:
            self.tell_supervisor(Alive("started"))
            self.world.at(self.world.now + DEADLINES.heartbeat_s, self._beat)

    def die(self, code: int) -> None:
        """It is no more; the supervisor sees it in a moment."""
        self.check()
        self.alive = False
        del self.world.network.peers[self.peer]
        self.world.after(0.0001, 0.002, self.world.supervisor.exited, self, code)

    def freeze(self, seconds: float) -> None:
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

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
        now = self.world.now
        if not self.alive or now < self._turn_at:
            return
        self._turn_at = float("inf")
        if now < self.frozen_until:
            return self.wake(self.frozen_until)
        inbox, self.inbox = self.inbox, []
        self.turn(inbox)
        self._turns += 1
        if self._turns % CHECKED == 0:
            self.check()
        return None

    def _beat(self) -> None:
        """Say that it is alive, from time to time."""
        if self.alive:
            if not self.is_silent():
                self.tell_supervisor(Alive(self.phase()))
            self.world.at(self.world.now + DEADLINES.heartbeat_s, self._beat)

    def is_silent(self) -> bool:
        return self.world.now < self.frozen_until

    def tell_supervisor(self, message: Any, *, quickly: bool = False) -> None:
        self.world.network.send(self.peer, "supervisor", message, quickly=quickly)

    def phase(self) -> str:
        return "running"

    def note_paths(self) -> None:
        """It is about to be killed: which recovery will be needed."""

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """The core's invariants: every few turns, and at the end."""


class ArbiterLife(Life):
    """The real lease book, on a device that holds as many models as the world says; its journal is the world's."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        self.total = int(MODEL_BYTES * (world.room + 0.5) / (1 - MARGIN))
        limits = Limits("cpu", self.total, safety_margin=MARGIN, max_models=100, returns_at_once=True)
        self.core = Leases([limits], Waits())
        self.epoch = 0  # the scheduler's
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
            elif isinstance(thing, Up) and thing.role == "scheduler":
                self.epoch = thing.incarnation
                self._tell(self.core.wants.all())
            elif isinstance(thing, Stop):
                return self.die(0)
        actions += self.core.handle(LookAgain(), now)
        for action in actions:
            if isinstance(action, Answer):
                world.network.send(self.peer, action.peer, (ARBITER, action.message))
        self._tell([action.message for action in actions if isinstance(action, Wish)])
        return self.wake(now + SAMPLE_S)

    def _tell(self, wants: list[Any]) -> None:
        """What is lacking, to the scheduler."""
        if wants and self.epoch:
            self.world.network.send(self.peer, peer_name("scheduler", self.epoch), (self.epoch, wants))

    def check(self) -> None:
        self.core.check()

    def die(self, code: int) -> None:
        """What its last turn has written stays: nothing has changed since."""
        self.world.journal = kept.encode(self.core.keep())
        super().die(code)


class SchedulerLife(Life):
    """The real scheduler, with its shell's rules about epochs and the dead."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        boot = SchedulerBoot(
            stages=world.stages, pipelines={"full": world.pipeline}, mode="pipelined", mode_reason="", send_ahead=1,
            max_retries=MOST_FAILURES, capacity_factor=world.capacity_factor, ring_users=world.ring_users(),
        )  # fmt: skip
        self.core = Scheduler(boot, DEADLINES, incarnation)
        self.core.dispatch.eager = world.is_eager
        self.dying: dict[str, Gone] = {}

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        world, now = self.world, self.world.now
        for sender, thing in inbox:
            if sender == "supervisor":
                if isinstance(thing, Stop):
                    return self.die(0)
                self._obey(thing)
                continue
            known = self.core.book.gateway
            if sender.startswith("gateway#") and known and sender != known:  # it began after the other one's death
                for words in world.network.last_words(known, self.peer):
                    self._hear(known, words)
            self._hear(sender, thing)
        for peer in [peer for peer in self.dying if world.network.nothing_from(peer, self.peer)]:
            self.core.handle(SUPERVISOR, self.dying.pop(peer), now)
        mail, _ = self.core.turn(now)
        if inbox:
            world.paths["a free input waits for a deaf reader"] += bool(self.core.book.slots._settled)
            world.paths["a result has no slot before a deaf reader speaks"] += self._waits_for_a_reader()
        for message in mail.pop(SUPERVISOR, ()):
            self.tell_supervisor(message)
        if (told := mail.pop(GATEWAY, None)) is not None:
            mail[self.core.book.gateway] = told
        for peer, batch in mail.items():
            world.network.send(self.peer, peer, (self.incarnation, batch))
        due = self.core.next_deadline()
        if self.dying:
            due = min(due or now + 1.0, now + 0.01)
        if due is not None:
            self.wake(max(due, now + 0.0005))
        return None

    def _waits_for_a_reader(self) -> bool:
        """Whether a worker would get a run, if everybody who may read in its ring had spoken to this epoch."""
        book = self.core.book
        return any(
            ring != GATEWAY and book.queues[book.workers[ring].plan.stage].waiting and book.workers[ring].takes_work(0)
            for ring in book.slots.unknown
        )

    def _hear(self, sender: str, thing: Any) -> None:
        epoch, batch = thing
        for message in batch if epoch == self.incarnation else ():
            self.core.handle(sender, message, self.world.now)

    def _obey(self, message: Any) -> None:
        match message:
            case Gone(role=role, incarnation=incarnation):
                self.dying[peer_name(role, incarnation)] = message
            case Up():
                return
            case _:
                self.core.handle(SUPERVISOR, message, self.world.now)

    def check(self) -> None:
        self.core.check()

    def note_paths(self) -> None:
        jobs = [job for line in self.core.book.lines.values() for job in line.jobs.values()]
        self.world.paths["scheduler dies with unended jobs"] += any(not job.ended for job in jobs)
        self.world.paths["scheduler dies with unacknowledged ends"] += any(job.ended for job in jobs)
        self.world.paths["scheduler dies with runs on board"] += any(w.batches for w in self.core.book.workers.values())


class GatewayLife(Life):
    """The real gateway, with its shell's rules about links, and clients by the names of their connections."""

    def __init__(self, world: World, role: str, incarnation: int) -> None:
        super().__init__(world, role, incarnation)
        boot = GatewayBoot(
            stages=world.stages, pipelines={"full": world.pipeline}, sources={}, targets={}, endpoints=(),
            max_utterance_s=2.0, max_text_chars=1000, window=WINDOW, max_sessions=8,
            outbox_session_bytes=world.outbox_bytes, outbox_node_bytes=4 * world.outbox_bytes,
        )  # fmt: skip
        books = Books(
            boot, DEADLINES, incarnation, lambda: f"{world.chance.getrandbits(128):032x}", "gateway",
            world.ingress_blocks, generation(incarnation, 0),
        )  # fmt: skip
        self.core = Gateway(books)
        self.epoch = 0
        self.scheduler = ""
        self.wanted = self.open = False
        self._posts: list[Any] = []

    def phase(self) -> str:
        return "serving"

    def turn(self, inbox: list[tuple[str, Any]]) -> None:
        for sender, thing in inbox:
            if sender == "supervisor":
                if isinstance(thing, Stop):
                    return self._leave()
                self._obey(thing)
            elif sender.startswith("client"):
                if self.open:
                    self._feed(thing if isinstance(thing, ClientLost) else Arrived(sender.encode(), *thing))
            elif sender == self.scheduler:
                self._hear(thing)
        self._feed(TURN_END)
        self._flush()
        if self.wanted and not self.open and self.core.books.whole:
            self.open = True
            self.tell_supervisor(Serving(()))
        if (due := self.core.deadline()) < float("inf"):
            self.wake(max(due, self.world.now + 0.0005))
        return None

    def _leave(self) -> None:
        self._feed(LeaveNow())
        self.die(0)

    def _obey(self, message: Any) -> None:
        match message:
            case Up(role="scheduler", incarnation=incarnation):
                self._meet(incarnation)
            case Serve():
                self.wanted = True
            case Drain(budget_ms):
                self._feed(DrainNode(budget_ms / 1000))

    def _meet(self, incarnation: int) -> None:
        if self.scheduler:
            self._flush()
            for thing in self.world.network.last_words(self.scheduler, self.peer):
                self.world.paths["a dead scheduler's last words are heard"] += 1
                self._hear(thing)
        self._posts.clear()
        self.scheduler, self.epoch = peer_name("scheduler", incarnation), incarnation
        self._posts.append(Here("whole" if self.core.books.whole else "empty"))
        self._feed(NewEpoch())
        self._flush()

    def _flush(self) -> None:
        if self._posts and self.scheduler:
            self.world.network.send(self.peer, self.scheduler, (self.epoch, self._posts))
        self._posts = []

    def _hear(self, thing: Any) -> None:
        epoch, batch = thing
        for message in batch if epoch == self.epoch else ():
            if isinstance(message, JobOutcome):
                payload = None if message.ref is None else self.world.memory.read(message.ref)
                outcome = message.outcome
                if payload is not None:
                    outcome = msgspec.structs.replace(outcome, dtype="s16le", nbytes=len(payload))
                message = JobEnded(outcome, payload, message.ticket)
            self._feed(message)

    def _feed(self, event: Any) -> None:
        world = self.world
        for action in self.core.handle(event, world.now):
            match action:
                case Post(message):
                    self._posts.append(message)
                    if type(message) is Over:
                        world.paths["a session is over its outbox"] += bool(message.sessions)
                case Tell(client, message, payload):
                    world.network.send(self.peer, client.decode(), (self.incarnation, message, payload))
                    if type(message) is Closed:
                        world.paths[f"closed: {message.reason}"] += 1
                case Write(ref, payload):
                    world.memory.write(ref, payload)
                case AllFlushed():
                    self.tell_supervisor(Flushed())

    def check(self) -> None:
        self.core.check()

    def note_paths(self) -> None:
        books = self.core.books
        self.world.paths["gateway dies with unacknowledged outcomes"] += books.outbox.count > 0
        self.world.paths["gateway dies with unended utterances"] += books.ledger.total > 0
