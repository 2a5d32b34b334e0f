"""One lease: a worker's standing right to memory of a device, from the question to the last byte given back.

::

    requested -> granted -> held -> draining -> released
        |           |                  |            ^
        v           +----------------->+            |
    denied, expired                    +-> deficit -+

    granted, held, draining, deficit -> lost -> draining

*granted*: its holder may load now, and is the only one on the device that may. *held*: loaded and warm. *draining*:
the holder is gone or has let go, but the bytes count as used until the driver shows them back. *deficit*: the driver
has not shown them back in time; they count as what is really there, and are shown as missing.
*denied*: it would never fit; *expired*: it has waited as long as it would. *lost*: its holder cannot be killed, or its
device computes no more; its bytes count as used. It drains when that holder has ended after all; on a lost device it
stays. A request whose holder dies while it waits goes straight to released.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from ipc.errors import IllegalMove


class LeaseState(Enum):
    REQUESTED = "requested"
    GRANTED = "granted"
    HELD = "held"
    DRAINING = "draining"
    DEFICIT = "deficit"
    LOST = "lost"
    RELEASED = "released"
    DENIED = "denied"
    EXPIRED = "expired"

    __hash__ = object.__hash__  # Enum's own is Python code, and states are looked up in sets all the time


MOVES: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.REQUESTED: frozenset({LeaseState.GRANTED, LeaseState.DENIED, LeaseState.EXPIRED, LeaseState.RELEASED}),
    LeaseState.GRANTED: frozenset({LeaseState.HELD, LeaseState.DRAINING, LeaseState.LOST}),
    LeaseState.HELD: frozenset({LeaseState.DRAINING, LeaseState.LOST}),
    LeaseState.DRAINING: frozenset({LeaseState.RELEASED, LeaseState.DEFICIT, LeaseState.LOST}),
    LeaseState.DEFICIT: frozenset({LeaseState.RELEASED, LeaseState.LOST}),
    LeaseState.LOST: frozenset({LeaseState.DRAINING}),
    LeaseState.RELEASED: frozenset(),
    LeaseState.DENIED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
}

ALIVE = frozenset({LeaseState.GRANTED, LeaseState.HELD})  # somebody may use its bytes
LEAVING = frozenset({LeaseState.DRAINING, LeaseState.DEFICIT})  # nobody uses its bytes any more
ON_DEVICE = ALIVE | LEAVING | {LeaseState.LOST}  # its bytes may lie on the device

EXTERNAL = "lease@"  # how the names of holders outside the node begin
SHOWN_BACK = 0.1  # what drains is over when at most this share of its bytes is still there


@dataclass(eq=False, slots=True)
class Lease:
    """One request and what became of it. Only ``move`` changes ``state``."""

    peer: str  # the holder's life: "asr@cuda:0/0#1"
    id: int  # the holder's number of its question
    device: str
    nbytes: int  # what is asked for, then what is granted
    model: str  # for people, and to count models
    state: LeaseState
    since: float  # when it came into this state
    pid: int = 0  # its holder's process, as a driver may list it; 0: not said
    number: int = 0  # the arbiter's number, from the grant on
    held_bytes: int = 0  # what of it lies on the device, as far as is known
    measured_bytes: int = -1  # what its holder measured after loading; -1: nothing
    settled_at: float | None = None  # when it said so, until a later reading has taken it in
    left_at: float = 0.0  # when it began to drain
    leaving_bytes: int = 0  # held_bytes then
    variant: int = 0  # of the model, for whoever measures it
    priority: str = "normal"  # high | normal | low
    rank: tuple[float, float] = (0.0, 0.0)  # its place in the line, while it waits
    patient_until: float = 0.0  # the end of its patience, by the clock of that line
    passed_until: float = 0.0  # from then on nobody behind it goes before it, by the same clock
    preemptible: bool = False  # its holder may be asked to leave
    free_bytes: int = -1  # what was free when it was granted, for words
    grows: bool = False  # besides its holder's lease, for a model that is loaded already
    asked_at: float | None = None  # when it was
    home: str = ""  # the device it was asked for, where that has no book of its own: see ``books`` in leases
    obstacle: str = ""  # kind of what it was told it waits for
    granted_at: float = 0.0
    peak_bytes: int = 0  # of its holder's first lease: the most that a list of processes has shown the holder to have
    overused: bool = False  # that was said to be more than was granted
    base_bytes: int = 0  # what its holder's process has besides it, from before the grant
    external: bool = field(default=False, init=False)  # its holder is a program outside the node ("lease@PID/N#START")

    def __post_init__(self) -> None:
        self.external = self.peer.startswith(EXTERNAL)  # asked for each lease in each decision, so kept

    def is_on(self, device: str) -> bool:
        """Whether it is of this device, whose ever memory that has."""
        return (self.home or self.device) == device

    @property
    def is_loading(self) -> bool:
        """Whether its holder loads, or has said that it has loaded since the newest reading."""
        return self.state is LeaseState.GRANTED or (self.state is LeaseState.HELD and self.settled_at is not None)

    @property
    def promised_bytes(self) -> int:
        """Bytes its holder may still take: not in the driver's figures yet, and not to be given to anybody else."""
        short = self.nbytes - self.held_bytes
        if short <= 0 or self.state is LeaseState.DEFICIT or self.state not in ON_DEVICE:
            return 0
        return short

    @property
    def kind_of_model(self) -> tuple[str, str]:
        """Two instances of one stage with one model are one model."""
        return _kind_of_model(self.peer, self.model)


@lru_cache(maxsize=4096)  # asked for many leases in each decision
def _kind_of_model(peer: str, model: str) -> tuple[str, str]:
    return peer.partition("@")[0], model


def shown_back(leases: Iterable[Lease]) -> bool:
    """Whether the driver has shown (nearly) all bytes of these back since they began to drain."""
    held = leaving = 0
    for lease in leases:
        held, leaving = held + lease.held_bytes, leaving + lease.leaving_bytes
    return held <= SHOWN_BACK * leaving


def shrink(leases: Collection[Lease], nbytes: int) -> list[Lease]:
    """Let one holder keep so much of these, or what it was seen to have if that is more; returns what is left empty."""
    leases = sorted(leases, key=lambda lease: lease.number)
    there = sum(lease.held_bytes for lease in leases)
    left = max(nbytes, there, *(lease.peak_bytes for lease in leases))
    for lease in leases:
        lease.nbytes = min(lease.nbytes, left)
        lease.held_bytes = min(lease.nbytes, there)
        left, there = left - lease.nbytes, there - lease.held_bytes
    leases[0].held_bytes += there  # more than was granted
    return [lease for lease in leases if not lease.nbytes]


def move(lease: Lease, state: LeaseState, now: float) -> None:
    """Change a lease's state. Raises IllegalMove, and changes nothing, when the table has no such move."""
    if state not in MOVES[lease.state]:
        raise IllegalMove(f"lease {lease.number} of {lease.peer}: {lease.state.value} -> {state.value}")
    lease.state, lease.since = state, now
    if state is LeaseState.DRAINING:
        lease.left_at, lease.leaving_bytes = now, lease.held_bytes
