"""Two models of one stage at the scheduler: whose utterances go where, what clients are told, who waits for whom."""

from __future__ import annotations

import pytest

from engine.boot import WorkerPlan
from engine.scheduler.book import SUPERVISOR
from engine.scheduler.pace import StagePace, capacity
from ipc.messages import Admit, Load, Loaded, Loading, Park, Partial, Preload, Progress, Ready, Run, Status, Vacate
from tests.scheduler.world import DEADLINES, World, audio_stage, text_stage

VOICES = "tts", "tts.anna"


def resting(name: str, nbytes: int = 1000):
    plan = WorkerPlan(role=f"{name}@cpu/0", stage=name, device="cpu", estimate_bytes=nbytes, rests=True)
    return text_stage(name, workers=(plan,))


def world(*stages, **fields) -> World:
    """A pipeline of a translation and a voice: session "a" has Anna's, "s" the stage's own."""
    found = World(text_stage("nmt"), *(stages or (text_stage("tts"), text_stage("tts.anna"))))
    found.start_all()
    found.open("s", pipeline=("nmt", "tts"), **fields)
    found.open("a", pipeline=("nmt", "tts.anna"), **fields)
    return found


def ran(found: World, name: str) -> list[str]:
    """Sessions whose utterances a worker was given."""
    runs = found.messages(Run, found.peer(f"{name}@cpu/0"))
    return [item.session for run in runs for item in run.items]


def test_each_utterance_goes_to_the_model_that_its_session_has_and_outcomes_name_the_stage() -> None:
    found = world(partials=True)
    for session in "sa":
        found.admit(0, session)
    found.run_everything()
    found.settle()
    assert (ran(found, "nmt"), ran(found, "tts"), ran(found, "tts.anna")) == (["s", "a"], ["s"], ["a"])
    outcomes = {told.outcome.session: told.outcome for told in found.outcomes}
    assert outcomes["a"].texts == {"nmt": "hello+nmt", "tts": "hello+nmt+tts.anna"}
    records = [(one.stage, one.model, one.worker) for one in outcomes["a"].stages]
    assert records == [("nmt", "", "nmt@cpu/0"), ("tts", "anna", "tts.anna@cpu/0")]
    assert [one.model for one in outcomes["s"].stages] == ["", ""]
    told = [progress.message for progress in found.messages(Progress)]
    assert {one.stage for one in told if isinstance(one, Status | Partial)} == {"nmt", "tts"}


def test_a_stage_is_skipped_by_its_plain_name_whatever_model_the_session_has() -> None:
    found = world()
    found.admit(0, "a", skip=("tts",))
    found.run_everything()
    assert ran(found, "tts.anna") == []
    (told,) = found.outcomes
    assert [(one.stage, one.state, one.reason) for one in told.outcome.stages][1] == ("tts", "skipped", "requested")


def test_a_worker_of_one_model_that_dies_leaves_the_other_alone() -> None:
    found = world()
    for session in "sa":
        found.admit(0, session)
    found.done(found.peer("nmt@cpu/0"))
    found.done(found.peer("nmt@cpu/0"))
    found.kill("tts.anna@cpu/0")
    found.done(found.peer("tts@cpu/0"))
    found.settle()
    assert found.ended() == {("s", 0): "ok"}
    found.start("tts.anna@cpu/0")
    found.run_everything()
    found.settle()
    assert found.ended() == {("s", 0): "ok", ("a", 0): "ok"}
    record = next(told for told in found.outcomes if told.outcome.session == "a").outcome.stages[1]
    assert (record.stage, record.model, record.state) == ("tts", "anna", "failed") and "died" in record.reason


def test_a_lost_result_is_made_again_by_the_model_that_made_it() -> None:
    found = World(text_stage("nmt"), audio_stage("tts"), audio_stage("tts.anna"))
    found.start_all()
    found.open("a", pipeline=("nmt", "tts.anna"))
    found.admit(0, "a")
    found.run_everything()
    found.settle()
    found.lose_gateway()
    found.new_gateway()
    found.run_everything()
    found.settle()
    assert (ran(found, "nmt"), ran(found, "tts.anna")) == (["a"], ["a", "a"]), "from the text before it"


