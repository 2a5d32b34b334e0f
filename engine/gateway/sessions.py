"""Sessions and the connections that hold them: who may send what next.

A session is one speaker's ordered stream. It belongs to the connection that opened or last resumed it::

    attached -> detached -> abandoned -> over       (each may also be over at once)
        ^----------+------------+   Resume

detached: its connection is gone; abandoned: gone for ``detach_s``, its work is cancelled, outcomes are kept.

Rules of one session (indices: acked < index <= acked + window may be sent):

* **Busy makes no gap.** An index answered ``Busy`` is *refused*: until the lowest refused index is admitted or skipped,
  every higher one is held back, and told to come when that one was told to. A refusal counts until ``retry_after +
  gap_s`` after the last one told, and none shortens that.
* **Gap clock.** A missing index is waited for ``gap_s`` from the first admitted higher one, from the session's last
  attachment, from the end of its last refusal (until then its client held it back), and not while one counts, whichever
  is later; the client gets a notice half-way.

Pure.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from engine.gateway.ledger import Entry
from engine.gateway.reorder import Reorder
from engine.gateway.strangers import Strangers
from ipc import messages
from ipc.errors import IllegalMove
from ipc.messages import Open

IDS_A_LIFE = 10**9  # of session ids that a life of the gateway may give


class Link(enum.Enum):
    """Where a session stands with its client."""

    ATTACHED = "attached"
    DETACHED = "detached"
    ABANDONED = "abandoned"
    OVER = "over"


MOVES: dict[Link, frozenset[Link]] = {
    Link.ATTACHED: frozenset({Link.ATTACHED, Link.DETACHED, Link.OVER}),  # attached again: taken over
    Link.DETACHED: frozenset({Link.ATTACHED, Link.ABANDONED, Link.OVER}),
    Link.ABANDONED: frozenset({Link.ATTACHED, Link.OVER}),
    Link.OVER: frozenset(),
}


@dataclass
class Session:
    """One session. ``queue``: indices released and not sent on the present connection, in order."""

    id: str
    token: str
    opened: Open
    accepts: str  # audio | text
    window: int
    order: Reorder
    acked: int  # the highest acknowledged index
    next_index: int  # the lowest index neither admitted nor ended
    highest: int  # the highest index admitted or ended
    client: bytes | None = None
    link: Link = Link.ATTACHED
    link_since: float = 0.0
    closing: str = ""  # "" | drain | abort
    closed_at: float = math.inf  # when Closed was told
    restored: bool = False  # an earlier life of this process had it, and what that had sent may still be on its way
    handed_over: bool = False  # known from the scheduler; its client may have outcomes that we only make again
    refused: dict[int, float] = field(default_factory=dict)  # index -> when it was told to come again
    busy_until: float = -math.inf
    let_in_at: float = -math.inf  # when the last refused index came in after all
    gap_since: float = math.inf  # first admission above next_index
    noticed: set[int] = field(default_factory=set)
    queue: deque[int] = field(default_factory=deque)
    sent_bytes: int = 0  # handed to the present connection and not acknowledged
    share_told: int = 0
    wake_at: float = math.inf

    def move(self, link: Link, now: float) -> None:
        """Change the link. Raises IllegalMove and changes nothing if the table has no such move."""
        if link not in MOVES[self.link]:
            raise IllegalMove(f"session {self.id}: {self.link.value} -> {link.value}")
        self.link, self.link_since = link, now

    def within(self) -> tuple[int, int]:
        """Lowest and highest index that may be sent now."""
        return self.acked + 1, self.acked + self.window

    # ---------------------------------------------------------------- Busy

    def resend_from(self, now: float) -> int | None:
        """The lowest refused index that still counts, or None."""
        if self.refused and now >= self.busy_until:
            self.refused.clear()
        return min(self.refused, default=None)

    def refuse(self, index: int, now: float, retry_after_s: float, gap_s: float) -> int:
        """``index`` is answered Busy; returns the index to send again from."""
        until = now + retry_after_s + gap_s
        self.busy_until = until if self.resend_from(now) is None else max(self.busy_until, until)
        self.refused[index] = now + retry_after_s
        return min(self.refused)

    # ---------------------------------------------------------------- gaps

    def awaits(self, index: int) -> bool:
        """Whether outcomes are there that may only leave after this one's."""
        return index == self.order.next and bool(self.order.held)

    def entered(self, index: int, entries: Mapping[int, Entry], now: float) -> None:
        """``index`` has just been admitted, or ended unsent."""
        if self.refused.pop(index, None) is not None:
            self.let_in_at = now
        self.noticed.discard(index)
        self.highest = max(self.highest, index)
        if index == self.next_index:
            while self.next_index in entries:
                self.next_index += 1
            self.gap_since = math.inf
            if self.has_gap:
                self.gap_since = min(e.taken_at for i, e in entries.items() if i > self.next_index)
        elif self.gap_since == math.inf:
            self.gap_since = now

    @property
    def has_gap(self) -> bool:
        """Whether an index is missing below one that is there."""
        return self.highest > self.next_index

    def missing(self, entries: Mapping[int, Entry]) -> list[tuple[int, float]]:
        """Missing indices, lowest first, each with the time of the first admission above it."""
        found, since = [], math.inf
        for index in range(self.highest, self.next_index - 1, -1):
            entry = entries.get(index)
            if entry is None:
                found.append((index, since))
            else:
                since = min(since, entry.taken_at)
        return found[::-1]

    def gap_deadline(self, since: float, gap_s: float, now: float) -> float:
        """When an index missing since then is given up."""
        deadline = max(since, self.link_since, self.let_in_at) + gap_s
        return max(deadline, self.busy_until) if self.resend_from(now) is not None else deadline

    # ---------------------------------------------------------------- ends

    def sent(self, index: int) -> bool:
        """Whether this outcome has been handed to the present connection."""
        return index < self.order.next and index not in self.queue

    @property
    def sent_through(self) -> int:
        """Every outcome up to here has been handed to the present connection."""
        return (self.queue[0] if self.queue else self.order.next) - 1

    def take_released(self) -> None:
        """Move what the reorder core let out into the queue."""
        self.queue.extend(self.order.released)
        self.order.released.clear()

    def requeue(self) -> None:
        """A new connection: everything not acknowledged goes out again."""
        self.queue = deque(range(self.acked + 1, self.order.next))
        self.sent_bytes = 0

    def check(self, entries: Mapping[int, Entry]) -> None:
        """Invariants of indices, order and gap clock."""
        self.order.check()
        low, high = self.within()
        assert low <= self.order.next <= self.next_index <= self.highest + 1 <= high + 1, self
        assert all(low <= index <= high for index in entries)
        assert all(low <= index <= high and index not in entries for index in self.refused), self.refused
        assert self.next_index not in entries
        assert (self.gap_since < math.inf) == self.has_gap, (self.gap_since, self.next_index, self.highest)
        assert (self.client is not None) == (self.link is Link.ATTACHED)


