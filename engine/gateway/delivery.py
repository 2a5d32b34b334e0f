"""Bringing outcomes out: order, the client's window of unread bytes, acknowledgement, and the end of a session.

An ended utterance's outcome goes into the outbox, then waits for its turn (reorder), then for room on its connection:
what was handed to the socket and not acknowledged is bounded in bytes per connection and node-wide, so that a client
that is slow, or never reads, costs its own budget and nothing else. It is forgotten when acknowledged. Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from engine.gateway.books import ANSWER_BYTES, Books
from engine.gateway.ledger import Entry
from engine.gateway.sessions import Link, Session
from engine.gateway.validate import Refused
from ipc.messages import CancelJob, Closed, Ended, Outcome, Partial, SessionEnded, StageRecord, Status

MAX_TEXT_BYTES = 40 * 1024  # all texts and reasons of an outcome, so that it fits into a frame of messages
MAX_REASON_CHARS = 300


class Delivery:
    """From an utterance's end to the client's acknowledgement."""

    def __init__(self, books: Books) -> None:
        self.books = books

    # ---------------------------------------------------------------- out

    def end(self, session: Session, outcome: Outcome, payload: bytes | None) -> None:
        """The one end of an index; it goes out when all lower ones have ended."""
        books = self.books
        outcome, payload = fit(outcome, payload)
        books.outbox.put(outcome, payload)
        before = len(session.order.held)
        session.order.put(outcome.index)
        books.totals.held += len(session.order.held) - before
        books.totals.held_max = max(books.totals.held_max, books.totals.held)
        books.totals.outcomes += 1
        session.take_released()
        books.ready[session.id] = None

    def end_missing(self, session: Session, index: int, code: str, now: float) -> None:
        """An index that was never admitted, and is not known, ends as ``skipped(code)``; the scheduler is told."""
        books = self.books
        books.ledger.enter_missing(session.id, index, now)
        session.entered(index, books.ledger.of(session.id), now)
        books.ingress.withdraw(session.id, index)
        if not session.refused:
            books.gate.leave(session.id)
        outcome = Outcome(session.id, index, "skipped", code)
        books.post(Ended(outcome))
        books.wake_for_gap(session, now)
        self.end(session, outcome, None)

    def end_all_missing(self, session: Session, now: float) -> None:
        """Nothing will fill the gaps of this session any more."""
        for index, _ in session.missing(self.books.ledger.of(session.id)):
            self.end_missing(session, index, "gap", now)

    def cancel(self, session: Session, entry: Entry) -> None:
        """Ask the scheduler to end an utterance that is running."""
        entry.cancelled = True
        self.books.post(CancelJob(session.id, entry.index))

    def cancel_all(self, session: Session) -> None:
        for index in self.books.ledger.unended_indices(session.id):
            self.cancel(session, self.books.ledger.of(session.id)[index])

    def received_before(self, session: Session, through: int) -> None:
        """A former life of this process gave these outcomes to the client: they need not be made again."""
        for index in range(session.order.next, through + 1):
            if self.books.ledger.end(session.id, index):
                self.end(session, Outcome(session.id, index, "ok"), None)

    def arrived_late(self, session: Session, through: int) -> None:
        """What a former life had sent has reached the client only after it resumed: it need not be sent again."""
        if through < session.next_index:
            self.received_before(session, through)
        if through < session.order.next:
            session.queue = deque(index for index in session.queue if index > through)

    def pump(self, session: Session) -> None:
        """Send what is released, as far as the connection's unread bytes allow (one outcome always)."""
        books = self.books
        client = books.sessions.clients.get(session.client) if session.client is not None else None
        while client is not None and session.queue:
            parcel = books.outbox.get(session.id, session.queue[0])
            if parcel is None:  # acknowledged out of order, which only a bypassed reorder core allows
                session.queue.popleft()
                continue
            if client.sent_bytes and client.sent_bytes + parcel.nbytes > books.unread_bytes:
                client.waiting = True
                return
            session.queue.popleft()
            client.sent_bytes += parcel.nbytes
            session.sent_bytes += parcel.nbytes
            books.tell(session.client, parcel.outcome, parcel.payload, 0)

    def progress(self, message: Status | Partial) -> None:
        """Forward to a session that asked, while the utterance runs and its connection keeps up."""
        books = self.books
        session = books.sessions.get(message.session)
        if session is None or session.client is None or not session.opened.partials:
            return
        client = books.sessions.clients[session.client]
        pressed = 2 * (client.sent_bytes + client.answer_bytes) > books.boot.outbox_session_bytes
        if books.outbox.get(session.id, message.index) is None and not pressed:
            message, words = fit_progress(message)
            books.tell(session.client, message, nbytes=ANSWER_BYTES + words)

    # ---------------------------------------------------------------- acknowledgement

    def ack(self, session: Session, through: int, now: float) -> None:
        """Everything up to ``through`` is in the client's hands. Raises Refused when it was never sent."""
        books = self.books
        if through > session.sent_through:
            raise Refused("bad_index", f"outcomes up to {session.sent_through} were sent, not {through}")
        if through <= session.acked:
            return
        client = books.sessions.clients.get(session.client) if session.client is not None else None
        for index in range(session.acked + 1, through + 1):
            parcel = books.outbox.drop(session.id, index)
            books.ledger.forget(session.id, index)
            if client is not None and parcel is not None and session.sent_bytes:
                client.sent_bytes -= parcel.nbytes
                session.sent_bytes -= parcel.nbytes
        session.acked = through
        books.ride_acked(session.id, through, now)
        books.ready[session.id] = None
        if client is not None:
            client.answer_bytes = 0
            if client.waiting:
                client.waiting = False
                books.ready.update(client.sessions)

    # ---------------------------------------------------------------- ends of sessions

    def settle(self, session: Session, now: float) -> None:
        """A closing session is told Closed behind its last outcome, and forgotten when that is acknowledged."""
        if not session.closing or session.highest >= session.order.next or session.queue:
            return
        if session.link is Link.ATTACHED and session.closed_at > now:
            session.closed_at = now
            reason = "drained" if session.closing == "drain" else "aborted"
            self.books.tell(session.client, Closed(session.id, reason))
            self.books.wake(session, now + self.books.deadlines.keep_s)
        if session.closed_at <= now and session.acked == session.order.next - 1:
            self.forget(session, now)

    def forget(self, session: Session, now: float) -> None:
        """The session is over: nothing of it is kept (slots stay until the scheduler gives them back)."""
        books = self.books
        books.totals.held -= len(session.order.held)
        books.withdraw(session.id)
        books.ledger.drop(session.id)
        books.gate.leave(session.id)
        books.outbox.drop_session(session.id)
        books.sessions.remove(session, now)
        books.ready.pop(session.id, None)
        books.forget_rider(session.id)
        books.post(SessionEnded(session.id))


