"""What befalls a simulated node: deaths, freezes, lost connections, and that somebody stops it.

A fault strikes the scheduler or the gateway only while both know everything: the loss of both is not survived without a
disk (docs/decisions/0015-each-others-memory.md).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bench.simulated import ARBITER, CORES, DEADLINES
from bench.simulated_processes import GatewayLife, Life, SchedulerLife
from engine.supervisor.lifecycle import Phase

if TYPE_CHECKING:
    from bench.simulation import World

DRAINS = 0.15  # share of the histories in which somebody stops the node
FREEZES = 0.25  # share of the faults
SHORT_S, LONG_S = (0.2, 1.0, 2.0), (0.2, 2.0, 6.0)
CLIENT = "client"


class Faults:
    """See the module's docstring. ``deaths``: by scheduler, gateway, arbiter, worker; poison's victims do not count."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deaths: Counter[str] = Counter()
        self.drains = world.chance.random() < DRAINS

    def plan(self) -> None:
        world = self.world
        for _ in range(world.chance.choice((0, 1, 1, 2, 3, 4))):
            world.after(0.5, 6.0, self._strike)
        if self.drains:
            world.after(0.5, 8.0, self._drain)

    def _drain(self) -> None:
        """Somebody stops the node, once it serves."""
        if self.world.supervisor.life.phase is Phase.STARTING:
            return self.world.after(0.1, 2.0, self._drain)
        self.world.paths["the node is stopped"] += 1
        if self.world.chance.random() < 0.4:  # and before it has stopped, somebody dies
            self.world.after(0.0, 0.5, self._strike)
        return self.world.supervisor.stop()

    def _strike(self) -> None:
        """Kill or freeze somebody, or cut a client's connection."""
        world = self.world
        phase = world.supervisor.life.phase
        if phase is Phase.STARTING:
            return world.after(0.5, 3.0, self._strike)
        if phase not in (Phase.SERVING, Phase.DRAINING):
            return None
        role = world.chance.choice((*CORES, *CORES, ARBITER, CLIENT, CLIENT, *world.workers))
        if role == CLIENT:
            return world.chance.choice(world.clients).lose_connection()
        life = world.lives[role]
        if not life.alive:
            return None
        if role in CORES and not self.can_lose_a_core():
            return world.after(0.2, 1.0, self._strike)
        if world.chance.random() < FREEZES:
            return self._freeze(life)
        if role == ARBITER:
            world.paths["the arbiter dies while somebody loads"] += bool(world.loading)
        return self.kill(life)

    def _freeze(self, life: Life) -> None:
        self.world.paths[f"frozen {life.kind}"] += 1
        life.freeze(self.world.chance.choice(LONG_S if life.kind == "worker" else SHORT_S))

    def kill(self, life: Life) -> None:
        """SIGKILL, by chance or because it was condemned."""
        self.deaths[life.kind] += 1
        self.world.paths[f"killed {life.kind}"] += 1
        if self.world.supervisor.life.phase is Phase.DRAINING:
            self.world.paths["a death while the node stops"] += 1
        life.note_paths()
        life.die(-9)

    def on_slow(self, sender: str) -> None:
        """Something will be long on its way: now and then the scheduler that has sent it is dead before it arrives."""
        if sender.startswith("scheduler#") and self.world.chance.random() < 0.05:
            self.world.after(0.0, 0.01, self.lose_scheduler)

    def lose_scheduler(self) -> None:
        """Kill the scheduler, if that can be survived now."""
        if self.world.supervisor.life.phase is Phase.SERVING and self.can_lose_a_core():
            self.kill(self.world.lives["scheduler"])

    def can_lose_a_core(self) -> bool:
        """Whether scheduler and gateway both know everything, and neither is about to be condemned for a freeze."""
        scheduler, gateway = self.world.lives["scheduler"], self.world.lives["gateway"]
        assert isinstance(scheduler, SchedulerLife) and isinstance(gateway, GatewayLife)
        if not (scheduler.alive and gateway.alive and is_guiltless(scheduler) and is_guiltless(gateway)):
            return False
        linked = scheduler.core.book.gateway == gateway.peer and gateway.epoch == scheduler.incarnation
        return linked and scheduler.core.handover.complete and gateway.core.books.whole


def is_guiltless(life: Life) -> bool:
    """Whether this process has not been frozen lately, so that nobody has a reason to condemn it."""
    return life.world.now > life.frozen_until + DEADLINES.heartbeat_s + 1.0
