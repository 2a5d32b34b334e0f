"""A scheduler core with hand-driven workers and a hand-driven gateway: what tests need around it, and nothing more."""

from __future__ import annotations

from typing import Any, NamedTuple

from engine.boot import SchedulerBoot, StagePlan, WorkerPlan
from engine.config import DeadlinesSection
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.workers import Life
from ipc.messages import (
    Admit,
    Copied,
    Done,
    Free,
    Gone,
    Here,
    JobOutcome,
    Load,
    Loaded,
    Loading,
    Park,
    Ref,
    Run,
    RunItem,
    RunResult,
    Session,
)
from ipc.ring import generation

GATEWAY_PEER = "gateway#1"
DEADLINES = DeadlinesSection(retry_delay_s=1.0, oom_hold_s=1.5, oom_window_s=3.0)  # a tenth of the usual ones


def text_stage(name: str, workers: int | tuple[WorkerPlan, ...] = 1, **fields) -> StagePlan:
    """A stage from text to text with its workers on the CPU."""
    if isinstance(workers, int):
        workers = tuple(WorkerPlan(role=f"{name}@cpu/{n}", stage=name, device="cpu") for n in range(workers))
    return StagePlan(
        **{"name": name, "kind": "simulated", "accepts": "text", "emits": "text", "workers": workers, **fields}
    )


def audio_stage(name: str, workers: int = 1, ring_blocks: int = 2, **fields) -> StagePlan:
    """A stage from text to audio whose workers own rings."""
    plans = tuple(
        WorkerPlan(role=f"{name}@cpu/{n}", stage=name, device="cpu", ring_blocks=ring_blocks) for n in range(workers)
    )
    known = {"accepts": "text", "emits": "audio", "output_base": 1000, "workers": plans}
    return StagePlan(**{"name": name, "kind": "simulated", **known, **fields})


class Send(NamedTuple):
    """What the scheduler told whom."""

    peer: str
    message: Any