# ---------------------------------------------------------------- who loads when


def test_a_model_that_rests_is_not_waited_for_and_loads_when_a_session_has_work_for_it() -> None:
    found = world(text_stage("tts"), resting("tts.anna"))
    (ready,) = found.messages(Ready, SUPERVISOR)
    assert "away at the start: tts.anna" in ready.mode_reason
    peer = found.peer("tts.anna@cpu/0")
    found.admit(0, "s")
    found.run_everything()
    assert not found.messages(Load, peer)
    found.admit(0, "a")
    found.done(found.peer("nmt@cpu/0"))
    assert len(found.messages(Load, peer)) == 1
    found.loaded(peer)
    found.run_everything()
    found.settle()
    assert found.ended() == {("s", 0): "ok", ("a", 0): "ok"}


def test_or_when_an_operator_wants_it() -> None:
    found = world(text_stage("tts"), resting("tts.anna"))
    found.core.handle(SUPERVISOR, Preload("tts.anna"), found.now)
    found.turn()
    assert len(found.messages(Load, found.peer("tts.anna@cpu/0"))) == 1


def test_a_new_scheduler_lets_it_rest_on_and_loads_it_again_after_a_death() -> None:
    found = world(text_stage("tts"), resting("tts.anna"))
    role = "tts.anna@cpu/0"
    found.core.handle(SUPERVISOR, Preload("tts.anna"), found.now)
    found.turn()
    found.loaded(found.peer(role))
    found.kill(role)
    found.start(role)
    assert len(found.messages(Load, found.peer(role))) == 1, "it was in use"
    after = World(text_stage("nmt"), text_stage("tts"), resting("tts.anna"), epoch=2)
    after.start(role)
    assert not after.messages(Load, after.peer(role))


def test_of_those_called_at_once_the_smallest_loads_first() -> None:
    found = World(text_stage("nmt"), resting("tts", 3000), resting("tts.anna", 2000), resting("tts.otto", 4000))
    found.start_all()
    for number, name in enumerate(("tts.otto", "tts", "tts.anna")):
        found.open(f"s{number}", pipeline=(name,))
        found.core.flow.admit(Admit(f"s{number}", 0, 60_000, text="hello"), found.now)
    found.turn()
    loads = [send.peer.partition("@")[0] for send in found.sent if isinstance(send.message, Load)]
    assert loads == ["nmt", "tts.anna", "tts", "tts.otto"]


# ---------------------------------------------------------------- swaps


def rivals(load_s: float = 4.0) -> World:
    """Two models on a device for one, each loaded in ``load_s``: the first is there, the other waits for its lease."""
    found = World(resting("tts"), resting("tts.anna"))
    for name in ("tts.anna", "tts"):
        found.start(f"{name}@cpu/0")
        found.core.book.workers[f"{name}@cpu/0"].load_ms = 1000 * load_s
    found.open("s", pipeline=("tts",))
    found.open("a", pipeline=("tts.anna",))
    found.admit(0, "s")
    for message in (Loading(), Loaded("", load_ms=1000 * load_s)):
        found.core.handle(found.peer("tts@cpu/0"), message, found.now)
        found.turn()
    return found


def want(found: World) -> None:
    found.core.handle("arbiter#1", Vacate("cpu", 500, "tts.anna@cpu/0"), found.now)
    found.turn()


def left(found: World) -> bool:
    return bool(found.messages(Park, found.peer("tts@cpu/0")))


def test_a_model_just_used_stays_until_its_rival_has_waited_as_long_as_a_swap_takes() -> None:
    found = rivals()
    found.admit(0, "a")
    want(found)
    found.done(found.peer("tts@cpu/0"))
    assert not left(found), "nobody needs it now, but its next utterance may come in a moment"
    found.advance(7.9)
    assert not left(found)
    found.advance(0.2)
    assert left(found)


def test_more_utterances_wait_longer_all_together() -> None:
    found = rivals()
    for index in range(4):
        found.admit(index, "a")
    want(found)
    found.done(found.peer("tts@cpu/0"))
    found.advance(1.9)
    assert not left(found)
    found.advance(0.2)
    assert left(found)