def fit(outcome: Outcome, payload: bytes | None) -> tuple[Outcome, bytes | None]:
    """The outcome as it may travel: texts too long for a frame make it ``error(output_too_long)`` with them cut."""
    reasons = sum(len(record.reason) for record in outcome.stages) + len(outcome.error) + len(outcome.degraded)
    texts = sum(len(text.encode()) for text in outcome.texts.values())
    if texts + 4 * reasons + 400 * len(outcome.stages) <= MAX_TEXT_BYTES:
        return outcome, payload
    changes: dict[str, Any] = {
        "error": outcome.error[:MAX_REASON_CHARS],
        "degraded": outcome.degraded[:MAX_REASON_CHARS],
        "stages": tuple(_short(record) for record in outcome.stages[-16:]),
    }
    if texts > MAX_TEXT_BYTES // 2:
        room = MAX_TEXT_BYTES // 2 // (4 * len(outcome.texts))  # a character has at most four bytes
        changes["texts"] = {stage: text[:room] for stage, text in outcome.texts.items()}
        changes["dtype"], changes["nbytes"], changes["sample_rate"], payload = "", 0, 0, None
        if outcome.outcome == "ok":
            changes["outcome"], changes["code"] = "error", "output_too_long"
            changes["error"] = f"{texts} bytes of text; an outcome may carry {MAX_TEXT_BYTES // 2}"
    return msgspec.structs.replace(outcome, **changes), payload


def fit_progress(message: Status | Partial) -> tuple[Status | Partial, int]:
    """The message with a text that fits into a frame, and how many characters that has."""
    if isinstance(message, Partial):
        if len(message.text) > MAX_TEXT_BYTES // 4:  # a character has at most four bytes
            message = msgspec.structs.replace(message, text=message.text[: MAX_TEXT_BYTES // 4])
        return message, len(message.text)
    if len(message.reason) > MAX_REASON_CHARS:
        message = msgspec.structs.replace(message, reason=message.reason[:MAX_REASON_CHARS])
    return message, len(message.reason)


def _short(record: StageRecord) -> StageRecord:
    return msgspec.structs.replace(record, reason=record.reason[:MAX_REASON_CHARS])