class World:
    """Plays gateway and workers. Time stands still unless a test moves ``now``."""

    def __init__(
        self, *stages: StagePlan, mode: str = "pipelined", send_ahead: int = 1, max_retries: int = 3, hooks=None,
        epoch: int = 1, ring_users: dict[str, tuple[str, ...]] | None = None, books: dict[str, str] | None = None,
        chance=lambda: 0.0,
    ):  # fmt: skip
        pipeline = tuple(stage.name for stage in stages)
        boot = SchedulerBoot(
            stages=stages, pipelines={"full": pipeline}, mode=mode, mode_reason="asked", send_ahead=send_ahead,
            max_retries=max_retries, capacity_factor=10, ring_users=ring_users or {}, books=books or {},
        )  # fmt: skip
        self.core = Scheduler(boot, DEADLINES, epoch, hooks, chance)
        self.now = 100.0
        self.pipeline = pipeline
        self.outcomes: list[JobOutcome] = []
        self.freed: set = set()
        self.sent: list[Send] = []
        self.board: dict[str, list[RunItem]] = {}  # worker peer -> items in order
        self.lives: dict[str, int] = {}
        self.dismissed: set[str] = set()  # lives that were told to end
        self._ingress = 0
        self.copy_at_once = True
        self.on_note = lambda text: None
        self.gateway = GATEWAY_PEER
        self.core.handle(self.gateway, Here("empty" if epoch == 1 else "whole"), self.now)
        self.turn()

    # ---------------------------------------------------------------- the gateway

    def open(self, session: str = "s", **fields) -> None:
        known = {"owner": "local", "pipeline": self.pipeline, **fields}
        self.core.handle(self.gateway, Session(session, **known), self.now)

    def admit(self, index: int, session: str = "s", *, text: str | None = "hello", audio: int = 0, **fields) -> None:
        ref = None
        if audio:
            self._ingress += 1
            ref = Ref("gateway", 0, audio, "int16", (audio // 2,), 16000, generation(1, self._ingress))
            text = None
        known = {"budget_ms": 60_000, "ref": ref, "text": text, **fields}
        self.core.handle(self.gateway, Admit(session, index, **known), self.now)
        self.turn()

    def tell(self, message) -> None:
        """A message from the gateway."""
        self.core.handle(self.gateway, message, self.now)
        self.turn()

    def lose_gateway(self) -> None:
        self.core.handle(SUPERVISOR, Gone("gateway", int(self.gateway.partition("#")[2]), "killed"), self.now)
        self.turn()

    def new_gateway(self) -> list[Any]:
        """The next life of the gateway, which knows nothing; returns what it is told at once."""
        self.gateway = f"gateway#{int(self.gateway.partition('#')[2]) + 1}"
        before = len(self.sent)
        self.tell(Here("empty"))
        return [send.message for send in self.sent[before:] if send.peer == GATEWAY]

    # ---------------------------------------------------------------- the workers

    def start(self, role: str) -> str:
        """A new life of a worker, loaded if it is told to; returns its peer name."""
        self.lives[role] = self.lives.get(role, 0) + 1
        peer = f"{role}#{self.lives[role]}"
        self.board[peer] = []
        self.core.handle(peer, Here(), self.now)
        self.turn()
        if self.core.book.workers[role].life is Life.LOADING:
            self.loaded(peer)
        return peer

    def loaded(self, peer: str) -> None:
        """A worker that was told to load has loaded."""
        for message in (Loading(), Loaded("")):
            self.core.handle(peer, message, self.now)
            self.turn()

    def start_all(self) -> None:
        for role in self.core.book.workers:
            self.start(role)

    def peer(self, role: str) -> str:
        return f"{role}#{self.lives[role]}"

    def done(self, peer: str, **fields) -> RunItem:
        """The worker answers its oldest item: its text with the stage's name appended, or an array."""
        item = self.board[peer].pop(0)
        role = peer.split("#")[0]
        known = {"state": "completed", "begun_ns": int(self.now * 1e9), "ended_ns": int(self.now * 1e9) + 1000}
        if item.slot_offset >= 0 and "state" not in fields:
            known["ref"] = Ref(role, item.slot_offset, 10, "int16", (5,), 22050, item.ticket)
        elif "text" not in fields and "state" not in fields:
            known["text"] = f"{item.text or 'heard'}+{role.split('@')[0]}"
        self.core.handle(peer, Done((RunResult(item.ticket, **{**known, **fields}),)), self.now)
        self.turn()
        return item

    def fail(self, peer: str, *, retry: bool = True, code: str = "failed") -> RunItem:
        return self.done(peer, state="failed", code=code, error="on purpose", retry=retry)

    def kill(self, role: str, *, final: bool = False) -> None:
        """The worker dies with everything it had on board."""
        peer = self.peer(role)
        self.board[peer] = []
        self.core.handle(SUPERVISOR, Gone(role, self.lives[role], "killed", final), self.now)
        self.turn()

    def leave(self, role: str) -> None:
        """A worker that was told to end has done so; its next life says that it is here."""
        assert not self.board[self.peer(role)], "told to leave with work on board"
        self.core.handle(SUPERVISOR, Gone(role, self.lives[role], "parked", parked=True), self.now)
        self.lives[role] += 1
        self.board[self.peer(role)] = []
        self.core.handle(self.peer(role), Here(), self.now)
        self.turn()

    def load_all(self) -> None:
        """Whoever has been told to load has loaded."""
        for role, worker in self.core.book.workers.items():
            if worker.life is Life.LOADING:
                self.loaded(self.peer(role))

    # ---------------------------------------------------------------- time

    def turn(self) -> None:
        mail, notes = self.core.turn(self.now)
        for note in notes:
            self.on_note(note.text)
        for peer, batch in mail.items():
            for message in batch:
                self.sent.append(Send(peer, message))
                self._carry_out(self.sent[-1])
        self.core.check()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline of the core on the way."""
        end = self.now + seconds
        while (at := self.core.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            before = (at, len(self.sent))
            self.turn()
            if (self.core.next_deadline(), len(self.sent)) == before:
                break
        self.now = end
        self.turn()

    def settle(self) -> None:
        """Let so much time pass that nothing waits for a ride any more."""
        self.turn()
        self.advance(2 * DEADLINES.ride_s)

    def _carry_out(self, action: Send) -> None:
        message = action.message
        if isinstance(message, JobOutcome):
            self.outcomes.append(message)
            if message.ref is not None and self.copy_at_once:
                self.core.handle(self.gateway, Copied((message.ticket,)), self.now)
        elif isinstance(message, Free):
            self.freed.update(message.jobs)
        elif isinstance(message, Load | Run):
            assert action.peer not in self.dismissed, f"{action.peer} is told {message} after it was told to end"
        if isinstance(message, Run):
            board = self.board[action.peer]
            at = len(board) - 1 if message.overtakes else len(board)  # on these boards the first one runs
            board[at:at] = message.items
        elif isinstance(message, Park):
            assert action.peer not in self.dismissed, f"{action.peer} is told to end twice"
            self.dismissed.add(action.peer)

    # ---------------------------------------------------------------- what tests ask

    def messages(self, kind: type, peer: str = GATEWAY) -> list:
        return [send.message for send in self.sent if send.peer == peer and isinstance(send.message, kind)]

    def ended(self) -> dict[tuple[str, int], str]:
        """(session, index) -> class or class(code), in the order they ended."""
        out = {}
        for message in self.outcomes:
            o = message.outcome
            assert (o.session, o.index) not in out, f"{o.session} {o.index} ended twice"
            out[o.session, o.index] = f"{o.outcome}({o.code})" if o.code else o.outcome
        return out

    def run_everything(self, limit: int = 10_000) -> None:
        """All workers answer until nothing is on board and nothing waits."""
        for _ in range(limit):
            busy = [peer for peer, items in self.board.items() if items]
            if busy:
                self.done(busy[0])
            elif (at := self.core.next_deadline()) is not None and any(
                line.unended for line in self.core.book.lines.values()
            ):
                self.advance(max(0.0, at - self.now) + 0.001)
            else:
                return
        raise AssertionError("it never ends")


__all__ = ["GATEWAY_PEER", "Load", "World", "audio_stage", "text_stage"]