@dataclass
class Client:
    """One connection: what it holds, and how much was handed to it that it has not shown to have read."""

    sessions: dict[str, None] = field(default_factory=dict)
    sent_bytes: int = 0  # outcomes not acknowledged
    answer_bytes: int = 0  # everything else since its last acknowledgement
    told_at: float = 0.0
    waiting: bool = False  # outcomes are kept back until it acknowledges


class Sessions:
    """All open sessions, by id, by token and by connection."""

    def __init__(self, life: int) -> None:
        self.clients: dict[bytes, Client] = {}
        self.strangers = Strangers()
        self._by_id: dict[str, Session] = {}
        self._by_key: dict[bytes, str] = {}
        self._count = (life - 1) * IDS_A_LIFE  # slots of an earlier life's sessions go by their ids

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def open(self, message: Open, token: str, accepts: str, window: int, bypass: bool, now: float) -> Session:
        """A new session, not attached to its connection yet."""
        first = message.first_index
        session = Session(
            f"{message.tag}.{self._count}", token, message, accepts, window, Reorder(first, bypass),
            acked=first - 1, next_index=first, highest=first - 1, link=Link.DETACHED, link_since=now,
        )  # fmt: skip
        self._count += 1
        self._by_id[session.id] = session
        self._by_key[_key(token)] = session.id
        return session

    def restore(self, told: messages.Session, opened: Open, accepts: str, now: float) -> Session:
        """A session of a former life of this process, detached."""
        first = told.first_index
        session = Session(
            told.id, told.token, opened, accepts, told.window, Reorder(first),
            acked=first - 1, next_index=first, highest=first - 1, link=Link.DETACHED, link_since=now, restored=True,
            handed_over=True,
        )  # fmt: skip
        self._by_id[session.id] = session
        self._by_key[_key(session.token)] = session.id
        return session

    def get(self, id: str) -> Session | None:
        return self._by_id.get(id)

    def held_by(self, client: bytes, id: str) -> Session | None:
        """The session, if this connection holds it."""
        session = self._by_id.get(id)
        return session if session is not None and session.client == client else None

    def by_token(self, token: str) -> Session | None:
        """The session of this token: looked up by a hash, then compared in constant time."""
        session = self._by_id.get(self._by_key.get(_key(token), ""))
        if session is None or not hmac.compare_digest(session.token.encode(), token.encode("utf-8", "replace")):
            return None
        return session

    def attach(self, session: Session, client: bytes, now: float) -> None:
        """The connection has the session from now on; who had it before must have been told."""
        session.move(Link.ATTACHED, now)
        here = self.clients.get(client)
        if here is None:
            here = Client(told_at=now, answer_bytes=self.strangers.take(client, now))
        if session.client == client:
            here.answer_bytes += session.sent_bytes  # sent again on the same connection, perhaps never read
        self._let_go(session, now)
        self.strangers.lost(client)
        self.clients[client] = here
        here.sessions[session.id] = None
        session.client = client
        session.requeue()

    def detach(self, session: Session, now: float) -> None:
        """Its connection is gone. A client that must resume starts anew: refusals are forgotten."""
        session.move(Link.DETACHED, now)
        self._let_go(session, now)
        session.refused.clear()

    def remove(self, session: Session, now: float) -> None:
        """Forget the session."""
        session.move(Link.OVER, now)
        self._let_go(session, now)
        del self._by_id[session.id]
        del self._by_key[_key(session.token)]

    def _let_go(self, session: Session, now: float) -> None:
        if session.client is None:
            return
        client = self.clients[session.client]
        client.sent_bytes -= session.sent_bytes
        session.sent_bytes = 0
        del client.sessions[session.id]
        if not client.sessions:
            del self.clients[session.client]
            self.strangers.owe(session.client, client.answer_bytes, now)
        session.client = None

    def check(self) -> None:
        """Invariant: sessions and connections agree."""
        for name, client in self.clients.items():
            held = [self._by_id[id] for id in client.sessions]
            assert held and all(session.client == name for session in held)
            assert client.sent_bytes == sum(session.sent_bytes for session in held)
        for session in self._by_id.values():
            assert session.client is None or session.id in self.clients[session.client].sessions


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
