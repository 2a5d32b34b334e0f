"""What the scheduler is told of room: changes that matter, and all of it to whoever has heard nothing."""

from __future__ import annotations

from engine.arbiter.events import FromWorker, Waits
from engine.arbiter.leases import Leases
from engine.arbiter.room import Reading
from engine.arbiter.spare import LEAST_STEP_BYTES, Spare
from engine.limits import Limits
from ipc.messages import LeaseRequest, Room

GPU, GIB = "cuda:0", 2**30


def told(spare: Spare, room: int) -> list[int]:
    return [tell.message.nbytes for tell in spare.look({GPU: room}) if isinstance(tell.message, Room)]


def test_room_is_told_when_it_has_changed_by_much_and_its_end_always() -> None:
    spare = Spare({GPU: 8 * GIB})
    assert told(spare, 0) == []
    assert told(spare, 2 * GIB) == [2 * GIB]
    assert told(spare, 2 * GIB + LEAST_STEP_BYTES - 1) == []
    assert told(spare, 2 * GIB + LEAST_STEP_BYTES) == [2 * GIB + LEAST_STEP_BYTES]
    assert told(spare, 10) == [10]
    assert told(spare, 0) == [0]
    assert spare.all() == [Room(GPU, 0)]


def test_a_device_of_which_nothing_is_known_keeps_what_was_told() -> None:
    spare = Spare({GPU: 8 * GIB})
    told(spare, GIB)
    assert spare.look({}) == [] and spare.all() == [Room(GPU, GIB)]


def test_what_a_request_waits_for_is_nobody_s_room() -> None:
    book = Leases([Limits(GPU, 8 * GIB, safety_margin=0.0)], Waits())
    assert book.rooms() == {}
    book.handle(Reading(GPU, 8 * GIB, 4 * GIB, 1.0), 1.0)
    assert book.rooms() == {GPU: 4 * GIB}
    book.handle(FromWorker("a@cuda:0/0#1", LeaseRequest(1, "a", GPU, 5 * GIB, "a")), 1.1)
    assert book.rooms() == {GPU: 0}
