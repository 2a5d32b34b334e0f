"""What a new epoch of the scheduler is told, and what a new gateway makes of what the scheduler tells it."""

from __future__ import annotations

from typing import Any

import pytest
from stand import DEADLINES, Stand

from engine.gateway.events import AllFlushed, DrainNode, NewEpoch
from ipc.messages import (
    Ack,
    Acked,
    Admit,
    Cancel,
    CancelJob,
    Ended,
    Held,
    Opened,
    Outcome,
    Over,
    Ref,
    Rejected,
    Remade,
    Restored,
    Resume,
    Session,
    SessionEnded,
    UnknownSession,
)
from ipc.ring import BLOCK

TOLD = Session("s.3", "local", ("asr", "nmt", "tts"), source="en", target="de", window=8, token="t" * 32)


def admit(index: int) -> Admit:
    return Admit("s.3", index, 10_000, text="hello", digest=(5, 0, 0))


def remade(index: int) -> Remade:
    """It had ended, and its samples died with the gateway."""
    return Remade(Outcome("s.3", index, "ok", dtype="s16le", nbytes=100, sample_rate=22_050), admit(index))


def told_anew(stand: Stand) -> list[Any]:
    """A new epoch begins; returns what it is told."""
    before = len(stand.posted)
    stand.feed(NewEpoch())
    return stand.posted[before:]


# ---------------------------------------------------------------- a new epoch


def test_a_new_epoch_is_told_the_rest_of_each_utterances_time() -> None:
    stand = Stand()
    session = stand.open().session
    stand.submit(session, 0, budget_ms=10_000)
    stand.wait(4.0)
    (again,) = [m for m in told_anew(stand) if isinstance(m, Admit)]
    assert again.budget_ms == 6000


def test_an_utterance_whose_time_is_over_when_a_new_epoch_begins_ends_by_its_deadline_all_the_same() -> None:
    stand = Stand()
    session = stand.open().session
    stand.submit(session, 0, budget_ms=1000)
    stand.wait(4.0)
    (again,) = [m for m in told_anew(stand) if isinstance(m, Admit)]
    assert again.budget_ms == 1


def test_a_new_epoch_hears_of_a_cancel_that_the_one_before_had_not_carried_out() -> None:
    stand = Stand()
    session = stand.open().session
    stand.submit(session, 0)
    stand.submit(session, 1)
    stand.say(Cancel(session, 0))
    told = told_anew(stand)
    assert [m for m in told if isinstance(m, CancelJob)] == [CancelJob(session, 0)]
    (first,) = [at for at, m in enumerate(told) if isinstance(m, Admit) and m.index == 0]
    assert told.index(CancelJob(session, 0)) > first


def test_a_new_epoch_is_told_which_sessions_are_over_their_outbox() -> None:
    stand = Stand(outbox_session_bytes=10_000)
    session = stand.open().session
    for index in range(2):
        stand.submit(session, index)
        stand.finish(session, index, bytes(6000))
    assert stand.sent(Over) == [Over((session,))]
    assert Over((session,)) in told_anew(stand)


# ---------------------------------------------------------------- a new gateway


def test_what_a_scheduler_that_died_half_way_had_told_counts_for_nothing() -> None:
    stand = Stand(handed_over=None)
    stand.feed(TOLD)
    stand.feed(admit(0))
    stand.feed(NewEpoch())
    stand.feed(Restored())
    assert stand.core.snapshot()["whole"] and stand.core.snapshot()["sessions"] == 0
    assert stand.say(Resume(TOLD.token, -1)) == [UnknownSession(TOLD.token)]


def test_a_session_may_be_told_again_by_the_epoch_after_one_that_died_half_way() -> None:
    stand = Stand(handed_over=None)
    for event in (TOLD, admit(0), NewEpoch(), TOLD, admit(0), Restored()):
        stand.feed(event)
    (opened,) = stand.say(Resume(TOLD.token, -1))
    assert isinstance(opened, Opened) and opened.next_index == 1


def test_a_client_that_does_not_come_back_to_a_new_gateway_is_given_up_like_any_other() -> None:
    stand = Stand(handed_over=(TOLD, admit(0)))
    stand.wait(DEADLINES.detach_s - 1.0)
    assert not stand.sent(CancelJob)
    stand.wait(2.0)
    assert stand.sent(CancelJob) == [CancelJob("s.3", 0)]
    stand.finish("s.3", 0, outcome="skipped", code="cancelled")
    stand.wait(DEADLINES.keep_s)
    assert stand.sent(SessionEnded) == [SessionEnded("s.3")]


@pytest.mark.parametrize("through", [0, 1])
def test_what_the_client_got_from_the_gateway_before_is_acknowledged_though_it_is_still_made_again(
    through: int,
) -> None:
    stand = Stand(handed_over=(TOLD, remade(0), remade(1)))
    answers = stand.say(Resume(TOLD.token, through))
    assert [type(answer) for answer in answers] == [Opened], "nothing it has already, and no refusal"
    stand.wait(1.0)
    assert stand.sent(Acked) == [Acked("s.3", through)]
    for index in (0, 1):
        stand.finish("s.3", index, bytes(100))
    assert [outcome.index for outcome in stand.heard(Outcome)] == [1][through:]
    assert stand.submit("s.3", 2) == []


def test_what_was_never_made_cannot_have_been_received_from_any_gateway() -> None:
    stand = Stand(handed_over=(TOLD, remade(0)))
    (answer,) = stand.say(Resume(TOLD.token, 1))
    assert isinstance(answer, Rejected) and answer.code == "bad_index"


def test_what_a_session_of_an_earlier_life_left_in_the_ring_is_no_session_of_this_one_s() -> None:
    """Its slots go by its id: a session of the same name must have another."""
    before = Stand(incarnation=7).open(tag="s").session
    stand = Stand(incarnation=8)
    ids = {stand.open(tag="s").session for _ in range(3)}
    assert before not in ids and len(ids) == 3


def test_an_index_that_is_missing_when_a_stopping_node_s_gateway_comes_back_ends_at_once() -> None:
    stand = Stand(handed_over=None)
    stand.feed(DrainNode(20.0))
    for event in (TOLD, admit(1), Restored()):
        stand.feed(event)
    assert stand.sent(Ended) == [Ended(Outcome("s.3", 0, "skipped", "gap"))]
    stand.say(Resume(TOLD.token, -1))
    stand.finish("s.3", 1)
    assert [(o.index, o.code) for o in stand.heard(Outcome)] == [(0, "gap"), (1, "")]
    stand.say(Ack("s.3", 1))
    assert AllFlushed() in stand.others


def test_the_inputs_of_an_earlier_life_are_not_given_to_anybody_else() -> None:
    slot = Ref("gateway", 0, 2 * BLOCK, "int16", (BLOCK,), 16000, 5)
    stand = Stand(ring_blocks=3, handed_over=(TOLD, Held("s.3", 0, slot)))
    session = stand.open().session
    stand.submit(session, 0)
    assert [write.ref.offset for write in stand.written] == [2 * BLOCK]


def test_a_stopping_node_waits_a_moment_for_clients_that_a_new_gateway_has_not_seen_yet() -> None:
    end = Ended(Outcome("s.3", 0, "skipped", "gap"))
    stand = Stand(handed_over=(TOLD, end))
    stand.wait(10.0)
    stand.feed(DrainNode(20.0))
    assert AllFlushed() not in stand.others
    stand.say(Resume(TOLD.token, -1))
    stand.say(Ack("s.3", 0))
    assert AllFlushed() in stand.others
