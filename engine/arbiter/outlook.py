"""What stands between the requests that wait for a device and its memory, at one moment. Pure.

Either the device is *closed* to all of them (somebody loads there, or its figures are not known), or each of them can
be held up by itself: it lacks room, a place among the models, or waits behind an elder one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engine.arbiter import words
from engine.arbiter.events import Obstacle
from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.line import Line, Model
from engine.arbiter.room import DeviceMemory


@dataclass  # not frozen: two are made for each decision, at half the price
class Outlook:
    """``present``: the leases that may lie on the device; ``loader``: the one of them whose model loads now.

    ``room``: bytes that may be granted.

    ``models``: the only ones that may come, as there is no place for others; None: any may. ``elder``: the request that
    those behind it must not pass.
    """

    memory: DeviceMemory
    present: Sequence[Lease]
    loader: Lease | None
    closed: Obstacle | None
    room: int
    models: frozenset[Model] | None
    elder: Lease | None

    @cached_property
    def promised(self) -> int:
        """Bytes that were granted and are not in use yet."""
        return self.memory.promised(self.present)

    @property
    def readable(self) -> bool:
        return self.closed is None or self.closed.kind != "unreadable"

    def takes(self, nbytes: int) -> bool:
        """Whether a program outside the node that came now would be granted so much at once."""
        return self.closed is None and self.elder is None and nbytes <= self.room

    def next(self, line: Line) -> Lease | None:
        """Whose turn it is; None: nobody's."""
        return None if self.closed else line.first(self.room, self.models, self.elder)

    def kind(self, lease: Lease) -> str:
        """What kind of thing keeps this request, which waits, from being granted; "": nothing."""
        if self.closed:
            return self.closed.kind
        if self.elder is not None and self.elder.rank < lease.rank:
            return "elder"
        if self.lacks_place(lease):
            return "models"
        return "room" if lease.nbytes > self.room else ""

    def reason(self, lease: Lease) -> str:
        """The same in words."""
        if self.closed:
            return self.closed.text
        match self.kind(lease):
            case "elder" if self.elder is not None:
                return f"waiting behind {words.name(self.elder)}, which has waited longer"
            case "models" if self.models is not None:
                return f"{len(self.models)} models are on {lease.device} (devices.max_models)"
            case "room":
                return words.too_little(lease, self.memory, self.present, self.room)
        return ""

    def briefly(self, nbytes: int) -> str:
        """Why a request for so much that could come here waits elsewhere, in few words."""
        if nbytes > self.memory.limits.most_bytes:
            return "too small"
        if self.closed:
            return {"turn": "a model loads", "unreadable": "cannot be read"}.get(self.closed.kind, "being read")
        return f"{words.gib(max(0, self.room))} can be granted" if self.elder is None else "others wait longer"

    def lacks_place(self, lease: Lease) -> bool:
        return self.models is not None and not lease.external and lease.kind_of_model not in self.models

    def explain(self, lease: Lease) -> dict[str, Any]:
        """Why it waits, in words and in the numbers of the formula (``room``); bytes, signed."""
        reading, limits = self.memory.reading, self.memory.limits
        leaving = [one for one in self.present if one.state in (LeaseState.DRAINING, LeaseState.DEFICIT)]
        return {
            "kind": self.kind(lease),
            "reason": self.reason(lease),
            "needs_bytes": lease.nbytes,
            "room_bytes": self.memory.room(self.present),
            "free_bytes": reading.free_bytes if reading else 0,
            "promised_bytes": self.promised,
            "held_bytes": sum(one.held_bytes for one in self.present),
            "foreign_bytes": self.memory.foreign_bytes,
            "margin_bytes": self.memory.margin(),
            "usable_bytes": limits.usable_bytes,
            "coming_back_bytes": sum(one.held_bytes for one in leaving),
        }


def look(memory: DeviceMemory, present: Sequence[Lease], line: Line, unreadable_s: float, now: float) -> Outlook:
    """A device as it is now."""
    loader = next((lease for lease in present if lease.state is LeaseState.GRANTED), None)
    closed = _closed(memory, present, loader, line, unreadable_s, now)
    if closed:
        return Outlook(memory, present, loader, closed, 0, None, None)
    room = memory.room(present)
    models = None
    if len(present) >= memory.limits.max_models:
        there = frozenset(one.kind_of_model for one in present if not one.external)
        models = there if len(there) >= memory.limits.max_models else None
    return Outlook(memory, present, None, None, room, models, line.elder(room, models, now))


def _closed(
    memory: DeviceMemory, present: Sequence[Lease], loader: Lease | None, line: Line, unreadable_s: float, now: float
) -> Obstacle | None:
    name = memory.limits.name
    if loader is not None:
        return Obstacle("turn", f"waiting for {words.name(loader)} to load on {name}")
    if memory.age(now, line.head.since if line.head else now) > unreadable_s:
        return Obstacle("unreadable", f"the memory of {name} cannot be read")
    if not memory.current(present):
        return Obstacle("reading", f"reading the memory of {name}")
    return None
