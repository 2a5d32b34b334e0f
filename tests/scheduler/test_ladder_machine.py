"""The ladder under chance: whatever was refused, failed or died, a stage comes back to the best there is room for."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.scheduler.book import SUPERVISOR
from engine.scheduler.workers import Life
from ipc.messages import Denied, Gone, Here, Load, Loaded, Loading, Park, Room, Serve
from tests.scheduler.test_ladder import CPU, GPU, OTHER, SMALLER, worker
from tests.scheduler.world import DEADLINES, World, text_stage

DEVICES = (GPU, OTHER, CPU)
PATIENCE_S = 600.0  # by far more than going up takes


class LadderMachine(RuleBasedStateMachine):
    """One stage: its GPU, another one and the CPU on standby. Its workers do what real ones would, when chance says."""

    @initialize(variants=st.integers(0, 2), first=st.integers(0, 2), optional=st.booleans())
    def begin(self, variants: int, first: int, optional: bool) -> None:
        smaller, first = SMALLER[:variants], min(first, variants)
        plans = (
            worker(GPU, smaller=smaller, first=first),
            worker(OTHER, smaller=smaller, first=first, standby=True),
            worker(CPU, standby=True),
        )
        self.world = World(text_stage("b", workers=plans, optional=optional, timeout_base_s=1e6))
        self.world.core.handle(SUPERVISOR, Serve(), self.world.now)
        self.world.open()
        self.read = 0  # of what was sent
        self.asked: dict[str, Load] = {}  # device -> the load that it has not answered
        self.told_to_leave: set[str] = set()
        self.admitted = 0
        for device in DEVICES:
            self._come(device)

    # ---------------------------------------------------------------- the workers

    def _come(self, device: str) -> None:
        role = f"b@{device}/0"
        self.world.lives[role] = self.world.lives.get(role, 0) + 1
        self.world.board[self.world.peer(role)] = []
        self.asked.pop(device, None)
        self.told_to_leave.discard(device)
        self._say(device, Here())

    def _say(self, device: str, *messages: Any) -> None:
        for message in messages:
            self.world.core.handle(self.world.peer(f"b@{device}/0"), message, self.world.now)
            self.world.turn()
        self._read()

    def _read(self) -> None:
        """Take in what the workers that live were told."""
        news, self.read = self.world.sent[self.read :], len(self.world.sent)
        for send in news:
            role, _, life = send.peer.partition("#")
            if "@" not in role or life != str(self.world.lives[role]):
                continue
            device = role.removeprefix("b@").removesuffix("/0")
            if isinstance(send.message, Load):
                assert device not in self.asked, f"{send.peer} is told to load twice"
                self.asked[device] = send.message
            elif isinstance(send.message, Park):
                assert not self.world.board[send.peer], f"{send.peer} is told to leave with work on board"
                self.told_to_leave.add(device)

    @rule(device=st.sampled_from(DEVICES), how=st.sampled_from(["ok", "ok", "no_vram", "oom", "bad_model"]))
    def answer_a_load(self, device: str, how: str) -> None:
        load = self.asked.pop(device, None)
        if load is None or device in self.told_to_leave:
            return
        if how == "ok":
            self._say(device, Loading("m", load.variant), Loaded("m", load.variant))
        else:
            self._say(device, Denied("no", how))

    @rule(how=st.sampled_from(["no_vram", "no_vram", "oom"]))
    def squeeze(self, how: str) -> None:
        """Nobody gets memory for a while."""
        for _ in range(20):
            for device in DEVICES:
                self.leave(device)
                self.answer_a_load(device, how)

    @rule(device=st.sampled_from(DEVICES))
    def leave(self, device: str) -> None:
        if device in self.told_to_leave:
            self._end(device, parked=True)

    @rule(device=st.sampled_from(DEVICES))
    def kill(self, device: str) -> None:
        self._end(device, parked=False)

    def _end(self, device: str, *, parked: bool) -> None:
        role = f"b@{device}/0"
        self.world.board[self.world.peer(role)] = []
        self.world.core.handle(SUPERVISOR, Gone(role, self.world.lives[role], "over", parked=parked), self.world.now)
        self.world.turn()
        self._come(device)

    @rule(device=st.sampled_from(DEVICES))
    def answer_a_run(self, device: str) -> None:
        peer = self.world.peer(f"b@{device}/0")
        if self.world.board[peer]:
            self.world.done(peer)
            self._read()

    # ---------------------------------------------------------------- the rest of the node

    @rule(device=st.sampled_from(DEVICES), nbytes=st.sampled_from([0, 300, 600, 1000, 2000]))
    def room(self, device: str, nbytes: int) -> None:
        self.world.core.handle("arbiter#1", Room(device, nbytes), self.world.now)
        self.world.turn()
        self._read()

    @rule()
    def admit(self) -> None:
        self.world.admit(self.admitted, budget_ms=10**9)
        self.admitted += 1
        self._read()

    @rule(seconds=st.sampled_from([0.1, DEADLINES.retry_delay_s, DEADLINES.promote_s]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)
        self._read()

    @invariant()
    def nobody_works_below_who_could(self) -> None:
        """Work goes to the stage's own worker where that has its model."""
        if not hasattr(self, "world"):
            return
        own = self.world.core.book.workers[f"b@{GPU}/0"]
        assert own.variant <= len(own.plan.smaller)

    def teardown(self) -> None:
        """Everything works from now on, and there is room for all."""
        if not hasattr(self, "world"):
            return
        core = self.world.core
        for device in DEVICES:
            self.room(device, 10_000)
        self.admit()
        for _ in range(int(PATIENCE_S / DEADLINES.promote_s)):
            for _ in range(20):
                for device in DEVICES:
                    self.answer_a_load(device, "ok")
                    self.answer_a_run(device)
                    self.leave(device)
            self.wait(DEADLINES.promote_s + 1)
        own = core.book.workers[f"b@{GPU}/0"]
        assert set(self.world.ended().values()) == {"ok"} and len(self.world.ended()) == self.admitted
        if own.hopeless:  # its model is broken: only a new process finds out whether it still is
            return
        assert own.life is Life.LOADED and own.variant == 0 and not own.leaving, (
            own.life,
            own.variant,
            own.waiting_for,
        )
        for device in (OTHER, CPU):
            assert core.book.workers[f"b@{device}/0"].life is Life.EMPTY, f"{device} still stands in"


TestLadderMachine = LadderMachine.TestCase
TestLadderMachine.settings = settings(max_examples=150, stateful_step_count=40)
