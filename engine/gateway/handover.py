"""Gateway and scheduler are each other's memory: what a new epoch is told, and what a new gateway hears. Pure.

A new gateway knows nothing: it says ``Here("empty")``, the scheduler tells it sessions, utterances and the input slots
that are not free, and when ``Restored`` has come all of that is entered at once (a scheduler that dies half-way has
told nothing). From then on it is **whole**, and tells each new epoch of the scheduler all it knows, in the same words.

An epoch that dies without having ended a single utterance may have died of one that it held. They are **suspect** then,
and the epochs that follow may begin them one at a time, each when the one before has ended. The suspect that an epoch
dies with is charged, and the third charge is ``error(poison)``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from engine.gateway.books import Books
from engine.gateway.delivery import Delivery
from engine.gateway.ledger import RANKS, Entry, Part, State
from engine.gateway.sessions import Session
from ipc import messages
from ipc.messages import Admit, CancelJob, Ended, Held, Outcome, Ref, Remade, Restored

MAX_CHARGES = 3
Key = tuple[str, int]  # session, index


class Handover:
    """See the module's docstring. ``fruitful``: the present epoch has ended something."""

    def __init__(self, books: Books, delivery: Delivery) -> None:
        self.books = books
        self.delivery = delivery
        self.fruitful = True
        self._heard: list[Any] = []
        self._alone: Key | None = None  # the suspect that the present epoch has been given
        self._suspects: deque[Key] = deque()  # those that wait for their turn

    # ---------------------------------------------------------------- to a new epoch

    def epoch(self, now: float) -> None:
        """There is a new epoch: tell it everything, or, while not whole, wait to be told by it."""
        self._heard.clear()
        books = self.books
        if not books.whole:
            return
        books.forget_riders()
        self._charge()
        self.fruitful = False
        waiting = set(self._suspects)
        for key, offset, nbytes, generation in books.ingress.held():
            books.post(Held(*key, Ref(books.ring_name, offset, nbytes, "", (), 0, generation)))
        for session in books.sessions:
            books.announce(session)
            for index, entry in sorted(books.ledger.of(session.id).items()):
                self._tell(session, entry, now, waiting=(session.id, index) in waiting)
        books.post(Restored())
        self.turn(now)

    def turn(self, now: float) -> None:
        """The next suspect's turn, if the one before has ended."""
        if self._alone is not None and not self._is_unended(self._alone):
            self._alone = None
        while self._suspects and (self._alone is None or self.books.draining):  # a node that stops has no time for that
            key = self._suspects.popleft()
            session = self.books.sessions.get(key[0])
            if session is not None and self._is_unended(key):
                self._alone = key
                self._tell(session, self.books.ledger.of(key[0])[key[1]], now)

    def _is_unended(self, key: Key) -> bool:
        entry = self.books.ledger.get(*key)
        return entry is not None and entry.state is not State.ENDED

    def _tell(self, session: Session, entry: Entry, now: float, *, waiting: bool = False) -> None:
        books = self.books
        if entry.state is State.ENDED:
            parcel = books.outbox.get(session.id, entry.index)
            assert parcel is not None, (session.id, entry.index)
            books.post(Ended(parcel.outcome, entry.admit))
            return
        assert entry.admit is not None, (session.id, entry.index)
        left_ms = round(1000 * (entry.deadline - now))
        admit = msgspec.structs.replace(entry.admit, budget_ms=max(1, left_ms), waiting=waiting)
        books.post(entry.remade or admit)
        if entry.cancelled:
            books.post(CancelJob(session.id, entry.index))

    def _charge(self) -> None:
        """The epoch before is dead: what it was given alone is charged; if it ended nothing, all it held is suspect."""
        alone, waiting = self._alone, set(self._suspects)
        if alone is not None and self._is_unended(alone):
            self._charge_one(alone)
        for session in self.books.sessions:
            for index in sorted(self.books.ledger.unended_indices(session.id)):
                entry = self.books.ledger.of(session.id)[index]
                was_held = (session.id, index) not in waiting and entry.remade is None
                entry.suspect = entry.suspect or (was_held and not self.fruitful)
        self._alone = None
        self._suspects = deque(
            (session.id, index)
            for session in self.books.sessions
            for index in sorted(self.books.ledger.unended_indices(session.id))
            if self.books.ledger.of(session.id)[index].suspect
        )

    def _charge_one(self, key: Key) -> None:
        entry = self.books.ledger.of(key[0])[key[1]]
        entry.charges += 1
        session = self.books.sessions.get(key[0])
        if entry.charges >= MAX_CHARGES and session is not None:
            self.books.ledger.end(*key)
            text = f"the scheduler died {entry.charges} times when it held this utterance and no other suspect one"
            self.delivery.end(session, Outcome(*key, "error", "poison", text), None)

    # ---------------------------------------------------------------- from the scheduler

    def hear(self, message: Any, now: float) -> None:
        """One of ``Session``, ``Admit``, ``Ended``, ``Remade``, ``Held``, and at the end ``Restored``."""
        if self.books.whole:
            return
        if not isinstance(message, Restored):
            self._heard.append(message)
            return
        for told in self._heard:
            match told:
                case messages.Session():
                    self._open(told, now)
                case Admit():
                    self._enter(told.session, told.index, told, now)
                case Ended(outcome, admit):
                    session = self._enter(outcome.session, outcome.index, admit, now)
                    self.books.ledger.end(outcome.session, outcome.index)
                    self.delivery.end(session, outcome, None)
                case Remade(outcome, admit):
                    self._enter(outcome.session, outcome.index, admit, now)
                    self.books.ledger.of(outcome.session)[outcome.index].remade = told
                case Held(id, index, ref):
                    self.books.ingress.adopt(id, index, ref.offset, ref.nbytes, ref.generation)
        self._heard.clear()
        self.books.whole = True
        if self.books.draining:  # what is missing can never come
            for session in self.books.sessions:
                self.delivery.end_all_missing(session, now)

    def _open(self, told: messages.Session, now: float) -> None:
        """A session whose client has to resume it."""
        books = self.books
        opened = messages.Open(
            told.id.rpartition(".")[0], books.catalog.name_of(told.pipeline), told.source, told.target, told.models,
            told.priority, told.window, told.first_index, told.partials, told.on_deadline,
            told.weight,
        )  # fmt: skip
        session = books.sessions.restore(told, opened, books.catalog.accepts(opened.pipeline), now)
        books.ledger.open(session.id, Part(RANKS[session.opened.priority], session.opened.weight))
        books.wake(session, now + books.deadlines.detach_s)

    def _enter(self, id: str, index: int, admit: Admit | None, now: float) -> Session:
        books = self.books
        session = books.sessions.get(id)
        assert session is not None, id
        if admit is None:
            books.ledger.enter_missing(id, index, now)
        else:
            books.ledger.admit(admit, now)
            books.ledger.accept(id, index)
        session.entered(index, books.ledger.of(id), now)
        return session
