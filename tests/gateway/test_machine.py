"""Sessions, ledger, order and slots together against a simple model, in any order of events.

The model is a dict of index -> end for each session. Promises: each admitted index gets exactly one outcome; outcomes
are heard in index order; a Busy never makes a gap; what is kept is bounded by the window; a slot is free only when the
scheduler said so, and all are free in the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stand import Stand

from engine.gateway.events import JobEnded
from ipc.messages import (
    Ack,
    Admit,
    Busy,
    Cancel,
    Capacity,
    Close,
    Closed,
    Ended,
    Free,
    Gap,
    JobAccepted,
    Outcome,
    Rejected,
    Resume,
    Skip,
    UnknownSession,
)

WINDOW, RING = 4, 2
SESSIONS = 2
MISSING = ("skipped", "gap")
TINY, HALF, WHOLE = 8, 20_000, 60_000  # samples: one block, one, two


@dataclass
class Model:
    """What the test knows of one session. ``ends``: index -> (outcome, code), whoever decided it."""

    id: str
    token: str
    client: bytes | None
    admitted: dict[int, int] = field(default_factory=dict)  # index -> samples
    running: set[int] = field(default_factory=set)
    ends: dict[int, tuple[str, str]] = field(default_factory=dict)
    heard: list[int] = field(default_factory=list)  # indices on the present connection, in order
    acked: int = -1
    refused: dict[int, int] = field(default_factory=dict)  # index answered Busy -> samples
    closing: bool = False
    over: bool = False  # closed, and everything acknowledged


class Machine(RuleBasedStateMachine):
    """One gateway with a ring of two blocks, two sessions with a window of four."""

    @initialize()
    def begin(self) -> None:
        self.stand = Stand(ring_blocks=RING, window=WINDOW, outbox_session_bytes=3000)
        self.stand.feed(Capacity(3))
        self.clients = 0
        self.models: list[Model] = []
        self.slots: set[tuple[str, int]] = set()
        self.read = 0
        for _ in range(SESSIONS):
            opened = self.stand.open(self.new_client())
            self.models.append(Model(opened.session, opened.token, self.last_client))

    def new_client(self) -> bytes:
        self.clients += 1
        return self.last_client

    @property
    def last_client(self) -> bytes:
        return b"c%d" % self.clients

    def listen(self) -> None:
        """Check everything clients were told since the last time."""
        by_id = {model.id: model for model in self.models}
        for ended in (message.outcome for message in self.stand.sent(Ended)):
            model = by_id[ended.session]
            if ended.index not in model.ends:  # the gateway gave up waiting for it
                assert ended.index not in model.admitted and (ended.outcome, ended.code) == MISSING
                assert ended.index not in model.refused or model.closing, "a Busy made a gap"
                model.ends[ended.index] = MISSING
        for tell in self.stand.told[self.read :]:
            model = by_id.get(getattr(tell.message, "session", ""))
            if model is not None and tell.client == model.client:
                self.hear(model, tell.message, tell.payload)
        self.read = len(self.stand.told)
        for model in self.models:
            if not model.over and self.stand.core.books.sessions.get(model.id) is None:
                assert model.closing and not model.running and model.acked == max(model.ends, default=-1)
                model.over, model.client = True, None

    def hear(self, model: Model, message: object, payload: bytes | None) -> None:
        match message:
            case Outcome(_, index, outcome, code):
                if index in model.heard:
                    return  # asked for again
                before = model.heard[-1] if model.heard else model.acked
                assert index == before + 1, f"{index} after {before}"
                assert model.ends[index] == (outcome, code)
                assert payload == (b"%d" % index if outcome == "ok" else None)
                model.heard.append(index)
            case Gap(_, index):
                assert index not in model.admitted and model.ends.get(index, MISSING) == MISSING
            case Closed(_, "slow_consumer"):  # it sent and sent, and never acknowledged
                model.client = None
                model.refused.clear()
            case UnknownSession():
                raise AssertionError(f"{model.id} is unknown to who holds it")

    def attached(self, which: int) -> Model | None:
        model = self.models[which]
        return model if model.client is not None and not model.closing else None

    # ---------------------------------------------------------------- the client

    @rule(which=st.integers(0, SESSIONS - 1), offset=st.integers(1, WINDOW + 1), n=st.sampled_from([TINY, HALF, WHOLE]))
    def submit(self, which: int, offset: int, n: int) -> None:
        model = self.attached(which)
        if model is None:
            return
        index = model.acked + offset
        n = model.admitted.get(index, n)
        answers = self.stand.submit(model.id, index, n=n, client=model.client or b"")
        answer = next((a for a in answers if isinstance(a, Busy | Rejected) and a.index == index), None)
        if offset > WINDOW:
            assert isinstance(answer, Rejected) and answer.code == "bad_index"
        elif index in model.admitted:
            assert answer is None or answer.code != "index_conflict"
        elif isinstance(answer, Busy):
            assert answer.resend_from <= index
            model.refused[index] = n
            assert answer.resend_from == min(model.refused)
        elif answer is None:
            assert min(model.refused, default=index) >= index, "admitted above an index that was answered Busy"
            assert self.stand.sent(Admit)[-1].index == index
            model.refused.pop(index, None)
            model.admitted[index] = n
            model.running.add(index)
            self.slots.add((model.id, index))
        else:
            self.listen()
            assert answer.code == "too_late" and index in model.ends
        self.listen()

    @rule(which=st.integers(0, SESSIONS - 1))
    def resend(self, which: int) -> None:
        """The client follows the contract: from the lowest refused index on."""
        model = self.attached(which)
        if model is not None and model.refused:
            index = min(model.refused)
            self.submit(which, index - model.acked, model.refused[index])

    @rule(which=st.integers(0, SESSIONS - 1), offset=st.integers(1, WINDOW), cancel=st.booleans())
    def skip_or_cancel(self, which: int, offset: int, cancel: bool) -> None:
        model = self.attached(which)
        if model is None:
            return
        index = model.acked + offset
        if index not in model.admitted and index not in model.ends:
            model.ends[index] = ("skipped", "cancelled" if cancel else "gap")
            model.refused.pop(index, None)
        self.stand.say((Cancel if cancel else Skip)(model.id, index), client=model.client or b"")
        self.listen()

    @rule(which=st.integers(0, SESSIONS - 1), back=st.integers(0, 2))
    def ack(self, which: int, back: int) -> None:
        model = self.models[which]
        if model.client is None or len(model.heard) <= back:
            return
        model.acked = max(model.acked, model.heard[-1 - back])
        self.stand.say(Ack(model.id, model.acked), client=model.client)
        self.listen()

    @rule(which=st.integers(0, SESSIONS - 1))
    def go_away(self, which: int) -> None:
        model = self.models[which]
        if model.client is not None:
            self.stand.lose(model.client)
            model.client = None
            model.refused.clear()

    @rule(which=st.integers(0, SESSIONS - 1))
    def resume(self, which: int) -> None:
        model = self.models[which]
        if model.over:
            return
        model.client = self.new_client()
        model.heard.clear()
        model.refused.clear()
        self.stand.say(Resume(model.token, model.acked), client=model.client)
        self.listen()

    @rule(which=st.integers(0, SESSIONS - 1))
    @precondition(lambda self: self.clients > SESSIONS + 2)
    def close(self, which: int) -> None:
        model = self.attached(which)
        if model is not None:
            model.closing = True
            self.stand.say(Close(model.id), client=model.client or b"")
            model.refused.clear()
            self.listen()

    # ---------------------------------------------------------------- the scheduler

    @rule(data=st.data(), end=st.sampled_from([("ok", ""), ("error", "failed"), ("skipped", "cancelled")]))
    def finish(self, data: st.DataObject, end: tuple[str, str]) -> None:
        running = [(model, index) for model in self.models for index in sorted(model.running)]
        if not running:
            return
        model, index = data.draw(st.sampled_from(running))
        model.running.discard(index)
        model.ends[index] = end
        payload = b"%d" % index if end[0] == "ok" else None
        if data.draw(st.booleans()):
            self.stand.feed(JobAccepted(model.id, index))
        self.stand.feed(JobEnded(Outcome(model.id, index, *end), payload, 1 if payload else 0))
        self.stand.feed(JobEnded(Outcome(model.id, index, "error", "failed")))  # a second end is no end
        self.listen()

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        over = sorted(key for key in self.slots if not self.is_running(key))
        if over:
            key = data.draw(st.sampled_from(over))
            self.slots.discard(key)
            self.stand.feed(Free((key,)))

    def is_running(self, key: tuple[str, int]) -> bool:
        return any(model.id == key[0] and key[1] in model.running for model in self.models)

    @rule(n=st.integers(1, 6))
    def capacity(self, n: int) -> None:
        self.stand.feed(Capacity(n))
        self.listen()

    @rule(seconds=st.sampled_from([0.01, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        """Clients that were told Busy come back while they wait, as the contract says."""
        for which, model in enumerate(self.models):
            if model.refused and model.client is not None and not model.closing:
                self.resend(which)
        self.stand.wait(seconds)
        self.listen()

    # ---------------------------------------------------------------- promises

    @invariant()
    def kept_is_bounded(self) -> None:
        if not hasattr(self, "stand"):
            return
        snapshot = self.stand.core.snapshot()
        assert snapshot["response_queue"] <= SESSIONS * WINDOW
        assert len(self.slots) <= RING
        generations = [write.ref.generation for write in self.stand.written]
        assert generations == sorted(set(generations)), "a generation came twice"

    def teardown(self) -> None:
        """Let everything end: exactly one outcome each, in order, and every slot free."""
        if not hasattr(self, "stand"):
            return
        for model in self.models:
            for index in sorted(model.running):
                model.ends[index] = ("ok", "")
                self.stand.feed(JobEnded(Outcome(model.id, index, "ok"), b"%d" % index, 1))
            model.running.clear()
        for key in sorted(self.slots):
            self.stand.feed(Free((key,)))
        self.listen()
        for _ in range(4):
            for which, model in enumerate(self.models):
                if model.client is None and not model.over:
                    self.resume(which)
                model.refused.clear()  # given up: nothing comes any more
            self.stand.wait(21)
            self.listen()
            for which, model in enumerate(self.models):
                if not model.over:
                    self.ack(which, 0)
        for model in self.models:
            last = max([*model.admitted, *model.ends], default=-1)
            assert model.acked == last, f"{model.id}: heard up to {model.acked} of {last}"
        snapshot = self.stand.core.snapshot()
        assert snapshot["ring"]["free"] == RING and snapshot["outbox_bytes"] == 0 and snapshot["held"] == 0


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestMachine = Machine.TestCase
