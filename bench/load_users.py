"""Users of a node, all at once: threads that each have a client and a session of their own, speak, and listen.

A user at the pace ``speech`` submits an utterance when it would have been spoken: its own length after the last one,
whatever is still on its way. At the pace ``asap`` the next goes out as soon as the last one's outcome is here, so that
as many utterances are on their way as there are users.

Latency counts from the moment when the user meant to submit, so what waits in the client because the node says Busy is
in it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import line
from engine.audio import RATE
from engine.client import Client, Rejected
from ipc.errors import DragomanError

PACES = ("asap", "speech")
PATIENCE_S = 330.0  # for one outcome: the longest deadline there is by default, and some
CONNECT_S = 60.0  # until all users have a session
LOOK_S = 0.5  # how often the crowd is looked at, and a user looks whether it is to leave
LEAVE_S = 10.0  # until all users have closed their sessions


@dataclass(frozen=True)
class Speech:
    """What a user says. ``samples``: int16, shape (n,), mono, 16 kHz."""

    samples: np.ndarray
    source: str = ""
    target: str = ""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / RATE


@dataclass(frozen=True)
class Ended:
    """One utterance's end. Times in seconds since the load began."""

    user: int
    index: int
    audio_s: float
    said_s: float  # when it was meant to be submitted
    ended_s: float
    outcome: str
    code: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.said_s


@dataclass
class Load:
    """What became of everything that so many users said. Latencies are those of what ended ok."""

    users: int
    ended: list[Ended] = field(default_factory=list)  # of each user in the order received
    lost: int = 0  # utterances without an outcome
    refused: int = 0  # times the node said Busy

    @property
    def seconds(self) -> float:
        """From the first submit to the last outcome."""
        return max((one.ended_s for one in self.ended), default=0.0)

    @property
    def success_rate(self) -> float:
        """Share of all utterances that ended ok."""
        return len(self.ok) / max(1, len(self.ended) + self.lost)

    @property
    def ok(self) -> list[Ended]:
        return [one for one in self.ended if one.ok]

    @property
    def throughput(self) -> float:
        """Utterances a second that ended ok."""
        return len(self.ok) / self.seconds if self.ended else 0.0

    @property
    def audio_throughput(self) -> float:
        """Seconds of audio a second that ended ok."""
        return sum(one.audio_s for one in self.ok) / self.seconds if self.ended else 0.0

    @property
    def mean_s(self) -> float:
        return float(np.mean([one.latency_s for one in self.ok])) if self.ok else float("nan")

    @property
    def ends(self) -> Counter[str]:
        """How those that are not ok ended: "error/expired" -> how many."""
        return Counter("/".join(filter(None, (one.outcome, one.code))) for one in self.ended if not one.ok)

    @property
    def reordered(self) -> int:
        """Outcomes that came out of their session's order."""
        order: dict[int, list[int]] = {}
        for one in self.ended:
            order.setdefault(one.user, []).append(one.index)
        return sum(map(line.reordered, order.values()))

    def latency_s(self, share: float) -> float:
        """So many of all took no longer; NaN when none ended ok."""
        return quantile([one.latency_s for one in self.ok], share)


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


