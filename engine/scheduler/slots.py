"""Who still needs which slot of which ring.

A **slot** is granted inside ``Run``, written by one worker, read by others and by the gateway. It is free again when no
job needs it *and* every process that was told of it (its **pins**) has answered or is known dead: a slot must not be
handed out while anybody may still read or write it. Slots of the gateway's ring are only pinned here; the gateway
itself frees their blocks when told (``Free``).

A pin is (peer, ticket): the ``Done`` of that ticket, ``Copied``, or the peer's death answers it.

A new epoch does not know which slots the one before had granted. So a ring is **unknown**, and nothing of it is granted
or given back, until every role that maps it has said ``Here`` to this epoch (and with that, that it uses no slot) or
will never come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipc.blocks import Blocks
from ipc.ring import BLOCK, blocks_for

SlotKey = tuple[str, int]  # ring, generation


@dataclass
class Slot:
    """``start`` -1: the blocks belong to another process's table."""

    start: int
    pins: int = 0
    needed: bool = True


class Slots:
    """The blocks of every worker's ring, and the pins on them and on the gateway's slots."""

    def __init__(
        self,
        rings: dict[str, int],
        reserve_after_s: float = 1.0,
        free_early: bool = False,
        unknown: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self._blocks = {ring: Blocks(count) for ring, count in rings.items()}
        self._slots: dict[SlotKey, Slot] = {}
        self._pins: dict[tuple[str, int], list[SlotKey]] = {}
        self._peers: dict[str, set[int]] = {}
        self._wanting: dict[str, tuple[object, float]] = {}  # ring -> oldest claimant turned away, since when
        self._reserve_after_s = reserve_after_s
        self._free_early = free_early  # a test's hook: gives a slot back one pin too early
        self._unknown = {ring: set(roles) for ring, roles in (unknown or {}).items()}  # ring -> who must yet speak
        self._settled: list[SlotKey] = []  # adopted slots that are free when their ring is known

    def fits(self, ring: str, nbytes: int) -> bool:
        """Whether a slot of ``nbytes`` could ever be granted in this ring."""
        return blocks_for(nbytes) <= self._blocks[ring].count

    def grant(self, ring: str, nbytes: int, number: int, claimant: object, now: float) -> int | None:
        """Offset in bytes of a new slot, or None when no run is free.

        A claimant turned away for ``reserve_after_s`` gets the emptiest stretch reserved.
        """
        if ring in self._unknown:
            return None
        blocks = self._blocks[ring]
        length = blocks_for(nbytes)
        waiting, since = self._wanting.get(ring, (None, now))
        start = blocks.take_reserved() if waiting == claimant and blocks.reserved >= length else None
        if start is not None:
            blocks.shrink(start, length)
        else:
            start = blocks.take(length)
        if start is None:
            if waiting is None:
                self._wanting[ring] = (claimant, now)
            elif waiting == claimant and not blocks.reserved and now - since >= self._reserve_after_s:
                blocks.reserve(length)
            return None
        self.withdraw(ring, claimant)
        self._slots[ring, number] = Slot(start)
        return start * BLOCK

    def withdraw(self, ring: str, claimant: object) -> None:
        """The claimant no longer waits for this ring; a reservation made for it ends."""
        if self._wanting.get(ring, (None, 0.0))[0] == claimant:
            del self._wanting[ring]
            self._blocks[ring].unreserve()

    def is_wanted(self, ring: str) -> bool:
        """Whether somebody was turned away who needs a slot in this ring."""
        return ring in self._wanting

    @property
    def wanted(self) -> bool:
        """Whether any ring is."""
        return bool(self._wanting)

    def forget_claims(self, claimant: object) -> None:
        """The claimant is over: it waits for no ring."""
        if self._wanting:
            for ring in [ring for ring, (waiting, _) in self._wanting.items() if waiting == claimant]:
                self.withdraw(ring, claimant)

    def heard(self, role: str) -> list[SlotKey]:
        """This role uses no slot granted before this epoch; returns adopted slots that are free now."""
        if not self._unknown:
            return []
        for roles in self._unknown.values():
            roles.discard(role)
        self._unknown = {ring: roles for ring, roles in self._unknown.items() if roles}
        freed = [key for key in self._settled if key[0] not in self._unknown]
        self._settled = [key for key in self._settled if key[0] in self._unknown]
        return freed

    @property
    def unknown(self) -> dict[str, list[str]]:
        """Ring -> the roles that have not spoken to this epoch yet."""
        return {ring: sorted(roles) for ring, roles in self._unknown.items()}

    def adopt(self, ring: str, number: int) -> None:
        """Know a slot whose blocks are another process's (the gateway's ring)."""
        self._slots.setdefault((ring, number), Slot(-1))

    def pin(self, key: SlotKey, peer: str, ticket: int) -> None:
        """``peer`` has been told of this slot under ``ticket``."""
        self._slots[key].pins += 1
        self._pins.setdefault((peer, ticket), []).append(key)
        self._peers.setdefault(peer, set()).add(ticket)

    def shrink(self, key: SlotKey, nbytes: int) -> None:
        """The slot's payload turned out shorter: its tail blocks are free at once."""
        slot = self._slots[key]
        if slot.start >= 0:
            self._blocks[key[0]].shrink(slot.start, blocks_for(nbytes))

    def answer(self, peer: str, ticket: int) -> list[SlotKey]:
        """All pins of (peer, ticket) are answered; returns adopted slots that are free now."""
        tickets = self._peers.get(peer)
        if tickets is not None:
            tickets.discard(ticket)
        freed = []
        for key in self._pins.pop((peer, ticket), ()):
            self._slots[key].pins -= 1
            freed += self._settle(key)
        return freed

    def gone(self, peer: str) -> list[SlotKey]:
        """``peer`` is confirmed dead; returns adopted slots that are free now."""
        freed = []
        for ticket in list(self._peers.pop(peer, ())):
            freed += self.answer(peer, ticket)
        return freed

    def drop(self, key: SlotKey) -> list[SlotKey]:
        """No job needs this slot any more; returns it if it is adopted and free now."""
        if key not in self._slots:
            return []
        self._slots[key].needed = False
        return self._settle(key)

    def is_needed(self, key: SlotKey) -> bool:
        """Whether this slot is known and some job needs it still."""
        slot = self._slots.get(key)
        return slot is not None and slot.needed

    def _settle(self, key: SlotKey) -> list[SlotKey]:
        slot = self._slots.get(key)
        if slot is None or slot.needed or slot.pins > (1 if self._free_early else 0):
            return []
        if self._free_early and slot.start < 0 and slot.pins:
            return []  # the hook is about workers' rings only
        if slot.start >= 0:
            self._blocks[key[0]].give(slot.start)
        if slot.pins:
            slot.start, slot.needed = -1, True  # hook: blocks gone, pins still counted
            return []
        del self._slots[key]
        if slot.start < 0 and key[0] in self._unknown:
            self._settled.append(key)
            return []
        return [key] if slot.start < 0 else []

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Per ring: blocks, free blocks, pinned slots."""
        pinned: dict[str, int] = {}
        for (ring, _), slot in self._slots.items():
            pinned[ring] = pinned.get(ring, 0) + (slot.pins > 0)
        return {
            ring: {"blocks": b.count, "free": b.free, "pinned": pinned.get(ring, 0)} for ring, b in self._blocks.items()
        }

    @property
    def idle(self) -> bool:
        """No slot is known: everything has been given back."""
        return not self._slots and not self._settled

    def check(self) -> None:
        """Invariants: pins are counted right; every taken run is a known slot; none both free and pinned."""
        counted: dict[SlotKey, int] = {}
        for keys in self._pins.values():
            for key in keys:
                counted[key] = counted.get(key, 0) + 1
        for key, slot in self._slots.items():
            assert slot.pins == counted.pop(key, 0), f"pins of {key}"
            assert slot.pins or slot.needed, f"{key} is kept for nobody"
        assert not counted, f"pins on unknown slots {counted}"
        for ring, blocks in self._blocks.items():
            blocks.check()
            if not self._free_early:
                starts = {slot.start for (name, _), slot in self._slots.items() if name == ring and slot.start >= 0}
                assert starts == set(blocks.runs), f"{ring}: runs without a slot"
