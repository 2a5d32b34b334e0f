"""What the scheduler is told of the room there is, so that degraded stages may come back when it is enough. Pure.

A level, like what is lacking (``wants``): said when it has changed by much, and to each new scheduler; nobody answers.
What a request waits for is not spare.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.arbiter.events import Tell
from ipc.messages import Room

LEAST_STEP_BYTES = 64 * 2**20
STEP_SHARE = 256  # of a device's memory


class Spare:
    """What was told last, by device. ``totals``: device -> its memory in bytes."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._steps = {device: max(LEAST_STEP_BYTES, total // STEP_SHARE) for device, total in totals.items()}
        self._told: dict[str, int] = {}

    def look(self, rooms: Mapping[str, int]) -> list[Tell]:
        """What is to be said. ``rooms``: device -> bytes, of those of which it is known."""
        changed = {device: room for device, room in rooms.items() if self._is_news(device, room)}
        self._told |= changed
        return [Tell(Room(device, room)) for device, room in changed.items()]

    def all(self) -> list[Room]:
        """Everything that holds, for a scheduler that has heard nothing yet."""
        return [Room(device, room) for device, room in self._told.items()]

    def _is_news(self, device: str, room: int) -> bool:
        told = self._told.get(device, 0)
        return abs(room - told) >= self._steps[device] or (not room and bool(told))
