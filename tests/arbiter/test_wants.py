"""What the scheduler is told of requests that lack room."""

from __future__ import annotations

from dataclasses import replace

from engine.arbiter.events import AskToLeave, Tell
from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.wants import Wants, Wish
from ipc.messages import Vacate

GPU = "cuda:0"
GRACE_S = 10.0


def lease(stage: str, nbytes: int, state: LeaseState = LeaseState.HELD) -> Lease:
    found = Lease(f"{stage}@{GPU}/0#1", 1, GPU, nbytes, "m", state, 0.0)
    found.held_bytes = nbytes if state is LeaseState.HELD else 0
    return found


def wish(stage: str, nbytes: int, *, place: bool = False) -> Wish:
    return Wish(f"{stage}@{GPU}/0#1", nbytes, place)


def look(wants: Wants, wish: Wish | None, leases: list[Lease], room: int, now: float = 0.0) -> Vacate | None:
    """What the scheduler is told."""
    told = [
        action.message
        for action in wants.look(GPU, [] if wish is None else [wish], leases, room, now)
        if isinstance(action, Tell)
    ]
    return told[0] if told else None


def asked(wants: Wants, wish: Wish | None, leases: list[Lease], room: int, now: float = 0.0) -> list[str]:
    """Who outside the node is asked to leave."""
    return [
        action.peer
        for action in wants.look(GPU, [] if wish is None else [wish], leases, room, now)
        if isinstance(action, AskToLeave)
    ]


def test_who_lacks_room_is_told_with_what_it_lacks_once() -> None:
    wants = Wants(GRACE_S)
    leases = [lease("asr", 5000)]
    assert look(wants, wish("nmt", 3000), leases, 1000) == Vacate(GPU, 2000, f"nmt@{GPU}/0")
    assert look(wants, wish("nmt", 3000), leases, 1000) is None
    assert look(wants, wish("nmt", 3000), leases, 500) == Vacate(GPU, 2500, f"nmt@{GPU}/0")
    assert wants.all() == [Vacate(GPU, 2500, f"nmt@{GPU}/0")]


def test_it_is_taken_back_when_nobody_waits_any_more() -> None:
    wants = Wants(GRACE_S)
    look(wants, wish("nmt", 3000), [lease("asr", 5000)], 1000)
    assert look(wants, None, [lease("asr", 5000)], 1000) == Vacate(GPU, 0, "")
    assert wants.all() == []


def test_it_is_said_again_when_a_workers_lease_has_ended_and_it_still_holds() -> None:
    wants = Wants(GRACE_S)
    leases = [lease("asr", 5000), lease("tts", 100)]
    look(wants, wish("nmt", 3000), leases, 1000)
    wants.again(leases[1])
    assert look(wants, wish("nmt", 3000), leases[:1], 1000) == Vacate(GPU, 2000, f"nmt@{GPU}/0", again=True)
    assert look(wants, wish("nmt", 3000), leases[:1], 900) == Vacate(GPU, 2100, f"nmt@{GPU}/0"), "none has ended since"
    wants.again(external(1, 100))
    assert look(wants, wish("nmt", 3000), leases[:1], 900) is None


def test_that_a_lease_has_ended_is_not_forgotten_while_nothing_is_wanted() -> None:
    wants = Wants(GRACE_S)
    look(wants, wish("nmt", 3000), [lease("asr", 5000), lease("tts", 100)], 1000)
    wants.again(lease("tts", 100))
    assert look(wants, None, [lease("asr", 5000)], 1000) == Vacate(GPU, 0)
    assert look(wants, wish("nmt", 3000), [lease("asr", 5000)], 1000) == Vacate(GPU, 2000, f"nmt@{GPU}/0", again=True)


def test_a_model_that_has_more_than_it_was_granted_gives_all_of_it_back() -> None:
    grown = lease("asr", 1000)
    grown.held_bytes = 2500
    assert look(Wants(GRACE_S), wish("nmt", 2500), [grown], 0) == Vacate(GPU, 2500, f"nmt@{GPU}/0")


