"""A gateway core on a test stand: its clients and its scheduler are played by the test."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from engine.boot import GatewayBoot, StagePlan
from engine.config import DeadlinesSection
from engine.gateway.books import Books
from engine.gateway.events import Arrived, ClientLost, JobEnded, Post, Tell, TurnEnd, Write
from engine.gateway.gateway import Gateway
from ipc.messages import Admit, Capacity, Free, JobAccepted, Open, Opened, Outcome, Rejected, Restored, Submit

STAGES = (
    StagePlan(name="asr", kind="simulated", accepts="audio", emits="text", model="ears"),
    StagePlan(name="nmt", kind="simulated", accepts="text", emits="text", max_chars=50),
    StagePlan(name="tts", kind="simulated", accepts="text", emits="audio"),
)
DEADLINES = DeadlinesSection(gap_s=10.0, detach_s=60.0, keep_s=300.0, flush_s=2.0, retry_after_s=0.25)


def boot(**changes: Any) -> GatewayBoot:
    """A gateway's boot record: pipelines full (audio in), text (text in) and speak."""
    known: dict[str, Any] = {
        "stages": STAGES,
        "pipelines": {"full": ("asr", "nmt", "tts"), "text": ("nmt", "tts"), "speak": ("tts",)},
        "sources": {"full": ("en", "de"), "text": ("en", "de")},
        "targets": {"full": ("de", "fr"), "text": ("de", "fr"), "speak": ("de", "fr")},
        "endpoints": (),
        "max_utterance_s": 4.0,
        "max_text_chars": 100,
        "window": 8,
        "max_sessions": 4,
        "outbox_session_bytes": 2**20,
        "outbox_node_bytes": 4 * 2**20,
    }
    return GatewayBoot(**known | changes)


def samples(n: int = 160, seed: int = 0, dtype: str = "<i2") -> bytes:
    """``n`` samples of noise as they travel."""
    noise = np.random.default_rng(seed).integers(-3000, 3000, n)
    return (noise / 32768 if dtype == "<f4" else noise).astype(dtype).tobytes()


class Stand:
    """Feeds a core and keeps what it says: ``told`` clients, ``posted`` to the scheduler, ``written`` to the ring.

    ``handed_over``: what the scheduler tells it before ``Restored``; None: it has not told everything yet.
    """

    def __init__(
        self, ring_blocks: int = 64, hooks: dict[str, str] | None = None, incarnation: int = 7,
        handed_over: tuple[Any, ...] | None = (), **changes: Any,
    ) -> None:  # fmt: skip
        counter = itertools.count()
        self.deadlines = changes.pop("deadlines", DEADLINES)
        self.core = Gateway(
            Books(
                boot(**changes),
                self.deadlines,
                incarnation=incarnation,
                new_token=lambda: f"{next(counter):032x}",
                ring_blocks=ring_blocks,
                hooks=hooks or {},
            )
        )
        self.now = 1000.0
        self.told: list[Tell] = []
        self.posted: list[Any] = []
        self.written: list[Write] = []
        self.others: list[Any] = []
        self.tickets = itertools.count(1)
        for message in () if handed_over is None else (*handed_over, Restored(), Capacity(100)):
            self.feed(message)

    def feed(self, event: Any) -> None:
        """One event, then the end of the turn."""
        for action in self.core.handle(event, self.now) + self.core.handle(TurnEnd(), self.now):
            match action:
                case Tell():
                    self.told.append(action)
                case Post(message):
                    self.posted.append(message)
                case Write():
                    self.written.append(action)
                case _:
                    self.others.append(action)
        self.core.check()

    def wait(self, seconds: float) -> None:
        """Time passes; the core is woken whenever it asked to be."""
        end = self.now + seconds
        while self.core.deadline() <= end:
            self.now = max(self.now, self.core.deadline())
            self.feed(TurnEnd())
        self.now = end
        self.feed(TurnEnd())

    # ---------------------------------------------------------------- the client's side

    def say(self, message: Any, payload: bytes | None = None, client: bytes = b"a") -> list[Any]:
        """A client's message; returns what any client was told because of it."""
        before = len(self.told)
        self.feed(Arrived(client, (message,), payload))
        return [tell.message for tell in self.told[before:]]

    def open(self, client: bytes = b"a", **fields: Any) -> Opened:
        """Open a session."""
        known = {"tag": "s", "pipeline": "full", "source": "en", "target": "de"}
        answer = self.say(Open(**known | fields), client=client)[0]
        assert isinstance(answer, Opened), answer
        return answer

    def submit(self, session: str, index: int, n: int = 160, client: bytes = b"a", **fields: Any) -> list[Any]:
        """Submit ``n`` samples whose content depends on the index."""
        data = fields.pop("data", samples(n, seed=index))
        return self.say(Submit(session, index, "s16le", len(data), **fields), data, client)

    def heard(self, kind: type, client: bytes = b"a") -> list[Any]:
        """Everything of this kind the client was told so far."""
        return [t.message for t in self.told if t.client == client and isinstance(t.message, kind)]

    def codes(self, answers: list[Any]) -> list[str]:
        """Codes of the rejections among the answers; anything else stands as its type's name."""
        return [a.code if isinstance(a, Rejected) else type(a).__name__ for a in answers]

    # ---------------------------------------------------------------- the scheduler's side

    def sent(self, kind: type) -> list[Any]:
        """Everything of this kind posted to the scheduler so far."""
        return [message for message in self.posted if isinstance(message, kind)]

    def accept(self, session: str, index: int) -> None:
        self.feed(JobAccepted(session, index))

    def finish(
        self, session: str, index: int, payload: bytes | None = None, outcome: str = "ok", code: str = ""
    ) -> None:
        """The job ends; its slot comes free."""
        told = Outcome(session, index, outcome, code)
        self.feed(JobEnded(told, payload, next(self.tickets) if payload is not None else 0))
        self.feed(Free(((session, index),)))

    def run(self, session: str, *indices: int) -> None:
        """Submit, accept and finish each index."""
        for index in indices:
            self.submit(session, index)
            assert [admit.index for admit in self.sent(Admit)][-1:] == [index], self.told[-1]
            self.accept(session, index)
            self.finish(session, index)

    def lose(self, client: bytes = b"a") -> None:
        self.feed(ClientLost(client))
