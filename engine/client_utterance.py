"""One utterance between ``submit`` and its outcome, and where it can be. Pure.

::

    queued --> sent --> accepted        Busy and a node that forgot bring it back to queued
      |          |          |
      +----------+----------+--> skipped (the user's wish)
                 +----------+--> refused (the node rejected it; a Skip keeps its index from becoming a gap)
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
    REFUSED = auto()
    SKIPPED = auto()


PLACES = {
    Place.QUEUED: {Place.SENT, Place.SKIPPED, Place.ACCEPTED},
    Place.SENT: {Place.QUEUED, Place.ACCEPTED, Place.REFUSED, Place.SKIPPED},
    Place.ACCEPTED: {Place.QUEUED, Place.SKIPPED, Place.REFUSED},
    Place.REFUSED: set(),
    Place.SKIPPED: set(),
}
ON_THE_WIRE = (Place.SENT, Place.ACCEPTED)


@dataclass
class Utterance:
    """``fields``: its ``Submit`` without the session; ``data``: its samples as they go on the wire."""

    index: int
    fields: Message = field(default_factory=dict)
    data: bytes | None = None
    place: Place = Place.QUEUED
    cancelled: bool = False
    refusal: tuple[str, str] | None = None  # code and text it was rejected with

    def put(self, place: Place) -> None:
        """Change the place. Raises IllegalMove, and changes nothing, when the table has no such move."""
        if place not in PLACES[self.place] and place is not self.place:
            raise IllegalMove(f"utterance {self.index}: {self.place.name} -> {place.name}")
        self.place = place

    def shown(self, outcome: Outcome) -> Outcome:
        """Its end as the user sees it: a skip that only kept the index from being a gap is shown as what it was."""
        if outcome.outcome != "skipped" or not (self.refusal or self.cancelled):
            return outcome
        if self.cancelled and not self.refusal:
            return replace(outcome, code="cancelled")
        code, text = self.refusal or ("", "")
        return replace(outcome, outcome="rejected", code=code, error=text)