def test_nobody_leaves_in_vain_when_other_programs_hold_the_rest() -> None:
    assert look(Wants(GRACE_S), wish("nmt", 5000), [lease("asr", 1000)], 2000) is None


def test_a_place_among_the_models_is_wanted_however_much_room_there_is() -> None:
    news = look(Wants(GRACE_S), wish("nmt", 500, place=True), [lease("asr", 1000)], 50_000)
    assert news == Vacate(GPU, 1, f"nmt@{GPU}/0")


def external(number: int, nbytes: int, *, preemptible: bool = True) -> Lease:
    peer = f"lease@{number}/1#1"
    return replace(lease("x", nbytes), peer=peer, number=number, preemptible=preemptible)


def test_programs_outside_the_node_are_asked_first_the_newest_before_the_older_and_as_many_as_it_takes() -> None:
    leases = [lease("asr", 5000), external(1, 1000), external(2, 1000), external(3, 1000)]
    wants = Wants(GRACE_S)
    assert asked(wants, wish("nmt", 2500), leases, 1000) == ["lease@3/1#1", "lease@2/1#1"]
    assert asked(wants, wish("nmt", 2500), leases, 1000) == [], "once"
    assert wants.all() == [], "the node's own models stay while those have time to leave"


def test_the_scheduler_is_told_what_their_leaving_will_not_cover() -> None:
    leases = [lease("asr", 5000), external(1, 1000)]
    assert look(Wants(GRACE_S), wish("nmt", 3000), leases, 500) == Vacate(GPU, 1500, f"nmt@{GPU}/0")


def test_the_scheduler_is_told_all_when_they_have_not_left_in_time() -> None:
    leases, wants = [lease("asr", 5000), external(1, 1000)], Wants(GRACE_S)
    assert asked(wants, wish("nmt", 1500), leases, 500, now=0.0) and wants.due_in(leases[1], 4.0) == 6.0
    assert look(wants, wish("nmt", 1500), leases, 500, now=GRACE_S - 0.1) is None
    assert look(wants, wish("nmt", 1500), leases, 500, now=GRACE_S) == Vacate(GPU, 1000, f"nmt@{GPU}/0")
    assert wants.is_overdue(leases[1], GRACE_S)


def test_who_did_not_say_that_it_may_be_asked_is_not() -> None:
    assert asked(Wants(GRACE_S), wish("nmt", 1500), [external(1, 1000, preemptible=False)], 1000) == []


def test_the_node_s_models_do_not_leave_for_what_only_programs_outside_could_give() -> None:
    assert look(Wants(GRACE_S), wish("nmt", 3000), [external(1, 5000, preemptible=False)], 0) is None


def test_nobody_leaves_for_what_is_on_its_way_back_already() -> None:
    dying = lease("tts", 2000)
    dying.state = LeaseState.DRAINING
    leases = [lease("asr", 5000), external(1, 500), dying]
    wants = Wants(GRACE_S)
    assert look(wants, wish("tts", 2000), leases, 0) is None and asked(wants, wish("tts", 2000), leases, 0) == []
    dying.state = LeaseState.DEFICIT  # it did not come back in time
    assert asked(wants, wish("tts", 2000), leases, 0) == ["lease@1/1#1"]


def test_no_program_leaves_when_all_that_may_leave_would_not_be_enough() -> None:
    leases = [lease("asr", 2000), external(1, 1000), external(2, 9000, preemptible=False)]
    assert asked(Wants(GRACE_S), wish("nmt", 4500), leases, 1000) == []
    assert asked(Wants(GRACE_S), wish("nmt", 4000), leases, 1000) == ["lease@1/1#1"], "with asr it is"


def test_no_program_leaves_for_a_place_among_the_models() -> None:
    assert asked(Wants(GRACE_S), wish("nmt", 500, place=True), [lease("asr", 2000), external(1, 1000)], 1000) == []
