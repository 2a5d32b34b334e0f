"""The gateway's process: sockets, rings and time around the core.

A turn: wait; read the supervisor, the scheduler and, for so long, the clients; feed the core; end the turn; send one
frame to the scheduler and as few as possible to each client; beat. The door says when a client is gone. Samples are
copied once into the gateway's own ring, results once out of the workers' (all of those mapped read-only).
The client socket is bound at ``Serve`` only, and then the process's memory is capped.
"""

from __future__ import annotations

import resource
import secrets
from typing import Any

import msgspec
import zmq

from engine import failpoints, logs, process
from engine.boot import Boot, GatewayBoot
from engine.gateway import wire
from engine.gateway.books import Books
from engine.gateway.events import (
    AllFlushed,
    Arrived,
    ClientLost,
    DrainNode,
    JobEnded,
    LeaveNow,
    NewEpoch,
    Note,
    Post,
    Tell,
    TurnEnd,
    Write,
)
from engine.gateway.gateway import Gateway
from engine.gateway.inbox import Inbox
from engine.gateway.validate import LONGEST_ITEMSIZE, NUMPY_NAMES, SAMPLE_RATE
from ipc.door import Door, context
from ipc.errors import PeerGone, StaleData
from ipc.messages import Drain, Flushed, Here, JobOutcome, Serve, Serving, Stop, ToGateway, Up
from ipc.ring import Ring, generation
from ipc.sockets import Dealer, Poll

HEADROOM_BYTES = 256 * 2**20  # of address space beyond the size at Serving and twice the outbox
OUTBOX_SLACK_BYTES = HEADROOM_BYTES // 2  # what runs when the outbox is full may still end; beyond this it is lost
TURN_MESSAGES = 2000  # of clients, and then the turn ends: others wait, and the supervisor
TURN_S = 0.05  # likewise; the clock is looked at from TURN_LOOKS messages on
TURN_LOOKS = 16
LAST_WORDS_S = 1.0  # to read what a dead scheduler had sent
LINGER_MS = 250  # last outcomes on their way when the process ends
DOOR_SLACK_BYTES = 2**20
TOKEN_BYTES = 16
BARRED = "waiting for its endpoints"
_TURN_END = TurnEnd()
WIRE_NAMES = {numpy_name: name for name, numpy_name in NUMPY_NAMES.items()}


