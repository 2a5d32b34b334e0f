"""What is given up for a deadline: only what the session says, in time, and without touching a worker."""

from __future__ import annotations

import pytest
from world import World, audio_stage, text_stage


def started(*stages, **fields) -> World:
    world = World(*stages, **fields)
    world.start_all()
    world.open()
    return world


def speaking(on_deadline: str, **fields) -> World:
    """asr, repair, nmt and tts with a second's work each, measured, and a session that says this of late utterances."""
    stages = text_stage("asr"), text_stage("repair", optional=True), text_stage("nmt"), audio_stage("tts")
    world = started(*stages, **fields)
    world.admit(0)
    for stage in ("asr", "repair", "nmt", "tts"):
        run(world, stage)
    world.open("late", on_deadline=on_deadline)
    return world


def run(world: World, stage: str, seconds: float = 1.0) -> None:
    """The stage's worker takes so long for its oldest item."""
    begun, world.now = world.now, world.now + seconds
    world.done(world.peer(f"{stage}@cpu/0"), begun_ns=int(begun * 1e9), ended_ns=int(world.now * 1e9))


def board(world: World, stage: str) -> list[int]:
    return [item.index for item in world.board[world.peer(f"{stage}@cpu/0")]]


def last(world: World):
    return world.outcomes[-1].outcome


def test_repair_is_not_begun_when_the_stages_after_it_need_the_time():
    world = speaking("skip_repair")
    world.admit(5, session="late", budget_ms=3500)
    run(world, "asr")  # 2.5 s are left: repair, translation and speech take 3
    assert board(world, "repair") == [] and board(world, "nmt") == [5]
    run(world, "nmt")
    run(world, "tts")
    assert last(world).outcome == "ok" and "repair: skipped, no time for it" in last(world).degraded
    (record,) = [record for record in last(world).stages if record.stage == "repair"]
    assert record.state == "skipped" and "2.5 s" in record.reason


def test_repair_that_takes_too_long_is_left_alone_and_its_answer_is_nobodys():
    world = speaking("skip_repair")
    world.admit(5, session="late", budget_ms=5000)
    run(world, "asr")
    assert board(world, "repair") == [5]
    world.advance(1.9)
    assert board(world, "nmt") == []
    world.advance(0.07)  # 2.03 s are left for two stages of a second each, and the ways between
    assert board(world, "nmt") == [5] and board(world, "repair") == [5], "its worker is not touched"
    world.done(world.peer("repair@cpu/0"), text="too late")
    run(world, "nmt")
    run(world, "tts")
    assert last(world).outcome == "ok" and "repair" not in last(world).texts
    assert world.core.book.slots.idle


def test_repair_that_waits_is_left_out_in_time():
    world = speaking("text", send_ahead=0)
    world.admit(1)
    run(world, "asr")  # somebody else is being repaired
    world.admit(5, session="late", budget_ms=5000)
    run(world, "asr")
    assert board(world, "repair") == [1]
    world.advance(2.1)
    assert board(world, "nmt") == [5]


def test_who_would_rather_fail_than_lose_anything_fails():
    world = speaking("fail")
    world.admit(5, session="late", budget_ms=4500)
    run(world, "asr")
    assert board(world, "repair") == [5]
    world.advance(3.6)  # it takes longer than ever
    assert (last(world).outcome, last(world).code) == ("error", "expired")


def test_at_the_deadline_a_translation_without_speech_is_an_outcome():
    world = speaking("text")
    world.admit(5, session="late", budget_ms=6500)
    for stage in ("asr", "repair", "nmt"):
        run(world, stage)
    world.advance(3.4)
    assert len(world.outcomes) == 1, "speech may yet come"
    world.advance(0.2)
    assert last(world).outcome == "ok" and last(world).texts["nmt"] and world.outcomes[-1].ref is None
    assert last(world).degraded == "tts: no speech, the deadline came first"
    world.done(world.peer("tts@cpu/0"))
    assert len(world.outcomes) == 2
    assert world.core.book.slots.idle


def test_serial_mode_waits_for_the_run_of_speech_that_was_given_up():
    world = speaking("text", mode="serial")
    world.admit(5, session="late", budget_ms=6500)
    world.admit(6, session="late", budget_ms=60_000)
    for stage in ("asr", "repair", "nmt"):
        run(world, stage)
    world.advance(3.6)
    assert world.ended()["late", 5] == "ok" and board(world, "asr") == [], "one at a time, and tts is at it yet"
    world.done(world.peer("tts@cpu/0"))
    assert board(world, "asr") == [6]


