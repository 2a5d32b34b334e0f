"""What the scheduler promises, each by one example on the bare core."""

from __future__ import annotations

import pytest

from engine.boot import WorkerPlan
from engine.scheduler.book import GATEWAY, SUPERVISOR
from engine.scheduler.fleet import EXCUSED_LIVES
from engine.scheduler.jobs import Job, State
from ipc.errors import IllegalMove
from ipc.messages import (
    Acked,
    Admit,
    CancelJob,
    Capacity,
    Condemn,
    Copied,
    Denied,
    Drain,
    Drained,
    Excused,
    Failing,
    Free,
    Gone,
    Held,
    Here,
    JobAccepted,
    JobOutcome,
    Load,
    Loaded,
    Loading,
    Orders,
    Over,
    Partial,
    Progress,
    Ready,
    Run,
    Session,
    SessionEnded,
    Silent,
    Status,
)
from tests.scheduler.world import DEADLINES, GATEWAY_PEER, World, audio_stage, text_stage


def started(*stages, **fields) -> World:
    world = World(*stages, **fields)
    world.start_all()
    world.open()
    return world


def test_an_utterance_goes_through_every_stage_in_order():
    world = started(text_stage("a"), text_stage("b"), audio_stage("c"))
    world.admit(0)
    world.run_everything()
    (message,) = world.outcomes
    assert message.outcome.texts == {"a": "hello+a", "b": "hello+a+b"}
    assert message.ref is not None and message.ref.ring == "c@cpu/0"
    assert [(r.stage, r.state, r.attempt) for r in message.outcome.stages] == [
        ("a", "completed", 1), ("b", "completed", 1), ("c", "completed", 1),
    ]  # fmt: skip
    assert world.core.book.slots.idle


def test_an_acceptance_waits_for_a_message_to_ride_with_but_not_for_long():
    world = started(text_stage("a"))
    world.admit(0)
    assert world.messages(JobAccepted) == []
    assert world.core.next_deadline() == world.now + world.core.book.deadlines.ride_s, "nothing would wake it"
    world.admit(1)  # a second one does not put the first off
    world.advance(world.core.book.deadlines.ride_s)
    assert world.messages(JobAccepted) == [JobAccepted("s", 0), JobAccepted("s", 1)]


def test_acceptances_ride_with_what_goes_to_the_gateway_anyway_and_an_outcome_is_one_itself():
    world = started(text_stage("a"))
    for index in range(3):
        world.admit(index)
    before = len(world.sent)
    world.done(world.peer("a@cpu/0"))
    told = [send.message for send in world.sent[before:] if send.peer == "gateway"]
    assert told[:2] == [JobAccepted("s", 1), JobAccepted("s", 2)]
    assert isinstance(told[2], JobOutcome) and told[2].outcome.index == 0 and len(told) == 3
    world.settle()
    assert len(world.messages(JobAccepted)) == 2


def test_ready_needs_one_loaded_worker_of_every_stage():
    world = World(text_stage("a", workers=2), text_stage("b"))
    world.start("a@cpu/0")
    world.start("a@cpu/1")
    assert not world.messages(Ready, "supervisor")
    world.start("b@cpu/0")
    assert len(world.messages(Ready, "supervisor")) == 1


def test_different_stages_work_at_once_and_one_batch_is_sent_ahead():
    world = started(text_stage("a"), text_stage("b"))
    for index in range(4):
        world.admit(index)
    a, b = world.peer("a@cpu/0"), world.peer("b@cpu/0")
    assert [item.index for item in world.board[a]] == [0, 1]
    world.done(a)
    assert [item.index for item in world.board[a]] == [1, 2]
    assert [item.index for item in world.board[b]] == [0]


def test_serial_mode_has_one_job_in_flight():
    world = started(text_stage("a"), text_stage("b"), mode="serial")
    for index in range(3):
        world.admit(index)
    while any(world.board.values()):
        on_board = [item for items in world.board.values() for item in items]
        assert len(on_board) == 1
        world.done(next(peer for peer, items in world.board.items() if items))
    assert world.ended() == {("s", i): "ok" for i in range(3)}


def test_a_dead_worker_costs_nothing_but_time():
    world = started(text_stage("a"), text_stage("b"))
    for index in range(3):
        world.admit(index)
    world.kill("a@cpu/0")
    world.start("a@cpu/0")
    world.run_everything()
    assert world.ended() == {("s", i): "ok" for i in range(3)}
    attempts = {m.outcome.index: [r.attempt for r in m.outcome.stages if r.stage == "a"] for m in world.outcomes}
    assert attempts[0] == [1, 2]


def test_only_the_batch_that_had_begun_is_suspect_and_suspects_run_alone():
    world = started(text_stage("a", max_batch=2))
    for index in range(4):
        world.admit(index)
    assert len(world.board[world.peer("a@cpu/0")]) >= 2
    world.run_everything()
    for index in range(4, 8):
        world.admit(index)
    world.kill("a@cpu/0")
    peer = world.start("a@cpu/0")
    suspects = [job.index for job in world.core.book.lines["s"].jobs.values() if job.suspect]
    assert suspects == [4]
    assert [item.index for item in world.board[peer]][:1] == [4]
    assert list(world.core.book.workers["a@cpu/0"].batches[0].jobs.values()) == [("s", 4)]


def test_the_third_death_while_alone_is_poison_and_neighbours_are_unharmed():
    world = started(text_stage("a"))
    world.admit(0)
    world.admit(1)
    for _ in range(4):
        world.kill("a@cpu/0")
        world.start("a@cpu/0")
    world.run_everything()
    assert world.ended() == {("s", 0): "error(poison)", ("s", 1): "ok"}


def test_reported_failures_wait_and_are_tried_again_at_most_three_times():
    world = started(text_stage("a"))
    world.admit(0)
    for wait in (0.5, 1.0, 2.0):
        world.fail(world.peer("a@cpu/0"))
        world.advance(wait - 0.01)
        assert not world.board[world.peer("a@cpu/0")]
        world.advance(0.02)
        assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [0]
    world.fail(world.peer("a@cpu/0"))
    assert world.ended() == {("s", 0): "error(failed)"}


