"""The client's core against the gateway's: two pure machines, a lossy wire between them, everything in any order.

Whatever happens (Busy, rejections, gaps, skips, cancels, lost connections, a gateway that comes back without memory),
every submitted index has exactly one outcome at the client, and outcomes come in index order.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.boot import GatewayBoot, StagePlan
from engine.client_core import SessionCore, State
from engine.client_link import frames
from engine.client_utterance import Utterance
from engine.config import DeadlinesSection
from engine.gateway import wire
from engine.gateway.books import Books
from engine.gateway.events import Arrived, ClientLost, JobEnded, Post, Tell, TurnEnd
from engine.gateway.gateway import Gateway
from ipc import messages
from ipc.messages import Admit, CancelJob, Capacity, Free, JobAccepted, Outcome

STAGES = (StagePlan(name="asr", kind="simulated", accepts="audio", emits="text"),)
DEADLINES = DeadlinesSection(gap_s=2.0, detach_s=600.0, keep_s=600.0)
BOOT = GatewayBoot(
    stages=STAGES, pipelines={"full": ("asr",)}, sources={}, targets={}, endpoints=(), max_utterance_s=8.0,
    max_text_chars=100, window=6, max_sessions=4, outbox_session_bytes=2**20, outbox_node_bytes=2**22,
)  # fmt: skip
OPENING = {"tag": "t", "pipeline": "full", "source": "", "target": "", "models": {}, "priority": "normal",
           "window": 5, "first_index": 0, "partials": False}  # fmt: skip


class World:
    """One client, one gateway, and a scheduler that does what it is told; ``now`` stands still until moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lives = itertools.count(1)
        self.connections = itertools.count(1)
        self.to_node: list[tuple[bytes, bytes | None]] = []
        self.to_client: list[dict[str, Any]] = []
        self.running: dict[tuple[str, int], Admit] = {}
        self.capacity = 3
        self.core = SessionCore(dict(OPENING))
        self.start_gateway()
        self.connect()
        self.say(self.core.open(self.now))

    def start_gateway(self) -> None:
        incarnation = next(self.lives)
        tokens = (f"{incarnation}-{n}" for n in itertools.count())
        self.gateway = Gateway(
            Books(BOOT, DEADLINES, incarnation, lambda: next(tokens), ring_blocks=6, first_generation=1)
        )
        self.running.clear()
        self.feed(Capacity(self.capacity))

    def connect(self) -> None:
        """A connection of its own; what was on the way of the one before is lost."""
        self.client = b"c%d" % next(self.connections)
        self.to_node.clear()
        self.to_client.clear()

    # ------------------------------------------------------------ the node's side

    def feed(self, event: Any) -> None:
        for action in self.gateway.handle(event, self.now) + self.gateway.handle(TurnEnd(), self.now):
            match action:
                case Tell(client, message, _):
                    if client == self.client:
                        self.to_client.append(msgpack.unpackb(messages.encode(message)))
                case Post(Admit() as admit):
                    self.running[admit.session, admit.index] = admit
                    self.feed(JobAccepted(admit.session, admit.index))
                case Post(CancelJob(session, index)):
                    if (session, index) in self.running:
                        self.end(session, index, "skipped", "cancelled")
        self.gateway.check()

    def end(self, session: str, index: int, outcome: str = "ok", code: str = "") -> None:
        del self.running[session, index]
        self.feed(JobEnded(Outcome(session, index, outcome, code), None, 0))
        self.feed(Free(((session, index),)))

    def node_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_node))):
            head, samples = self.to_node.pop(0)
            batch, payload = wire.read([head] if samples is None else [head, samples])
            self.feed(Arrived(self.client, batch, payload))

    # ------------------------------------------------------------ the client's side

    def say(self, said: list[dict[str, Any]], samples: bytes | None = None) -> None:
        for frame in frames(said):
            self.to_node.append((frame, samples))

    def client_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.to_client))):
            message = self.to_client.pop(0)
            pong = message["type"] == "Pong"
            self.say(self.core.ask_again(self.now) if pong else self.core.handle(message, None, self.now))
            self.core.check()

    def client_sends(self) -> None:
        core = self.core
        if ack := core.ack():
            self.say([ack])
        while (utterance := core.sendable(self.now)) is not None:
            self.say([core.message(utterance)], utterance.data)
            assert utterance.index <= core.through + core.window
        if closing := core.close_message():
            self.say([closing])

    def client_pings(self) -> None:
        self.say([{"type": "Ping"}])
        if self.core.state is State.OPEN:
            self.say([self.core.still_here()])


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.submitted: set[int] = set()
        self.seen: list[int] = []

    @rule(ahead=st.sampled_from([0, 0, 0, 1]), seconds=st.sampled_from([1, 1, 1, 4, 9]))
    def submit(self, ahead: int, seconds: int) -> None:
        """Mostly the next index; sometimes one is left out, and some are longer than the node takes."""
        core = self.world.core
        index = core.next_index + ahead
        if index <= core.through + 12 and core.may_submit(index) is None:
            data = bytes(32_000 * seconds)
            core.submit(Utterance(index, {"dtype": "s16le", "nbytes": len(data), "sample_rate": 16_000}, data))
            self.submitted.add(index)

    @rule(back=st.integers(1, 3))
    def submit_what_was_left_out(self, back: int) -> None:
        core = self.world.core
        index = core.next_index - back
        if core.may_submit(index) is None:
            core.submit(Utterance(index, {"dtype": "s16le", "nbytes": 2, "sample_rate": 16_000}, b"ab"))
            self.submitted.add(index)

    @rule(back=st.integers(0, 3))
    def skip(self, back: int) -> None:
        core = self.world.core
        index = core.next_index - back
        if index >= 0 and core.skip(index):
            self.submitted.add(index)

    @rule(back=st.integers(1, 4))
    def cancel(self, back: int) -> None:
        self.world.say(self.world.core.cancel(self.world.core.next_index - back))

    @rule(count=st.integers(1, 20))
    def node_reads(self, count: int) -> None:
        self.world.node_reads(count)

    @rule(count=st.integers(1, 20))
    def client_turns(self, count: int) -> None:
        self.world.client_reads(count)
        self.world.client_sends()

    @precondition(lambda self: self.world.running)
    @rule(which=st.integers(0, 50), outcome=st.sampled_from(["ok", "ok", "error"]))
    def a_job_ends(self, which: int, outcome: str) -> None:
        keys = sorted(self.world.running)
        self.world.end(*keys[which % len(keys)], outcome, "failed" if outcome == "error" else "")

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.feed(TurnEnd())
        self.world.client_pings()

    @rule(capacity=st.integers(1, 6))
    def capacity_changes(self, capacity: int) -> None:
        self.world.capacity = capacity
        self.world.feed(Capacity(capacity))

    @rule(told=st.booleans())
    def the_connection_breaks(self, told: bool) -> None:
        """libzmq connects again in silence: neither side need notice."""
        before = self.world.client
        self.world.connect()
        if told:
            self.world.feed(ClientLost(before))

    @rule()
    def the_gateway_comes_back_without_memory(self) -> None:
        self.world.connect()
        self.world.start_gateway()

    @invariant()
    def outcomes_come_once_and_in_order(self) -> None:
        ended = self.world.core.ended
        while ended:
            self.seen.append(ended.popleft().index)
        assert self.seen == sorted(set(self.seen)), self.seen
        self.world.core.check()

    def teardown(self) -> None:
        """Left alone, everything comes to its end."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(300):
            world.now += 0.3
            world.feed(TurnEnd())
            world.client_pings()
            world.node_reads(100)
            world.client_reads(1000)
            world.client_sends()
            for key in sorted(world.running):
                world.end(*key)
            self.outcomes_come_once_and_in_order()
            if not world.core.unended and world.core.state is State.OPEN:
                break
        assert not world.core.unended, (world.core.unended, world.core.state)
        assert self.submitted <= set(self.seen)
        world.core.close("drain")
        for _ in range(5):
            world.client_sends()
            world.node_reads(100)
            world.client_reads(100)
        assert world.core.state is State.CLOSED and world.core.failure is None
        world.client_sends()
        world.node_reads(100)
        assert world.gateway.books.sessions.get(world.core.id) is None, "the last acknowledgement lets it be forgotten"


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestClientAndGateway = Machine.TestCase


def test_the_gateways_answers_are_plain_maps() -> None:
    """What the machine above hands the client is exactly what travels."""
    world = World()
    world.node_reads(10)
    opened = world.to_client[-1]
    assert opened["type"] == "Opened" and msgspec.convert(opened, messages.NodeMessage)