def test_a_model_that_has_been_at_rest_for_so_long_itself_leaves_at_once() -> None:
    found = rivals()
    found.done(found.peer("tts@cpu/0"))
    found.advance(8.1)
    found.admit(0, "a")
    want(found)
    assert left(found)


def test_the_rest_is_counted_from_the_last_run_and_not_from_the_load() -> None:
    found = rivals()
    found.advance(8.1)
    found.done(found.peer("tts@cpu/0"))
    found.admit(0, "a")
    want(found)
    assert not left(found), "loaded long ago, and used until now"
    found.advance(7.9)
    assert not left(found)
    found.advance(0.2)
    assert left(found)


def test_a_model_with_work_keeps_its_turn_and_no_more() -> None:
    found = rivals(load_s=0.1)
    found.admit(0, "a")
    want(found)
    found.advance(DEADLINES.turn_s - 0.1)
    assert not found.core.book.workers["tts@cpu/0"].leaving
    found.advance(0.2)
    assert found.core.book.workers["tts@cpu/0"].leaving and not left(found), "after its last batch"
    found.done(found.peer("tts@cpu/0"))
    assert left(found)


def busy_rivals(load_s: float, budget_ms: int) -> World:
    """The first always has work; an utterance of this budget waits for the other."""
    found = rivals(load_s)
    found.open("busy", pipeline=("tts",))
    for index in range(5):
        found.admit(index, "busy", budget_ms=10_000_000)
    found.admit(0, "a", budget_ms=budget_ms)
    want(found)
    return found


def gone_after(found: World) -> float:
    """Seconds until the first gets no more work."""
    for tenth in range(10_000):
        if found.core.book.workers["tts@cpu/0"].leaving:
            return tenth / 10
        found.advance(0.1)
    raise AssertionError("it never leaves")


def test_a_turn_is_no_shorter_than_the_swap_it_leads_to() -> None:
    assert gone_after(busy_rivals(2.0, 600_000)) == pytest.approx(DEADLINES.turn_s, abs=0.2)
    assert gone_after(busy_rivals(20.0, 600_000)) == pytest.approx(40.0, abs=0.2), "both loads"


def test_a_turn_ends_sooner_for_a_deadline_that_is_met_so() -> None:
    found = busy_rivals(20.0, 45_000)
    assert DEADLINES.turn_s < gone_after(found) < 25.0 - 1.0, "a load before it is due, and a second to spare"


def test_and_sooner_by_the_run_that_is_under_way() -> None:
    """It leaves after its last batch."""
    quick, slow = busy_rivals(20.0, 55_000), busy_rivals(20.0, 55_000)
    slow.core.book.paces["tts"].measure(0.0, 5.0, slow.now)
    assert gone_after(slow) == pytest.approx(gone_after(quick) - 5.0, abs=0.2)


def test_but_not_for_one_that_the_shortest_turn_would_miss() -> None:
    assert gone_after(busy_rivals(20.0, 30_000)) == pytest.approx(40.0, abs=0.2)


def test_the_rarest_model_is_served_after_a_turn_a_batch_and_its_load() -> None:
    found = busy_rivals(20.0, 600_000)
    asked, busy = found.now, found.peer("tts@cpu/0")
    while not left(found):
        found.advance(0.5)
        found.done(busy)
        found.admit(int(found.now * 2), "busy", budget_ms=10_000_000)
    assert found.now - asked <= 40.0 + 1.0
    found.leave("tts@cpu/0")
    found.advance(20.0)
    for message in (Loading(), Loaded("", load_ms=20_000)):
        found.core.handle(found.peer("tts.anna@cpu/0"), message, found.now)
        found.turn()
    found.done(found.peer("tts.anna@cpu/0"))
    assert found.ended()["a", 0] == "ok" and found.now - asked <= 61.0


