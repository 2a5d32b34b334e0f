"""The network and the shared memory of a simulated node.

Each message takes its own time, each link keeps its order, and what a process had sent before its death still arrives.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from bench.simulated import Stuck
from ipc.messages import Ref

if TYPE_CHECKING:
    from bench.simulation import World

SLOW = 0.01  # share of the messages that take up to SLOW_S, the others up to FAST_S
SLOW_S, FAST_S, LEAST_S = 0.5, 0.003, 0.0001


class Peer(Protocol):
    """Who can be sent something."""

    alive: bool

    def receive(self, sender: str, thing: Any) -> None: ...


class Network:
    """See the module's docstring. ``peers``: who has which address now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.peers: dict[str, Peer] = {}
        self._wires: dict[tuple[str, str], deque[tuple[float, Any]]] = {}  # (from, to) -> what is on its way

    def send(self, sender: str, receiver: str, thing: Any, *, quickly: bool = False) -> None:
        """Put something on its way, behind all that is on the same link. ``quickly``: nothing is left to chance."""
        link = sender, receiver
        wire = self._wires.get(link)
        if wire is None:
            wire = self._wires[link] = deque()
        draw = 1.0 if quickly else self.world.chance.random()
        if draw < SLOW:
            time = self.world.now + draw / SLOW * SLOW_S
            self.world.faults.on_slow(sender)
        else:
            time = self.world.now + LEAST_S + draw * FAST_S
        if wire and wire[-1][0] > time:
            time = wire[-1][0]
        wire.append((time, thing))
        self.world.at(time, self._arrive, link)

    def _arrive(self, link: tuple[str, str]) -> None:
        wire = self._wires.get(link)
        if not wire or wire[0][0] > self.world.now:
            return  # read already, as somebody's last words
        _, thing = wire.popleft()
        peer = self.peers.get(link[1])
        if peer is not None and peer.alive:
            peer.receive(link[0], thing)

    def last_words(self, sender: str, receiver: str) -> list[Any]:
        """Everything the dead sender had sent, now."""
        return [thing for _, thing in self._wires.pop((sender, receiver), ())]

    def nothing_from(self, sender: str, receiver: str) -> bool:
        return not self._wires.get((sender, receiver))


class Memory:
    """Slots of all rings: (ring, offset) -> generation, content."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.slots: dict[tuple[str, int], tuple[int, bytes]] = {}

    def write(self, ref: Ref, content: bytes) -> None:
        self.slots[ref.ring, ref.offset] = (ref.generation, content)

    def read(self, ref: Ref) -> bytes:
        """The content of a slot. Raises Stuck when it has been given to somebody else."""
        mark, content = self.slots.get((ref.ring, ref.offset), (0, b""))
        if mark != ref.generation:
            raise Stuck(f"seed {self.seed}: a slot of {ref.ring} was given away while somebody needed it")
        return content
