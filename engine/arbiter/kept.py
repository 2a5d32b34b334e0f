"""What one arbiter leaves to the next: the book as plain data.

Times in it are monotonic seconds of the same machine, so they hold in the next life too.
"""

from __future__ import annotations

import msgspec

from engine.arbiter.lease import Lease
from engine.arbiter.room import Reading


class KeptDevice(msgspec.Struct, frozen=True):
    """One device's part."""

    name: str
    reading: Reading | None
    foreign_bytes: int
    missing_bytes: int
    leases: tuple[Lease, ...]  # those whose bytes may lie on the device, oldest first
    lists_us: bool = False  # its driver lists our processes


# The tag is the version: a new one whenever an old record would be read wrongly. Code may be replaced under a running
# node, and an arbiter started afterwards finds what the old code wrote.
class Kept(msgspec.Struct, frozen=True, tag="leases 5"):
    """The whole book, without the requests that wait: their workers ask the next arbiter again."""

    next_number: int
    gone: dict[str, int]  # worker's role -> newest incarnation known to be dead
    load_times_ms: dict[str, float]
    devices: tuple[KeptDevice, ...]
    lost: dict[str, str] = {}  # quarantined device -> why
    over: tuple[Lease, ...] = ()  # that have ended a moment ago, for the next report


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)


def encode(kept: Kept) -> bytes:
    return _encoder.encode(kept)


def decode(data: bytes) -> Kept:
    """Raises ValueError when this is not what ``encode`` of this version made."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
