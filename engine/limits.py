"""How much of a device may be granted: the bounds on its use, and the one formula of it. Pure.

The arbiter decides by it what it grants, and the placement plan what will be granted; so the plan cannot promise what
the arbiter then refuses.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.boot import DevicePlan


@dataclass(frozen=True)
class Limits:
    """A device and the configured bounds on its use. Sizes in bytes."""

    name: str
    total_bytes: int
    ceiling_bytes: int = 0  # nothing is granted above this much used memory; 0: none
    reserve_bytes: int = 0
    safety_margin: float = 0.1
    max_models: int = 5
    ceiling_is_own: bool = False  # ... by this node alone, whatever others use
    ceiling_by: str = "devices.max_bytes"  # the setting that says so
    returns_at_once: bool = False  # a dead process's memory is back when its death is known (host memory)

    @property
    def usable_bytes(self) -> int:
        """The device, or its ceiling."""
        return min(self.total_bytes, self.ceiling_bytes) if self.ceiling_bytes else self.total_bytes

    @property
    def most_bytes(self) -> int:
        """The largest lease that would ever fit: on an otherwise empty device."""
        return self.usable_bytes - self.margin(self.total_bytes)

    def margin(self, driver_free: int) -> int:
        """Bytes that are never granted: a share of what is free, as far as it may be used, or the reserve."""
        return max(int(self.safety_margin * min(driver_free, self.usable_bytes)), self.reserve_bytes)

    def grantable(self, driver_free: int, promised: int, ours: int, foreign: int) -> int:
        """Bytes that may still be granted (negative: too much is taken already).

        ``promised``: sum max(0, granted - held) of our leases; ``ours``: sum max(granted, held).
        """
        by_device = min(driver_free - promised, self.total_bytes - ours - foreign)
        return min(by_device, self.under_ceiling(ours, foreign)) - self.margin(driver_free)

    def under_ceiling(self, ours: int, foreign: int) -> int:
        """Bytes between what is used and the ceiling; signed."""
        return self.usable_bytes - ours - (0 if self.ceiling_is_own else foreign)


def limits(plan: DevicePlan) -> Limits:
    """The bounds on a device's use, as the node was configured."""
    return Limits(
        plan.name,
        plan.total_bytes,
        plan.ceiling_bytes,
        plan.reserve_bytes,
        plan.safety_margin,
        plan.max_models,
        ceiling_is_own=plan.ceiling_is_own,
        ceiling_by=plan.ceiling_by,
        returns_at_once=plan.memory_source in ("host", "unified", "declared"),
    )


def start_value(total_bytes: int, reserve_bytes: int, peak_bytes: int) -> int:
    """What to begin with: as many peaks as fit beside the reserve, less one for safety, and at least one.

    24 GB, reserve 6, peak 6: 2. In a run utterances share the weights, so that is on the safe side.
    """
    return max(1, (total_bytes - reserve_bytes) // max(1, peak_bytes) - 1)
