"""Leases against a device that really fills: holders allocate, die and lag, other programs come and go.

The machine keeps the truth (who has allocated what, what the driver shows) and the book sees only readings and
messages. Promises: one loader a device; no byte is promised twice; nobody dead holds anything; when everybody has gone
and the driver has shown it, everything can be granted again.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from engine.arbiter.lease import LeaseState
from engine.arbiter.leases import FromWorker, Leases, Send, Tick, Waits
from engine.arbiter.room import Limits, Reading
from ipc.messages import Denied, Gone, Granted, LeaseRequest, Release, Settled

DEVICE, TOTAL = "cuda:0", 100
ROLES = [f"{stage}@cuda:0/{n}" for stage in ("asr", "nmt", "tts") for n in (0, 1)]


class Holder:
    """The truth about one life of a worker."""

    def __init__(self, role: str, incarnation: int) -> None:
        self.role, self.incarnation = role, incarnation
        self.asked: int | None = None
        self.granted = 0
        self.lease = 0
        self.loading = False
        self.allocated = 0  # really on the device
        self.alive = True

    @property
    def peer(self) -> str:
        return f"{self.role}#{self.incarnation}"


class LeasesMachine(RuleBasedStateMachine):
    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(DEVICE, TOTAL, ceiling_bytes=90, reserve_bytes=2, safety_margin=0.1, max_models=2)
        self.waits = Waits(lease_wait_s=20.0, settle_s=3.0, unreadable_s=2.0)
        self.book = Leases([self.limits], self.waits)
        self.now = 10.0
        self.read_at = 0.0
        self.incarnations = dict.fromkeys(ROLES, 0)
        self.lives: list[Holder] = []
        self.foreign = self.foreign_seen = 0
        self.lagging = 0  # bytes of the dead that the driver still shows
        self.ids = 0
        self.clouded = False  # another program grew while a lease could hide it: the book may be mistaken about whose

    # ------------------------------------------------------------ the world

    @property
    def used(self) -> int:
        return self.foreign + self.lagging + sum(one.allocated for one in self.lives)

    def feed(self, event) -> None:
        self.now += 0.001
        for action in self.book.handle(event, self.now):
            if isinstance(action, Send):
                self.deliver(action)

    def deliver(self, action: Send) -> None:
        holder = next(one for one in self.lives if one.peer == action.peer)
        message = action.message
        assert holder.alive, "an answer to the dead"
        if isinstance(message, Granted):
            assert not any(one.loading for one in self.lives if one.alive), "two loads at once"
            assert message.nbytes == holder.asked
            holder.granted, holder.lease, holder.loading = message.nbytes, message.lease, True
            holder.asked = None
            self.judge_grant()
        elif isinstance(message, Denied):
            assert "needs" in message.reason or "cannot be read" in message.reason or "max_models" in message.reason \
                or "waiting behind" in message.reason or "reading" in message.reason, message.reason  # fmt: skip
            holder.asked = None

    def judge_grant(self) -> None:
        """At this moment all that is promised must fit into what is really there."""
        assert self.now - self.read_at <= self.waits.unreadable_s, "granted upon an old reading"
        if self.clouded or self.foreign != self.foreign_seen:
            self.clouded = True
            return
        ours = sum(max(one.granted, one.allocated) for one in self.lives if one.alive)
        assert ours + self.foreign_seen + self.lagging <= self.limits.usable_bytes, "promised twice"
        models = {one.role.partition("@")[0] for one in self.lives if one.alive and one.granted}
        assert len(models) <= self.limits.max_models

    # ------------------------------------------------------------ events

    @rule(target=holders, role=st.sampled_from(ROLES))
    def start(self, role: str) -> Holder:
        for old in self.lives:  # a role lives once
            if old.role == role and old.alive:
                self.die(old)
        self.incarnations[role] += 1
        holder = Holder(role, self.incarnations[role])
        self.lives.append(holder)
        return holder

    @rule(holder=holders, nbytes=st.integers(1, 60) | st.integers(61, 95), fresh=st.booleans())
    def ask(self, holder: Holder, nbytes: int, fresh: bool) -> None:
        if fresh:
            self.read()
        if not holder.alive or holder.granted or holder.asked is not None:
            return
        self.ids += 1
        holder.asked = nbytes
        self.feed(FromWorker(holder.peer, LeaseRequest(self.ids, holder.role, DEVICE, nbytes)))
        if nbytes > self.limits.most_bytes:
            assert holder.asked is None and not holder.granted, "the impossible is denied at once"

    @rule(holder=holders, share=st.floats(0, 1))
    def allocate(self, holder: Holder, share: float) -> None:
        if holder.alive and holder.granted:
            holder.allocated = max(holder.allocated, int(holder.granted * share))

    @rule(holder=holders, fresh=st.booleans())
    def settle(self, holder: Holder, fresh: bool) -> None:
        if holder.alive and holder.loading:
            holder.loading = False
            self.feed(FromWorker(holder.peer, Settled(holder.lease, holder.allocated)))
            if fresh:
                self.read()

    @rule(holder=holders)
    def fail_load(self, holder: Holder) -> None:
        if holder.alive and holder.loading:
            self.let_go(holder)
            lease = holder.lease
            self.feed(FromWorker(holder.peer, Settled(lease, -1, ok=False)))
            self.feed(FromWorker(holder.peer, Release(lease)))

    @rule(holder=consumes(holders))
    def die(self, holder: Holder) -> None:
        if not holder.alive:
            return
        holder.alive = False
        self.let_go(holder)
        self.feed(Gone(holder.role, holder.incarnation))
        self.ids += 1  # a frame that was under way
        self.feed(FromWorker(holder.peer, LeaseRequest(self.ids, holder.role, DEVICE, 5)))

    def let_go(self, holder: Holder) -> None:
        self.lagging += holder.allocated
        holder.allocated = holder.granted = 0
        holder.asked = None
        holder.loading = False

    @rule(foreign=st.integers(0, 60))
    def others(self, foreign: int) -> None:
        foreign = min(foreign, TOTAL - (self.used - self.foreign))
        hidden = any(one.granted > one.allocated for one in self.lives if one.alive) or self.lagging
        if foreign != self.foreign and hidden:
            self.clouded = True
        self.foreign = foreign

    @precondition(lambda self: self.lagging)
    @rule()
    def driver_catches_up(self) -> None:
        self.lagging = 0

    @rule()
    def read(self) -> None:
        if self.used <= TOTAL:
            self.read_at = self.now + 0.0005
            self.foreign_seen = self.foreign
            self.feed(Reading(DEVICE, TOTAL, TOTAL - self.used, self.read_at))

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    # ------------------------------------------------------------ promises

    @invariant()
    def holds_together(self) -> None:
        self.book.check()
        self.book.snapshot(self.now)

    @invariant()
    def nobody_waits_beyond_patience(self) -> None:
        for row in self.book.snapshot(self.now)["waiting"]:
            assert any(one.peer == row["worker"] and one.alive and one.asked == row["nbytes"] for one in self.lives)

    def teardown(self) -> None:
        for holder in [one for one in self.lives if one.alive]:
            self.die(holder)
        self.lagging = self.foreign = 0
        self.read()
        self.now += 4.0
        self.read()
        self.book.check()
        report = self.book.snapshot(self.now)
        assert report["leases"] == [] and report["waiting"] == []
        assert report["devices"][DEVICE]["grantable_bytes"] == self.limits.most_bytes
        assert LeaseState.GRANTED.value not in str(report["leases"])


TestLeases = LeasesMachine.TestCase
TestLeases.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
