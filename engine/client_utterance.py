"""One utterance between ``submit`` and its outcome, and where it can be. Pure.

::

    queued --> sent --> accepted        Busy, and a node that forgot, bring it back to queued
       |         |         |
       +---------+---------+--> skipped     its Skip is under way: the user's wish, or the node rejected it and the Skip
                                            keeps its index from becoming a gap
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from engine.outcome import Outcome
from ipc.errors import IllegalMove

Message = dict[str, Any]


class Place(Enum):
    QUEUED = auto()
    SENT = auto()
    ACCEPTED = auto()
    SKIPPED = auto()

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call


PLACES = {
    Place.QUEUED: {Place.SENT, Place.ACCEPTED, Place.SKIPPED},
    Place.SENT: {Place.QUEUED, Place.ACCEPTED},
    Place.ACCEPTED: {Place.QUEUED},
    Place.SKIPPED: {Place.QUEUED},
}
ON_THE_WIRE = (Place.SENT, Place.ACCEPTED)


@dataclass
class Utterance:
    """``fields``: its ``Submit`` without the session; ``data``: its samples as they go on the wire
    (a buffer with a length).

    ``skip``: a ``Skip`` goes out in place of the ``Submit``. ``refusal``: code and text it was rejected with.
    """

    index: int
    fields: Message = field(default_factory=dict)
    data: Any = None
    place: Place = Place.QUEUED
    skip: bool = False
    cancelled: bool = False
    refusal: tuple[str, str] | None = None

    def put(self, place: Place) -> None:
        """Change the place. Raises IllegalMove, and changes nothing, when the table has no such move."""
        if place not in PLACES[self.place] and place is not self.place:
            raise IllegalMove(f"utterance {self.index}: {self.place.name} -> {place.name}")
        self.place = place

    def give_up(self) -> None:
        """Skip its index as soon as the node takes that."""
        self.skip, self.data = True, None
        self.put(Place.QUEUED)

    def shown(self, outcome: Outcome) -> Outcome:
        """Its end as the user sees it: a skip that only kept the index from being a gap is shown as what it was."""
        if self.refusal:
            code, text = self.refusal
            return replace(outcome, outcome="rejected", code=code, error=text)
        if self.cancelled and outcome.outcome == "skipped":
            return replace(outcome, code="cancelled")
        return outcome
