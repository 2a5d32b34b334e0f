"""A whole node in one thread and in virtual time: the real cores, everything around them simulated, all from one seed.

Real are the cores of supervisor (``Lifecycle``), scheduler, gateway and client (``SessionCore``). Simulated are the
network (each message takes its own time, each link keeps its order; what a process had sent before its death still
arrives), the shells, the workers, shared memory (a slot's generation and content), and death: at any moment, or frozen
for a while and going on.

A **history** is one run of such a world: clients submit, processes die, and at the end every client must hold exactly
one outcome for each utterance, in order, ok, with its own samples, and no slot may be left taken.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.simulated import (
    ARBITER,
    CORES,
    DEADLINES,
    KINDS,
    LATEST_S,
    PIPELINES,
    Stuck,
)
from bench.simulated_client import Client
from bench.simulated_processes import ArbiterLife, GatewayLife, Life, SchedulerLife, WorkerLife
from engine.boot import StagePlan, WorkerPlan
from engine.supervisor import roster
from engine.supervisor.events import Exited, Heard, Spawned, Tick
from engine.supervisor.lifecycle import Lifecycle, Phase
from engine.supervisor.roster import Roster
from ipc.messages import (
    Alive,
    Ref,
)
from ipc.peers import peer_name, split_peer


class World:
    """One history. ``paths`` counts which recoveries it took."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.paths: Counter[str] = Counter()
        self.memory: dict[tuple[str, int], tuple[int, bytes]] = {}  # (ring, offset) -> generation, content
        self.lives: dict[str, Life] = {}  # role -> its present process
        self.journal = b""  # the arbiter's, which the supervisor keeps
        self.loading: set[str] = set()  # workers that load: never two on one device
        self.resident: set[str] = set()  # workers whose model lies in memory
        self.wires: dict[tuple[str, str], deque[tuple[float, Any]]] = {}  # (from, to) -> what is on its way
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self.pipeline = self.chance.choice(PIPELINES)
        self.workers = tuple(
            f"{stage}@cpu/{n}" for stage in self.pipeline for n in range(self.chance.choice((1, 1, 2)))
        )
        self.ring_blocks = self.chance.choice((2, 4, 16))
        self.stages = tuple(self._stage(name) for name in self.pipeline)
        self.supervisor = Supervisor(self)
        self.clients = [Client(self, n) for n in range(self.chance.randint(1, 3))]

    def _stage(self, name: str) -> StagePlan:
        ring = self.ring_blocks if name == "tts" else 0
        plans = tuple(
            WorkerPlan(role=role, stage=name, device="cpu", ring_blocks=ring)
            for role in self.workers if role.startswith(f"{name}@")
        )  # fmt: skip
        accepts, emits = KINDS[name]
        return StagePlan(
            name=name, kind="simulated", accepts=accepts, emits=emits, workers=plans, output_base=1000,
            max_batch=self.chance.choice((1, 1, 2)),
        )  # fmt: skip

    # ---------------------------------------------------------------- time

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._order), do))

    def after(self, low: float, high: float, do: Callable[[], None]) -> None:
        self.at(self.now + self.chance.uniform(low, high), do)

    def run(self) -> None:
        """Until every client has what it wants and nothing is going on. Raises Stuck, AssertionError."""
        end = self.now + LATEST_S
        self.supervisor.begin()
        self._plan_faults()
        while not self._is_over():
            if not self._due or self._due[0][0] > end:
                raise Stuck(f"seed {self.seed}: {self._state()}")
            self.now, _, do = heapq.heappop(self._due)
            do()
        self._settle()
        for client in self.clients:
            client.check()

    def _settle(self) -> None:
        """Acknowledgements and what they set free are on their way for a moment more.

        A client that is through does not come back for a session whose last acknowledgement died with the gateway: that
        one is kept as long as any other whose client is gone.
        """
        self._pass(8.0)
        scheduler, gateway = self.lives["scheduler"], self.lives["gateway"]
        assert isinstance(scheduler, SchedulerLife) and isinstance(gateway, GatewayLife)
        if len(gateway.core.books.sessions):
            self.paths["a session is kept for a client that does not come back"] += 1
            self._pass(DEADLINES.detach_s + DEADLINES.keep_s + 1.0)
        scheduler.core.check()
        gateway.core.check()
        if not scheduler.core.book.slots.idle:
            raise Stuck(f"seed {self.seed}: slots are left: {scheduler.core.book.slots._slots}")
        blocks = gateway.core.books.ingress.blocks
        if blocks.free != blocks.count:
            raise Stuck(f"seed {self.seed}: the gateway's ring keeps {blocks.count - blocks.free} blocks")

    def _pass(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, do = heapq.heappop(self._due)
            do()

    def _is_over(self) -> bool:
        return all(client.done for client in self.clients) and self.supervisor.life.phase is Phase.SERVING

    def _state(self) -> str:
        waiting = {client.core.tag: sorted(client.core.unended) for client in self.clients}
        return f"not over after {LATEST_S:g} s; unended {waiting}"

    # ---------------------------------------------------------------- faults

    def _plan_faults(self) -> None:
        for _ in range(self.chance.choice((0, 1, 1, 2, 3, 4))):
            self.after(0.5, 6.0, self._fault)

    def _fault(self) -> None:
        """Kill or freeze somebody; scheduler and gateway never while either is not whole."""
        role = self.chance.choice((*CORES, *CORES, ARBITER, *self.workers))
        life = self.lives.get(role)
        if life is None or not life.alive or self.supervisor.life.phase is not Phase.SERVING:
            return
        if role in CORES and not self.is_whole():
            return self.after(0.2, 1.0, self._fault)
        if self.chance.random() < 0.25:
            self.paths[f"frozen {role.partition('@')[0]}"] += 1
            seconds = self.chance.choice((0.2, 1.0, 2.0)) if role in CORES else self.chance.choice((0.2, 2.0, 6.0))
            return life.freeze(seconds)
        if role == ARBITER:
            self.paths["the arbiter dies while somebody loads"] += bool(self.loading)
        return self.kill(role)

    def is_whole(self) -> bool:
        """Whether scheduler and gateway both know everything."""
        scheduler, gateway = self.lives.get("scheduler"), self.lives.get("gateway")
        if not isinstance(scheduler, SchedulerLife) or not isinstance(gateway, GatewayLife):
            return False
        both = scheduler.alive and gateway.alive
        linked = scheduler.core.book.gateway == gateway.peer and gateway.epoch == scheduler.incarnation
        return both and linked and scheduler.core.handover.complete and gateway.core.books.whole

    def kill(self, role: str) -> None:
        """SIGKILL."""
        life = self.lives[role]
        self.paths[f"killed {role.partition('@')[0]}"] += 1
        life.note_paths()
        life.alive = False
        self.after(0.0001, 0.002, lambda: self.supervisor.exited(life))

    # ---------------------------------------------------------------- the network

    def send(self, sender: str, receiver: str, thing: Any) -> None:
        """Put something on its way; a link keeps its order."""
        wire = self.wires.setdefault((sender, receiver), deque())
        slow = 0.5 if self.chance.random() < 0.01 else 0.003
        time = max(self.now + self.chance.uniform(0.0001, slow), wire[-1][0] if wire else 0.0)
        wire.append((time, thing))
        self.at(time, lambda: self._arrive(sender, receiver))

    def _arrive(self, sender: str, receiver: str) -> None:
        wire = self.wires.get((sender, receiver))
        if not wire or wire[0][0] > self.now:
            return  # read already, as somebody's last words
        _, thing = wire.popleft()
        life = self._whose(receiver)
        if life is not None and life.alive:
            life.receive(sender, thing)

    def _whose(self, peer: str) -> Any:
        if peer == "supervisor":
            return self.supervisor
        if peer.startswith("client"):
            return self.clients[int(peer.removeprefix("client"))]
        role, incarnation = split_peer(peer)
        life = self.lives.get(role)
        return life if life is not None and life.incarnation == incarnation else None

    def last_words(self, sender: str, receiver: str) -> list[Any]:
        """Everything the dead sender had sent, now."""
        return [thing for _, thing in self.wires.pop((sender, receiver), ())]

    def nothing_from(self, sender: str, receiver: str) -> bool:
        return not self.wires.get((sender, receiver))

    # ---------------------------------------------------------------- shared memory

    def write(self, ref: Ref, content: bytes) -> None:
        self.memory[ref.ring, ref.offset] = (ref.generation, content)

    def read(self, ref: Ref) -> bytes:
        """The content of a slot. Raises Stuck when it has been given to somebody else."""
        mark, content = self.memory.get((ref.ring, ref.offset), (0, b""))
        if mark != ref.generation:
            raise Stuck(f"seed {self.seed}: a slot of {ref.ring} was given away while somebody needed it")
        return content


class Supervisor:
    """The real lifecycle; starting takes a while, deaths are seen at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        roles = ("arbiter", *CORES, *world.workers)
        self.life = Lifecycle(Roster(roles, DEADLINES, 1000), {}, DEADLINES)

    def begin(self) -> None:
        self.tick()

    def tick(self) -> None:
        self.handle(Tick())
        self.world.at(max(self.world.now + 0.01, self.life.next_due(self.world.now)), self.tick)

    def receive(self, sender: str, message: Any) -> None:
        role, incarnation = split_peer(sender)
        self.handle(Heard(role, incarnation, message))

    alive = True  # it is not killed here: nothing outlives it

    def exited(self, life: Life) -> None:
        self.world.loading.discard(life.peer)
        self.world.resident.discard(life.peer)
        self.handle(Exited(life.role, -9))
        for client in self.world.clients:
            client.connection_lost(life)

    def handle(self, event: Any) -> None:
        world = self.world
        for action in self.life.handle(event, world.now):
            match action:
                case roster.Post(role, incarnation, message):
                    world.send("supervisor", peer_name(role, incarnation), message)
                case roster.Spawn(role, incarnation):
                    world.after(0.05, 0.4, partial(self._start, role, incarnation))
                    self.handle(Spawned(role, 1, 1))
                case roster.Signal(role) if world.lives[role].alive:
                    world.paths["condemned"] += 1
                    world.kill(role)

    def _start(self, role: str, incarnation: int) -> None:
        kinds: dict[str, type[Life]] = {"scheduler": SchedulerLife, "gateway": GatewayLife, "arbiter": ArbiterLife}
        life = kinds.get(role, WorkerLife)(self.world, role, incarnation)
        self.world.lives[role] = life
        life.tell_supervisor(Alive("started"))
        self.world.at(self.world.now + DEADLINES.heartbeat_s, life.beat)
