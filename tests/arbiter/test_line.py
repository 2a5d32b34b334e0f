"""The line in front of a device, against one that walks along it each time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.arbiter import line
from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.line import AGEING, HOLDING, PASSING, PRIORITIES, Line

WAIT_S = 60.0
MODELS = [("asr", "a"), ("nmt", "b"), ("tts", "c")]


class LineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.line = Line(WAIT_S)
        self.near, line.NEAR = line.NEAR, 2  # so that some stand further back
        self.now = self.clock = 0.0
        self.running = False
        self.loader: Lease | None = None  # of the load under way
        self.stopped = 0.0  # when that began
        # (rank, end of patience, limit of being passed, lease), in the order they came
        self.came: list[tuple[float, float, float, Lease]] = []

    def teardown(self) -> None:
        line.NEAR = self.near

    @initialize()
    def nobody_loads(self) -> None:
        self.no_load()

    @rule(
        nbytes=st.integers(1, 9),
        model=st.sampled_from([*MODELS, None]),
        priority=st.sampled_from(sorted(PRIORITIES)),
        wait_s=st.sampled_from([None, 0.0, 5.0, 600.0]),
    )
    def comes(self, nbytes: int, model: tuple[str, str] | None, priority: str, wait_s: float | None) -> None:
        peer, name = (f"{model[0]}@gpu/0#1", model[1]) if model else ("lease@1/1#1", "x")
        lease = Lease(peer, 1, "gpu", nbytes, name, LeaseState.REQUESTED, self.now, priority=priority)
        wait_s = wait_s if lease.external else None  # only programs outside the node say how long
        self.line.add(lease, self.now, wait_s)
        ages = {"high": -AGEING, "normal": 0.0, "low": AGEING}
        patience = WAIT_S if wait_s is None else wait_s
        end = self.clock + patience
        limit = end - (HOLDING * min(patience, WAIT_S) if lease.external else (1 - PASSING) * WAIT_S)
        self.came.append((self.now + ages[priority] * WAIT_S, end, limit, lease))

    @precondition(lambda self: self.came)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        found = self.came.pop(data.draw(st.integers(0, len(self.came) - 1)))
        self.line.remove(found[3])

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.clock += seconds if self.running else 0.0

    @rule(since_s=st.sampled_from([-200.0, -20.0, 0.0]))
    def a_load_begins(self, since_s: float) -> None:
        loader = Lease("asr@gpu/0#1", 1, "gpu", 1, "a", LeaseState.GRANTED, self.now, rank=(self.now + since_s, 0.0))
        self.line.stop(self.now, loader)
        if self.loader is None:
            self.loader, self.stopped, self.running = loader, self.now, False

    @rule()
    def no_load(self) -> None:
        self.line.run(self.now)
        self.running = True
        if (loader := self.loader) is not None:
            self.loader = None
            self.came = [self.charged(loader, *one) for one in self.came]

    def charged(
        self, loader: Lease, rank: float, end: float, limit: float, lease: Lease
    ) -> tuple[float, float, float, Lease]:
        """Who was there before the one that has loaded has waited for it, until its limit."""
        taken = 0.0
        if lease.rank < loader.rank:
            taken = max(0.0, min(self.now - max(self.stopped, lease.since), limit - self.clock))
        return rank, end - taken, limit - taken, lease

    @rule(models=st.none() | st.frozensets(st.sampled_from(MODELS)))
    def whose_turn(self, models: frozenset[tuple[str, str]] | None) -> None:
        for room in range(10):
            self.whose_turn_of(room, models)

    def whose_turn_of(self, room: int, models: frozenset[tuple[str, str]] | None) -> None:
        def may_come(lease: Lease) -> bool:
            return models is None or lease.external or lease.kind_of_model in models

        in_order = [lease for *_, lease in sorted(self.came, key=lambda one: one[0])]
        assert list(self.line) == in_order
        old = sorted([one for one in self.came if self.clock >= one[2]], key=lambda one: one[0])
        own = [lease for *_, lease in old if not lease.external]
        programs = [lease for *_, lease in old if lease.external and not own]
        lacking = [lease for lease in own + programs if lease.nbytes > room and may_come(lease)]
        elder = lacking[0] if lacking else None
        assert self.line.elder(room, models, self.now) is elder
        allowed = in_order[: in_order.index(elder)] if elder else in_order
        fitting = [lease for lease in allowed if lease.nbytes <= room and may_come(lease)]
        assert self.line.first(room, models, elder) is (fitting[0] if fitting else None)

    @invariant()
    def patience(self) -> None:
        self.line.check()
        assert {id(one) for one in self.line.spent(self.now)} == {
            id(one) for _, end, _, one in self.came if end <= self.clock
        }
        for place, lease in enumerate(self.line):
            assert self.line.position(lease) == place
        due = self.line.due_in(self.now)
        ends = [end - self.clock for _, end, _, _ in self.came]
        passing = [limit - self.clock for _, _, limit, _ in self.came if limit > self.clock]
        assert due == (max(0.0, min(ends + passing)) if self.came and self.running else None)


TestLine = LineMachine.TestCase
TestLine.settings = settings(max_examples=150, stateful_step_count=40)


def test_one_that_lacks_room_is_found_behind_many_late_ones_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "NEAR", 2)
    waiting = Line(WAIT_S)
    waiting.run(0.0)
    leases = [
        Lease(f"asr@gpu/{number}#1", 1, "gpu", nbytes, "a", LeaseState.REQUESTED, float(number))
        for number, nbytes in enumerate((1, 2, 3, 4, 9, 8))
    ]
    for number, lease in enumerate(leases):
        waiting.add(lease, float(number), None)
    assert waiting.elder(5, None, WAIT_S) is leases[4]