def test_without_a_translation_there_is_nothing_to_give():
    world = speaking("text")
    world.admit(5, session="late", budget_ms=2000)
    run(world, "asr")
    world.advance(1.1)
    assert (last(world).outcome, last(world).code) == ("error", "expired")


@pytest.mark.parametrize(("on_deadline", "end"), [("fail", "error(failed)"), ("text", "ok")])
def test_a_wait_that_would_end_too_late_gives_up_what_may_be_given_up_at_once(on_deadline: str, end: str):
    world = started(text_stage("nmt"), audio_stage("tts"))
    world.open("late", on_deadline=on_deadline)
    world.admit(5, session="late", budget_ms=1400)
    run(world, "nmt")
    world.fail(world.peer("tts@cpu/0"))  # the next try would be 0.5 s later
    assert world.ended() == {("late", 5): end}


def test_a_stage_whose_next_try_would_come_too_late_for_the_others_is_left_out():
    world = started(text_stage("repair", optional=True), text_stage("nmt"))
    world.open("late", on_deadline="skip_repair")
    world.admit(5, session="late", budget_ms=400)
    world.fail(world.peer("repair@cpu/0"))
    assert board(world, "nmt") == [5]


def test_a_transcript_that_was_heard_well_is_not_repaired():
    stages = text_stage("asr"), text_stage("repair", optional=True, skip_above=-0.3), text_stage("nmt")
    world = started(*stages)
    for index, confidence in enumerate((-0.2, -0.4, None)):
        world.admit(index)
        world.done(world.peer("asr@cpu/0"), confidence=confidence)
    assert board(world, "nmt") == [0] and board(world, "repair") == [1, 2]


def test_serial_mode_goes_on_when_a_stage_was_left_alone():
    world = speaking("skip_repair", mode="serial")
    world.admit(5, session="late", budget_ms=5000)
    world.admit(6, session="late", budget_ms=50_000)
    run(world, "asr")
    world.advance(1.97)
    world.done(world.peer("repair@cpu/0"), text="too late")
    assert board(world, "asr") == [], "one at a time"
    run(world, "nmt")
    run(world, "tts")
    assert board(world, "asr") == [6]


def test_what_cannot_be_done_in_time_is_not_begun_and_the_next_one_is():
    world = speaking("fail", send_ahead=0)
    world.admit(1)  # asr is busy for a second
    world.admit(5, session="late", budget_ms=4500)  # four stages of a second each
    world.admit(6, session="late", budget_ms=60_000)
    run(world, "asr")
    assert world.ended()["late", 5] == "error(expired)" and "cannot be done by its deadline" in last(world).error
    assert board(world, "asr") == [6]


def test_what_may_be_given_up_does_not_make_an_utterance_hopeless():
    world = speaking("text", send_ahead=0)
    world.admit(1)
    world.admit(5, session="late", budget_ms=3500)
    run(world, "asr")
    assert board(world, "asr") == [5], "two seconds are left for recognition and translation"


def test_a_figure_that_is_wrong_keeps_nobody_out_for_long():
    """One run took a minute, which none will again."""
    world = started(text_stage("a"))
    world.admit(0)
    run(world, "a", 60.0)
    world.admit(1, budget_ms=30_000)
    assert world.ended()["s", 1] == "error(expired)"
    world.advance(122.0)
    world.admit(2, budget_ms=30_000)
    run(world, "a", 1.0)
    world.admit(3, budget_ms=30_000)
    run(world, "a", 1.0)
    assert world.ended()["s", 2] == world.ended()["s", 3] == "ok"


def test_stages_that_are_skipped_anyhow_make_nobody_late():
    world = speaking("fail")
    world.admit(5, session="late", budget_ms=3500, skip=("nmt",))  # three seconds of work
    assert board(world, "asr") == [5]
    for stage in ("asr", "repair", "tts"):
        run(world, stage)
    assert world.ended()["late", 5] == "ok"


def test_a_short_one_is_not_judged_by_the_runs_of_long_ones():
    world = started(text_stage("asr"))
    for index in range(5):
        world.admit(index, text="word " * 100)
        run(world, "asr", 3.0)
    world.admit(5, text="word", budget_ms=2500)
    assert board(world, "asr") == [5], "a hundredth of the text, though runs have taken three seconds"
    world.admit(6, text="word " * 100, budget_ms=2500)
    run(world, "asr", 0.1)
    assert world.ended()[("s", 6)] == "error(expired)"