def test_a_failure_that_cannot_succeed_ends_at_once_with_its_cause():
    world = started(text_stage("a"), text_stage("b"))
    world.admit(0)
    world.fail(world.peer("a@cpu/0"), retry=False, code="bad_language")
    (message,) = world.outcomes
    assert message.outcome.code == "bad_language" and message.outcome.error == "on purpose"
    assert [(r.stage, r.state) for r in message.outcome.stages] == [("a", "failed"), ("b", "pending")]


def test_a_wait_that_would_outlive_the_deadline_ends_now():
    world = started(text_stage("a"))
    world.admit(0, budget_ms=200)
    world.fail(world.peer("a@cpu/0"))
    assert world.ended() == {("s", 0): "error(failed)"}


def test_out_of_memory_has_its_own_longer_ladder():
    world = started(text_stage("a"))
    world.admit(0, budget_ms=600_000)
    for wait in (1.0, 3.0, 9.0):
        world.fail(world.peer("a@cpu/0"), code="oom")
        world.advance(wait - 0.01)
        assert not world.board[world.peer("a@cpu/0")]
        world.advance(0.02)
    world.fail(world.peer("a@cpu/0"), code="oom")
    assert world.ended() == {("s", 0): "error(no_vram)"}


def test_a_retry_is_never_behind_later_indices_of_its_session():
    world = started(text_stage("a"), send_ahead=0)
    for index in range(4):
        world.admit(index)
    world.fail(world.peer("a@cpu/0"))
    world.advance(0.51)
    world.done(world.peer("a@cpu/0"))
    assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [0]


def test_who_failed_together_does_not_come_back_together():
    chances = iter([0.0, 1.0])
    world = started(text_stage("a", max_batch=2, max_delay_ms=10), send_ahead=0, chance=lambda: next(chances))
    worker = world.peer("a@cpu/0")
    world.admit(0), world.admit(1)
    assert len(world.board[worker]) == 2
    world.fail(worker), world.fail(worker)
    world.advance(0.52)  # half of retry_delay_s, and what a batch waits for company
    assert [item.index for item in world.board[worker]] == [0]
    world.done(worker)
    world.advance(0.05)  # a tenth more
    assert [item.index for item in world.board[worker]] == [1]


def test_the_deadline_ends_the_job_now_and_leaves_the_worker_alone():
    world = started(text_stage("a"), audio_stage("b"))
    world.admit(0, budget_ms=1000, audio=0)
    world.done(world.peer("a@cpu/0"))
    world.advance(1.01)
    assert world.ended() == {("s", 0): "error(expired)"}
    assert not world.messages(Condemn, "supervisor")
    assert not world.core.book.slots.idle, "the running worker still holds its slot"
    world.done(world.peer("b@cpu/0"))
    assert world.core.book.slots.idle and len(world.outcomes) == 1


def test_a_hung_run_is_condemned_only_after_its_own_limit():
    world = started(text_stage("a", timeout_base_s=5.0, timeout_per_audio=2.0))
    world.admit(0, budget_ms=100_000, audio_s=1.0)
    world.admit(1, budget_ms=100_000)
    world.advance(6.9)
    assert not world.messages(Condemn, "supervisor")
    world.advance(0.2)
    (condemn,) = world.messages(Condemn, "supervisor")
    assert condemn.worker == "a@cpu/0" and "hung" in condemn.reason
    world.advance(50)
    assert len(world.messages(Condemn, "supervisor")) == 1


def test_a_batch_has_as_long_as_all_its_utterances_one_after_the_other():
    world = started(
        text_stage("a", timeout_base_s=5.0, timeout_per_audio=2.0, max_batch=3, min_batch=3, max_delay_ms=100.0)
    )
    for index in range(3):
        world.admit(index, budget_ms=100_000, audio_s=4.0)
    world.advance(5.0 + 2.0 * 12.0 - 0.1)
    assert not world.messages(Condemn, "supervisor")
    world.advance(0.3)
    (condemn,) = world.messages(Condemn, "supervisor")
    assert "hung: a run took more than the 29.0 s that timeout_base_s" in condemn.reason


def test_the_batch_sent_ahead_has_its_limit_from_when_it_begins():
    world = started(text_stage("a", timeout_base_s=5.0))
    world.admit(0)
    world.admit(1)
    world.advance(4.9)
    world.done(world.peer("a@cpu/0"))
    world.advance(4.9)
    assert not world.messages(Condemn, "supervisor")
    world.advance(0.2)
    assert len(world.messages(Condemn, "supervisor")) == 1


def test_a_silent_worker_is_condemned_only_if_nothing_keeps_it_busy():
    world = started(text_stage("a"))
    world.admit(0)
    world.core.handle("supervisor", Silent("a@cpu/0", 1), world.now)
    world.turn()
    assert not world.messages(Condemn, "supervisor")
    world.done(world.peer("a@cpu/0"))
    world.core.handle("supervisor", Silent("a@cpu/0", 1), world.now)
    world.turn()
    assert not world.messages(Condemn, "supervisor"), "this news is older than the word that has just come"
    world.advance(DEADLINES.silent_s)
    stale = world.now - DEADLINES.heartbeat_s - 0.1  # this scheduler stood still: its heartbeat may have come meanwhile
    world.core.handle("supervisor", Silent("a@cpu/0", 1, told_at=stale), world.now)
    world.turn()
    assert not world.messages(Condemn, "supervisor")
    world.core.handle("supervisor", Silent("a@cpu/0", 1, told_at=world.now), world.now)
    world.turn()
    assert len(world.messages(Condemn, "supervisor")) == 1


def test_nothing_is_sent_behind_a_suspect():
    world = started(text_stage("a"))
    world.admit(0)
    world.kill("a@cpu/0")
    world.admit(1)
    peer = world.start("a@cpu/0")
    assert [item.index for item in world.board[peer]] == [0], "it runs alone"
    world.done(peer)
    assert [item.index for item in world.board[peer]] == [1]


