"""What the scheduler is told of requests that wait for room: it alone knows which models may leave for them. Pure.

Of each device the oldest request that lacks room, or a place among ``max_models``, is told with what it lacks. Nothing
is told when all our models together would not give enough: other programs hold the rest, and nobody leaves in vain.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.arbiter.lease import Lease, LeaseState
from ipc.messages import Vacate

WISHES = ("room", "models")  # obstacles that somebody's leaving would remove


class Wants:
    """What was told last, by device."""

    def __init__(self) -> None:
        self._told: dict[str, Vacate] = {}

    def look(self, device: str, leases: Sequence[Lease], room: int) -> Vacate | None:
        """What is to be told now, if it is not what was told before. ``room``: bytes that may be granted."""
        wish = next((one for one in leases if one.state is LeaseState.REQUESTED and one.obstacle in WISHES), None)
        lacking = 0 if wish is None else max(1, wish.nbytes - room)
        if lacking > sum(max(one.nbytes, one.held_bytes) for one in leases if one.state is LeaseState.HELD):
            lacking = 0
        told = self._told.get(device, Vacate(device, 0))
        news = Vacate(device, lacking, wish.peer.partition("#")[0] if wish is not None and lacking else "")
        if news == told:
            return None
        self._told[device] = news
        return news

    def again(self, device: str) -> None:
        """A lease has ended there: what is still lacking is said again."""
        self._told.pop(device, None)

    def all(self) -> list[Vacate]:
        """Everything that is wanted now, for a scheduler that has heard nothing yet."""
        return [told for told in self._told.values() if told.nbytes]
