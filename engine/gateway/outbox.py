"""Outcomes between their end and the client's acknowledgement, and what they weigh.

Nothing waits in shared memory for a client or for order: results are copied here at once. So this is where memory is
bounded: a session over its budget, or above its part of a full node's, is told to the scheduler, which then starts no
more last stages for it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipc.messages import Outcome

OVERHEAD_BYTES = 512  # of an outcome without text and samples, roughly


@dataclass(frozen=True, slots=True)
class Parcel:
    """An outcome and its samples."""

    outcome: Outcome
    payload: bytes | None
    nbytes: int


class Outbox:
    """All parcels of the node by session and index."""

    def __init__(self, session_bytes: int, node_bytes: int) -> None:
        self.session_bytes = session_bytes
        self.node_bytes = node_bytes
        self.total_bytes = 0
        self.count = 0
        self._parcels: dict[str, dict[int, Parcel]] = {}
        self._bytes: dict[str, int] = {}

    def put(self, outcome: Outcome, payload: bytes | None) -> Parcel:
        """Keep an outcome. Raises ValueError if this index already has one."""
        texts = sum(map(len, outcome.texts.values()))
        parcel = Parcel(outcome, payload, OVERHEAD_BYTES + texts + (len(payload) if payload is not None else 0))
        mine = self._parcels.setdefault(outcome.session, {})
        if outcome.index in mine:
            raise ValueError(f"{outcome.session} {outcome.index} has an outcome already")
        mine[outcome.index] = parcel
        self._weigh(outcome.session, parcel.nbytes, 1)
        return parcel

    def get(self, session: str, index: int) -> Parcel | None:
        return self._parcels.get(session, {}).get(index)

    def drop(self, session: str, index: int) -> Parcel | None:
        """Forget one outcome: the client has it."""
        parcel = self._parcels.get(session, {}).pop(index, None)
        if parcel is not None:
            self._weigh(session, -parcel.nbytes, -1)
        return parcel

    def drop_session(self, session: str) -> None:
        """Forget everything of a session that is over."""
        for parcel in self._parcels.pop(session, {}).values():
            self._weigh(session, -parcel.nbytes, -1)
        self._bytes.pop(session, None)

    @property
    def heavy(self) -> bool:
        """Whether any session can be over its budget."""
        return self.total_bytes > min(self.session_bytes, self.node_bytes)

    def over(self, open_sessions: int) -> frozenset[str]:
        """Sessions that must get no further last stage now."""
        limit = self.session_bytes
        if self.total_bytes > self.node_bytes:
            limit = min(limit, self.node_bytes // max(1, open_sessions))
        elif self.total_bytes <= limit:
            return frozenset()
        return frozenset(session for session, nbytes in self._bytes.items() if nbytes > limit)

    def _weigh(self, session: str, nbytes: int, count: int) -> None:
        self.total_bytes += nbytes
        self.count += count
        self._bytes[session] = self._bytes.get(session, 0) + nbytes

    def check(self) -> None:
        """Invariant: the sums are the sums."""
        for session, parcels in self._parcels.items():
            assert sum(p.nbytes for p in parcels.values()) == self._bytes.get(session, 0), session
        assert sum(self._bytes.values()) == self.total_bytes
        assert sum(map(len, self._parcels.values())) == self.count