def test_work_that_waits_for_its_client_is_no_standstill():
    """A session over its byte budget: nobody here is to blame, and nothing is to be mended."""
    world = started(text_stage("a"), text_stage("b"))
    world.tell(Over(("s",)))
    world.admit(0)
    world.admit(1)
    for _ in range(2):
        world.done(world.peer("a@cpu/0"))
    world.now += 20.0
    row = world.core.snapshot(world.now)["stages"]["b"]
    assert row["waiting"] == 2 and row["stalled_s"] == 0.0
    world.tell(Over(()))
    world.now += 20.0
    assert world.core.snapshot(world.now)["stages"]["b"]["stalled_s"] > 0.0


def test_failures_of_the_stage_itself_are_counted_until_one_run_is_well():
    world = started(text_stage("a"))
    for index in range(3):
        world.open(f"s{index}")
        world.admit(index, f"s{index}")
    peer = world.peer("a@cpu/0")
    world.fail(peer)
    world.fail(peer, retry=False, code="bad_text")  # the utterance's own fault
    assert world.core.snapshot(world.now)["stages"]["a"]["failed_in_row"] == 1
    world.done(peer)
    assert world.core.snapshot(world.now)["stages"]["a"]["failed_in_row"] == 0


def test_a_stage_the_node_can_do_without_is_gone_past_also_when_its_model_fails_later():
    world = started(text_stage("a"), text_stage("b", optional=True))
    world.kill("b@cpu/0")
    world.lives["b@cpu/0"] += 1
    for message in (Here(), Loading(), Denied("no such file", "bad_model")):
        world.core.handle(world.peer("b@cpu/0"), message, world.now)
        world.turn()
    world.admit(0)
    world.run_everything()
    assert world.ended() == {("s", 0): "ok"}
    assert len(world.messages(Load, world.peer("b@cpu/0"))) == 1, "a bad model is not tried for ever"


def test_a_stage_that_is_back_is_used_again():
    world = started(text_stage("a"), text_stage("b", optional=True))
    world.kill("b@cpu/0")
    world.lives["b@cpu/0"] += 1
    peer = world.peer("b@cpu/0")
    world.board[peer] = []
    for message in (Here(), Denied("no room", "no_vram")):
        world.core.handle(peer, message, world.now)
        world.turn()
    assert "b" in world.core.book.absent
    world.advance(DEADLINES.retry_delay_s + 0.1)
    for message in (Loading(), Loaded("")):
        world.core.handle(peer, message, world.now)
        world.turn()
    world.admit(0)
    world.run_everything()
    assert world.outcomes[0].outcome.texts == {"a": "hello+a", "b": "hello+a+b"}


@pytest.mark.parametrize("phase", ["loaded", "loading"])
def test_a_new_epoch_does_not_condemn_who_is_still_busy_for_the_one_before(phase: str):
    world = World(text_stage("a"))  # which has said nothing to this epoch yet
    for _ in range(3):
        world.advance(DEADLINES.silent_s)
        world.core.handle("supervisor", Silent("a@cpu/0", 1, phase), world.now)
        world.turn()
    assert not world.messages(Condemn, "supervisor")
    world.advance(DEADLINES.load_timeout_s)
    world.core.handle("supervisor", Silent("a@cpu/0", 1, phase), world.now)
    world.turn()
    assert len(world.messages(Condemn, "supervisor")) == 1


def test_cancel_gives_one_skipped_outcome_in_every_state():
    world = started(text_stage("a"), text_stage("b"), send_ahead=0)
    for index in range(3):
        world.admit(index)
    world.done(world.peer("a@cpu/0"))  # 0 at b, 1 at a, 2 queued
    for index in (0, 1, 2, 1):
        world.tell(CancelJob("s", index))
    assert world.ended() == {("s", i): "skipped(cancelled)" for i in range(3)}
    world.run_everything()
    assert len(world.outcomes) == 3


def test_input_slots_are_kept_until_the_job_has_ended_and_every_reader_has_answered():
    world = started(text_stage("a", accepts="audio"), text_stage("b"))
    world.admit(0, audio=1000)
    world.done(world.peer("a@cpu/0"))
    assert world.freed == set(), "a retry may still need it"
    world.done(world.peer("b@cpu/0"))
    world.settle()
    assert world.freed == {("s", 0)}
    world.admit(1, audio=1000, budget_ms=500)
    world.advance(0.6)
    assert world.ended()["s", 1] == "error(expired)" and ("s", 1) not in world.freed, "a worker still reads it"
    world.done(world.peer("a@cpu/0"))
    world.settle()
    assert ("s", 1) in world.freed


def test_a_result_slot_is_kept_until_the_gateway_has_copied_it():
    world = started(audio_stage("a", ring_blocks=1))
    world.copy_at_once = False
    world.admit(0)
    world.admit(1)
    world.done(world.peer("a@cpu/0"))
    assert world.board[world.peer("a@cpu/0")] == [], "the one slot is still being copied"
    world.tell(Copied((world.outcomes[0].ticket,)))
    assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [1]


def test_freeing_one_pin_early_would_hand_the_slot_out_too_soon():
    world = started(audio_stage("a", ring_blocks=1), hooks={"scheduler.slots": "free_early"})
    world.copy_at_once = False
    world.admit(0)
    world.admit(1)
    world.done(world.peer("a@cpu/0"))
    assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [1]


def test_two_result_slots_and_a_failing_first_index_do_not_deadlock():
    world = started(text_stage("a"), audio_stage("b", ring_blocks=2), max_retries=3)
    for index in range(8):
        world.admit(index)
    fails = 2
    begin = world.now
    while len(world.outcomes) < 8:
        peer = next((p for p, items in world.board.items() if items), None)
        if peer is None:
            world.advance(0.1)
            assert world.now - begin < 5
        elif world.board[peer][0].index == 0 and peer.startswith("b@") and fails:
            fails -= 1
            world.fail(peer)
        else:
            world.done(peer)
    assert set(world.ended().values()) == {"ok"} and world.core.book.slots.idle


def test_sessions_of_one_priority_take_turns():
    world = started(text_stage("a"), send_ahead=0)
    world.open("flood")
    for index in range(20):
        world.admit(index, "flood")
    world.admit(0, "s")
    order = [world.done(world.peer("a@cpu/0")).session for _ in range(3)]
    assert order.index("s") <= 2, "at most one of the flood's besides the one that ran"


