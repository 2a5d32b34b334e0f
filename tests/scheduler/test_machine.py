"""The scheduler core under chance: every accepted utterance ends exactly once, and every slot comes back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.scheduler.book import SUPERVISOR
from ipc.messages import Acked, CancelJob, Copied, Errand, Orders, SessionEnded
from tests.scheduler.world import World, audio_stage, text_stage

ROLES = ("a@cpu/0", "a@cpu/1", "b@cpu/0", "c@cpu/0")
SESSIONS = ("s", "t")


class SchedulerMachine(RuleBasedStateMachine):
    """Two sessions, three stages (audio in, audio out through two-slot rings), deaths, failures, expiries, cancels."""

    @initialize(
        mode=st.sampled_from(["pipelined", "serial"]),
        batch=st.integers(1, 3),
        late=st.sampled_from(["fail", "skip_repair", "text"]),
    )
    def begin(self, mode: str, batch: int, late: str) -> None:
        self.world = World(
            text_stage("a", workers=2, accepts="audio", max_batch=batch),
            text_stage("b", max_batch=batch, optional=True),
            audio_stage("c", ring_blocks=2),
            mode=mode,
        )
        self.world.copy_at_once = False
        self.next_index = dict.fromkeys(SESSIONS, 0)
        self.copied: set[int] = set()
        self.closed: set[str] = set()
        for session in SESSIONS:
            self.world.open(session, on_deadline="fail" if session == "s" else late)
        self.world.start_all()

    def _peers(self) -> list[str]:
        return [peer for peer, items in self.world.board.items() if items]

    @rule(session=st.sampled_from(SESSIONS), budget=st.sampled_from([300, 60_000]), skip=st.sampled_from([(), ("b",)]))
    def admit(self, session: str, budget: int, skip: tuple[str, ...]) -> None:
        if session not in self.closed:
            self.world.admit(self.next_index[session], session, audio=1000, budget_ms=budget, skip=skip)
            self.next_index[session] += 1

    @precondition(lambda self: self._peers())
    @rule(data=st.data(), how=st.sampled_from(["ok", "ok", "ok", "fail", "final", "oom", "nothing"]))
    def answer(self, data, how: str) -> None:
        peer = data.draw(st.sampled_from(self._peers()))
        if how == "ok":
            self.world.done(peer)
        elif how == "nothing":
            self.world.done(peer, text="")
        else:
            self.world.fail(peer, retry=how != "final", code="oom" if how == "oom" else "failed")

    @rule(role=st.sampled_from(ROLES))
    def kill_and_restart(self, role: str) -> None:
        self.world.kill(role)
        self.world.start(role)

    @rule(role=st.sampled_from(ROLES))
    def replaced_before_its_death_was_told(self, role: str) -> None:
        self.world.board[self.world.peer(role)] = []
        self.world.start(role)

    @rule(
        drained=st.booleans(),
        errands=st.dictionaries(st.sampled_from(ROLES), st.booleans(), max_size=2),
        knobs=st.sampled_from([{}, {"stages.a.max_batch": 1}, {"node.max_retries": 1}]),
    )
    def operators_order(self, drained: bool, errands: dict[str, bool], knobs: dict[str, int]) -> None:
        """Anything, any time; whoever was told to leave has left at once, and the next one is there."""
        made = tuple(Errand(role, self.world.lives[role], back) for role, back in errands.items())
        self._order(Orders(("cpu",) if drained else (), made, dict(knobs)))

    def _order(self, orders: Orders) -> None:
        self.world.core.handle(SUPERVISOR, orders, self.world.now)
        self.world.turn()
        self._leave()

    def _leave(self) -> None:
        for role, worker in self.world.core.book.workers.items():
            if worker.dismissed or worker.parked:
                self.world.leave(role)

    @rule(seconds=st.sampled_from([0.01, 0.6, 5.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(session=st.sampled_from(SESSIONS), back=st.integers(0, 4))
    def cancel(self, session: str, back: int) -> None:
        self.world.tell(CancelJob(session, max(0, self.next_index[session] - 1 - back)))

    @rule()
    def copy_results(self) -> None:
        tickets = tuple(m.ticket for m in self.world.outcomes if m.ref is not None and m.ticket not in self.copied)
        self.copied.update(tickets)
        self.world.tell(Copied(tickets))

    @rule(session=st.sampled_from(SESSIONS))
    def acknowledge(self, session: str) -> None:
        self.world.tell(Acked(session, self.next_index[session] - 1))

    @rule(session=st.sampled_from(SESSIONS))
    def close(self, session: str) -> None:
        self.closed.add(session)
        self.world.tell(SessionEnded(session))

    @invariant()
    def at_most_one_end_each(self) -> None:
        if hasattr(self, "world"):
            self.world.ended()  # raises when an utterance ended twice

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.copy_at_once = True
        self.copy_results()
        self._order(Orders())
        self.world.load_all()
        self.world.run_everything()
        ended = self.world.ended()
        admitted = {(s, i) for s in SESSIONS for i in range(self.next_index[s])}
        assert set(ended) == admitted, "an accepted utterance has no end"
        self.world.settle()
        assert self.world.core.book.slots.idle, "a slot was never given back"
        assert self.world.freed == admitted, "an input was never given back"
        assert not self.world.core.book.in_flight


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40)