def shared() -> World:
    """asr is passed by both models' utterances and at rest, as is nmt; nmt.large waits for its lease."""
    found = World(resting("asr", 3000), resting("nmt", 2000), resting("nmt.large", 5000))
    for name in ("asr", "nmt", "nmt.large"):
        found.start(f"{name}@cpu/0")
        found.core.book.workers[f"{name}@cpu/0"].load_ms = 4000.0
    found.open("s", pipeline=("asr", "nmt"))
    found.open("a", pipeline=("asr", "nmt.large"))
    found.admit(0, "s")
    found.loaded(found.peer("asr@cpu/0"))
    found.done(found.peer("asr@cpu/0"))
    for message in (Loading(), Loaded("", load_ms=4000.0)):
        found.core.handle(found.peer("nmt@cpu/0"), message, found.now)
        found.turn()
    found.done(found.peer("nmt@cpu/0"))
    found.admit(0, "a")
    found.done(found.peer("asr@cpu/0"))
    return found


def leavers(found: World) -> list[str]:
    return [send.peer.partition("@")[0] for send in found.sent if isinstance(send.message, Park)]


def test_what_both_pass_stays_where_the_rival_s_memory_is_enough() -> None:
    found = shared()
    found.core.handle("arbiter#1", Vacate("cpu", 2000, "nmt.large@cpu/0"), found.now)
    found.turn()
    assert leavers(found) == [], "asr would be back for the next utterance of either"
    found.advance(8.1)
    assert leavers(found) == ["nmt"]


def test_and_leaves_at_once_where_it_is_not() -> None:
    found = shared()
    found.core.handle("arbiter#1", Vacate("cpu", 2001, "nmt.large@cpu/0"), found.now)
    found.turn()
    assert leavers(found) == ["asr"]


def test_stages_that_the_same_utterances_pass_are_no_rivals() -> None:
    found = World(resting("nmt"), resting("tts.anna"))
    for name in ("nmt", "tts.anna"):
        found.start(f"{name}@cpu/0")
        found.core.book.workers[f"{name}@cpu/0"].load_ms = 4000.0
    found.open("a", pipeline=("nmt", "tts.anna"))
    found.admit(0, "a")
    for message in (Loading(), Loaded("", load_ms=4000.0)):
        found.core.handle(found.peer("nmt@cpu/0"), message, found.now)
        found.turn()
    found.done(found.peer("nmt@cpu/0"))
    want(found)
    assert found.messages(Park, found.peer("nmt@cpu/0")), "its utterance has gone on, and waits"


# ---------------------------------------------------------------- how much the node takes in


def pace(mean_s: float, done: int) -> StagePace:
    found = StagePace()
    for _ in range(done):
        found.measure(0.0, mean_s, 0.0)
    return found


def test_a_model_that_nobody_uses_holds_up_nobody() -> None:
    paces = {"asr": pace(0.5, 10), "tts": pace(1.0, 10), "tts.anna": StagePace()}
    concurrency = {"asr": 2, "tts": 1, "tts.anna": 1}
    assert capacity(paces, concurrency, 10, 0.0) == (10, 1.0)


def test_models_that_share_the_work_are_as_fast_as_both_together() -> None:
    paces = {"asr": pace(0.1, 10), "tts": pace(1.0, 5), "tts.anna": pace(1.0, 5)}
    assert capacity(paces, {"asr": 4, "tts": 1, "tts.anna": 1}, 10, 0.0) == (20, 2.0)


def test_what_a_model_has_done_long_ago_does_not_hide_how_slow_the_one_in_use_is() -> None:
    fast, slow = pace(1.0, 5000), StagePace()
    for second in range(300):
        slow.measure(0.0, 1.0, float(second))
    n, rate = capacity({"tts": fast, "tts.anna": slow}, {"tts": 8, "tts.anna": 1}, 10, 300.0)
    assert n <= 12 and rate < 1.2
    assert capacity({"tts": fast, "tts.anna": slow}, {"tts": 8, "tts.anna": 1}, 10, 1e6)[0] == 10, "the last in use"


def test_before_anything_was_done_the_own_models_count() -> None:
    paces = {name: StagePace() for name in ("asr", *VOICES)}
    assert capacity(paces, {"asr": 2, "tts": 3, "tts.anna": 1}, 10, 0.0) == (20, 0.0)