def test_what_is_sent_ahead_does_not_stand_in_the_way_of_another_session():
    world = started(text_stage("a"))
    world.open("t")
    for index in range(4):
        world.admit(index)
    worker = world.peer("a@cpu/0")
    for _ in range(2):  # a second each, and so it is known
        begun, world.now = world.now, world.now + 1.0
        world.done(worker, begun_ns=int(begun * 1e9), ended_ns=int(world.now * 1e9))
    assert [item.index for item in world.board[worker]] == [2]
    world.advance(0.5)
    world.admit(0, "t")
    assert len(world.board[worker]) == 1, "it is early"
    world.advance(0.497)
    assert [(item.session, item.index) for item in world.board[worker]] == [("s", 2), ("t", 0)], "in time"


def busy_with_one_ahead(world: World) -> str:
    """A flood of one session, with one of it running and one sent ahead."""
    world.open("t")
    for index in range(6):
        world.admit(index)
    worker = world.peer("a@cpu/0")
    for _ in range(2):  # those came before any of them waited
        world.done(worker)
    world.advance(0.5)
    assert [(item.session, item.index) for item in world.board[worker]] == [("s", 2), ("s", 3)]
    return worker


def test_who_comes_overtakes_what_of_a_flood_was_sent_ahead():
    world = started(text_stage("a"))
    worker = busy_with_one_ahead(world)
    for index in (0, 1):
        world.admit(index, "t")
    assert [item.session for item in world.board[worker]] == ["s", "t", "s"], "one at a time"
    assert [run.overtakes for run in world.messages(Run, worker)][-1]
    order = [world.done(worker).session for _ in range(6)]
    assert order == ["s", "t", "s", "t", "s", "s"] and set(world.ended().values()) == {"ok"}


def test_nobody_overtakes_who_would_be_before_it_anyhow():
    world = started(text_stage("a"))
    world.open("t"), world.open("u")
    for session in ("s", "t", "u"):
        world.admit(0, session)
    worker = world.peer("a@cpu/0")
    world.advance(0.5)
    assert [item.session for item in world.board[worker]] == ["s", "t"]


def test_a_higher_priority_overtakes_what_was_sent_ahead():
    world = started(text_stage("a"))
    world.open("vip", priority="high")
    worker = busy_with_one_ahead(world)
    world.admit(0, "vip")
    assert [item.session for item in world.board[worker]] == ["s", "vip", "s"]


def test_a_batch_of_several_is_not_overtaken():
    world = started(text_stage("a", max_batch=2))
    world.open("t")
    for index in range(6):
        world.admit(index)
    world.admit(0, "t")
    worker = world.peer("a@cpu/0")
    world.advance(0.5)
    assert not any(run.overtakes for run in world.messages(Run, worker))


def test_when_a_worker_dies_after_an_overtaking_either_of_the_two_may_have_killed_it():
    """Which of them it had begun nobody knows: the message that one overtakes the other may have come too late."""
    world = started(text_stage("a"))
    worker = busy_with_one_ahead(world)
    world.admit(0, "t")
    world.done(worker)
    world.kill("a@cpu/0")
    suspects = {key for line in world.core.book.lines.values() for key, job in line.jobs.items() if job.suspect}
    assert suspects == {0, 3}
    world.start("a@cpu/0")
    world.run_everything()
    assert set(world.ended().values()) == {"ok"}


def test_with_one_session_the_next_batch_is_sent_at_once():
    world = started(text_stage("a"))
    world.admit(0)
    world.done(world.peer("a@cpu/0"), begun_ns=int(world.now * 1e9), ended_ns=int((world.now + 1) * 1e9))
    world.admit(1)
    world.admit(2)
    assert len(world.board[world.peer("a@cpu/0")]) == 2


def test_a_higher_priority_goes_first_and_never_interrupts():
    world = started(text_stage("a"), send_ahead=0)
    world.open("vip", priority="high")
    for index in range(3):
        world.admit(index, "s")
    world.admit(0, "vip")
    assert [world.done(world.peer("a@cpu/0")).session for _ in range(4)] == ["s", "vip", "s", "s"]


def test_nothing_said_is_ok_with_later_stages_skipped():
    world = started(text_stage("a"), text_stage("b"))
    world.admit(0)
    world.done(world.peer("a@cpu/0"), text="")
    (message,) = world.outcomes
    assert message.outcome.outcome == "ok" and message.outcome.texts == {"a": ""}
    assert [(r.stage, r.state, r.reason) for r in message.outcome.stages][1:] == [("b", "skipped", "nothing was said")]


def test_a_stage_is_skipped_by_request_and_when_it_is_absent():
    world = started(
        text_stage("a"), text_stage("b"), text_stage("c", workers=0, absent="not installed"), text_stage("d")
    )
    world.admit(0, skip=("b",))
    world.run_everything()
    (message,) = world.outcomes
    assert message.outcome.texts == {"a": "hello+a", "d": "hello+a+d"}
    reasons = {r.stage: r.reason for r in message.outcome.stages if r.state == "skipped"}
    assert reasons == {"b": "requested", "c": "not installed"}


def test_a_skipped_stage_whose_kinds_differ_takes_the_later_ones_with_it():
    world = started(text_stage("a", accepts="audio"), text_stage("b"))
    world.admit(0, audio=100, skip=("a",))
    (message,) = world.outcomes
    assert message.outcome.outcome == "ok" and message.outcome.texts == {} and message.ref is None
    assert [r.state for r in message.outcome.stages] == ["skipped", "skipped"]


def test_an_array_can_be_passed_on_from_stage_to_stage():
    stages = [text_stage(n, accepts="audio", emits="same") for n in "ab"]
    world = started(*stages)
    world.admit(0, audio=1000)
    for name in "ab":
        world.done(world.peer(f"{name}@cpu/0"), same=True, text=None)
    (message,) = world.outcomes
    assert message.ref is not None and message.ref.ring == "gateway"
    world.settle()
    assert not world.freed  # for a gateway that dies before its client has the result
    world.tell(Acked("s", 0))
    world.settle()
    assert world.freed == {("s", 0)}


