"""Taking utterances in: validation, duplicates, window, share, memory, and the promise that Busy makes no gap.

The order of the questions matters: is it the client's session, is the index known (then the same answer again), is it
in the window, is the node still taking, is a lower index refused, are the samples good, is there room. The scheduler
never refuses an ``Admit``: all the room there is, is judged here. An index that ended ones of its session wait for is
taken however full the node is: they fill the outbox, which keeps from running what fills the node.
"""

from __future__ import annotations

from engine.gateway.books import Books
from engine.gateway.gate import SHORTEST_S
from engine.gateway.ledger import RANKS, Part, State
from engine.gateway.sessions import Session
from engine.gateway.validate import SAMPLE_RATE, Refused, Taken, audio, budget_ms, text
from engine.gateway.wire import MAX_INDEX
from ipc.messages import Accepted, Admit, Busy, Open, Opened, Ref, Rejected, Submit

CLAIM_GRACE_S = 1.0  # who is refused and does not come back for retry_after and this long loses its place in line


class Intake:
    """Decides about ``Open`` and ``Submit``."""

    def __init__(self, books: Books) -> None:
        self.books = books

    # ---------------------------------------------------------------- sessions

    def open(self, client: bytes, message: Open, now: float) -> None:
        """Answer ``Opened`` or ``Rejected(tag)``."""
        books = self.books
        try:
            books.catalog.check(message)
            if books.draining:
                raise Refused("too_many_sessions", "the node is stopping and takes no new sessions")
            if len(books.sessions) >= books.boot.max_sessions:
                raise Refused(
                    "too_many_sessions",
                    f"{len(books.sessions)} sessions are open, the most this node takes (node.max_sessions)",
                )
        except Refused as refused:
            books.totals.rejected += 1
            books.tell(client, Rejected(refused.code, refused.text, tag=message.tag[:64], accepted=refused.accepted))
            return
        accepts, window = books.catalog.accepts(message.pipeline), min(message.window, books.boot.window)
        bypass = books.hooks.get("gateway.reorder") == "bypass"
        session = books.sessions.open(message, books.new_token(), accepts, window, bypass, now)
        books.ledger.open(session.id, Part(RANKS[session.opened.priority], session.opened.weight))
        books.announce(session)
        books.sessions.attach(session, client, now)
        self.tell_opened(session)

    def tell_opened(self, session: Session) -> None:
        tag, share = session.opened.tag, self.books.share(session)
        session.share_told = share
        self.books.tell(
            session.client, Opened(tag, session.id, session.token, session.next_index, share, session.window)
        )

    # ---------------------------------------------------------------- utterances

    def submit(self, session: Session, message: Submit, payload: bytes | None, now: float) -> None:
        """Answer with Rejected, Busy, the answer given before, or admit (``Accepted`` follows the scheduler's word)."""
        books = self.books
        try:
            if books.ledger.get(session.id, message.index) is not None:
                return self._again(session, message, payload)
            self.in_window(session, message.index)
            if books.draining:
                return self._busy(session, message.index, "shutting_down", now)
            if session.closing:
                raise Refused("bad_session", "the session is being closed and takes no more utterances")
            resend_from = session.resend_from(now)
            if resend_from is not None and message.index > resend_from:
                return self._busy(session, message.index, "held_back", now, session.refused[resend_from] - now)
            taken = self._validate(session, message, payload)
            budget = self._budget_ms(session, message, taken)
        except Refused as refused:
            return self.reject(session, message.index, refused)
        has_share = books.ledger.unended(session.id) >= books.share(session)
        if (
            has_share
            and not session.awaits(message.index)
            and books.capacity.n - books.ledger.total <= books.gate.ahead(session.id, now)
        ):
            return self._busy(session, message.index, "capacity", now)
        ref = None
        if payload is not None and taken.dtype != "text":
            ref = self._slot(session, message.index, taken, now)
            if ref is None:
                return self._busy(session, message.index, "memory", now)
            books.write(ref, payload)
        return self._admit(session, message, taken, ref, budget, now)

    def reject(self, session: Session, index: int | None, refused: Refused) -> None:
        """Answer that this was never accepted, and why."""
        self.books.totals.rejected += 1
        window = session.within() if refused.code == "bad_index" else None
        self.books.tell(
            session.client,
            Rejected(refused.code, refused.text, session.id, index, accepted=refused.accepted, window=window),
        )

    def in_window(self, session: Session, index: int) -> None:
        """Raise Refused unless the index may be sent or skipped now."""
        low, high = session.within()
        if not 0 <= index <= MAX_INDEX or index > high:
            raise Refused("bad_index", f"index {index} is not between {low} and {high}")
        if index < low:
            raise Refused("too_late", f"index {index} is acknowledged or before the first")

    def _again(self, session: Session, message: Submit, payload: bytes | None) -> None:
        """A known index: the same content gets the same answer, other content a refusal."""
        books = self.books
        entry = books.ledger.of(session.id)[message.index]
        if entry.admit is None:
            raise Refused("too_late", f"index {message.index} has ended without being accepted")
        taken = self._validate(session, message, payload)
        if (taken.dtype, *taken.digest) != entry.digest:
            raise Refused("index_conflict", f"index {message.index} was sent before with other content, which holds")
        parcel = books.outbox.get(session.id, message.index)
        if parcel is not None and session.sent(message.index):
            books.tell(session.client, parcel.outcome, parcel.payload, parcel.nbytes)
        elif entry.state is not State.ADMITTED:
            books.tell(session.client, Accepted(session.id, message.index))

    def _validate(self, session: Session, message: Submit, payload: bytes | None) -> Taken:
        stages = self.books.catalog.stages_of(session.opened.pipeline)
        unknown = [stage for stage in message.skip if stage not in stages]
        if unknown:
            raise Refused("bad_pipeline", f"the pipeline has no stage {unknown[0][:64]!r} to skip", stages)
        if session.accepts == "audio":
            return audio(message, payload, self.books.boot.max_utterance_s)
        return text(message, payload, self.books.catalog.max_chars(session.opened.pipeline))

    def _budget_ms(self, session: Session, message: Submit, taken: Taken) -> int:
        named = self.books.deadlines
        return budget_ms(
            message.budget_ms, taken.audio_s, named.budget_base_s, named.budget_per_audio, named.budget_max_s
        )  # fmt: skip

    def _busy(self, session: Session, index: int, reason: str, now: float, left_s: float | None = None) -> None:
        """``left_s``: of what the index was told that holds this one back; it must not be told less."""
        books = self.books
        books.totals.busy += 1
        position, retry_after_s = 0, books.retry_after_s()
        if reason == "capacity":
            ahead = books.gate.ahead(session.id, now)
            position, retry_after_s = ahead + 1, books.retry_after_s(session, ahead)
            books.gate.stand(session.id, now + retry_after_s + CLAIM_GRACE_S)
        elif reason == "memory":
            over_part = books.ingress.is_over_part(session.id, index)
            retry_after_s, position = books.memory_after_s(session, index, over_part)
        elif left_s is not None:
            retry_after_s, ahead = max(SHORTEST_S, left_s), books.gate.ahead(session.id, now)
            position = ahead + 1 if session.id in books.gate.standing() else 0
        resend_from = session.refuse(index, now, retry_after_s, books.deadlines.gap_s)
        depth, retry_after_ms = books.ledger.total, round(retry_after_s * 1000)
        books.tell(session.client, Busy(session.id, index, reason, depth, retry_after_ms, resend_from, position))

    def _slot(self, session: Session, index: int, taken: Taken, now: float) -> Ref | None:
        books = self.books
        may_hold = session.awaits(index) or books.ingress.can_hold(session.id, taken.nbytes, len(books.sessions))
        slot = books.ingress.take(session.id, index, taken.nbytes) if may_hold else None
        if slot is None:
            retry_after_s, _ = books.memory_after_s(session, index, not may_hold)
            until = now + retry_after_s + CLAIM_GRACE_S
            books.ingress.claim(session.id, index, taken.nbytes, now, until, over_part=not may_hold)
            return None
        offset, generation = slot
        return Ref(books.ring_name, offset, taken.nbytes, taken.dtype, (taken.samples,), SAMPLE_RATE, generation)

    def _admit(self, session: Session, message: Submit, taken: Taken, ref: Ref | None, budget: int, now: float) -> None:
        books = self.books
        admit = Admit(
            session.id, message.index, budget, ref, message.text, taken.digest, message.skip, taken.audio_s,
            int(now * 1e9),
        )  # fmt: skip
        books.ledger.admit(admit, now)
        books.gate.leave(session.id)
        session.entered(message.index, books.ledger.of(session.id), now)
        books.totals.accepted += 1
        books.post(admit)
        books.wake_for_gap(session, now)
