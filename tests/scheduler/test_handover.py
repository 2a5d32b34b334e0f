"""What a new gateway and a new epoch are told, and that it is as good as what the dead one knew."""

from __future__ import annotations

from typing import Any

from engine.boot import WorkerPlan
from ipc.messages import (
    Acked,
    Admit,
    Ended,
    Held,
    JobOutcome,
    Outcome,
    Over,
    Ref,
    Remade,
    Restored,
    Session,
    StageRecord,
)
from ipc.ring import generation
from tests.scheduler.world import World, audio_stage, text_stage

SAMPLES = Ref("gateway", 0, 1000, "int16", (500,), 16000, generation(1, 1))


def started(*stages: Any, **fields: Any) -> World:
    world = World(*stages, **fields)
    world.start_all()
    world.open()
    return world


def of(kind: type, told: list[Any]) -> list[Any]:
    return [message for message in told if isinstance(message, kind)]


def last_outcome(world: World) -> Outcome:
    return world.messages(JobOutcome)[-1].outcome


# ---------------------------------------------------------------- a new gateway


def test_a_new_gateway_hears_of_an_index_that_never_came_and_so_can_let_out_the_next_one():
    world = started(text_stage("a"))
    gap = Ended(Outcome("s", 0, "skipped", "gap"))
    world.tell(gap)
    world.admit(1)
    world.run_everything()
    world.lose_gateway()
    told = world.new_gateway()
    assert gap in told and told.index(gap) < told.index(Restored())


def test_an_utterance_has_only_the_rest_of_its_time_at_the_next_gateway():
    world = started(text_stage("a"))
    world.admit(0, budget_ms=10_000)
    world.advance(4.0)
    world.lose_gateway()
    (admit,) = of(Admit, world.new_gateway())
    assert admit.budget_ms == 6000


def test_a_new_gateway_has_no_session_over_its_outbox():
    world = started(text_stage("a"), text_stage("b"))
    world.tell(Over(("s",)))
    world.admit(0)
    world.done(world.peer("a@cpu/0"))
    assert not world.board[world.peer("b@cpu/0")]
    world.lose_gateway()
    world.new_gateway()
    assert [item.index for item in world.board[world.peer("b@cpu/0")]] == [0]


def test_a_result_that_was_lost_is_made_again_however_long_ago_its_deadline_was():
    world = started(audio_stage("a"))
    world.admit(0, budget_ms=2000)
    world.done(world.peer("a@cpu/0"))
    world.lose_gateway()
    world.new_gateway()
    world.advance(3.0)
    world.fail(world.peer("a@cpu/0"))
    world.advance(3.0)
    world.done(world.peer("a@cpu/0"))
    assert [m.outcome.outcome for m in world.messages(JobOutcome)] == ["ok", "ok"]


def test_a_result_that_is_made_again_says_how_it_was_degraded_and_all_that_was_tried():
    world = started(text_stage("a"), audio_stage("b"))
    world.admit(0)
    world.done(world.peer("a@cpu/0"), degraded="half a model", text="heard")
    world.done(world.peer("b@cpu/0"))
    before = last_outcome(world)
    world.lose_gateway()
    world.new_gateway()
    world.done(world.peer("b@cpu/0"))
    again = last_outcome(world)
    assert before.degraded == again.degraded == "a: half a model"
    assert again.stages[:2] == before.stages and [r.stage for r in again.stages] == ["a", "b", "b"]


def test_what_the_last_stage_says_of_itself_is_said_once():
    world = started(text_stage("a"), audio_stage("b"))
    world.admit(0)
    world.done(world.peer("a@cpu/0"), text="heard")
    world.done(world.peer("b@cpu/0"), degraded="a small voice")
    world.lose_gateway()
    world.new_gateway()
    world.done(world.peer("b@cpu/0"), degraded="a small voice")
    assert last_outcome(world).degraded == "b: a small voice"