def test_batches_are_filled_up_to_their_maximum():
    world = started(text_stage("a", max_batch=4), send_ahead=0)
    for index in range(9):
        world.admit(index)
    sizes = []
    while any(world.board.values()):
        peer = world.peer("a@cpu/0")
        sizes.append(len(world.core.book.workers["a@cpu/0"].batches[0].jobs))
        for _ in range(sizes[-1]):
            world.done(peer)
    assert sizes == [1, 4, 4]


def test_a_batch_that_is_not_full_is_not_sent_ahead_of_a_run_it_may_fill_meanwhile():
    world = started(text_stage("a", max_batch=3))
    for index in range(3):
        world.admit(index)
    peer = world.peer("a@cpu/0")
    assert [item.index for item in world.board[peer]] == [0], "two more wait for a third, or for the end of the run"
    world.admit(3)
    assert [item.index for item in world.board[peer]] == [0, 1, 2, 3], "that is a whole one"
    world.admit(4)
    for _ in range(4):
        world.done(peer)
    assert [item.index for item in world.board[peer]] == [4], "an idle worker waits for nobody"


def test_a_batch_closes_in_time_for_its_own_run_and_the_stages_after_it():
    world = started(text_stage("a", max_batch=4, max_delay_ms=60_000), text_stage("b"), send_ahead=0)
    for name in "ab":
        world.core.book.paces[name].measure(0.0, 1.0, world.now)  # a second each
    ends = world.now + 9.0
    world.admit(0, budget_ms=9000)
    while not world.board[world.peer("a@cpu/0")]:
        world.advance(0.01)
    assert world.now > ends - 2.5, "it may fill as long as that"
    for name in "ab":
        world.advance(1.0)
        world.done(world.peer(f"{name}@cpu/0"))
    assert world.ended() == {("s", 0): "ok"} and world.now <= ends


def test_a_batch_that_has_waited_its_delay_waits_for_a_worker_and_not_on_board_of_a_busy_one():
    world = started(text_stage("a", max_batch=3, max_delay_ms=50))
    world.admit(0)
    world.advance(0.1)
    world.admit(1)
    world.advance(0.1)
    peer = world.peer("a@cpu/0")
    assert [item.index for item in world.board[peer]] == [0]
    world.admit(2)
    world.done(peer)
    assert [item.index for item in world.board[peer]] == [1, 2]


def test_a_batch_is_of_one_length_about_and_what_is_shorter_than_a_second_is_that():
    world = started(text_stage("a", max_batch=4, length_ratio=2.0), send_ahead=0)
    worker, batches = world.peer("a@cpu/0"), []
    for index, seconds in enumerate((9.0, 10.0, 19.0, 1.5, 0.2, 30.0)):
        world.admit(index, audio_s=seconds)
    while world.board[worker]:
        batches.append([item.index for item in world.board[worker]])
        for _ in batches[-1]:
            world.done(worker)
    assert batches == [[0], [1, 2], [3, 4], [5]]


def test_who_is_of_another_length_is_passed_by_other_sessions_and_goes_first_in_the_next_batch():
    world = started(text_stage("a", max_batch=2, length_ratio=2.0), send_ahead=0)
    worker = world.peer("a@cpu/0")
    for name in "tuv":
        world.tell(Session(name, "local", ("a",), "en", "de"))
    world.admit(0, audio_s=5.0)
    for name, seconds in (("s", 5.0), ("t", 20.0), ("u", 5.0), ("v", 20.0)):
        world.admit(1 if name == "s" else 0, name, audio_s=seconds)
    world.done(worker)
    assert [item.session for item in world.board[worker]] == ["s", "u"]
    for _ in range(2):
        world.done(worker)
    assert [item.session for item in world.board[worker]] == ["t", "v"]


def test_nothing_is_sent_ahead_of_long_runs_where_there_are_several_workers():
    """Whoever is free first takes it, be it a millisecond later than it could have been there."""
    world = started(text_stage("a", workers=2))
    for index in range(5):
        world.admit(index)
    left, right = world.peer("a@cpu/0"), world.peer("a@cpu/1")
    assert [len(world.board[left]), len(world.board[right])] == [2, 2]
    for peer in (left, left, right, right, left):
        world.done(peer, ended_ns=int((world.now + 3) * 1e9))  # three seconds, each
    for index in range(5, 8):
        world.admit(index)
    assert [len(world.board[left]), len(world.board[right])] == [1, 1]
    world.done(right, ended_ns=int((world.now + 3) * 1e9))
    assert [item.index for item in world.board[right]] == [7]
    row = world.core.snapshot(world.now)["stages"]["a"]
    assert row["send_ahead"] == 0 and "whoever is free first" in row["send_ahead_why"]


def test_how_much_is_sent_ahead_is_the_operators_too_and_as_they_say_where_nothing_adapts():
    world = started(text_stage("a", workers=2))
    left, right = world.peer("a@cpu/0"), world.peer("a@cpu/1")
    world.core.handle("supervisor", Orders(knobs={"node.send_ahead": 0}), world.now)
    for index in range(3):
        world.admit(index)
    assert [len(world.board[left]), len(world.board[right])] == [1, 1]
    for peer in (left, right):
        world.done(peer, ended_ns=int((world.now + 3) * 1e9))
    world.core.handle("supervisor", Orders(knobs={"node.adaptive": False}), world.now)
    for index in range(3, 8):
        world.admit(index)
    assert [len(world.board[left]), len(world.board[right])] == [2, 2], "three seconds each, and all the same"
    assert world.core.snapshot(world.now)["stages"]["a"]["send_ahead_why"] == "as configured"


def test_a_batch_waits_for_company_at_most_its_delay():
    world = started(text_stage("a", max_batch=4, max_delay_ms=50))
    world.admit(0)
    assert not world.board[world.peer("a@cpu/0")]
    world.advance(0.049)
    assert not world.board[world.peer("a@cpu/0")]
    world.advance(0.002)
    assert len(world.board[world.peer("a@cpu/0")]) == 1


