"""The gateway's core: clients' messages and the scheduler's in, actions out.

It composes the cores: Intake takes in, Delivery brings out, and here stand the messages that are short, what happens
when a client goes or comes back, the timers, and the end of the node. ``handle(event, now)`` returns actions; every
turn of the shell's loop ends with ``TurnEnd``, in which outcomes, notices and riding messages go out. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from engine.gateway.books import Action, Books
from engine.gateway.delivery import Delivery
from engine.gateway.events import Arrived, ClientLost, DrainNode, JobEnded, LeaveNow, NewEpoch, TurnEnd
from engine.gateway.handover import Handover
from engine.gateway.intake import Intake
from engine.gateway.sessions import Session
from engine.gateway.validate import Refused
from engine.gateway.watch import Watch
from ipc import messages
from ipc.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Ack,
    Admit,
    Cancel,
    Capacity,
    Close,
    Closed,
    Ended,
    Free,
    Held,
    Hello,
    JobAccepted,
    Open,
    Ping,
    Pong,
    Progress,
    Rejected,
    Remade,
    Restored,
    Resume,
    Skip,
    Submit,
    UnknownSession,
    Welcome,
)

CLOSE_MODES = ("drain", "abort")


class Gateway:
    """See the module's docstring."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.intake = Intake(books)
        self.delivery = Delivery(books)
        self.watch = Watch(books, self.delivery)
        self.handover = Handover(books, self.delivery)
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Arrived: self._arrived,
            TurnEnd: self._turn_end,
            JobAccepted: self._job_accepted,
            JobEnded: self._job_ended,
            Free: self._free,
            Progress: lambda event, _: self.delivery.progress(event.message),
            Capacity: self._capacity,
            ClientLost: lambda event, now: self.watch.lost(event.client, now),
            DrainNode: lambda event, now: self.watch.drain(event.budget_s, now),
            LeaveNow: lambda _, now: self.watch.leave(now),
            NewEpoch: self._new_epoch,
            **dict.fromkeys((messages.Session, Admit, Ended, Remade, Held, Restored), self.handover.hear),
        }

    def handle(self, event: Any, now: float) -> list[Action]:
        """One event; returns what is to be done, in order. An event of another kind is ignored."""
        self.books.now = now
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event, now)
        return self.books.take_actions()

    def deadline(self) -> float:
        """When ``TurnEnd`` is needed next even if nothing arrives (monotonic seconds; inf: not at all)."""
        return self.watch.deadline()

    # ---------------------------------------------------------------- clients

    def _arrived(self, event: Arrived, now: float) -> None:
        for message in event.messages:
            if type(message) is Submit or type(message) is Ack:  # nearly all there is
                self._held(event.client, message, event.payload, now)
            else:
                self._client(event.client, message, event.payload, now)

    def _held(self, client: bytes, message: Any, payload: bytes | None, now: float) -> None:
        """A message about a session that this connection holds."""
        session = self.books.sessions.held_by(client, message.session)
        if session is None:
            self.books.tell(client, UnknownSession(message.session[:128]))
        else:
            self._utterance(session, message, payload, now)

    def _client(self, client: bytes, message: Any, payload: bytes | None, now: float) -> None:
        books = self.books
        match message:
            case Open() | Resume() if books.deaf(client):
                return
            case Ping():
                books.tell(client, Pong(books.incarnation))
            case Hello(version):
                self._hello(client, version)
            case Open():
                self.intake.open(client, message, now)
                self.watch.probe_later(now)
            case Resume(token, last_received):
                self._resume(client, token, last_received, now)
            case Rejected():  # did not decode
                books.totals.rejected += 1
                books.tell(client, self._with_window(client, message))
            case _:
                self._held(client, message, payload, now)

    def _with_window(self, client: bytes, refusal: Rejected) -> Rejected:
        """An index that is none: the session's window says what would have been one."""
        session = self.books.sessions.held_by(client, refusal.session) if refusal.code == "bad_index" else None
        return refusal if session is None else msgspec.structs.replace(refusal, window=session.within())

    def _utterance(self, session: Session, message: Any, payload: bytes | None, now: float) -> None:
        index = getattr(message, "index", None)
        try:
            match message:
                case Submit():
                    self.intake.submit(session, message, payload if message.text is None else None, now)
                case Ack(_, through):
                    if session.restored and through > session.sent_through:
                        self.delivery.arrived_late(session, through)
                    self.delivery.ack(session, through, now)
                case Skip(_, at):
                    self._never_sent(session, at, "gap", now)
                case Cancel(_, at):
                    self._cancel(session, at, now)
                case Close(_, mode):
                    self._close(session, mode, now)
        except Refused as refused:
            self.intake.reject(session, index, refused)

    def _hello(self, client: bytes, version: int) -> None:
        books = self.books
        if version == PROTOCOL_VERSION:
            return books.tell(client, Welcome(PROTOCOL_VERSION, books.incarnation, books.catalog.limits()))
        books.totals.rejected += 1
        text = f"protocol version {version} is not spoken here"
        return books.tell(client, Rejected("unsupported", text, accepted=(str(PROTOCOL_VERSION),)))

    def _resume(self, client: bytes, token: str, last_received: int, now: float) -> None:
        """The right token has the session; who had it before is told. Unacknowledged outcomes go out again."""
        books = self.books
        session = books.sessions.by_token(token)
        if session is None:
            return books.tell(client, UnknownSession(token[:128]))
        if session.handed_over and last_received < session.next_index:
            self.delivery.received_before(session, last_received)
        if last_received >= session.order.next:
            books.totals.rejected += 1
            text = f"outcome {last_received} was never made; the last one is {session.order.next - 1}"
            return books.tell(client, Rejected("bad_index", text, session.id, last_received))
        session.handed_over = False
        if session.client not in (None, client):
            books.tell(session.client, Closed(session.id, "taken_over"))
        session.refused.clear()
        books.withdraw(session.id)
        books.sessions.attach(session, client, now)
        session.queue.clear()  # all of them count as sent while the acknowledgement is taken
        self.delivery.ack(session, last_received, now)
        session.requeue()
        session.closed_at = math.inf
        self.intake.tell_opened(session)
        self.watch.probe_later(now)
        books.ready[session.id] = None
        return books.wake_for_gap(session, now)

    # ---------------------------------------------------------------- indices

    def _never_sent(self, session: Session, index: int, code: str, now: float) -> None:
        """Skip, or cancel before it came: ends at once. A known index keeps its own end."""
        if self.books.ledger.get(session.id, index) is None:
            self.intake.in_window(session, index)
            self.delivery.end_missing(session, index, code, now)

    def _cancel(self, session: Session, index: int, now: float) -> None:
        """One ``skipped(cancelled)`` in every state before the end; ignored afterwards."""
        if index <= session.acked or self.books.outbox.get(session.id, index) is not None:
            return
        if (entry := self.books.ledger.get(session.id, index)) is not None:
            self.delivery.cancel(session, entry)
        else:
            self._never_sent(session, index, "cancelled", now)

    def _close(self, session: Session, mode: str, now: float) -> None:
        if mode not in CLOSE_MODES:
            raise Refused("bad_message", f"no close mode {mode[:32]!r}", CLOSE_MODES)
        if session.closing != "abort":
            session.closing = mode
        session.refused.clear()
        self.books.withdraw(session.id)
        self.delivery.end_all_missing(session, now)
        if mode == "abort":
            self.delivery.cancel_all(session)
        self.books.ready[session.id] = None

    def _turn_end(self, _: TurnEnd, now: float) -> None:
        self.handover.turn(now)
        self.watch.turn_end(now)

    # ---------------------------------------------------------------- the scheduler's word

    def _new_epoch(self, _: NewEpoch, now: float) -> None:
        self.handover.epoch(now)
        self.watch.forget_over()

    def _job_accepted(self, event: JobAccepted, _: float) -> None:
        books, id, index = self.books, event.session, event.index
        session = books.sessions.get(id)
        if session is not None and books.ledger.accept(id, index):
            books.tell(session.client, Accepted(id, index))

    def _free(self, event: Free, _: float) -> None:
        for session, index in event.jobs:
            self.books.ingress.give(session, index)

    def _capacity(self, event: Capacity, now: float) -> None:
        self.books.capacity = event
        self.watch.share_changed(now)

    def _job_ended(self, event: JobEnded, now: float) -> None:
        books, outcome = self.books, event.outcome
        if event.ticket:
            books.ride_copied(event.ticket, now)
        session = books.sessions.get(outcome.session)
        if session is None:
            return
        untold = books.ledger.accept(outcome.session, outcome.index)
        self.handover.fruitful = True
        if books.ledger.end(outcome.session, outcome.index):
            books.ended_at = now
            if outcome.outcome == "ok":  # others end when their client says so, or its budget is spent
                stay_s = now - books.ledger.of(outcome.session)[outcome.index].taken_at
                books.stays.ended(books.ledger.part(outcome.session), stay_s)
            self.delivery.end(session, outcome, event.payload)
            if untold and session.order.next <= outcome.index:  # it waits for a lower one: it is accepted all the same
                books.tell(session.client, Accepted(session.id, outcome.index))

    # ---------------------------------------------------------------- seeing

    def snapshot(self) -> dict[str, Any]:
        """The gateway's part of the node's statistics."""
        books, totals = self.books, self.books.totals
        return {
            "sessions": len(books.sessions),
            "accepted": totals.accepted,
            "rejected": totals.rejected,
            "busy": totals.busy,
            "outcomes": totals.outcomes,
            "response_queue": books.outbox.count,
            "held": totals.held,
            "held_max": totals.held_max,
            "outbox_bytes": books.outbox.total_bytes,
            "ring": {"blocks": books.ingress.blocks.count, "free": books.ingress.blocks.free},
            "clients": len(books.sessions.clients),
            "whole": books.whole,
        }

    def check(self) -> None:
        """Invariants of every core and between them."""
        self.books.check()
