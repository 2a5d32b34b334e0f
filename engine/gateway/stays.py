"""How long utterances stay in the node: from being taken to their end, by what their sessions may have. Pure.

Sessions of one priority take turns, so counting ends tells one of them when its own comes. Beside others of a better
one it does not: who is passed again and again is told by how long others like it have stayed.

Only what ended ok is counted: cancelled and expired utterances of one session do not say how long others stay.
"""

from __future__ import annotations

from engine.gateway.ledger import Part

NEWEST = 0.3  # weight of the newest stay


class Stays:
    """Exponentially weighted means, in seconds."""

    def __init__(self) -> None:
        self._mean_s: dict[Part, float] = {}

    def ended(self, part: Part, stay_s: float) -> None:
        """An utterance of a session of this part has gone through."""
        before = self._mean_s.get(part, stay_s)
        self._mean_s[part] = before + NEWEST * (stay_s - before)

    def usual_s(self, part: Part) -> float | None:
        """How long one stays; None while none of this part has gone through."""
        return self._mean_s.get(part)