class Shell:
    """See the module's docstring."""

    def __init__(self, boot: Boot, body: GatewayBoot) -> None:
        self.boot = boot
        self.body = body
        self.log = logs.get()
        self.rings: dict[str, Ring] = {}
        self.core: Gateway
        self.lifeline = process.Lifeline(boot)
        self.poll = Poll()
        self.scheduler: Dealer | None = None
        self.door: Door | None = None
        self.inbox = Inbox()
        self.letters: dict[bytes, wire.Letter] = {}
        self.bad_frames = 0
        self.outbox_most = body.outbox_node_bytes + OUTBOX_SLACK_BYTES
        self.now = 0.0  # when this turn began
        self.phase = "started"
        self.wanted = False  # we are to serve
        self.stopping = False

    def run(self) -> None:
        """Until ``Stop``."""
        self.start()
        while not self.stopping:
            self.turn()
        self.close()

    def start(self) -> None:
        """Map the rings, make the core, connect to the supervisor."""
        for grant in self.boot.rings:
            self.rings[grant.name] = Ring(grant.name, grant.fd, grant.blocks, writable=grant.writable)
        own = next((ring for ring in self.rings.values() if ring.writable), None)
        self.core = Gateway(
            Books(
                self.body,
                self.boot.deadlines,
                self.boot.incarnation,
                new_token=lambda: secrets.token_hex(TOKEN_BYTES),
                ring_name=own.name if own is not None else "",
                ring_blocks=own.blocks if own is not None else 0,
                first_generation=generation(self.boot.incarnation, 0),
                hooks=self.boot.hooks,
            )
        )
        self.lifeline.start()
        self.poll.add(self.lifeline.link)
        self.poll.add(self.lifeline.death_fd)

    def turn(self) -> None:
        """One turn of the loop."""
        now = process.now()
        most_s = 0.0 if self.inbox else min(self.lifeline.due_in(now), self.core.deadline() - now)
        readable = self.poll.wait(max(0.0, most_s))
        self.now = process.now()
        if self.lifeline.death_fd in readable:
            process.leave(process.ORPHANED)
        if self.lifeline.link in readable:
            self._read_supervisor()
        if self.scheduler is not None and self.scheduler in readable:
            self._read_scheduler(self.scheduler)
        if self.door is not None and (self.inbox or self.door in readable):
            self._read_clients(self.door)
        if self.phase == BARRED:
            self._open_door()
        self._feed(_TURN_END)
        self._send()
        if self.now >= self.lifeline.pulse_at:
            self._beat()
        self.lifeline.flush()

    # ---------------------------------------------------------------- in

    def _read_supervisor(self) -> None:
        for message in self.lifeline.read():
            match message:
                case Up("scheduler", incarnation, endpoint):
                    self._meet_scheduler(incarnation, endpoint)
                case Serve():
                    self.wanted = True
                    self._open_door()
                case Drain(budget_ms):
                    self.phase = "draining"
                    self._feed(DrainNode(budget_ms / 1000))
                case Stop():
                    self.stopping = True
                    self._feed(LeaveNow())

    def _read_scheduler(self, link: Dealer) -> None:
        self._hear(link, link.drain())
        self._open_door()

    def _hear(self, link: Dealer, arrivals: list[tuple[int, int, list[Any]]]) -> None:
        for _, epoch, batch in arrivals:
            if epoch != link.epoch:
                continue
            failpoints.reach("gateway.heard" if self.core.books.whole else "gateway.restoring")
            for message in batch:
                self._feed(self._fetch(message) if isinstance(message, JobOutcome) else message)

    def _read_clients(self, door: Door) -> None:
        """What has arrived, as much as a turn takes: then everybody else has theirs, and the door is asked again."""
        taken, arrivals = 0, door.drain()
        while taken < TURN_LOOKS or (taken < TURN_MESSAGES and process.now() - self.now < TURN_S):
            arrived = None if self.inbox.is_full else next(arrivals, None)
            if arrived is not None:
                self.inbox.put(self._read(*arrived))
            elif not self.inbox:
                for client in door.lost():
                    self._feed(ClientLost(client))
                return
            part = self.inbox.take()
            taken += len(part.messages)
            try:
                self._feed(part)
            except MemoryError:
                self._feed(self._no_memory(part.client))

    def _read(self, client: bytes, frames: list[Any]) -> Arrived:
        try:
            messages, payload = wire.read(frames)
        except MemoryError:
            return self._no_memory(client)
        failpoints.reach("gateway.read")
        self.bad_frames += sum(type(message) is wire.Rejected for message in messages)
        return Arrived(client, messages, payload)

    def _no_memory(self, client: bytes) -> Arrived:
        self.log.error("a client's frame is refused: the gateway has no memory left for it")
        return Arrived(client, wire.NO_MEMORY)

    def _fetch(self, message: JobOutcome) -> JobEnded:
        """Copy the result out at once: no slot waits for order or for a client."""
        outcome, ref = message.outcome, message.ref
        if ref is None:
            return JobEnded(outcome, None, message.ticket)
        try:
            ring = self.rings.get(ref.ring)
            if ring is None or ref.dtype not in WIRE_NAMES:
                raise StaleData(f"no result can lie in ring {ref.ring!r} as {ref.dtype!r}")
            if self.core.books.outbox.total_bytes + ref.nbytes > self.outbox_most:
                raise MemoryError(f"{self.core.books.outbox.count} results are kept for clients that do not read")
            payload = ring.copy(ref)
            failpoints.reach("gateway.copied")
        except (StaleData, MemoryError, zmq.ZMQError) as error:
            self.log.error("session %s index %s: result lost: %s", outcome.session, outcome.index, error)
            stale = isinstance(error, StaleData)
            text = "the result was lost in shared memory" if stale else "the gateway had no memory for the result"
            lost = {"outcome": "error", "code": "failed", "error": text}
            return JobEnded(msgspec.structs.replace(outcome, **lost), None, message.ticket)
        told = msgspec.structs.replace(
            outcome, dtype=WIRE_NAMES[ref.dtype], nbytes=ref.nbytes, sample_rate=ref.sample_rate
        )
        return JobEnded(told, payload, message.ticket)

    # ---------------------------------------------------------------- out

    def _feed(self, event: Any) -> None:
        for action in self.core.handle(event, self.now):
            match action:
                case Post():
                    if self.scheduler is not None:
                        self.scheduler.post(action.message)
                case Tell():
                    if (letter := self.letters.get(action.client)) is None:
                        letter = self.letters[action.client] = wire.Letter()
                    letter.add(action.message, action.payload)
                case Write(ref, payload):
                    self.rings[ref.ring].put(
                        ref.offset, ref.nbytes, ref.generation, payload, failpoints.inside("gateway.writing")
                    )
                    failpoints.reach("gateway.written")
                case Note(level, text):
                    getattr(self.log, level)(text)
                case AllFlushed():
                    self.phase = "flushed"
                    self.lifeline.post(Flushed())

    def _send(self) -> None:
        """Everything this turn decided: first the scheduler, who waits for nobody."""
        self._flush_scheduler()
        while self.letters:
            letters, self.letters = self.letters, {}
            for client, letter in letters.items():
                if not self._deliver(client, letter):
                    self._feed(ClientLost(client))
                    self._flush_scheduler()

    def _deliver(self, client: bytes, letter: wire.Letter) -> bool:
        if self.door is None:
            return False
        try:
            for frames in letter.parts():
                self.door.send_frames(client, frames)
            failpoints.reach("gateway.told")
        except PeerGone:
            return False
        return True

    def _flush_scheduler(self) -> None:
        if self.scheduler is None:
            return
        try:
            if self.scheduler.flush():
                failpoints.reach("gateway.posted")
        except PeerGone:
            self.log.debug("the scheduler takes no more messages; its next life is told everything")

    def _beat(self) -> None:
        self.lifeline.beat(self.phase, self.now)
        if self.lifeline.report_due(self.now):
            links = [link for link in (self.scheduler, self.door) if link is not None]
            bad = self.bad_frames + sum(link.bad_frames for link in links)
            self.lifeline.report(self.core.snapshot() | {"bad_frames": bad}, self.now)

    # ---------------------------------------------------------------- beginnings and ends

    def _meet_scheduler(self, incarnation: int, endpoint: str) -> None:
        """Connect to this life of the scheduler, and speak first. What the one before had said still counts."""
        if self.scheduler is not None:
            self.poll.remove(self.scheduler)
            self._hear(self.scheduler, self.scheduler.last_words(LAST_WORDS_S))
            self.scheduler.close()
        address = endpoint or self.boot.endpoints["scheduler"]
        self.scheduler = Dealer(address, self.boot.role, self.boot.incarnation, ToGateway)
        self.scheduler.epoch = incarnation
        self.scheduler.post(Here("whole" if self.core.books.whole else "empty"))
        self.poll.add(self.scheduler)
        self._feed(NewEpoch())

    def _open_door(self) -> None:
        """To clients, once we are asked to serve and know all there is to know; then cap this process's memory."""
        if self.door is not None or not self.wanted or not self.core.books.whole:
            return
        longest = int(self.body.max_utterance_s * SAMPLE_RATE * LONGEST_ITEMSIZE)
        try:
            # Twice the longest utterance, so that one that is too long is still answered by name.
            self.door = Door(list(self.body.endpoints), 2 * longest + DOOR_SLACK_BYTES)
        except (OSError, zmq.ZMQError) as error:
            wanted = ", ".join(self.body.endpoints)
            if self.phase != BARRED:
                self.log.error("cannot bind %s for clients (%s); free it or change node.endpoints", wanted, error)
            if self.boot.incarnation == 1:
                process.leave(process.BOOT_FAILED)
            self.phase = BARRED  # it was ours, and somebody may hold it for a moment only: tried again every turn
            return
        self.poll.add(self.door)
        cap_memory(2 * self.body.outbox_node_bytes + HEADROOM_BYTES)
        self.phase = "serving"
        self.lifeline.post(Serving(self.body.endpoints))

    def close(self) -> None:
        """Let go of the sockets, when the clients' last messages are on their way."""
        if self.door is not None:
            self.door.close(LINGER_MS)
        for link in (self.scheduler, self.lifeline):
            if link is not None:
                link.close()
        context().term()


def cap_memory(more_bytes: int) -> None:
    """Limit this process's address space to its present size and ``more_bytes``."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = size + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> None:
    """Entry point of ``python -m engine.gateway.main``."""
    boot = process.enter()
    if not isinstance(boot.body, GatewayBoot):
        logs.get().error("the boot record is not a gateway's")
        process.leave(process.BOOT_FAILED)
    Shell(boot, boot.body).run()
    process.leave(0)


if __name__ == "__main__":
    main()