def test_a_batch_waits_for_no_company_that_would_cost_a_deadline():
    world = started(text_stage("a", max_batch=4, max_delay_ms=5000), text_stage("b"))
    for index, name in ((0, "a"), (0, "b")):  # a second each, and so it is known
        world.admit(index) if name == "a" else None
        world.advance(5.0)
        begun, world.now = world.now, world.now + 1.0
        world.done(world.peer(f"{name}@cpu/0"), begun_ns=int(begun * 1e9), ended_ns=int(world.now * 1e9))
    worker = world.peer("a@cpu/0")
    world.admit(1, budget_ms=20_000)
    world.admit(2, budget_ms=9_000)
    world.advance(1.0)
    assert not world.board[worker]
    world.advance(3.0)
    assert [item.index for item in world.board[worker]] == [1, 2]


def test_a_session_over_its_budget_gets_no_last_stage_except_what_unblocks_it():
    world = started(text_stage("a"), text_stage("b"), send_ahead=0)
    world.tell(Over(("s",)))
    world.admit(0)
    world.admit(1)
    world.done(world.peer("a@cpu/0"))
    world.done(world.peer("a@cpu/0"))
    assert not world.board[world.peer("b@cpu/0")]
    world.tell(CancelJob("s", 1))
    world.turn()
    assert [item.index for item in world.board[world.peer("b@cpu/0")]] == [0]


def test_a_session_over_its_budget_keeps_no_slot_that_somebody_waits_for():
    """Else it may wait for itself: for an index that can only run where its later ones have left their results."""
    world = started(text_stage("a"), audio_stage("b", ring_blocks=1), text_stage("c", accepts="audio"))
    world.admit(0)
    world.done(world.peer("a@cpu/0"))
    world.tell(Over(("s",)))
    world.done(world.peer("b@cpu/0"))
    assert not world.board[world.peer("c@cpu/0")], "nobody waits for its slot"
    world.admit(1)
    world.done(world.peer("a@cpu/0"))
    assert [item.index for item in world.board[world.peer("c@cpu/0")]] == [0]


def test_capacity_is_ten_times_the_concurrency_of_the_bottleneck_and_falls_with_a_worker():
    world = World(text_stage("a", workers=2), text_stage("b", workers=3, max_batch=4))
    world.start_all()
    assert world.messages(Capacity)[-1].n == 20
    world.kill("a@cpu/1", final=True)
    assert world.messages(Capacity)[-1].n == 10


def test_a_stage_without_any_worker_left_fails_its_jobs_and_the_rest_serves_on():
    world = started(text_stage("a"), text_stage("b"))
    world.open("short", pipeline=("a",))
    world.admit(0)
    world.kill("b@cpu/0", final=True)
    world.run_everything()
    world.admit(0, "short")
    world.run_everything()
    assert world.ended() == {("s", 0): "error(failed)", ("short", 0): "ok"}


@pytest.mark.parametrize(("name", "field"), [("a", "stages.a.model"), ("a.b", "stages.a.models.b.model")])
def test_a_stage_that_cannot_boot_ends_the_start_with_one_line(name, field):
    from ipc.messages import Denied

    world = World(text_stage(name))
    world.core.handle(f"{name}@cpu/0#1", Here(), world.now)
    world.turn()
    assert [s.message for s in world.sent if isinstance(s.message, Load)]
    world.core.handle(f"{name}@cpu/0#1", Denied("no such model", "bad_model"), world.now)
    world.turn()
    (failing,) = world.messages(Failing, "supervisor")
    assert failing == Failing(f"{field} cannot be used: no such model", configuration=True)


def denied(world: World, role: str, reason: str = "broken file", code: str = "bad_model") -> None:
    from ipc.messages import Denied

    world.lives[role] = 1
    world.board.setdefault(f"{role}#1", [])
    world.core.handle(f"{role}#1", Here(), world.now)
    world.turn()
    world.core.handle(f"{role}#1", Denied(reason, code), world.now)
    world.turn()


def test_an_optional_stage_that_cannot_load_is_absent_with_its_reason():
    world = World(text_stage("a"), text_stage("b", optional=True))
    world.start("a@cpu/0")
    denied(world, "b@cpu/0")
    assert len(world.messages(Ready, "supervisor")) == 1 and not world.messages(Failing, "supervisor")
    world.open()
    world.admit(0)
    world.run_everything()
    (message,) = world.outcomes
    assert message.outcome.texts == {"a": "hello+a"}
    assert [(r.stage, r.state, r.reason) for r in message.outcome.stages][1] == ("b", "skipped", "broken file")


def test_an_optional_stage_that_is_lost_is_skipped_by_what_waits_for_it():
    world = started(text_stage("a"), text_stage("b", optional=True))
    for index in range(4):
        world.admit(index)
    for _ in range(3):
        world.done(world.peer("a@cpu/0"))
    world.kill("b@cpu/0", final=True)
    world.run_everything()
    assert set(world.ended().values()) == {"ok"} and len(world.outcomes) == 4


def standby_world() -> World:
    primary = WorkerPlan(role="b@cuda:0/0", stage="b", device="cuda:0")
    spare = WorkerPlan(role="b@cpu/0", stage="b", device="cpu", standby=True)
    world = World(text_stage("a"), text_stage("b", optional=True, workers=(primary, spare)))
    world.start("a@cpu/0")
    return world


def test_a_worker_on_standby_loads_only_when_no_other_can_and_its_results_are_degraded():
    world = standby_world()
    world.core.handle("b@cpu/0#1", Here(), world.now)
    world.turn()
    assert not [s for s in world.sent if s.peer == "b@cpu/0#1"], "the GPU may still have room"
    denied(world, "b@cuda:0/0", "needs 3 GiB, 1 GiB there", "no_vram")
    assert [s for s in world.sent if s.peer == "b@cpu/0#1" and isinstance(s.message, Load)]
    world.lives["b@cpu/0"], world.board["b@cpu/0#1"] = 1, []
    world.core.handle("b@cpu/0#1", Loaded(""), world.now)
    world.turn()
    assert len(world.messages(Ready, "supervisor")) == 1
    world.open()
    world.admit(0)
    world.run_everything()
    assert world.outcomes[0].outcome.degraded == "b: on the cpu, its own device has no room"


