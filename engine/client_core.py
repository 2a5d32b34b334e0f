"""One session as its client knows it: which utterances have no end yet, and what may be said next. Pure.

An utterance (``engine.client_utterance``) stands in the table from ``submit`` to its ``Outcome``. Its samples stay
until then, so that a node that forgot everything can be given them again.

The session itself is opening, open, resuming (the node may have changed, or forgotten us) or closed::

    opening --Opened--> open --UnknownSession, new incarnation--> resuming --Opened--> open
       ^                                                             |
       +--------------------- UnknownSession(token) -----------------+          any --Closed, Rejected--> closed

Methods take messages as plain maps and return the maps to send. The shell (``engine.client``) moves them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from engine.client_utterance import ON_THE_WIRE, Message, Place, Utterance
from engine.outcome import Outcome, Rejected, SessionClosed, from_wire
from ipc.errors import DragomanError, IllegalMove

ASK_AGAIN_S = 1.0  # a question still unanswered while the node answers later ones was lost with a connection
ECHO_S = 5.0  # ... or is late: for so long after another's answer it may still take the session from us
WISHED = frozenset({"drained", "aborted"})  # ends of a session its client asked for


OPEN_TYPES: dict[str, type] = {
    "tag": str, "pipeline": str, "source": str, "target": str, "priority": str, "on_deadline": str,
    "window": int, "first_index": int, "weight": int,
}  # fmt: skip
IN_WORDS = {str: "a string", int: "a whole number"}


class State(Enum):
    OPENING = auto()
    OPEN = auto()
    RESUMING = auto()
    CLOSED = auto()

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call


MOVES = {
    State.OPENING: {State.OPEN, State.CLOSED},
    State.OPEN: {State.RESUMING, State.CLOSED},
    State.RESUMING: {State.OPEN, State.OPENING, State.CLOSED},
    State.CLOSED: set(),
}


def check_opening(opening: Mapping[str, Any]) -> None:
    """Raise Rejected for a field of the wrong type, which the node could name only as its decoder does."""
    for name, kind in OPEN_TYPES.items():
        if not isinstance(value := opening[name], kind) or isinstance(value, bool):
            raise Rejected("bad_message", f"{name} must be {IN_WORDS[kind]}, not {value!r}")
    models = opening["models"]
    if not isinstance(models, dict) or not all(isinstance(word, str) for pair in models.items() for word in pair):
        raise Rejected("bad_message", f"models must map stages to models, as {{'tts': 'anna'}}, not {models!r}")


class SessionCore:
    """What one session's client knows. ``opening``: the ``Open`` it was, and may again be, opened with."""

    def __init__(self, opening: Message) -> None:
        first = opening["first_index"]
        self.opening = opening
        self.state = State.OPENING
        self.id = self.token = ""
        self.share, self.window = 1, opening["window"]
        self.next_index = first  # what an utterance without an index gets
        self.through = first - 1  # every index up to here has ended
        self.acked = first - 1  # ... and the node was told so up to here
        self.unended: dict[int, Utterance] = {}
        self.ended: deque[Outcome] = deque()  # not yet read by the user
        self.failure: DragomanError | None = None  # why the session closed, unless it was wished
        self.hold_until = 0.0
        self.hold_reason = ""
        self.refused = 0  # times the node said Busy
        self.asked_at = 0.0  # when the last Open or Resume went out
        self._opened_at = 0.0
        self._unanswered = 0  # Resumes
        self.closing = ""
        self._above: set[int] = set()  # ended, above ``through``
        self._beyond = -1  # the highest index this session of the node is known to have: what it lacks below is a gap
        self._probe: int | None = None  # after Busy this one goes alone until it is answered
        self._close_sent = False

    @property
    def tag(self) -> str:
        return str(self.opening["tag"])

    # ------------------------------------------------------------ what the user asks

    def may_submit(self, index: int) -> Rejected | None:
        """None, or why this index cannot be used."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 2**63:
            return Rejected("bad_index", f"index {index!r} is not a whole number from 0")
        if self.has_ended(index):
            return Rejected("too_late", f"index {index} has ended; the next is {self.next_index}")
        if index in self.unended:
            return Rejected("index_conflict", f"index {index} was submitted already; the next is {self.next_index}")
        return None

    def submit(self, utterance: Utterance) -> None:
        """Enter an utterance whose index ``may_submit``."""
        self.unended[utterance.index] = utterance
        self.next_index = max(self.next_index, utterance.index + 1)

    def withdraw(self, utterance: Utterance) -> None:
        """Take back an utterance that was never sent."""
        if utterance.place is Place.QUEUED and utterance.index in self.unended:
            del self.unended[utterance.index]
            if self.next_index == utterance.index + 1:
                self.next_index = utterance.index

    def skip(self, index: int) -> Utterance | None:
        """This index will not be submitted (again); None when it has ended, or is accepted and so cannot be skipped."""
        utterance = self.unended.get(index)
        if self.has_ended(index) or (utterance and utterance.place is not Place.QUEUED):
            return None
        utterance = utterance or Utterance(index)
        utterance.give_up()
        self.submit(utterance)
        return utterance

    def cancel(self, index: int) -> list[Message]:
        """End this utterance as skipped(cancelled) if it has not ended yet."""
        utterance = self.unended.get(index)
        if utterance is None or utterance.skip:
            return []
        utterance.cancelled = True
        if utterance.place is Place.QUEUED:
            utterance.give_up()
            return []
        if self.state is not State.OPEN:
            return []  # said with the rest after Opened
        return [{"type": "Cancel", "session": self.id, "index": index}]

    def close(self, mode: str) -> None:
        """Close as soon as everything queued is accepted (drain), or at once (abort)."""
        self.closing = mode

    # ------------------------------------------------------------ what may be sent now

    def open(self, now: float) -> list[Message]:
        self.asked_at = now
        return [{"type": "Open", **self.opening}]

    def resume(self, now: float) -> list[Message]:
        """The node may not know us any more: take the session up again, or open it again."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.OPENING:
            return self.open(now)
        if self.state is State.OPEN:
            self._move(State.RESUMING)
        self.asked_at, self.acked = now, self.through
        self._unanswered += 1
        return [{"type": "Resume", "token": self.token, "last_received": self.through}]

    def ask_again(self, now: float) -> list[Message]:
        """The node is alive: repeat an ``Open`` or ``Resume`` that it should have answered long before."""
        waits = self.state in (State.OPENING, State.RESUMING)
        return self.resume(now) if waits and now - self.asked_at > ASK_AGAIN_S else []

    def sendable(self, now: float) -> Utterance | None:
        """What may go on the wire now, if anything: skips at once, else the lowest index, within window and share."""
        if self.state is not State.OPEN:
            return None
        first: Utterance | None = None
        on_the_wire, highest, top = 0, self._beyond, self.through + self.window
        for utterance in self.unended.values():
            index = utterance.index
            if utterance.place in ON_THE_WIRE:
                on_the_wire, highest = on_the_wire + 1, max(highest, index)
            elif utterance.place is Place.QUEUED and index <= top:
                if first is None or (not utterance.skip, index) < (not first.skip, first.index):
                    first = utterance
        if first is None or first.skip:
            return first
        if self._probe is not None or now < self.hold_until:
            return None
        return first if on_the_wire < self.share or first.index < highest else None

    def message(self, utterance: Utterance) -> Message:
        """The ``Submit`` or ``Skip`` of an utterance, which counts as said from now on."""
        if utterance.skip:
            utterance.put(Place.SKIPPED)
            self._beyond = max(self._beyond, utterance.index)
            return {"type": "Skip", "session": self.id, "index": utterance.index}
        utterance.put(Place.SENT)
        if self.hold_reason:
            self._probe = utterance.index
        return {"type": "Submit", "session": self.id, "index": utterance.index, **utterance.fields}

    def stuck(self) -> Rejected | None:
        """Why nothing will ever move: everything unended lies beyond the window, and nothing is under way below it."""
        top = self.through + self.window
        if self.state is not State.OPEN or not self.unended or next(iter(self.unended)) <= top:
            return None
        if min(self.unended) <= top:
            return None
        return Rejected("bad_index", f"index {min(self.unended)} is not between {self.through + 1} and {top}")

    def ack(self) -> Message | None:
        """The acknowledgement the node has not had yet."""
        closed_well = self.state is State.CLOSED and self.failure is None  # then the last ones are still to be said
        if self.acked == self.through or not (self.state is State.OPEN or closed_well):
            return None
        return self.still_here()

    def still_here(self) -> Message:
        """An acknowledgement whether new or not: a node that does not know us on this connection says so."""
        self.acked = self.through
        return {"type": "Ack", "session": self.id, "through": self.through}

    def close_message(self) -> Message | None:
        """``Close``, once nothing is left that the node may still answer with ``Busy``."""
        if self.state is not State.OPEN or not self.closing or self._close_sent:
            return None
        if self.closing == "drain" and any(u.place in (Place.QUEUED, Place.SENT) for u in self.unended.values()):
            return None
        self._close_sent = True
        return {"type": "Close", "session": self.id, "mode": self.closing}

    def outstanding(self) -> bool:
        """Whether the node owes us anything."""
        if self.state is State.CLOSED:
            return False
        return bool(self.unended) or self.state is not State.OPEN or bool(self.closing)

    def has_ended(self, index: int) -> bool:
        return index <= self.through or index in self._above

    # ------------------------------------------------------------ what the node says

    def handle(self, message: Mapping[str, Any], payload: Any, now: float) -> list[Message]:
        """Take one message of the node; returns what to answer. Unknown types are a newer node's: ignored."""
        if self.state is State.CLOSED:
            return []
        match message["type"]:
            case "Outcome":
                self._outcome(message, payload)
            case "Accepted":
                self._accepted(message["index"])
            case "Gap":
                self._beyond = max(self._beyond, message["index"] + 1)
            case "Share":
                self.share = max(1, message["n"])
            case "Busy":
                self._busy(message, now)
            case "Rejected":
                self._rejected(message)
            case "Opened":
                return self._opened(message, now)
            case "UnknownSession":
                return self._unknown(message["session"], now)
            case "Closed":
                return self._closed(message["reason"], now)
        return []

    def _opened(self, message: Mapping[str, Any], now: float) -> list[Message]:
        self._unanswered = max(0, self._unanswered - 1)
        if self.state is State.OPEN:
            return []  # the answer to a question asked twice
        resumed = self.state is State.RESUMING
        self._move(State.OPEN)
        self._opened_at = now
        self.id, self.token = message["session"], message["token"]
        self.share, self.window = max(1, message["share"]), message["window"]
        self.hold_until, self.hold_reason, self._probe, self._close_sent = 0.0, "", None, False
        return self._again(message["next_index"] if resumed else self.through + 1)

    def _again(self, next_index: int) -> list[Message]:
        """After Opened: what the node has accepted waits for its end, the rest is queued again."""
        said: list[Message] = []
        for utterance in [self.unended[index] for index in sorted(self.unended)]:
            if utterance.skip or utterance.index >= next_index:
                utterance.put(Place.QUEUED)
                if utterance.cancelled:
                    utterance.give_up()
            else:
                utterance.put(Place.ACCEPTED)
                said += self.cancel(utterance.index) if utterance.cancelled else []
        return said

    def _unknown(self, name: str, now: float) -> list[Message]:
        if self.state is State.RESUMING and name == self.token:
            self._move(State.OPENING)
            self.opening = {**self.opening, "first_index": self.through + 1}
            self._beyond, self._unanswered = -1, 0
            return self.open(now)
        return self.resume(now) if self.state is State.OPEN and name == self.id else []

    def _accepted(self, index: int) -> None:
        self._answered(index)
        self._beyond = max(self._beyond, index)
        if (utterance := self.unended.get(index)) and utterance.place is Place.SENT:
            utterance.put(Place.ACCEPTED)

    def _busy(self, message: Mapping[str, Any], now: float) -> None:
        """Everything from ``resend_from`` on comes back, each by its own Busy; after the wait it goes first, alone."""
        index, resend_from = message["index"], message["resend_from"]
        self.refused += 1
        if self._probe == index:
            self._probe = None
        self.hold_until = max(self.hold_until, now + message["retry_after_ms"] / 1000)
        self.hold_reason = message["reason"] if index == resend_from else self.hold_reason or message["reason"]
        utterance = self.unended.get(index)
        if utterance is not None and utterance.place is Place.SENT:
            utterance.put(Place.QUEUED)
            if utterance.cancelled:
                utterance.give_up()
        if resend_from not in self.unended and not self.has_ended(resend_from):
            self.submit(Utterance(resend_from, skip=True))  # nobody here has it to send again

    def _rejected(self, message: Mapping[str, Any]) -> None:
        code, text, index = message["code"], message["text"], message.get("index")
        # Of a Resume the node says bad_index; a late answer about that index itself is another matter.
        of_resume = self.state is State.RESUMING and index == self.through and code == "bad_index"
        if self.state is State.OPENING or index is None or of_resume:
            self.failure = Rejected(code, text, tuple(message.get("accepted", ())))
            if self.state is not State.OPEN:
                self._move(State.CLOSED)
            return
        self._answered(index)
        utterance = self.unended.get(index)
        if utterance is None or (utterance.skip and code != "bad_index"):
            return  # a Skip that follows has its own answer
        utterance.refusal = utterance.refusal or (code, text)
        if code == "bad_index":
            self._end(Outcome(self.id, index, "rejected", code, text, tag=self.tag))
        elif code in ("index_conflict", "too_late"):  # it has an end there already, which will come
            utterance.refusal = (code, text) if code == "index_conflict" else None
        else:
            utterance.give_up()

    def _outcome(self, message: Mapping[str, Any], payload: Any) -> None:
        if not self.has_ended(message["index"]):  # else: sent again after a resume, and in our hands already
            self._end(from_wire(message, payload, self.tag))

    def _closed(self, reason: str, now: float) -> list[Message]:
        if reason == "taken_over" and self._unanswered and now - self._opened_at <= ECHO_S:
            self._unanswered = 0  # by a Resume of our own, from a connection that broke behind it
            return self.resume(now)
        self._move(State.CLOSED)
        if reason == "aborted" and self.closing == "abort":
            for index in sorted(self.unended):
                self._end(Outcome(self.id, index, "skipped", "cancelled", tag=self.tag))
        elif reason not in WISHED or self.unended:
            text, mend = CLOSED_TEXTS.get(reason, ("the node ended it", ""))
            self.failure = SessionClosed(reason, text, mend)
        return []

    # ------------------------------------------------------------ the table

    def _end(self, outcome: Outcome) -> None:
        index = outcome.index
        self._answered(index)
        utterance = self.unended.pop(index, None)
        self.ended.append(utterance.shown(outcome) if utterance else outcome)
        self.next_index = max(self.next_index, index + 1)
        self._above.add(index)
        while self.through + 1 in self._above:
            self.through += 1
            self._above.discard(self.through)

    def _answered(self, index: int) -> None:
        """The node took a stand on ``index``: if it was the one sent alone after Busy, the others may follow."""
        if self._probe == index:
            self._probe, self.hold_reason = None, ""

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(f"session {self.tag}: {self.state.name} -> {state.name}")
        self.state = state

    def check(self) -> None:
        """Raise AssertionError when the table contradicts itself."""
        assert all(not self.has_ended(index) for index in self.unended), "ended and unended at once"
        assert self.acked <= self.through < self.next_index, "acknowledged more than has ended"
        assert self.through + 1 not in self._above, "the mark of what has ended lags"
        assert self._probe is None or self._probe in self.unended, "waits for the answer to nothing"


CLOSED_TEXTS = {
    "taken_over": ("another client resumed it", ""),
    "detached": ("the node heard nothing from here for too long", "open a new session"),
    "slow_consumer": ("too much was left unread", "read outcomes() while submitting"),
    "shutting_down": ("the node is stopping", "submit what has no outcome again when it is back"),
}
