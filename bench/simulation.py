"""A whole node in one thread and in virtual time: the real cores, everything around them simulated, all from one seed.

Real are the cores of supervisor (``Lifecycle``), arbiter (``Leases``), scheduler, gateway and client (``SessionCore``).
Simulated are the network, the shells, the workers, shared memory (a slot's generation and content), and death: at any
moment, or frozen for a while and going on.

A **history** is one run of such a world: clients submit, processes die, perhaps somebody stops the node, and at the end
every client must hold exactly one outcome for each utterance, in order, the one that is due to it (``Wish``), with its
own samples, made by the models of its session; no slot may be left taken, and nobody may have been condemned who was
only busy.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.simulated import DEADLINES, HANDED_ON, KINDS, LATEST_S, OTHER, OUTPUT_BYTES, PIPELINES, SEVERAL, Stuck
from bench.simulated_client import Client
from bench.simulated_faults import Faults
from bench.simulated_network import Memory, Network
from bench.simulated_processes import GatewayLife, Life, SchedulerLife
from bench.simulated_supervisor import Supervisor
from bench.simulated_wish import Wish
from engine.boot import StagePlan, WorkerPlan
from engine.choices import model_of, name_of, stage_of
from engine.supervisor.lifecycle import Phase

SETTLES_S = 30.0  # acknowledgements, and what they set free, at the latest
LINGER_S = 2.0  # what a stopped node has sent still arrives
LOOK_S = 0.5


class World:
    """One history. ``paths`` counts which recoveries it took."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.now = 1000.0
        self.paths: Counter[str] = Counter()
        self.lives: dict[str, Life] = {}  # role -> its present process
        self.wishes: dict[str, Wish] = {}  # by name
        self.journal = b""  # the arbiter's, which the supervisor keeps
        self.loading: set[str] = set()  # workers that load: never two on one device
        self.resident: set[str] = set()  # workers whose model lies in memory
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.memory = Memory(seed)
        self.network = Network(self)
        self.pipeline = chance.choice(PIPELINES)
        if seed % 10 == 9:
            self.pipeline = HANDED_ON
        self.models = random.Random(f"further models {seed}")  # of their own: what else comes does not depend on them
        self.shared = self.models.choice(self.pipeline) if self.models.random() < SEVERAL else ""
        self.names = [
            name
            for stage in self.pipeline
            for name in ((stage, name_of(stage, OTHER)) if stage == self.shared else (stage,))
        ]
        self.workers = tuple(f"{name}@cpu/{n}" for name in self.names for n in range(chance.choice((1, 1, 2))))
        self.room = max(1, len(self.workers) - seed // 10 % 4) if seed % 10 == 8 else len(self.workers)  # models
        self.ring_blocks, self.ingress_blocks = chance.choice((2, 4, 16)), chance.choice((3, 8, 8))
        self.capacity_factor = chance.choice((3, 10))
        self.samples, self.outbox_bytes = chance.choice(((8, 2**20), (8, 2**20), (24_000, 150_000)))
        self.is_eager = seed % 10 != 5  # the scheduler sends ahead more than it does in life
        self.is_slow = chance.random() < 0.2  # some runs and loads are very long
        self.stages = tuple(self._stage(name) for name in self.names)
        self.supervisor = Supervisor(self)
        self.faults = Faults(self)
        self.clients = [Client(self, n) for n in range(chance.randint(1, 3))]

    def _stage(self, name: str) -> StagePlan:
        ring = self.ring_blocks if stage_of(name) == "tts" else 0
        rests = bool(model_of(name)) and self.room < len(self.workers)
        plans = tuple(
            WorkerPlan(role=role, stage=name, device="cpu", ring_blocks=ring, rests=rests)
            for role in self.workers if role.startswith(f"{name}@")
        )  # fmt: skip
        accepts, emits = KINDS[stage_of(name)]
        return StagePlan(
            name=name, kind="simulated", accepts=accepts, emits=emits, workers=plans, output_base=OUTPUT_BYTES,
            max_batch=self.chance.choice((1, 1, 2)),
        )  # fmt: skip

    def ring_users(self) -> dict[str, tuple[str, ...]]:
        """Ring -> the roles that map it."""
        stages = {role: stage_of(role.partition("@")[0]) for role in self.workers}
        readers = tuple(role for role, stage in stages.items() if KINDS[stage][0] == "audio")
        behind = readers if self.pipeline == HANDED_ON else ()
        made = [role for role, stage in stages.items() if stage == "tts"]
        return {"gateway": ("gateway", *readers), **{ring: (ring, "gateway", *behind) for ring in made}}

    # ---------------------------------------------------------------- time

    def at(self, time: float, do: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._due, (time, next(self._order), do, args))

    def after(self, low: float, high: float, do: Callable[..., None], *args: Any) -> None:
        self.at(self.now + low + (high - low) * self.chance.random(), do, *args)

    def run(self) -> None:
        """Until every client has what it wants and nothing is going on. Raises Stuck, AssertionError."""
        end = self.now + LATEST_S
        self.supervisor.begin()
        self.faults.plan()
        while not self._is_over():
            if not self._due or self.now > end:
                waiting = {client.core.tag: sorted(client.core.unended) for client in self.clients}
                raise Stuck(f"seed {self.seed}: not over after {LATEST_S:g} s; unended {waiting}")
            self._pass(LOOK_S)
        if self.supervisor.ended:
            self._pass(LINGER_S)
        else:
            self._settle()
        for client in self.clients:
            client.check()

    def _pass(self, seconds: float) -> None:
        due, end = self._due, self.now + seconds
        while due and due[0][0] <= end:
            self.now, _, do, args = heapq.heappop(due)
            do(*args)
        self.now = end

    def _is_over(self) -> bool:
        if self.faults.drains:
            return self.supervisor.ended
        return all(client.done for client in self.clients) and self.supervisor.life.phase is Phase.SERVING

    @property
    def is_cut_short(self) -> bool:
        """Whether the node was stopped, and had ended before everything could."""
        supervisor = self.supervisor
        return supervisor.ended and self.now - LINGER_S >= supervisor.stopped_at + supervisor.drain_s

    # ---------------------------------------------------------------- the end

    def _settle(self) -> None:
        """Acknowledgements and what they set free are on their way for a moment more.

        A client that is through does not come back for a session whose last acknowledgement died with the gateway: that
        one is kept as long as any other whose client is gone.
        """
        end = self.now + SETTLES_S
        while self._left() and self.now < end:
            self._pass(LOOK_S)
        _, gateway = self._cores()
        if len(gateway.core.books.sessions):
            self.paths["a session is kept for a client that does not come back"] += 1
            self._pass(DEADLINES.detach_s + DEADLINES.keep_s + 1.0)
        if left := self._left():
            raise Stuck(f"seed {self.seed}: {left}")
        for life in self.lives.values():
            life.check()

    def _left(self) -> str:
        """What of the node is still taken, though nobody wants anything of it any more."""
        scheduler, gateway = self._cores()
        blocks = gateway.core.books.ingress.blocks
        if not scheduler.core.book.slots.idle:
            return f"slots are left: {scheduler.core.book.slots._slots}"
        if blocks.free != blocks.count:
            return f"the gateway's ring keeps {blocks.count - blocks.free} blocks"
        return f"{len(gateway.core.books.sessions)} sessions are left" if len(gateway.core.books.sessions) else ""

    def _cores(self) -> tuple[SchedulerLife, GatewayLife]:
        scheduler, gateway = self.lives["scheduler"], self.lives["gateway"]
        assert isinstance(scheduler, SchedulerLife) and isinstance(gateway, GatewayLife)
        return scheduler, gateway