def test_a_death_in_a_run_is_not_charged_to_the_worker_unless_nothing_ever_ends_well():
    world = started(text_stage("a"))
    world.kill("a@cpu/0")
    assert not world.messages(Excused, "supervisor"), "it died idle"
    world.start("a@cpu/0")
    for index in range(20):
        world.admit(index)
    for _ in range(EXCUSED_LIVES + 5):
        world.kill("a@cpu/0")
        world.start("a@cpu/0")
    assert len(world.messages(Excused, "supervisor")) == EXCUSED_LIVES - 1, "so many in a row, the idle one among them"
    world.done(world.peer("a@cpu/0"))
    world.kill("a@cpu/0")
    assert len(world.messages(Excused, "supervisor")) == EXCUSED_LIVES


def test_serial_mode_waits_for_a_run_whose_job_has_ended():
    world = started(text_stage("a"), text_stage("b"), mode="serial")
    world.admit(0, budget_ms=100)
    world.admit(1)
    world.advance(0.2)
    assert world.ended() == {("s", 0): "error(expired)"}
    assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [0], "0 still runs, so 1 waits"
    world.done(world.peer("a@cpu/0"))
    assert [item.index for item in world.board[world.peer("a@cpu/0")]] == [1]


def test_a_suspect_joins_no_other_one_s_batch():
    world = started(text_stage("a", max_batch=2), send_ahead=0)
    world.open("high", priority="high")
    world.admit(0)
    world.kill("a@cpu/0")
    world.admit(0, "high")
    peer = world.start("a@cpu/0")
    assert [item.session for item in world.board[peer]] == ["high"], "it would die with the suspect, and be one"
    world.done(peer)
    assert [item.session for item in world.board[peer]] == ["s"]


def test_suspects_are_never_batched():
    world = started(text_stage("a", max_batch=3), send_ahead=0)
    for index in range(4):
        world.admit(index)
    world.done(world.peer("a@cpu/0"))
    assert len(world.core.book.workers["a@cpu/0"].batches[0].jobs) == 3
    world.kill("a@cpu/0")
    peer = world.start("a@cpu/0")
    for _ in range(3):
        assert len(world.core.book.workers["a@cpu/0"].batches[0].jobs) == 1
        world.done(peer)


def test_a_worker_that_falls_silent_before_its_first_word_is_condemned():
    world = started(text_stage("a"))
    world.kill("a@cpu/0")
    world.core.handle("supervisor", Silent("a@cpu/0", 2), world.now)
    world.turn()
    assert [c.incarnation for c in world.messages(Condemn, "supervisor")] == [2]


@pytest.mark.parametrize(("phase", "limit_s"), [("loaded", 4.0 + 2.0 * 3.0), ("loading", DEADLINES.load_timeout_s)])
def test_a_worker_silent_since_before_this_epoch_has_as_long_as_what_it_may_be_in_takes(phase: str, limit_s: float):
    """A run of the longest utterance that is known; or a load."""
    world = World(text_stage("a", timeout_base_s=4.0, timeout_per_audio=2.0))
    world.open()
    world.admit(0, audio_s=3.0)
    end = world.now + limit_s
    while world.now < end - 1.0:
        world.core.handle("supervisor", Silent("a@cpu/0", 1, phase), world.now)
        world.turn()
        assert not world.messages(Condemn, "supervisor")
        assert "silent since before" in world.core.snapshot(world.now)["stages"]["a"]["why"]
        world.now += 1.0
    world.now = end
    world.core.handle("supervisor", Silent("a@cpu/0", 1, phase), world.now)
    world.turn()
    (condemn,) = world.messages(Condemn, "supervisor")
    assert condemn.reason.startswith("hung: silent since before")


def test_partials_and_states_are_told_only_to_sessions_that_ask():
    world = started(text_stage("a"), text_stage("b"))
    world.open("curious", partials=True)
    world.admit(0)
    world.admit(0, "curious")
    world.run_everything()
    told = [p.message for p in world.messages(Progress)]
    assert {m.session for m in told} == {"curious"}
    assert [m.text for m in told if isinstance(m, Partial)] == ["hello+a"]
    states = [(m.stage, m.state) for m in told if isinstance(m, Status)]
    assert states == [("a", "processing"), ("a", "completed"), ("b", "processing"), ("b", "completed")]


def test_every_transition_can_be_logged_with_counters():
    world = started(text_stage("a"), text_stage("b"))
    world.core.book.trace = True
    lines = []
    world.on_note = lines.append
    world.admit(0)
    world.admit(1)
    world.run_everything()
    wanted = [f"index 0 stage {s}: {state}" for s in "ab" for state in ("processing attempt 1", "completed attempt 1")]
    told = [line for line in lines if "index 0" in line]
    assert [any(want in line for line in told) for want in wanted] == [True] * 4
    assert all("active" in line and "queued" in line for line in told)


def test_drain_ends_what_is_left_at_its_limit_and_says_so_once():
    world = started(text_stage("a"))
    for index in range(3):
        world.admit(index)
    world.core.handle("supervisor", Drain(1000), world.now)
    world.turn()
    world.done(world.peer("a@cpu/0"))
    assert not world.messages(Drained, "supervisor")
    world.advance(1.1)
    assert list(world.ended().values()) == ["ok", "error(shutting_down)", "error(shutting_down)"]
    assert len(world.messages(Drained, "supervisor")) == 1


def test_a_new_gateway_hears_of_an_input_before_it_hears_that_it_is_free():
    world = World(text_stage("asr", accepts="audio"))
    world.open()
    world.admit(0, audio=100, budget_ms=1000)
    world.core.handle(SUPERVISOR, Gone("gateway", 1, "killed"), world.now)
    world.now += 2
    world.core.handle("gateway#2", Here("empty"), world.now)  # and in the same turn the deadline passes
    world.settle()
    told = [type(send.message) for send in world.sent if send.peer == GATEWAY]
    assert told.index(Held) < told.index(Free)


def test_late_words_of_a_dead_gateway_begin_nothing():
    world = World(text_stage("nmt"))
    world.start_all()
    world.open()
    world.core.handle("gateway#2", Here("empty"), world.now)
    world.admit(0)
    assert not world.core.book.lines["s"].jobs and not world.board["nmt@cpu/0#1"]


