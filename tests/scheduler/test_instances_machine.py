"""Extra workers under chance: they take nothing from anybody, and are gone when nobody needs them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.scheduler.book import SUPERVISOR
from engine.scheduler.workers import Life
from ipc.messages import Denied, Gone, Grow, Here, Load, Loaded, Loading, Orders, Park, Room, Serve, Vacate
from tests.scheduler.test_instances import GPU, NEEDS, OTHER, SMALLER, plans
from tests.scheduler.world import DEADLINES, World, text_stage

DEVICES = (GPU, OTHER)
REGULARS = ("b@cuda:0/0", "b@cuda:1/0", "c@cuda:0/0")
EXTRAS = ("b@cuda:0/1", "b@cuda:0/2", "b@cuda:1/1", "b@cuda:1/2")
ROLES = st.sampled_from(REGULARS + EXTRAS)
OUTSIDER = "lease@77/1"


def device_of(role: str) -> str:
    return role.partition("@")[2].rpartition("/")[0]


class InstancesMachine(RuleBasedStateMachine):
    """Two stages: b on both devices, with up to two extra workers on each; c on one, with a smaller variant."""

    @initialize(keep_alive_s=st.sampled_from([-1.0, 0.0, 5.0]), pinned=st.booleans(), batch=st.integers(1, 3))
    def begin(self, keep_alive_s: float, pinned: bool, batch: int) -> None:
        self.world = World(
            text_stage(
                "b", workers=plans(extras=2, devices=DEVICES), timeout_base_s=1e6, pinned=pinned, max_batch=batch
            ),
            text_stage(
                "c", workers=plans("c", extras=0, smaller=SMALLER), timeout_base_s=1e6, keep_alive_s=keep_alive_s
            ),
        )
        self.world.core.handle(SUPERVISOR, Serve(), self.world.now)
        self.world.open()
        self.read = 0  # of what was sent
        self.rooms = dict.fromkeys(DEVICES, 0)
        self.wanted = dict.fromkeys(DEVICES, "")  # by whom
        self.drained: tuple[str, ...] = ()
        self.asked: dict[str, Load] = {}  # role -> the load that it has not answered
        self.told_to_leave: set[str] = set()
        self.called_at: dict[str, float] = {}
        self.admitted = 0
        for role in (*REGULARS, *EXTRAS):
            self._come(role)
        for role in REGULARS:
            self.answer_a_load(role, "ok")

    # ---------------------------------------------------------------- the workers

    def _come(self, role: str) -> None:
        self.world.lives[role] = self.world.lives.get(role, 0) + 1
        self.world.board[self.world.peer(role)] = []
        self.asked.pop(role, None)
        self.told_to_leave.discard(role)
        self._say(role, Here())

    def _say(self, role: str, *messages: Any) -> None:
        for message in messages:
            self._hear(self.world.peer(role), message)

    def _hear(self, peer: str, message: Any) -> None:
        self.world.core.handle(peer, message, self.world.now)
        self.world.turn()
        self._read()

    def _read(self) -> None:
        """Take in what the workers that live were told."""
        news, self.read = self.world.sent[self.read :], len(self.world.sent)
        for send in news:
            role, _, life = send.peer.partition("#")
            if "@" not in role or life != str(self.world.lives.get(role)):
                continue
            if isinstance(send.message, Load):
                assert role not in self.asked, f"{send.peer} is told to load twice"
                self.asked[role] = send.message
                if role in EXTRAS:
                    self._is_called(role, send.message)
            elif isinstance(send.message, Park):
                assert not self.world.board[send.peer], f"{send.peer} is told to leave with work on board"
                self.told_to_leave.add(role)
            assert not (isinstance(send.message, Grow) and send.message.nbytes and role in EXTRAS), (
                "it asks for more than there is"
            )

    def _is_called(self, role: str, load: Load) -> None:
        """Promises about every call of an extra worker."""
        device, now = device_of(role), self.world.now
        assert load.wait_s == 0, "somebody may be asked to make room for it"
        assert self.rooms[device] >= NEEDS + self._owed(device), "there is no room that nobody else may want"
        assert device not in self.drained, "an operator wants it empty"
        assert self.world.core.book.queues["b"].waiting, "nothing waits"
        regulars = [self.world.core.book.workers[one] for one in REGULARS if one.startswith(f"b@{device}")]
        assert all(one.life is Life.LOADED and one.batches for one in regulars), "the regular worker is not busy"
        assert now >= self.called_at.get(device, -1e9), "one has left just now"

    def _owed(self, device: str) -> int:
        """Bytes that regular workers may yet want there."""
        here = [self.world.core.book.workers[one] for one in REGULARS if device_of(one) == device]
        away = sum(one.life is not Life.LOADED for one in here)
        smaller = sum(one.life is Life.LOADED and one.variant > 0 for one in here)
        return away * NEEDS + smaller * (NEEDS - SMALLER[0].estimate_bytes)

    @rule(role=ROLES, how=st.sampled_from(["ok", "ok", "ok", "no_vram", "oom"]))
    def answer_a_load(self, role: str, how: str) -> None:
        load = self.asked.pop(role, None)
        if load is None or role in self.told_to_leave:
            return
        if how == "ok":
            self._say(role, Loading("m", load.variant), Loaded("m", load.variant, load_ms=500.0))
        else:
            self._rests(role)
            self._say(role, Denied("no", how))

    @rule(role=ROLES)
    def leave(self, role: str) -> None:
        if role in self.told_to_leave:
            self._end(role, parked=True)

    @rule(role=ROLES)
    def kill(self, role: str) -> None:
        self._end(role, parked=False)

    def _end(self, role: str, *, parked: bool) -> None:
        self.world.board[self.world.peer(role)] = []
        if self.world.core.book.workers[role].life in (Life.LOADING, Life.LOADED):
            self._rests(role)
        self._hear(SUPERVISOR, Gone(role, self.world.lives[role], "over", parked=parked))
        self._come(role)

    def _rests(self, role: str) -> None:
        if role in EXTRAS:
            self.called_at[device_of(role)] = self.world.now + DEADLINES.promote_s

    @rule(role=ROLES, seconds=st.sampled_from([0.01, 1.0, 3.0]))
    def answer_a_run(self, role: str, seconds: float) -> None:
        if self.world.board[self.world.peer(role)]:
            end = int(self.world.now * 1e9)
            self.world.done(self.world.peer(role), begun_ns=end - int(seconds * 1e9), ended_ns=end)
            self._read()

    @rule(role=ROLES)
    def run_out_of_memory(self, role: str) -> None:
        if self.world.board[self.world.peer(role)]:
            self.world.fail(self.world.peer(role), code="oom")
            self._read()

    # ---------------------------------------------------------------- the rest of the node

    @rule(device=st.sampled_from(DEVICES), nbytes=st.sampled_from([0, 500, NEEDS, 2 * NEEDS, 5 * NEEDS]))
    def room(self, device: str, nbytes: int) -> None:
        self.rooms[device] = nbytes
        self._hear("arbiter#1", Room(device, nbytes))

    @rule(device=st.sampled_from(DEVICES), by=st.sampled_from(["", OUTSIDER, *REGULARS, *EXTRAS]), again=st.booleans())
    def want(self, device: str, by: str, again: bool) -> None:
        """Somebody wants memory; what waits for it leaves none to others. ``again``: who has left has been counted."""
        self.rooms[device], self.wanted[device] = 0, by
        self._hear("arbiter#1", Room(device, 0))
        before = set(self.told_to_leave)
        extras = [self.world.core.book.workers[one] for one in EXTRAS if device_of(one) == device and one != by]
        ready = any(self._works(one.plan.role) for one in extras)
        was_quiet = not self._is_on_its_way(device)
        self._hear("arbiter#1", Vacate(device, 500 if by else 0, by, again))
        if by and by not in EXTRAS and ready and was_quiet and again:
            assert any(one.leaving for one in extras), "an extra worker is at ease while somebody lacks memory"
        went = {role for role in self.told_to_leave - before if device_of(role) == device}
        if by in EXTRAS:
            assert not went & set(REGULARS), "somebody leaves for an extra worker"
        elif went & set(REGULARS):
            staying = [one for one in EXTRAS if self._works(one) and device_of(one) == device and one != by]
            assert not staying, "an extra worker stays while another has to leave"

    def _is_on_its_way(self, device: str) -> bool:
        """Somebody leaves there."""
        leaving = {one.plan.role for one in self.world.core.book.at(device) if one.leaving} | self.told_to_leave
        return device in map(device_of, leaving)

    def _works(self, role: str) -> bool:
        worker = self.world.core.book.workers[role]
        return worker.life is Life.LOADED and not (worker.leaving or worker.ordered or role in self.told_to_leave)

    @rule(drained=st.sampled_from([(), (), (GPU,), (OTHER,)]))
    def order(self, drained: tuple[str, ...]) -> None:
        self.drained = drained
        self._hear(SUPERVISOR, Orders(drained=drained))

    @rule(count=st.integers(1, 3))
    def admit(self, count: int) -> None:
        for _ in range(count):
            self.world.admit(self.admitted, budget_ms=10**9)
            self.admitted += 1
            self._read()  # before the next one fills a batch, and nothing waits any more

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, DEADLINES.promote_s]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)
        self._read()

    @rule(nbytes=st.sampled_from([NEEDS, NEEDS + 400, 2 * NEEDS, 5 * NEEDS]), come=st.booleans())
    def backlog(self, nbytes: int, come: bool) -> None:
        """Enough work, and room, for one to come unless something is in the way."""
        for role in (*REGULARS, *EXTRAS) if come else ():
            self.leave(role)
            self.answer_a_load(role, "ok")
        for device in DEVICES:
            self.room(device, nbytes)
        self.admit(5)
        self.wait(5.0)
        for role in EXTRAS if come else ():
            self.answer_a_load(role, "ok")

    @invariant()
    def a_wish_for_memory_finds_no_extra_worker_at_ease(self) -> None:
        """While somebody lacks memory on a device, one of the extra workers there is leaving."""
        if not hasattr(self, "world"):
            return
        for device, by in self.wanted.items():
            here = [one for one in EXTRAS if device_of(one) == device and one != by]
            if not by or by in EXTRAS or not any(map(self._works, here)):
                continue
            assert self._is_on_its_way(device) or self.answered(device), f"{by} waits, and nobody leaves for it"

    def answered(self, device: str) -> bool:
        """Somebody has left for it, and the arbiter has not said since that it lacks more."""
        return device in self.world.core.residency._answered

    def teardown(self) -> None:
        """Everything works from now on; work ends, and so do extra workers."""
        if not hasattr(self, "world"):
            return
        self.order(())
        for device in DEVICES:
            self.want(device, "", again=True)
            self.room(device, 10 * NEEDS)
        for _ in range(40):
            for _ in range(6 + self.admitted // 20):
                for role in (*REGULARS, *EXTRAS):
                    self.answer_a_load(role, "ok")
                    self.answer_a_run(role, 0.01)
                    self.leave(role)
            self.wait(DEADLINES.promote_s + 1)
        ended = self.world.ended()
        assert len(ended) == self.admitted and set(ended.values()) <= {"ok", "error(no_vram)", "error(poison)"}
        book = self.world.core.book
        assert not [one for one in EXTRAS if book.workers[one].life is not Life.EMPTY], "an idle one stays"
        assert not self.admitted or any(book.workers[one].life is Life.LOADED for one in REGULARS[:2])


TestInstancesMachine = InstancesMachine.TestCase
TestInstancesMachine.settings = settings(max_examples=150, stateful_step_count=40)
