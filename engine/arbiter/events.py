"""What happens to the book of leases, and what it answers. Plain data; what is made by the dozen is cheap to make.

The waits it needs, the obstacles it names, its events and its actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import msgspec

from engine.arbiter.room import Reading
from ipc.messages import (
    Denied,
    Gone,
    Granted,
    Inquire,
    LeaseRequest,
    LeaseWait,
    Leave,
    Orders,
    Quarantine,
    Release,
    Room,
    Settled,
    Vacate,
)


@dataclass(frozen=True)
class Waits:
    """The deadlines this core needs, in seconds."""

    lease_wait_s: float = 60.0
    settle_s: float = 5.0
    unreadable_s: float = 2.0
    grace_s: float = 10.0


class FromWorker(msgspec.Struct, frozen=True):
    """A message of one worker's life (``peer`` is "role#incarnation")."""

    peer: str
    message: Union[LeaseRequest, Settled, Release]


@dataclass(frozen=True)
class DeviceLost:
    """A device computes no more, or wrongly, and will not before it is reset."""

    device: str
    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


class Send(msgspec.Struct, frozen=True):
    """Action: send this to that worker."""

    peer: str
    message: Union[Granted, LeaseWait, Denied, Inquire]


@dataclass(frozen=True)
class Tell:
    """Action: say this to the scheduler."""

    message: Union[Vacate, Room]


@dataclass(frozen=True)
class AskToLeave:
    """Action: this holder outside the node is to leave; somebody needs its memory."""

    peer: str
    message: Leave


@dataclass(frozen=True)
class Alarm:
    """Action: say this to the supervisor."""

    message: Quarantine


@dataclass(frozen=True)
class Note:
    """Action: say this to the node's people, a warning."""

    text: str


@dataclass(frozen=True)
class Sample:
    """Action: read this device's memory now; somebody waits for the figures."""

    device: str


Event = Union[FromWorker, Gone, Reading, DeviceLost, Orders, Tick]
Action = Union[Send, Tell, AskToLeave, Alarm, Note, Sample]


class Obstacle(msgspec.Struct, frozen=True):
    """Why a request is not granted now. ``kind``: turn | models | unreadable | reading | room | elder."""

    kind: str
    text: str