# ---------------------------------------------------------------- a new epoch


def next_epoch(*told: Any) -> World:
    """Epoch 2 of a node with one stage from samples to samples; its gateway has told it this, and all workers speak."""
    passing = text_stage("a", workers=(WorkerPlan("a@cpu/0", "a", "cpu"),), accepts="audio", emits="same")
    world = World(passing, epoch=2, ring_users={"gateway": ("gateway", "a@cpu/0")})
    for message in (Session("s", "local", ("a",)), *told, Restored()):
        world.tell(message)
    world.start_all()
    return world


def ended(**fields: Any) -> tuple[Held, Ended]:
    """The client has sent samples and been given them back."""
    outcome = Outcome("s", 0, "ok", dtype="int16", nbytes=1000, sample_rate=16000, **fields)
    return Held("s", 0, SAMPLES), Ended(outcome, Admit("s", 0, 1000, SAMPLES))


def test_a_new_epoch_tells_a_new_gateway_how_a_result_was_degraded():
    done = Ended(Outcome("s", 0, "ok", texts={"a": "x"}, degraded="a: half; a: less"), Admit("s", 0, 1000, text="x"))
    world = next_epoch(done)
    world.lose_gateway()
    (told,) = of(Ended, world.new_gateway())
    assert told.outcome.degraded == "a: half; a: less"


def test_a_new_epoch_keeps_the_input_from_which_a_result_is_made_again_until_the_acknowledgement():
    world = next_epoch(*ended())
    world.settle()
    assert not world.freed
    world.lose_gateway()
    assert [type(m) for m in world.new_gateway() if isinstance(m, Ended | Remade)] == [Remade]
    world.done(world.peer("a@cpu/0"), same=True, text=None)
    world.settle()
    assert last_outcome(world).outcome == "ok" and not world.freed
    world.tell(Acked("s", 0))
    world.settle()
    assert world.freed == {("s", 0)}


def test_a_new_epoch_frees_the_input_of_what_has_ended_without_a_result():
    world = next_epoch(Held("s", 0, SAMPLES), Ended(Outcome("s", 0, "error", "failed"), Admit("s", 0, 1000, SAMPLES)))
    world.settle()
    assert world.freed == {("s", 0)}


def test_what_was_tried_in_an_epoch_that_is_dead_stands_in_the_result_that_is_made_again():
    tried = StageRecord("a", "completed", 1, "a@cpu/0", "cpu", "", 1, 2, 3)
    world = next_epoch(*ended(stages=(tried,)))
    world.lose_gateway()
    world.new_gateway()
    world.done(world.peer("a@cpu/0"), same=True, text=None)
    assert last_outcome(world).stages[0] == tried and len(last_outcome(world).stages) == 2


def test_an_input_is_free_only_when_a_worker_that_may_still_read_it_has_spoken():
    passing = text_stage("a", accepts="audio")
    world = World(passing, epoch=2, ring_users={"gateway": ("gateway", "a@cpu/0")})
    for message in (Session("s", "local", ("a",)), Held("s", 0, SAMPLES), Restored()):
        world.tell(message)
    world.settle()
    assert not world.freed, "a run of the epoch before may go on, and reads it"
    world.start("a@cpu/0")
    world.settle()
    assert world.freed == {("s", 0)}


def test_no_result_is_written_where_a_worker_may_still_read_for_the_epoch_before():
    """A stage that takes the samples of another one reads them in that one's ring."""
    maker, taker = audio_stage("a", ring_blocks=1), text_stage("b", accepts="audio", emits="same")
    world = World(maker, taker, epoch=2, ring_users={"a@cpu/0": ("a@cpu/0", "b@cpu/0", "gateway")})
    world.open()
    world.tell(Restored())
    writer = world.start("a@cpu/0")
    world.admit(0)
    assert not world.board[writer]
    world.start("b@cpu/0")
    assert [item.index for item in world.board[writer]] == [0]
