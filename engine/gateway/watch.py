"""Time, and what is looked at when a turn ends: gaps, clients gone or slow, shares, budgets, and the end of the node.

A session asks to be reviewed at a time (``Books.wake``); node-wide matters have a time of their own each. Nothing here
is done while messages are handled, so that a turn decides once about everything that came in it. Pure.
"""

from __future__ import annotations

import math

from engine.gateway.books import Books
from engine.gateway.delivery import Delivery
from engine.gateway.events import AllFlushed, Tell
from engine.gateway.ledger import Part
from engine.gateway.sessions import Link, Session
from ipc.messages import Closed, Gap, Outcome, Over, Share, Spare

REVIEW_S = 0.1  # how often claims for ring memory are looked at while there are any
LOOK_S = 0.25  # how often a draining gateway looks at least: so it notices when it could not


class Watch:
    """See the module's docstring."""

    def __init__(self, books: Books, delivery: Delivery) -> None:
        self.books = books
        self.delivery = delivery
        self._over: frozenset[str] = frozenset()
        self._share_at = math.inf  # when sessions are told their share next
        self._probe_at = math.inf  # when connections that have heard nothing are next spoken to
        self._drain_until = math.inf
        self._flush_until = math.inf
        self._flushed = False
        self._looked_at = math.inf  # while draining
        self._reviewed_at = -math.inf  # when claims for ring memory were last looked at
        self._moves = 0  # of the ledger, when shares were last compared
        self._shares_told_at = -math.inf

    def deadline(self) -> float:
        """When ``TurnEnd`` is needed next even if nothing arrives (monotonic seconds; inf: not at all)."""
        books = self.books
        first = self._share_at if self._share_at < self._probe_at else self._probe_at
        if (wake := books.next_wake) < first:
            first = wake
        if books.riding:
            first = min(first, books.ride_until)
        if books.ingress.waiting:
            first = min(first, self._reviewed_at + REVIEW_S)
        if books.draining and not self._flushed:
            first = min(first, self._flush_until, self._drain_until, self._looked_at + LOOK_S)
        return first

    def turn_end(self, now: float) -> None:
        """Everything that had arrived is handled: timers first, then what goes out."""
        books = self.books
        if books.next_wake <= now:
            for session in books.due(now):
                self._review(session, now)
        if books.ingress.waiting:
            books.ingress.review(now)
            self._reviewed_at = now
            if books.ingress.is_pressed:
                books.post(Spare())
        if books.ready:
            self._deliver(now)
        if books.slow:
            self._part_with_slow(now)
        if now >= self._share_at or self._moves != books.ledger.moves:
            self._tell_shares(now)
        if now >= self._probe_at:
            self._probe(now)
        if self._over or books.outbox.heavy:
            self._tell_over()
        if books.draining:
            self._check_flushed(now)
        books.send_riders(now)

    def _deliver(self, now: float) -> None:
        books = self.books
        ready, books.ready = books.ready, {}
        for id in ready:
            session = books.sessions.get(id)
            if session is not None:
                self.delivery.pump(session)
                self.delivery.settle(session, now)

    def _review(self, session: Session, now: float) -> None:
        """A session's timer: gaps, a client gone too long, a closed session nobody acknowledges."""
        deadlines = self.books.deadlines
        if session.closed_at + deadlines.keep_s <= now:
            return self.delivery.forget(session, now)
        if session.link is Link.DETACHED and session.link_since + deadlines.detach_s <= now:
            session.move(Link.ABANDONED, now)
            self.delivery.end_all_missing(session, now)
            self.delivery.cancel_all(session)
            self.books.wake(session, now + deadlines.keep_s)
        elif session.link is Link.DETACHED:
            self.books.wake(session, session.link_since + deadlines.detach_s)
        elif session.link is Link.ABANDONED and session.link_since + deadlines.keep_s <= now:
            return self.delivery.forget(session, now)
        elif session.link is Link.ABANDONED:
            self.books.wake(session, session.link_since + deadlines.keep_s)
        elif session.has_gap:
            self._review_gaps(session, now)
        if session.closed_at < math.inf:
            self.books.wake(session, session.closed_at + deadlines.keep_s)
        return None

    def _review_gaps(self, session: Session, now: float) -> None:
        """Notice, then ``skipped(gap)``; each missing index has its own clock."""
        gap_s, notice_s = self.books.deadlines.gap_s, self.books.notice_s
        for index, since in session.missing(self.books.ledger.of(session.id)):
            deadline = session.gap_deadline(since, gap_s, now)
            if deadline <= now:
                self.delivery.end_missing(session, index, "gap", now)
                continue
            if index not in session.noticed and deadline - notice_s <= now:
                session.noticed.add(index)
                self.books.tell(session.client, Gap(session.id, index, int((deadline - now) * 1000)))
            self.books.wake(session, deadline if index in session.noticed else deadline - notice_s)

    # ---------------------------------------------------------------- shares

    def share_changed(self, now: float) -> None:
        """The capacity is another one: sessions with work are told as soon as they may."""
        self._share_at = min(self._share_at, max(now, self._shares_told_at + self.books.deadlines.share_interval_s))

    def _tell_shares(self, now: float) -> None:
        """Sessions with work learn that they may have more, or have too much, at most every ``share_interval_s``.

        A share that only became less is no news to who does not use it: shares change with every end.
        """
        books = self.books
        if self._moves != books.ledger.moves:
            self._moves = books.ledger.moves
            self._share_at = min(self._share_at, self._shares_told_at + books.deadlines.share_interval_s)
        if now < self._share_at:
            return
        self._share_at, self._shares_told_at = math.inf, now
        shares: dict[tuple[Part, int, int], int] = {}  # by all that it depends on: for who is in line not on how many
        for id in books.ledger.at_work():  # a node with a thousand sessions has few of them, and this comes often
            session = books.sessions.get(id)
            if session is None or session.client is None:
                continue
            unended, told = books.ledger.unended(id), session.share_told
            key = books.ledger.part(id), (-1 if id in books.gate.standing() else unended), session.window
            if (share := shares.get(key)) is None:
                share = shares[key] = books.share(session)
            if share > told or share < min(told, unended):
                session.share_told = share
                books.tell(session.client, Share(id, share))

    # ---------------------------------------------------------------- connections

    def lost(self, client: bytes, now: float) -> None:
        """Nobody is at this address: its sessions wait for a Resume."""
        books = self.books
        known = books.sessions.clients.get(client)
        for id in list(known.sessions) if known is not None else ():
            session = books.sessions.get(id)
            if session is not None:
                books.sessions.detach(session, now)
                books.withdraw(session.id)
                books.wake(session, now + books.deadlines.detach_s)
                books.note("info", f"session {session.id}: its client is gone")
        books.sessions.strangers.lost(client)

    def _part_with_slow(self, now: float) -> None:
        """A connection whose answers pile up unread is told nothing more; another one can resume its sessions."""
        books = self.books
        slow, books.slow = books.slow, set()
        for name in slow & books.sessions.clients.keys():
            for id in books.sessions.clients[name].sessions:
                books.act(Tell(name, Closed(id, "slow_consumer")))
            self.lost(name, now)
            books.sessions.strangers.cut(name, now)

    def probe_later(self, now: float) -> None:
        """There is a connection to speak to from time to time."""
        self._probe_at = min(self._probe_at, now + self.books.deadlines.detach_s)

    def _probe(self, now: float) -> None:
        """A connection that heard nothing for ``detach_s`` is spoken to: only a send shows that it is gone."""
        books = self.books
        self._probe_at = now + books.deadlines.detach_s if books.sessions.clients else math.inf
        for name, client in books.sessions.clients.items():
            session = books.sessions.get(next(iter(client.sessions)))
            if session is not None and client.told_at + books.deadlines.detach_s <= now:
                session.share_told = books.share(session)
                books.tell(name, Share(session.id, session.share_told))

    def _tell_over(self) -> None:
        # An index that waits for memory of the ring may be the one that all these outcomes wait for, and only the end
        # of what the session has in the ring makes room: until it is in, its budget does not count.
        over = self.books.outbox.over(len(self.books.sessions)) - self.books.ingress.claimants()
        if over != self._over:
            self._over = over
            self.books.post(Over(tuple(sorted(over))))

    def forget_over(self) -> None:
        """A new epoch has not been told which sessions are over their budget."""
        self._over = frozenset()

    # ---------------------------------------------------------------- the node stops

    def drain(self, budget_s: float, now: float) -> None:
        """Nothing new is taken; a missing index can never come, so it ends now and holds nothing up."""
        self.books.draining = True
        self._drain_until = now + budget_s + self.books.deadlines.flush_s
        for session in self.books.sessions:
            session.refused.clear()
            self.delivery.end_all_missing(session, now)

    def leave(self, now: float) -> None:
        """The process ends now: so does everything accepted, and every client is told as far as it reads."""
        books = self.books
        books.draining = True
        for session in books.sessions:
            session.refused.clear()
            self.delivery.end_all_missing(session, now)
            for index in sorted(books.ledger.unended_indices(session.id)):
                books.ledger.end(session.id, index)
                end = Outcome(session.id, index, "error", "shutting_down", "the node stopped before its end")
                self.delivery.end(session, end, None)
        self._deliver(now)
        if not self._flushed:
            self._flushed = True
            self._say_goodbye(now)

    def _say_goodbye(self, now: float) -> None:
        for session in self.books.sessions:
            if session.closed_at > now:
                self.books.tell(session.client, Closed(session.id, "shutting_down"))

    def _may_fetch(self, session: Session, now: float) -> bool:
        """Whether its client is here, or may be about to resume."""
        just_lost = session.link_since + self.books.deadlines.flush_s > now
        return session.client is not None or session.handed_over or just_lost

    def _check_flushed(self, now: float) -> None:
        books = self.books
        if self._flushed or not books.whole:
            return
        if books.ledger.total == 0 and self._flush_until == math.inf:
            self._flush_until = now + books.deadlines.flush_s
        if now - self._looked_at > 2 * LOOK_S:  # this process stood still, and nobody could fetch anything
            self._flush_until += now - self._looked_at
        self._looked_at = now
        waiting = any(s.acked < s.order.next - 1 for s in books.sessions if self._may_fetch(s, now))
        if (books.ledger.total == 0 and not waiting) or now >= min(self._flush_until, self._drain_until):
            self._flushed = True
            self._say_goodbye(now)
            books.act(AllFlushed())
