"""The supervisor of a simulated node: the real lifecycle; starting takes a while, deaths are seen at once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import msgspec

from bench.simulated import CORES, DEADLINES, Stuck
from bench.simulated_faults import is_guiltless
from bench.simulated_processes import ArbiterLife, GatewayLife, Life, SchedulerLife
from bench.simulated_worker import WorkerLife
from engine.supervisor import roster
from engine.supervisor.events import End, Exited, Heard, Spawned, StopAsked, Tick
from engine.supervisor.lifecycle import Lifecycle
from engine.supervisor.roster import Roster
from ipc.peers import peer_name, split_peer

if TYPE_CHECKING:
    from bench.simulation import World

KINDS: dict[str, type[Life]] = {"scheduler": SchedulerLife, "gateway": GatewayLife, "arbiter": ArbiterLife}
TICK_S = 0.01  # at least between two


class Supervisor:
    """See the module's docstring. ``ended``: everything is dead, and meant to be."""

    alive = True  # it is not killed here: nothing outlives it

    def __init__(self, world: World) -> None:
        self.world = world
        limits = msgspec.structs.replace(DEADLINES, drain_s=world.chance.choice((0.5, 20.0, 20.0)))
        self.drain_s = limits.drain_s
        self.life = Lifecycle(Roster(("arbiter", *CORES, *world.workers), limits, 1000), {}, limits)
        self.ended = False
        self.stopped_at = float("inf")  # when it was asked to
        self._tick_at = float("inf")
        world.network.peers["supervisor"] = self

    def begin(self) -> None:
        self._handle(Tick())

    def stop(self) -> None:
        self.stopped_at = self.world.now
        self._handle(StopAsked())

    def receive(self, sender: str, message: Any) -> None:
        role, incarnation = split_peer(sender)
        self._handle(Heard(role, incarnation, message))

    def exited(self, life: Life, code: int) -> None:
        self.world.loading.discard(life.peer)
        self.world.resident.discard(life.peer)
        self._handle(Exited(life.role, code))
        if code:  # what one that leaves in order has sent is still read
            for client in self.world.clients:
                client.node_lost(life)

    def _tick(self, time: float) -> None:
        if time == self._tick_at and not self.ended:
            self._tick_at = float("inf")
            self._handle(Tick())

    def _handle(self, event: Any) -> None:
        world = self.world
        for action in self.life.handle(event, world.now):
            match action:
                case roster.Post(role, incarnation, message):
                    world.network.send("supervisor", peer_name(role, incarnation), message)
                case roster.Spawn(role, incarnation):
                    self._spawn(role, incarnation)
                case roster.Signal(role, number):
                    self._signal(world.lives[role], number)
                case End():
                    self.ended = True
        due = max(world.now + TICK_S, self.life.next_due(world.now))
        if due < self._tick_at:
            self._tick_at = due
            world.at(due, self._tick, due)

    def _spawn(self, role: str, incarnation: int) -> None:
        life = KINDS.get(role, WorkerLife)(self.world, role, incarnation)
        self.world.lives[role] = self.world.network.peers[life.peer] = life
        self.world.after(0.05, 0.4, life.begin)
        self._handle(Spawned(role, 1, 1))

    def _signal(self, life: Life, number: signal.Signals) -> None:
        if not life.alive:
            return
        if number is signal.SIGKILL:  # it was too long about leaving
            life.die(-9)
        elif is_guiltless(life):
            reason = self.life.roster[life.role].reason
            raise Stuck(f"seed {self.world.seed}: {life.peer} is condemned for nothing: {reason}")
        else:
            self.world.paths["condemned"] += 1
            self.world.faults.kill(life)
