"""What the scheduler is told of requests that lack room."""

from __future__ import annotations

from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.wants import Wants
from ipc.messages import Vacate

GPU = "cuda:0"


def lease(stage: str, nbytes: int, state: LeaseState = LeaseState.HELD, obstacle: str = "") -> Lease:
    found = Lease(f"{stage}@{GPU}/0#1", 1, GPU, nbytes, "m", state, 0.0)
    found.held_bytes = nbytes if state is LeaseState.HELD else 0
    found.obstacle = obstacle
    return found


def waiting(stage: str, nbytes: int, obstacle: str = "room") -> Lease:
    return lease(stage, nbytes, LeaseState.REQUESTED, obstacle)


def test_the_oldest_that_lacks_room_is_told_with_what_it_lacks_once() -> None:
    wants = Wants()
    leases = [lease("asr", 5000), waiting("nmt", 3000), waiting("tts", 2000)]
    assert wants.look(GPU, leases, 1000) == Vacate(GPU, 2000, f"nmt@{GPU}/0")
    assert wants.look(GPU, leases, 1000) is None
    assert wants.look(GPU, leases, 500) == Vacate(GPU, 2500, f"nmt@{GPU}/0")
    assert wants.all() == [Vacate(GPU, 2500, f"nmt@{GPU}/0")]


def test_it_is_taken_back_when_nobody_waits_any_more() -> None:
    wants = Wants()
    wants.look(GPU, [lease("asr", 5000), waiting("nmt", 3000)], 1000)
    assert wants.look(GPU, [lease("asr", 5000)], 1000) == Vacate(GPU, 0, "")
    assert wants.all() == []


def test_it_is_said_again_when_a_lease_has_ended_and_it_still_holds() -> None:
    wants = Wants()
    leases = [lease("asr", 5000), lease("tts", 100), waiting("nmt", 3000)]
    wants.look(GPU, leases, 1000)
    wants.again(GPU)
    assert wants.look(GPU, [leases[0], leases[2]], 1000) == Vacate(GPU, 2000, f"nmt@{GPU}/0")


def test_nobody_leaves_in_vain_when_other_programs_hold_the_rest() -> None:
    assert Wants().look(GPU, [lease("asr", 1000), waiting("nmt", 5000)], 2000) is None


def test_a_place_among_the_models_is_wanted_however_much_room_there_is() -> None:
    news = Wants().look(GPU, [lease("asr", 1000), waiting("nmt", 500, "models")], 50_000)
    assert news == Vacate(GPU, 1, f"nmt@{GPU}/0")


def test_who_only_waits_for_its_turn_to_load_wants_nobody_to_leave() -> None:
    assert Wants().look(GPU, [lease("asr", 1000, LeaseState.GRANTED), waiting("nmt", 500, "turn")], 50_000) is None