class Crowd:
    """So many users at a node for ``seconds``; ``start``, then ``join`` until it is over.

    User n says ``speeches[n % len(speeches)]`` over and over, which all have the same languages. The users begin
    together, once each has its session; of a crowd at the pace of speech each begins at its own time within its first
    utterance. Nothing new is said after ``seconds``; what is on its way may end.
    """

    def __init__(
        self, endpoint: str, speeches: Sequence[Sequence[Speech]], users: int, seconds: float,
        pace: str = "asap", pipeline: str = "full",
    ) -> None:  # fmt: skip
        self.endpoint = endpoint
        self.pipeline = pipeline
        self.pace = pace
        self.seconds = seconds
        self.begun = 0.0
        self.gate = threading.Barrier(users, self._begin, CONNECT_S)
        self.stopping = threading.Event()  # nothing more is said
        self.leaving = threading.Event()  # nor listened to
        self._users = [User(self, number, speeches[number % len(speeches)]) for number in range(users)]

    def _begin(self) -> None:
        self.begun = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the users began; 0 before."""
        return time.monotonic() - self.begun if self.begun else 0.0

    @property
    def seated(self) -> int:
        """Users that have a session and wait for the others."""
        return self.gate.n_waiting

    def start(self) -> None:
        for user in self._users:
            user.start()

    def join(self) -> bool:
        """Wait a moment; returns whether all users are done. Raises the first error of a user."""
        alive = next((user for user in self._users if user.is_alive()), None)
        if alive is not None:
            alive.join(LOOK_S)
        errors = [user.error for user in self._users if user.error is not None]
        if errors:
            self.stop()
            named = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
            named.sort(
                key=lambda e: not isinstance(e, Rejected)
            )  # what the node says, before that it was slow to say it
            raise (named or [DragomanError(f"not every user had a session within {CONNECT_S:g} s")])[0]
        return alive is None

    def stop(self) -> None:
        """Have every user close its session, whatever is on its way in it, and leave; waits until they have."""
        self.stopping.set()
        self.leaving.set()
        self.gate.abort()
        end = time.monotonic() + LEAVE_S
        for user in self._users:
            if user.is_alive():
                user.join(max(0.0, end - time.monotonic()))

    def load(self) -> Load:
        """What has ended so far."""
        found = Load(len(self._users))
        for user in self._users:
            found.ended += list(user.ended)
            found.lost += user.lost
            found.refused += user.refused
        return found


class User(threading.Thread):
    """One of a crowd."""

    def __init__(self, crowd: Crowd, number: int, speeches: Sequence[Speech]) -> None:
        super().__init__(name=f"user-{number}", daemon=True)
        self.crowd = crowd
        self.number = number
        self.speeches = speeches
        self.ended: list[Ended] = []
        self.lost = 0
        self.refused = 0
        self.error: Exception | None = None
        self._said: dict[int, tuple[float, Speech]] = {}  # index -> when, what

    def run(self) -> None:
        first = self.speeches[0]
        try:
            with Client(self.crowd.endpoint) as client:
                session = client.session(first.source, first.target, pipeline=self.crowd.pipeline)
                try:
                    self.crowd.gate.wait()
                    self._talk(client, session)
                finally:  # an open session takes a place of the node's until it is closed, and has nothing to tell
                    with suppress(DragomanError, TimeoutError):
                        session.close("abort" if session.outstanding else "drain")
                        deque(session.outcomes(timeout_s=LEAVE_S), maxlen=0)
        except Exception as error:  # whoever waits for the crowd raises it
            self.error = error
            self.crowd.gate.abort()

    def _talk(self, client: Any, session: Any) -> None:
        """Speak until the time is over, then listen until everything has its outcome."""
        turn = self.number  # so that not all say the same at the same time
        due = self._first_due(turn)
        while due < self.crowd.seconds and not self.crowd.stopping.is_set():
            speech = self.speeches[turn % len(self.speeches)]
            self._listen(client, session, due)
            if self.crowd.stopping.is_set():
                break
            self._said[session.submit(speech.samples)] = (due, speech)
            turn += 1
            due = self._next_due(session, due, turn)
            self.refused = session.refused
        self._hear_all(session)
        self.refused = session.refused

    def _first_due(self, turn: int) -> float:
        if self.crowd.pace == "asap":
            return 0.0
        length = self.speeches[turn % len(self.speeches)].duration_s
        return length * float(np.random.default_rng(self.number).uniform())

    def _next_due(self, session: Any, due: float, turn: int) -> float:
        if self.crowd.pace == "asap":
            self._hear_all(session)
            return self.crowd.elapsed_s
        return due + self.speeches[turn % len(self.speeches)].duration_s

    def _listen(self, client: Any, session: Any, until: float) -> None:
        """Take outcomes as they come until it is time to say something."""
        while (left := until - self.crowd.elapsed_s) > 0 and not self.crowd.leaving.is_set():
            try:
                self._note(next(session.outcomes(timeout_s=min(left, LOOK_S))))
            except TimeoutError:
                continue
            except StopIteration:  # nothing is on its way
                client.pump(min(left, LOOK_S))

    def _hear_all(self, session: Any) -> None:
        patient_until = time.monotonic() + PATIENCE_S
        while not self.crowd.leaving.is_set():
            try:
                self._note(next(session.outcomes(timeout_s=LOOK_S)))
                patient_until = time.monotonic() + PATIENCE_S
            except StopIteration:
                return
            except TimeoutError:
                if time.monotonic() >= patient_until:
                    self.lost = session.outstanding
                    self.crowd.stopping.set()
                    return

    def _note(self, outcome: Any) -> None:
        if outcome.outcome == "rejected":  # it will say the same to everything of this kind
            raise Rejected(outcome.code, outcome.error)
        said_s, speech = self._said.pop(outcome.index)
        now = self.crowd.elapsed_s
        code = outcome.code if outcome.outcome != "ok" else ""
        self.ended.append(Ended(self.number, outcome.index, speech.duration_s, said_s, now, outcome.outcome, code))
