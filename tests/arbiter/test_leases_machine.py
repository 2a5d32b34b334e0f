"""Leases against a device that really fills: holders allocate, die and lag, other programs come and go.

The machine keeps the truth (who has allocated what, what the driver shows) and the book sees only readings and
messages; the driver lists what processes have, or does not. Promises: one loader a device; no byte is promised twice;
nobody dead holds anything; when everybody has gone and the driver has shown it, everything can be granted again.

The arbiter dies too: between two events, or at one of them, before or after the journal has it, and always before its
answers have left. Another one goes on from the journal; holders speak to it again whenever they come to it, the
supervisor says again who is dead. Then every lease that its holder knows of is there, with its number and its bytes,
and the same question gets the same lease.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from engine.arbiter import kept
from engine.arbiter.events import FromWorker, Send, Tick, Waits
from engine.arbiter.lease import ALIVE, LeaseState
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.limits import Limits
from ipc.messages import Denied, Gone, Granted, LeaseRequest, Orders, Release, Settled

DEVICE, TOTAL = "cuda:0", 100
GAME, FIRST_PID = 9, 1000  # processes
ROLES = [f"{stage}@cuda:0/{n}" for stage in ("asr", "nmt", "tts") for n in (0, 1)]


class Holder:
    """The truth about one life of a worker."""

    def __init__(self, role: str, incarnation: int, pid: int) -> None:
        self.role, self.incarnation, self.pid = role, incarnation, pid
        self.asked: int | None = None
        self.question: LeaseRequest | None = None  # until it is answered
        self.granted = 0  # by the book, even if it has not heard of it
        self.lease = 0  # once it has
        self.loading = False
        self.allocated = 0  # really on the device
        self.alive = True
        self.last_words: list = []  # about its lease
        self.met = True  # the arbiter of now

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
        self.journal = kept.encode(self.book.keep())
        self.doom = ""  # the arbiter dies at the next event, "before" or "after" it is in the journal
        self.dead_told = True  # the arbiter of now knows who is dead
        self.drained: tuple[str, ...] = ()
        self.buried: dict[str, int] = {}  # the newest life of a role whose death is in the journal
        self.answers: dict[tuple[str, int], Granted] = {}  # by holder and its question
        self.now = 10.0
        self.read_at = 0.0
        self.incarnations = dict.fromkeys(ROLES, 0)
        self.lives: list[Holder] = []
        self.foreign = self.foreign_seen = 0
        self.lagging = 0  # bytes of the dead that the driver still shows
        self.ids = 0
        self.listed_before: set[int] = set()  # in the newest reading
        self.by_list = False  # the driver has shown that it knows our processes: the book is never mistaken
        self.clouded = False  # another program grew while a lease could hide it: the book may be mistaken about whose

    # ------------------------------------------------------------ the world

    @initialize(lists=st.booleans(), outsiders_too=st.booleans())
    def driver(self, lists: bool, outsiders_too: bool) -> None:
        """It lists what processes have, or not; and perhaps not all of them."""
        self.lists, self.outsiders_too = lists, outsiders_too

    @property
    def listed(self) -> dict[int, int]:
        found = {one.pid: one.allocated for one in self.lives} | {GAME: self.foreign * self.outsiders_too}
        return {pid: nbytes for pid, nbytes in found.items() if nbytes}

    @property
    def used(self) -> int:
        return self.foreign + self.lagging + sum(one.allocated for one in self.lives)

    def feed(self, event) -> None:
        self.now += 0.001
        actions = [one for one in self.book.handle(event, self.now) if isinstance(one, Send)]
        doom, self.doom = self.doom, ""
        if doom != "before":
            if isinstance(event, Gone):
                self.buried[event.role] = max(event.incarnation, self.buried.get(event.role, 0))
            self.journal = kept.encode(self.book.keep())
            for action in actions:
                self.note(action)
        if doom:
            self.next_arbiter()
            return
        for action in actions:
            self.deliver(action)

    def say(self, holder: Holder, *messages) -> None:
        """A holder speaks. To an arbiter it has not met it says all it has to say, these words among them."""
        if not holder.met:
            question = [] if holder.question is None else [holder.question]
            messages = (*holder.last_words, *question)
            holder.met = True
        for message in messages:
            if holder.met:  # else the arbiter has died meanwhile
                self.feed(FromWorker(holder.peer, message))

    def note(self, action: Send) -> None:
        """An answer is in the journal: from here on it is a promise, whether it is heard or not."""
        message = action.message
        if not isinstance(message, Granted):
            return
        holder = self.life(action.peer)
        known = self.answers.setdefault((holder.peer, message.id), message)
        assert known == message, "the same question, another lease"
        assert holder.question is not None and message.id == holder.question.id and message.nbytes == holder.asked
        if not holder.granted:
            holder.granted = message.nbytes
            self.judge_grant()

    def life(self, peer: str) -> Holder:
        return next(one for one in self.lives if one.peer == peer)

    def deliver(self, action: Send) -> None:
        holder = self.life(action.peer)
        message = action.message
        assert holder.alive, "an answer to the dead"
        assert holder.met, "an answer to somebody who has not asked this arbiter"
        if isinstance(message, Granted):
            assert not any(one.loading for one in self.lives if one.alive), "two loads at once"
            holder.lease, holder.loading = message.lease, True
            holder.asked, holder.question, holder.last_words = None, None, []
        elif isinstance(message, Denied):
            assert "needs" in message.reason or "cannot be read" in message.reason or "max_models" in message.reason \
                or "waiting behind" in message.reason or "reading" in message.reason \
                or "is drained" in message.reason, message.reason  # fmt: skip
            holder.asked = holder.question = None

    # ------------------------------------------------------------ the arbiter's own death

    def next_arbiter(self) -> None:
        """The arbiter dies; another one goes on from the journal."""
        self.book = Leases([self.limits], self.waits)
        self.book.restore(kept.decode(self.journal))
        assert not self.book.handle(Orders(drained=self.drained), self.now)  # it is born with them
        self.book.check()
        self.dead_told = False
        for holder in self.lives:
            holder.met = False
        (device,) = self.book.keep().devices
        known = {one.number: (one.peer, one.nbytes) for one in device.leases if one.state in ALIVE}
        for holder in [one for one in self.lives if one.alive and one.lease]:
            assert known[holder.lease] == (holder.peer, holder.granted), "a lease changed in the journal"

    def tell_dead(self) -> None:
        """The supervisor says again who is dead, before anything else."""
        while not self.dead_told:
            self.dead_told = True
            for holder in [one for one in self.lives if not one.alive]:
                self.feed(Gone(holder.role, holder.incarnation))

    @rule()
    def arbiter_dies(self) -> None:
        self.next_arbiter()

    @rule(doom=st.sampled_from(["before", "after"]))
    def arbiter_will_die(self, doom: str) -> None:
        self.doom = doom

    @precondition(lambda self: not self.dead_told)
    @rule()
    def supervisor_speaks(self) -> None:
        self.tell_dead()

    @rule(holder=holders)
    def holder_speaks_again(self, holder: Holder) -> None:
        if holder.alive and not holder.met:
            self.say(holder)

    def judge_grant(self) -> None:
        """At this moment all that is promised must fit into what is really there."""
        assert self.now - self.read_at <= self.waits.unreadable_s, "granted upon an old reading"
        assert not self.drained, "granted on a drained device"
        if self.foreign != self.foreign_seen:
            self.clouded = True  # until they are listed
            return
        if self.clouded:
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
        holder = Holder(role, self.incarnations[role], FIRST_PID + len(self.lives))
        self.lives.append(holder)
        return holder

    @rule(holder=holders, nbytes=st.integers(1, 60) | st.integers(61, 95), fresh=st.booleans())
    def ask(self, holder: Holder, nbytes: int, fresh: bool) -> None:
        if fresh:
            self.read()
        if not holder.alive or holder.granted or holder.asked is not None:
            return
        self.ids += 1
        holder.asked, holder.question = nbytes, LeaseRequest(self.ids, holder.role, DEVICE, nbytes, pid=holder.pid)
        self.say(holder, holder.question)
        if nbytes > self.limits.most_bytes and holder.met:
            assert holder.asked is None and not holder.granted, "the impossible is denied at once"

    @rule(holder=holders, share=st.floats(0, 1))
    def allocate(self, holder: Holder, share: float) -> None:
        if holder.alive and holder.lease:
            holder.allocated = max(holder.allocated, int(holder.granted * share))

    @rule(holder=holders, fresh=st.booleans())
    def settle(self, holder: Holder, fresh: bool) -> None:
        if holder.alive and holder.loading:
            holder.loading = False
            self.tell(holder, Settled(holder.lease, holder.allocated))
            if fresh:
                self.read()

    @rule(holder=holders)
    def fail_load(self, holder: Holder) -> None:
        if holder.alive and holder.loading:
            lease = holder.lease
            self.let_go(holder)
            self.tell(holder, Settled(lease, -1, ok=False), Release(lease))

    @rule(holder=holders)
    def unload(self, holder: Holder) -> None:
        if holder.alive and holder.lease and not holder.loading:
            lease = holder.lease
            self.let_go(holder)
            self.tell(holder, Release(lease))

    def tell(self, holder: Holder, *words) -> None:
        """How it stands with the holder's lease, said again to each new arbiter."""
        holder.last_words = list(words)
        self.say(holder, *words)

    @rule()
    def operators_drain_or_resume(self) -> None:
        self.drained = () if self.drained else (DEVICE,)
        self.feed(Orders(drained=self.drained))

    @rule(holder=consumes(holders))
    def die(self, holder: Holder) -> None:
        if not holder.alive:
            return
        self.tell_dead()
        holder.alive = False
        self.let_go(holder)
        self.feed(Gone(holder.role, holder.incarnation))
        self.late_frame(holder)

    def late_frame(self, holder: Holder) -> None:
        """A frame of the dead that was under way when it was known already."""
        if holder.incarnation <= self.buried.get(holder.role, 0):
            self.ids += 1
            self.feed(FromWorker(holder.peer, LeaseRequest(self.ids, holder.role, DEVICE, 5)))

    @precondition(lambda self: self.buried)
    @rule(data=st.data())
    def late_frame_after_all(self, data) -> None:
        self.late_frame(data.draw(st.sampled_from([one for one in self.lives if not one.alive])))

    def let_go(self, holder: Holder) -> None:
        self.lagging += holder.allocated
        holder.allocated = holder.granted = holder.lease = 0
        holder.asked = holder.question = None
        holder.loading = False

    @rule(foreign=st.integers(0, 60))
    def others(self, foreign: int) -> None:
        foreign = min(foreign, TOTAL - (self.used - self.foreign))
        hidden = any(one.granted > one.allocated for one in self.lives if one.alive) or self.lagging
        hidden = hidden or not self.dead_told or any(one.last_words for one in self.lives if one.alive and not one.met)
        if foreign != self.foreign and hidden and not self.by_list:
            self.clouded = True
        self.foreign = foreign

    @precondition(lambda self: self.lagging)
    @rule()
    def driver_catches_up(self) -> None:
        self.lagging = 0

    @rule()
    def read(self) -> None:
        if self.used <= TOTAL:
            reading = Reading(DEVICE, TOTAL, TOTAL - self.used, self.now + 0.0005, self.listed if self.lists else None)
            heard, newly_listed = self.doom != "before", self.listed.keys() - self.listed_before - {GAME}
            if heard:
                self.read_at, self.foreign_seen, self.listed_before = reading.taken_at, self.foreign, set(self.listed)
                self.by_list = self.lists and (self.by_list or bool(newly_listed))
                self.clouded = self.clouded and not self.by_list
            self.feed(reading)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    # ------------------------------------------------------------ promises

    @invariant()
    def holds_together(self) -> None:
        self.book.check()
        rows = [row for row in self.book.snapshot(self.now)["leases"] if row["state"] in ("granted", "held")]
        assert sum(row["nbytes"] for row in rows) <= self.limits.usable_bytes, "more granted than there is"

    @invariant()
    def nobody_waits_beyond_patience(self) -> None:
        for row in self.book.snapshot(self.now)["waiting"]:
            assert any(one.peer == row["worker"] and one.alive and one.asked == row["nbytes"] for one in self.lives)

    def teardown(self) -> None:
        self.doom, self.drained = "", ()
        self.feed(Orders())
        for holder in [one for one in self.lives if one.alive]:
            self.die(holder)
        self.tell_dead()
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
TestLeases.settings = settings(max_examples=150, stateful_step_count=60, suppress_health_check=list(HealthCheck))