def test_a_closed_session_cancels_the_rest_and_is_forgotten():
    world = started(text_stage("a"))
    world.admit(0)
    world.tell(SessionEnded("s"))
    assert world.ended() == {("s", 0): "skipped(cancelled)"} and "s" not in world.core.book.lines
    world.done(world.peer("a@cpu/0"))
    assert len(world.outcomes) == 1


def test_records_are_kept_until_the_client_has_the_outcome():
    world = started(text_stage("a"))
    world.admit(0)
    world.run_everything()
    assert 0 in world.core.book.lines["s"].jobs
    world.tell(Acked("s", 0))
    assert not world.core.book.lines["s"].jobs


def test_an_illegal_move_raises_and_changes_nothing():
    job = Job(Session("s", "local", ("a", "b")), Admit("s", 0, 1000, text="x"), 1.0)
    with pytest.raises(IllegalMove):
        job.move(State.COMPLETED)
    with pytest.raises(IllegalMove):
        job.advance()
    assert job.state is State.PENDING and job.at == 0


def test_snapshot_has_the_names_the_documentation_gives():
    world = started(text_stage("a"))
    world.admit(0)
    shot = world.core.snapshot(world.now)
    assert shot["active"] == 1 and shot["total"] == 1 and shot["jobs"][0]["stages"] == {"a": "processing"}
    assert world.core.book.gateway == GATEWAY_PEER


def test_an_utterance_that_is_to_wait_is_known_and_not_begun_before_its_gateway_says_so():
    world = started(text_stage("a"))
    world.admit(0, waiting=True)
    world.admit(1)
    world.done(world.peer("a@cpu/0"))
    assert world.ended() == {("s", 1): "ok"}
    world.admit(0)
    world.run_everything()
    assert world.ended() == {("s", 1): "ok", ("s", 0): "ok"}


def test_while_it_waits_it_can_be_cancelled_and_its_deadline_holds():
    world = started(text_stage("a"))
    world.admit(0, waiting=True)
    world.admit(1, waiting=True, budget_ms=100)
    world.tell(CancelJob("s", 0))
    world.advance(0.2)
    assert world.ended() == {("s", 0): "skipped(cancelled)", ("s", 1): "error(expired)"}
    world.admit(0)  # its turn has come, too late
    world.settle()
    assert not world.board[world.peer("a@cpu/0")]


def test_what_waits_for_the_word_of_a_gateway_that_has_died_is_begun():
    world = started(text_stage("a"))
    world.admit(0, waiting=True)
    world.core.handle(SUPERVISOR, Gone("gateway", 1, "killed"), world.now)
    world.core.handle("gateway#2", Here("empty"), world.now)
    world.turn()
    world.run_everything()
    assert world.ended() == {("s", 0): "ok"}


def test_a_flood_of_tiny_utterances_takes_no_more_of_a_stage_whose_runs_have_one_length():
    world = World(text_stage("a"))
    world.start_all()
    world.open("flood")
    world.open("other")
    said, served = {"flood": 0, "other": 0}, []
    for _ in range(300):
        for session, text in (("flood", "a"), ("other", "word " * 60)):
            world.admit(said[session], session, text=text, budget_ms=600_000)
            said[session] += 1
        begun, world.now = world.now, world.now + 0.1
        item = world.done(world.peer("a@cpu/0"), begun_ns=int(begun * 1e9), ended_ns=int(world.now * 1e9))
        served.append(item.session)
    assert 0.4 < served[100:].count("other") / 200 < 0.6


def test_an_old_one_that_may_not_run_does_not_keep_batches_from_filling():
    world = started(text_stage("a", max_batch=4, max_delay_ms=200.0))
    world.open("slow")
    world.tell(Over(("slow",)))
    world.admit(0, "slow")
    world.advance(1.0)
    world.admit(0)
    assert not world.board[world.peer("a@cpu/0")], "its batch fills for as long as any other's"
    world.advance(0.3)
    assert [item.session for item in world.board[world.peer("a@cpu/0")]] == ["s"]


def test_who_comes_later_takes_turns_with_a_flood_from_then_on_also_where_nothing_is_sent_ahead():
    world = World(text_stage("a"), send_ahead=0)
    world.start_all()
    world.open("old")
    world.open("new")

    def served(runs: int) -> list[str]:
        return [world.done(world.peer("a@cpu/0")).session for _ in range(runs)]

    for index in range(60):
        world.admit(index, "old")
    served(30)
    for index in range(20):
        world.admit(index, "new")
    assert abs(served(24).count("new") - 12) <= 1


@pytest.mark.parametrize(("max_batch", "seconds"), [(1, 5.0), (2, 8.0), (8, 9.0)])
def test_a_silent_one_s_run_may_be_of_as_many_of_the_longest_as_its_batches_hold(max_batch: int, seconds: float):
    world = World(text_stage("a", timeout_base_s=4.0, timeout_per_audio=2.0, max_batch=max_batch))
    world.open()
    for index, audio_s in enumerate((3.0, 5.0, 1.0)):
        world.admit(index, audio_s=audio_s)
    began = world.now
    for after, condemned in ((0.0, 0), (4.0 + 2.0 * seconds - 0.1, 0), (4.0 + 2.0 * seconds, 1)):
        world.now = began + after
        world.core.handle("supervisor", Silent("a@cpu/0", 1, "loaded"), world.now)
        world.turn()
        assert len(world.messages(Condemn, "supervisor")) == condemned


@pytest.mark.parametrize(("phase", "unknown"), [("loading", []), ("loaded", ["a@cpu/0"])])
def test_a_silent_one_in_a_load_uses_no_slot_and_keeps_nobody_from_knowing_the_ring(phase: str, unknown: list[str]):
    world = World(text_stage("a"), epoch=2, ring_users={"gateway": ("gateway", "a@cpu/0")})
    assert "a@cpu/0" in world.core.book.slots.unknown["gateway"]
    world.core.handle("supervisor", Silent("a@cpu/0", 1, phase), world.now)
    world.turn()
    assert [role for role in world.core.book.slots.unknown.get("gateway", []) if role != "gateway"] == unknown
