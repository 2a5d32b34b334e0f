"""What the gateway's cores share, and the actions decided so far. The books decide nothing.

Intake takes utterances in, Delivery brings outcomes out, Gateway composes them and keeps the timers; each changes the
books and adds actions, and the shell carries them out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.boot import GatewayBoot
from engine.config import DeadlinesSection
from engine.gateway.catalog import Catalog
from engine.gateway.events import Note, Post, Tell, Write
from engine.gateway.gate import LONGEST_S, SHORTEST_S, Gate, wait_s
from engine.gateway.ingress import Ingress
from engine.gateway.ledger import Ledger
from engine.gateway.outbox import Outbox
from engine.gateway.sessions import Session, Sessions
from engine.gateway.stays import Stays
from engine.gateway.validate import LONGEST_ITEMSIZE, SAMPLE_RATE
from ipc import messages
from ipc.messages import Acked, Capacity, Copied, Ref

Action = Any  # one of events' Tell, Post, Write, Note, AllFlushed

LOCAL_OWNER = "local"  # who may enter the node's folder
ANSWER_BYTES = 200  # of a message without samples, roughly, queue entry included
OVERDUE = 0.125  # of the usual stay: what one that has been here longer than that is thought to have left
FEW_BYTES = 2**20  # of unread answers, about which nobody worries


@dataclass
class Totals:
    """Counters since the start, for the report."""

    accepted: int = 0
    rejected: int = 0
    busy: int = 0
    outcomes: int = 0
    held: int = 0  # ended, waiting for a lower index, now
    held_max: int = 0


@dataclass
class Books:
    """See the module's docstring. ``new_token`` makes the sessions' secrets; ``ring_blocks`` 0: no audio is taken."""

    boot: GatewayBoot
    deadlines: DeadlinesSection
    incarnation: int
    new_token: Callable[[], str]
    ring_name: str = "gateway"
    ring_blocks: int = 0
    first_generation: int = 1
    hooks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        boot = self.boot
        self.catalog = Catalog(boot)
        self.sessions = Sessions(self.incarnation)
        self.ledger = Ledger()
        longest = int(boot.max_utterance_s * SAMPLE_RATE * LONGEST_ITEMSIZE)
        self.ingress = Ingress(self.ring_blocks, longest, self.first_generation, self.deadlines.reserve_after_s)
        self.outbox = Outbox(boot.outbox_session_bytes, boot.outbox_node_bytes)
        self._few_bytes = min(FEW_BYTES, boot.outbox_session_bytes)
        self.capacity = Capacity(1)
        self.gate = Gate(self.ledger.shares)
        self.stays = Stays()
        self.draining = False
        self.whole = False  # all that an earlier life knew is known here
        self.totals = Totals()
        self.now = 0.0  # of the event being handled
        self.ended_at: float | None = None  # when the last utterance did
        self.slow: set[bytes] = set()  # connections whose answers pile up unread
        self.ready: dict[str, None] = {}  # sessions that may have something to send or to finish
        self._actions: list[Action] = []
        self._posted = False
        self._copied: list[int] = []
        self._acked: dict[str, int] = {}
        self._ride_until = 0.0
        self._wakes: list[tuple[float, str]] = []

    # ---------------------------------------------------------------- actions

    def tell(
        self, client: bytes | None, message: Any, payload: bytes | None = None, nbytes: int = ANSWER_BYTES
    ) -> None:
        """Send to a client; ``nbytes`` counts as an answer it may not have read (0: counted elsewhere).

        A connection without a session that has used up its budget is told nothing.
        """
        if client is None:
            return
        known = self.sessions.clients.get(client)
        if known is not None:
            known.answer_bytes += nbytes
            known.told_at = self.now
            if known.answer_bytes > self._few_bytes and known.answer_bytes > self.answers_bytes:
                self.slow.add(client)
        elif not self.sessions.strangers.may_hear(client, nbytes, self.now):
            return
        self._actions.append(Tell(client, message, payload))

    def deaf(self, client: bytes) -> bool:
        """Whether so much lies unread at this connection, which holds no session, that it is to have none."""
        return self.sessions.strangers.debt(client, self.now) > self.boot.outbox_session_bytes // 2

    def post(self, message: Any) -> None:
        """Send to the scheduler in this turn."""
        self._posted = True
        self._actions.append(Post(message))

    def write(self, ref: Ref, payload: bytes) -> None:
        self._actions.append(Write(ref, payload))

    def note(self, level: str, text: str) -> None:
        self._actions.append(Note(level, text))

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def announce(self, session: Session) -> None:
        """Tell the scheduler of the session."""
        opened = session.opened
        self.post(
            messages.Session(
                id=session.id,
                owner=LOCAL_OWNER,
                pipeline=self.catalog.models_of(opened),
                source=opened.source,
                target=opened.target,
                models=opened.models,
                priority=opened.priority,
                weight=opened.weight,
                on_deadline=opened.on_deadline,
                partials=opened.partials,
                window=session.window,
                token=session.token,
                first_index=session.acked + 1,
            )
        )

    def withdraw(self, session: str) -> None:
        """The session waits for no memory and no place."""
        self.ingress.withdraw(session)
        self.gate.leave(session)

    # ---------------------------------------------------------------- what rides along

    def ride_copied(self, ticket: int, now: float) -> None:
        """This result slot has been copied out."""
        self._wait_for_ride(now)
        self._copied.append(ticket)

    def ride_acked(self, session: str, through: int, now: float) -> None:
        """The client has everything up to here."""
        self._wait_for_ride(now)
        self._acked[session] = through

    def send_riders(self, now: float) -> None:
        """At the turn's end: along with what was posted, or alone after ``ride_s``."""
        if (self._copied or self._acked) and (self._posted or now >= self._ride_until):
            if self._copied:
                self.post(Copied(tuple(self._copied)))
            for session, through in self._acked.items():
                self.post(Acked(session, through))
            self._copied, self._acked = [], {}
        self._posted = False

    @property
    def riding(self) -> bool:
        return bool(self._copied or self._acked)

    @property
    def ride_until(self) -> float:
        return self._ride_until

    def forget_riders(self) -> None:
        """Whom they were for is dead."""
        self._copied, self._acked = [], {}

    def forget_rider(self, session: str) -> None:
        """The session is over: its acknowledgement is no news."""
        self._acked.pop(session, None)

    def _wait_for_ride(self, now: float) -> None:
        if not self.riding:
            self._ride_until = now + self.deadlines.ride_s

    # ---------------------------------------------------------------- timers

    def wake(self, session: Session, when: float) -> None:
        """Review the session at ``when`` at the latest."""
        if when < session.wake_at:
            session.wake_at = when
            heapq.heappush(self._wakes, (when, session.id))

    def wake_for_gap(self, session: Session, now: float) -> None:
        """If an index is missing: in time for the notice about the lowest one."""
        if session.has_gap:
            gap_s = self.deadlines.gap_s
            self.wake(session, session.gap_deadline(session.gap_since, gap_s, now) - self.notice_s)

    def due(self, now: float) -> list[Session]:
        """Sessions whose time has come."""
        found = []
        while self._wakes and self._wakes[0][0] <= now:
            when, id = heapq.heappop(self._wakes)
            session = self.sessions.get(id)
            if session is not None and session.wake_at == when:
                session.wake_at = float("inf")
                found.append(session)
        return found

    @property
    def next_wake(self) -> float:
        return self._wakes[0][0] if self._wakes else float("inf")

    # ---------------------------------------------------------------- figures

    @property
    def unread_bytes(self) -> int:
        """Most bytes of outcomes that a connection may have unacknowledged: all of them together, half the outbox."""
        boot = self.boot
        return min(boot.outbox_session_bytes, boot.outbox_node_bytes // (2 * max(1, len(self.sessions.clients))))

    @property
    def answers_bytes(self) -> int:
        """Most bytes of answers that a connection may leave unread: all of them together, as much as the outbox.

        Outcomes that a ``Resume`` on the same connection brings again count among them; so one may, with all of them.
        """
        boot = self.boot
        return min(2 * boot.outbox_session_bytes, boot.outbox_node_bytes // max(1, len(self.sessions.clients)))

    @property
    def notice_s(self) -> float:
        """How long before a missing index is given up its ``Gap`` notice goes out."""
        return self.deadlines.gap_s / 2

    def share(self, session: Session) -> int:
        """How many unended utterances the session may have now: its max-min fair part of the node's places."""
        return min(session.window, self.ledger.shares.share(session.id, self.capacity.n))

    def retry_after_s(self, session: Session | None = None, ahead: int = 0) -> float:
        """In how long a place should be free for a session with so many before it in line (None: for anybody)."""
        ends = max(1.0, self.ledger.total - self.capacity.n + 1 + ahead)
        since_s = 0.0 if self.ended_at is None else self.now - self.ended_at
        rate, unknown_s = self.capacity.rate, self.deadlines.retry_after_s
        if session is None:
            return wait_s(ends, since_s, rate, unknown_s)
        ends = ends / freeing if (freeing := self._freeing(session)) else math.inf
        below_share = self._ends_below_share(session)
        if self.ledger.best_rank < self.ledger.part(session.id).rank:
            least_s = wait_s(below_share, since_s, rate, unknown_s)
            return min(wait_s(ends, since_s, rate, LONGEST_S), self._s_below_share(session, least_s))
        return wait_s(min(ends, below_share), since_s, rate, unknown_s)

    def memory_after_s(self, session: Session, index: int, over_part: bool) -> tuple[float, int]:
        """In how long there should be memory for this request, and its place in line, from 1: each end frees a slot.

        ``over_part``: it has to be one of its own session's, and it stands in no line (0).
        """
        position = 0 if over_part else self.ingress.ahead(session.id, index) + 1
        ends = min(self.ledger.older(session.id) + 1.0, self.ledger.round(session.id)) if over_part else float(position)
        since_s = 0.0 if self.ended_at is None else self.now - self.ended_at
        rate = self.capacity.rate
        return wait_s(ends, since_s, rate, self.deadlines.retry_after_s), position

    def _freeing(self, session: Session) -> float:
        """What part of the others' ends frees a place for who stands in line."""
        ledger = self.ledger
        places = ledger.shares.freeing(session.id, self.capacity.n)
        return places / max(1, ledger.total - ledger.unended(session.id))

    def _ends_below_share(self, session: Session) -> float:
        """Ends of anybody's until so many of its own are among them that it is below its share."""
        # Sessions take turns at every stage: before its oldest goes at most one round of the others.
        round_ = self.ledger.round(session.id)
        own = max(0, self.ledger.unended(session.id) - self.share(session))
        return min(self.ledger.older(session.id), round_ - 1) + 1 + own * round_

    def _s_below_share(self, session: Session, least_s: float) -> float:
        """The same in seconds, beside sessions of better priority, which go before it without turns.

        ``least_s``: what it would be without those. While none of its part has gone through, it is thought to wait for
        as long again as it has.
        """
        ledger, part = self.ledger, self.ledger.part(session.id)
        been_s, usual_s = self.now - ledger.oldest(session.id), self.stays.usual_s(part)
        if usual_s is None:
            return min(LONGEST_S, max(least_s, been_s))
        unended = ledger.unended(session.id)
        more = max(0, unended - self.share(session))
        left_s = max(usual_s - been_s, OVERDUE * usual_s) + more * usual_s / max(1, unended)
        return min(LONGEST_S, max(SHORTEST_S, left_s))

    def check(self) -> None:
        """Invariants of every core, and of what they say of each other."""
        self.sessions.check()
        self.ledger.check()
        self.ingress.check()
        self.outbox.check()
        held = 0
        for session in self.sessions:
            entries = self.ledger.of(session.id)
            session.check(entries)
            held += len(session.order.held)
            for index, entry in entries.items():
                ended = entry.state.value == "ended"
                assert ended == (self.outbox.get(session.id, index) is not None), (session.id, index, entry.state)
                assert ended == (index < session.order.next or index in session.order.held), (session.id, index)
        assert held == self.totals.held, (held, self.totals.held)
