"""The client's contract, row by row: who may send what, what it is answered, and how each utterance ends."""

from __future__ import annotations

import pytest
from stand import Stand, samples

from engine.config import DeadlinesSection
from engine.gateway.events import AllFlushed, Arrived, ClientLost, DrainNode, JobEnded
from engine.gateway.sessions import Sessions
from ipc.messages import (
    Accepted,
    Ack,
    Acked,
    Admit,
    Busy,
    Cancel,
    CancelJob,
    Capacity,
    Close,
    Closed,
    Copied,
    Ended,
    Gap,
    Hello,
    Open,
    Opened,
    Outcome,
    Over,
    Partial,
    Ping,
    Pong,
    Progress,
    Rejected,
    Resume,
    Session,
    SessionEnded,
    Share,
    Skip,
    Spare,
    Status,
    Submit,
    UnknownSession,
    Welcome,
)


@pytest.fixture
def stand() -> Stand:
    return Stand()


def ends(stand: Stand, session: str, client: bytes = b"a") -> list[tuple[int, str, str]]:
    """(index, outcome, code) in the order the client heard them."""
    return [(o.index, o.outcome, o.code) for o in stand.heard(Outcome, client) if o.session == session]


# ---------------------------------------------------------------- greetings and sessions


def test_hello_is_welcomed_with_what_the_node_takes(stand: Stand) -> None:
    (welcome,) = stand.say(Hello(1, "me"))
    assert isinstance(welcome, Welcome) and welcome.incarnation == 7
    assert welcome.limits.pipelines["full"] == ("asr", "nmt", "tts") and welcome.limits.max_window == 8


def test_another_protocol_version_is_refused_with_the_one_spoken(stand: Stand) -> None:
    (rejected,) = stand.say(Hello(2))
    assert isinstance(rejected, Rejected) and rejected.code == "unsupported" and rejected.accepted == ("1",)


def test_ping_tells_the_incarnation(stand: Stand) -> None:
    assert stand.say(Ping()) == [Pong(7)]


@pytest.mark.parametrize(
    ("fields", "code", "accepted"),
    [
        ({"tag": ""}, "bad_session", ""),
        ({"tag": "a/b"}, "bad_session", ""),
        ({"tag": "x" * 65}, "bad_session", ""),
        ({"pipeline": "sing"}, "bad_pipeline", "full"),
        ({"source": "xx"}, "bad_language", "en"),
        ({"source": "EN"}, "bad_language", "en"),
        ({"target": ""}, "bad_language", "fr"),
        ({"target": "en"}, "bad_language", "fr"),
        ({"priority": "urgent"}, "bad_priority", "high"),
        ({"models": {"asr": "other"}}, "bad_model", "ears"),
        ({"models": {"dance": "ears"}}, "bad_model", "asr"),
        ({"window": 0}, "bad_message", ""),
        ({"weight": 0}, "bad_message", ""),
        ({"weight": 101}, "bad_message", ""),
        ({"on_deadline": "hurry"}, "bad_message", "skip_repair"),
        ({"first_index": -1}, "bad_index", ""),
        ({"first_index": 2**63}, "bad_index", ""),
    ],
)
def test_a_session_that_cannot_be_is_rejected_by_name(stand: Stand, fields: dict, code: str, accepted: str) -> None:
    known = {"tag": "s", "pipeline": "full", "source": "en", "target": "de"}
    (rejected,) = stand.say(Open(**known | fields))
    assert isinstance(rejected, Rejected)
    assert rejected.code == code and rejected.tag == (known | fields)["tag"][:64]
    assert not accepted or accepted in rejected.accepted
    assert not stand.posted and len(stand.core.books.sessions) == 0


def test_too_many_sessions(stand: Stand) -> None:
    for _ in range(4):
        stand.open()
    assert stand.codes(stand.say(Open("s", source="en", target="de"))) == ["too_many_sessions"]


def test_the_window_is_cut_to_the_nodes(stand: Stand) -> None:
    assert stand.open(window=1000).window == 8
    assert stand.open(window=3).window == 3


def test_the_scheduler_hears_of_a_session_once_and_before_its_first_utterance(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 0, 1)
    assert [type(m) for m in stand.posted if isinstance(m, Session | Admit)] == [Session, Admit, Admit]


def test_a_message_for_a_session_nobody_has_means_resume(stand: Stand) -> None:
    assert stand.say(Ack("s.0", 0)) == [UnknownSession("s.0")]


def test_somebody_elses_session_is_unknown(stand: Stand) -> None:
    session = stand.open().session
    assert stand.submit(session, 0, client=b"stranger") == [UnknownSession(session)]
    assert stand.say(Close(session, "abort"), client=b"stranger") == [UnknownSession(session)]
    stand.run(session, 0)


# ---------------------------------------------------------------- what a submission may be


@pytest.mark.parametrize(
    ("fields", "data", "code"),
    [
        ({"nbytes": 0}, b"", "empty_audio"),
        ({"nbytes": 0}, None, "empty_audio"),
        ({"nbytes": 320}, None, "bad_audio_format"),
        ({"nbytes": 322}, samples(160), "bad_audio_format"),
        ({"nbytes": 319}, samples(160)[:-1], "bad_audio_format"),
        ({"nbytes": 322, "dtype": "f32le"}, samples(161), "bad_audio_format"),
        ({"nbytes": 320, "dtype": "s16be"}, samples(160), "bad_audio_format"),
        ({"nbytes": 320, "dtype": ""}, samples(160), "bad_audio_format"),
        ({"nbytes": 320, "sample_rate": 48000}, samples(160), "bad_audio_format"),
        ({"nbytes": 320, "sample_rate": 0}, samples(160), "bad_audio_format"),
        ({"nbytes": 2 * 64001}, samples(64001), "audio_too_long"),
        ({"text": "hello", "dtype": ""}, None, "bad_text"),
        ({"nbytes": 320, "budget_ms": 0}, samples(160), "bad_message"),
        ({"nbytes": 320, "skip": ("dance",)}, samples(160), "bad_pipeline"),
    ],
)
def test_bad_audio_is_rejected_by_name_and_the_session_goes_on(
    stand: Stand, fields: dict, data: bytes | None, code: str
) -> None:
    session = stand.open().session
    (rejected,) = stand.say(Submit(session, 0, **{"dtype": "s16le"} | fields), data)
    assert isinstance(rejected, Rejected)
    assert (rejected.code, rejected.session, rejected.index) == (code, session, 0)
    if code == "bad_audio_format":
        assert "s16le mono 16000 Hz" in rejected.accepted
    assert not stand.sent(Admit) and not stand.written
    stand.run(session, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_sample_that_is_no_number_is_named(stand: Stand, bad: float) -> None:
    import numpy as np

    session = stand.open().session
    values = np.zeros(100, dtype="<f4")
    values[42] = bad
    (rejected,) = stand.say(Submit(session, 0, "f32le", 400), values.tobytes())
    assert rejected.code == "bad_audio" and "sample 42" in rejected.text


def test_extreme_but_finite_audio_is_taken(stand: Stand) -> None:
    import numpy as np

    session = stand.open().session
    loud = np.array([1e38, -1e38, 1e-40, 0.0], dtype="<f4").tobytes()
    assert stand.say(Submit(session, 0, "f32le", 16), loud) == []
    (write,) = stand.written
    assert write.payload == loud and write.ref.dtype == "float32" and write.ref.shape == (4,)


def test_a_text_pipeline_takes_text_and_only_text(stand: Stand) -> None:
    session = stand.open(pipeline="text").session
    assert stand.codes(stand.submit(session, 0)) == ["bad_text"]
    assert stand.codes(stand.say(Submit(session, 0))) == ["bad_text"]
    assert stand.codes(stand.say(Submit(session, 0, text="x" * 51))) == ["text_too_long"]
    assert stand.say(Submit(session, 0, text="ja 😀 \u202e")) == []
    (admit,) = stand.sent(Admit)
    assert admit.text == "ja 😀 \u202e" and admit.ref is None and admit.digest[0] == len("ja 😀 \u202e".encode())


def test_the_budget_is_the_clients_or_the_nodes_formula(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0, n=32000)
    stand.submit(session, 1, budget_ms=1234)
    assert [admit.budget_ms for admit in stand.sent(Admit)] == [31000, 1234]


def test_samples_lie_in_the_ring_as_they_came(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    (write,), (admit,) = stand.written, stand.sent(Admit)
    assert write.payload == samples(160, seed=0) and write.ref == admit.ref
    assert admit.ref.ring == "gateway" and admit.audio_s == 0.01


# ---------------------------------------------------------------- indices


def test_the_first_index_is_0_unless_the_session_says_otherwise(stand: Stand) -> None:
    assert stand.open().next_index == 0
    opened = stand.open(first_index=5)
    assert opened.next_index == 5
    assert stand.codes(stand.submit(opened.session, 4)) == ["too_late"]
    stand.run(opened.session, 5)
    assert ends(stand, opened.session) == [(5, "ok", "")]


def test_an_index_beyond_the_window_or_negative_is_told_the_window(stand: Stand) -> None:
    session = stand.open(window=3).session
    for index in (3, -1, 2**63 - 1, 2**63, 2**64 - 1):
        (rejected,) = stand.submit(session, index) if index >= 0 else stand.say(Submit(session, index, "s16le", 0))
        assert rejected.code == "bad_index" and rejected.window == (0, 2)
    assert not stand.sent(Admit)


def test_the_window_moves_with_the_acknowledgement(stand: Stand) -> None:
    session = stand.open(window=2).session
    stand.run(session, 0, 1)
    assert stand.codes(stand.submit(session, 2)) == ["bad_index"]
    assert stand.say(Ack(session, 0)) == []
    stand.run(session, 2)
    assert stand.codes(stand.submit(session, 0)) == ["too_late"]


def test_the_same_index_with_the_same_content_gets_the_same_answer_and_is_not_computed_again(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    assert stand.submit(session, 0) == []  # its Accepted is on the way
    stand.accept(session, 0)
    assert stand.submit(session, 0) == [Accepted(session, 0)]
    stand.finish(session, 0, b"result")
    assert stand.submit(session, 0) == [Outcome(session, 0, "ok")]
    assert stand.told[-1].payload == b"result"
    assert len(stand.sent(Admit)) == 1


def test_the_same_index_with_other_content_is_a_conflict_and_the_first_holds(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    assert stand.codes(stand.submit(session, 0, data=samples(160, seed=99))) == ["index_conflict"]
    stand.accept(session, 0)
    stand.finish(session, 0)
    assert stand.codes(stand.submit(session, 0, data=samples(160, seed=99))) == ["index_conflict"]
    assert ends(stand, session) == [(0, "ok", "")]


def test_an_outcome_that_waits_for_its_turn_is_not_told_to_who_sends_again(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 1)
    assert stand.submit(session, 1) == [Accepted(session, 1)]
    assert ends(stand, session) == []


def test_an_outcome_says_that_its_utterance_was_accepted_and_one_that_waits_for_its_turn_is_told_so() -> None:
    stand = Stand()
    session = stand.open().session
    for index in range(3):
        stand.submit(session, index)
    stand.finish(session, 2)  # the scheduler says nothing before its end; 0 and 1 are still running
    assert stand.heard(Accepted) == [Accepted(session, 2)] and stand.heard(Outcome) == []
    stand.finish(session, 0)
    assert stand.heard(Accepted) == [Accepted(session, 2)] and [o.index for o in stand.heard(Outcome)] == [0]
    stand.accept(session, 1)
    stand.finish(session, 1)
    assert stand.heard(Accepted) == [Accepted(session, 2), Accepted(session, 1)]
    assert [o.index for o in stand.heard(Outcome)] == [0, 1, 2]


def test_outcomes_leave_in_index_order_whatever_order_they_end_in(stand: Stand) -> None:
    session = stand.open().session
    for index in (2, 0, 1, 3):
        stand.submit(session, index)
        stand.accept(session, index)
    for index in (3, 1, 2):
        stand.finish(session, index)
        assert ends(stand, session) == []
    assert stand.core.snapshot()["held"] == 3
    stand.finish(session, 0)
    assert [index for index, *_ in ends(stand, session)] == [0, 1, 2, 3]
    assert stand.core.snapshot()["held"] == 0 and stand.core.snapshot()["held_max"] == 3


def test_the_bypass_hook_breaks_the_order() -> None:
    stand = Stand(hooks={"gateway.reorder": "bypass"})
    session = stand.open().session
    for index in (0, 1):
        stand.submit(session, index)
    for index in (1, 0):
        stand.finish(session, index)
    assert [index for index, *_ in ends(stand, session)] == [1, 0]


# ---------------------------------------------------------------- acknowledgement


def test_an_acknowledgement_frees_the_outcome_and_rides_to_the_scheduler(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 0, 1)
    assert stand.core.snapshot()["response_queue"] == 2
    stand.say(Ack(session, 1))
    assert stand.core.snapshot()["response_queue"] == 0 and stand.core.snapshot()["outbox_bytes"] == 0
    assert stand.sent(Acked) == []
    stand.wait(0.006)
    assert stand.sent(Acked) == [Acked(session, 1)]


def test_what_was_never_sent_cannot_be_acknowledged(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 0)
    stand.submit(session, 1)
    assert stand.codes(stand.say(Ack(session, 1))) == ["bad_index"]
    assert stand.say(Ack(session, 0)) == [] and stand.say(Ack(session, 0)) == [] and stand.say(Ack(session, -5)) == []


def test_a_copied_result_is_told_with_the_next_message_or_after_a_moment(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    stand.submit(session, 1)
    stand.finish(session, 0, b"result")
    assert stand.sent(Copied) == []
    stand.submit(session, 2)
    assert stand.sent(Copied) == [Copied((1,))]
    stand.finish(session, 1, b"result")
    stand.wait(0.006)
    assert stand.sent(Copied) == [Copied((1,)), Copied((2,))]


# ---------------------------------------------------------------- back-pressure


def full(stand: Stand) -> str:
    """A session with its share of two running, on a node that has no more room."""
    stand.feed(Capacity(2))
    session = stand.open().session
    stand.submit(session, 0)
    stand.submit(session, 1)
    return session


def test_above_its_share_on_a_full_node_a_session_is_busy_and_higher_indices_are_held_back(stand: Stand) -> None:
    session = full(stand)
    assert stand.submit(session, 2) == [Busy(session, 2, "capacity", 2, 250, 2, position=1)]
    assert stand.submit(session, 3) == [Busy(session, 3, "held_back", 2, 250, 2, position=1)]
    stand.finish(session, 0)
    assert stand.submit(session, 3) == [
        Busy(session, 3, "held_back", 1, 250, 2, position=1)
    ]  # there is room, but 2 comes first
    assert stand.submit(session, 2) == [] and stand.sent(Admit)[-1].index == 2


def test_what_ended_ones_wait_for_is_taken_however_full_the_node_is(stand: Stand) -> None:
    """They fill the outbox, which keeps from running what fills the node: it would never be less full."""
    stand.feed(Capacity(2))
    session = stand.open().session
    for index in (1, 2):
        stand.submit(session, index)
    stand.finish(session, 1)
    stand.submit(session, 3)
    assert stand.submit(session, 4)[0].reason == "capacity"
    assert stand.submit(session, 0) == [] and stand.sent(Admit)[-1].index == 0


def test_every_index_that_was_answered_busy_comes_before_any_higher_one(stand: Stand) -> None:
    session = full(stand)
    for index in (2, 3, 4):
        stand.submit(session, index)
    stand.feed(Capacity(100))
    assert stand.submit(session, 2) == []
    assert stand.submit(session, 5) == [Busy(session, 5, "held_back", 3, 250, 3)]
    assert stand.submit(session, 3) == [] and stand.submit(session, 4) == [] and stand.submit(session, 5) == []


def test_an_index_below_the_refused_one_is_judged_by_itself(stand: Stand) -> None:
    stand.feed(Capacity(1))
    session = stand.open().session
    stand.submit(session, 1)
    assert stand.submit(session, 3)[0].resend_from == 3
    assert stand.submit(session, 2)[0].resend_from == 2
    stand.finish(session, 1)
    assert stand.submit(session, 0) == []


def test_skip_ends_the_wait_for_a_refused_index(stand: Stand) -> None:
    session = full(stand)
    stand.submit(session, 2)
    stand.feed(Capacity(100))
    stand.say(Skip(session, 2))
    assert stand.submit(session, 3) == []
    assert stand.sent(Ended) == [Ended(Outcome(session, 2, "skipped", "gap"))]


def test_below_its_share_a_session_is_admitted_on_a_full_node(stand: Stand) -> None:
    full(stand)
    other = stand.open(client=b"b").session
    assert stand.submit(other, 0, client=b"b") == []
    assert stand.submit(other, 1, client=b"b")[0].reason == "capacity"


def test_above_its_share_a_session_is_admitted_while_the_node_has_room(stand: Stand) -> None:
    stand.feed(Capacity(4))
    first, second = stand.open().session, stand.open(client=b"b").session
    stand.submit(second, 0, client=b"b")
    for index in range(3):
        assert stand.submit(first, index) == []
    assert stand.submit(first, 3)[0].reason == "capacity"


def test_retry_after_follows_the_measured_rate(stand: Stand) -> None:
    session = full(stand)
    stand.feed(Capacity(2, rate=0.5))
    assert stand.submit(session, 2)[0].retry_after_ms == 2000
    stand.feed(Capacity(2, rate=1000.0))
    assert stand.submit(session, 2)[0].retry_after_ms == 10, "no less than that"


def test_retry_after_is_counted_from_the_last_end(stand: Stand) -> None:
    stand.feed(Capacity(2, rate=1.0))
    first, second = stand.open().session, stand.open(client=b"b").session
    for session, client in ((first, b"a"), (second, b"b")):
        stand.submit(session, 0, client=client)
    stand.finish(first, 0)
    stand.submit(first, 1)
    stand.now += 0.4
    assert stand.submit(second, 1, client=b"b")[0].retry_after_ms == 600


def test_a_place_of_one_that_wants_it_back_is_told_to_nobody(stand: Stand) -> None:
    """When one of the first ends, it comes below its share and takes its place again."""
    stand.feed(Capacity(4, rate=1.0))
    first, second = stand.open().session, stand.open(client=b"b").session
    for index in (0, 1):
        stand.submit(first, index)
        stand.now += 0.001
        stand.submit(second, index, client=b"b")
        stand.now += 0.001
    assert stand.submit(second, 2, client=b"b")[0].retry_after_ms == 1000, "the first may be content"
    assert stand.submit(first, 2)[0].retry_after_ms == 1000, "its own oldest is the next to end"
    assert stand.submit(second, 2, client=b"b")[0].retry_after_ms == 2000, "the first is not"


def test_a_place_of_one_that_goes_on_below_its_share_is_told_to_nobody(stand: Stand) -> None:
    """It is never refused, so it stands in no line, and takes each place again that it leaves."""
    stand.feed(Capacity(8, rate=1.0))
    steady = stand.open(weight=7).session
    light = stand.open(client=b"b").session
    for index in range(6):
        stand.submit(steady, index)
    for index in range(6, 16):
        stand.wait(1.0)
        stand.finish(steady, index - 6)
        stand.say(Ack(steady, index - 6))
        stand.submit(steady, index)
    stand.now += 0.001
    stand.submit(light, 0, client=b"b"), stand.submit(light, 1, client=b"b")
    told_ms = stand.submit(light, 2, client=b"b")[0].retry_after_ms
    assert told_ms == 6999, "the heavy one's six are older than its own, the last end was a millisecond ago"
    for index in range(10, 15):
        stand.wait(1.0)
        stand.finish(steady, index)
    stand.feed(Capacity(3, rate=1.0))
    told_ms = stand.submit(light, 2, client=b"b")[0].retry_after_ms
    assert 1000 <= told_ms < 2000, "the heavy one has stopped: the next end will leave a place"


def test_who_stands_in_line_with_more_than_its_share_gives_up_what_it_has_too_much() -> None:
    """It comes below its share only after those ends."""
    stand = Stand(window=32)
    stand.feed(Capacity(12, rate=1.0))
    heavy = stand.open(weight=20).session
    many, late = (stand.open(client=client).session for client in (b"b", b"c"))
    stand.submit(heavy, 0)
    for index in range(10):
        stand.submit(many, index, client=b"b")
    stand.now += 0.001
    for index in range(5):
        assert stand.submit(late, index, client=b"c") == [], "its share"
    assert stand.submit(late, 5, client=b"c")[0].position == 1
    assert stand.submit(many, 10, client=b"b")[0].position == 2, "ten, where five are its share"
    told_ms = stand.submit(late, 5, client=b"c")[0].retry_after_ms
    assert told_ms == 9167, "5 too many; of the next 11 ends 5 of the one in line and the heavy one's leave a place"


def test_above_its_share_a_session_waits_for_as_many_ends_as_it_has_too_many(stand: Stand) -> None:
    stand.feed(Capacity(4, rate=1.0))
    first = stand.open().session
    for index in range(4):
        stand.submit(first, index)
    stand.feed(Capacity(1, rate=1.0))
    assert stand.submit(first, 4)[0].retry_after_ms == 4000


def test_sessions_that_find_the_node_full_get_its_places_in_the_order_in_which_they_came(stand: Stand) -> None:
    stand.feed(Capacity(4, rate=1.0))
    names = ("a", "b", "c", "d")
    sessions = {name: stand.open(client=name.encode()).session for name in names}
    for name in names:
        stand.now += 0.001
        stand.submit(sessions[name], 0, client=name.encode())
    told = [stand.submit(sessions[name], 1, client=name.encode())[0] for name in names]
    assert [busy.position for busy in told] == [1, 2, 3, 4]
    assert [busy.retry_after_ms for busy in told] == [1000, 2000, 3000, 4000]
    for index in (1, 2, 3):  # one place comes free after the other, without anybody coming below its share
        stand.feed(Capacity(4 + index, rate=1.0))
        for name in reversed(names[index:]):
            assert stand.submit(sessions[name], 1, client=name.encode())[0].reason == "capacity"
        stand.submit(sessions[names[index - 1]], 1, client=names[index - 1].encode())
        assert stand.sent(Admit)[-1].session == sessions[names[index - 1]]


def test_who_does_not_come_back_in_time_loses_its_place_in_line(stand: Stand) -> None:
    stand.feed(Capacity(2, rate=10.0))
    first, second = stand.open().session, stand.open(client=b"b").session
    stand.submit(first, 0), stand.submit(second, 0, client=b"b")
    assert stand.submit(first, 1)[0].position == 1
    assert stand.submit(second, 1, client=b"b")[0].position == 2
    stand.feed(Capacity(3, rate=10.0))
    assert stand.submit(second, 1, client=b"b")[0].reason == "capacity", "that place is the other's"
    stand.now += 1.2
    stand.submit(second, 1, client=b"b")
    assert stand.sent(Admit)[-1].session == second and stand.sent(Admit)[-1].index == 1


def test_who_is_passed_by_a_better_priority_is_told_how_long_others_like_it_have_stayed(stand: Stand) -> None:
    """The better one's ends, however many, bring it no place."""
    stand.feed(Capacity(3, rate=100.0))
    high = stand.open(priority="high").session
    low = stand.open(client=b"b", priority="low").session
    for index in range(3):
        stand.submit(high, index)
    stand.submit(low, 0, client=b"b")
    assert stand.submit(low, 1, client=b"b")[0].retry_after_ms == 10, "nothing is known yet of how it fares"
    for index in range(3, 7):
        stand.wait(3.0)
        been_ms = 3000 * (index - 2)
        assert stand.submit(low, 1, client=b"b")[0].retry_after_ms == been_ms, "as long again"
        stand.finish(high, index - 3)
        stand.submit(high, index)
    stand.finish(low, 0)  # 12 s after it came
    stand.submit(low, 1, client=b"b")
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 12_000
    stand.wait(9.0)
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 3_000
    stand.wait(10.0)
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 1_500, "it is late, and nobody knows how late"
    for index in range(4, 7):
        stand.finish(high, index)
    stand.feed(Capacity(1, rate=100.0))
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 10, "nobody goes before it any more"


@pytest.mark.parametrize(("outcome", "code"), [("skipped", "cancelled"), ("error", "expired"), ("error", "failed")])
def test_what_one_session_cancels_or_lets_expire_says_nothing_to_the_others(outcome: str, code: str) -> None:
    """Of equal priority and weight: else who submits and cancels ruins what all of them are told."""
    stand = Stand(window=32)
    stand.feed(Capacity(3, rate=100.0))
    high = stand.open(priority="high").session
    low, fickle = (stand.open(client=client, priority="low").session for client in (b"b", b"c"))
    stand.submit(low, 0, client=b"b")
    for index in range(3):
        stand.submit(high, index)
    stand.wait(12.0)
    stand.finish(low, 0)
    stand.submit(low, 1, client=b"b")
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 12_000
    for index in range(15):
        stand.submit(fickle, index, client=b"c")
        stand.finish(fickle, index, outcome=outcome, code=code)
    assert stand.submit(low, 2, client=b"b")[0].retry_after_ms == 12_000


def test_who_has_more_than_its_share_beside_a_better_priority_waits_for_as_many_of_its_own(stand: Stand) -> None:
    stand.feed(Capacity(3, rate=100.0))
    low = stand.open(client=b"b", priority="low").session
    stand.submit(low, 0, client=b"b")
    stand.wait(12.0)
    stand.finish(low, 0)
    for index in (1, 2, 3):
        stand.submit(low, index, client=b"b")
    high = stand.open(priority="high").session
    for index in range(3):
        stand.submit(high, index)
    told_ms = stand.submit(low, 4, client=b"b")[0].retry_after_ms
    assert told_ms == 20_000, "12 s until its oldest ends, and two more are too many: one each 4 s"


def test_heavier_sessions_count_with_as_many_turns_as_they_have(stand: Stand) -> None:
    stand.feed(Capacity(6, rate=1.0))
    heavy = stand.open(weight=4).session
    light = stand.open(client=b"b").session
    for index in range(5):
        stand.submit(heavy, index)
    stand.now += 0.001
    stand.submit(light, 0, client=b"b")
    stand.submit(heavy, 5)
    assert stand.submit(light, 1, client=b"b")[0].retry_after_ms == 5000, "four of the heavy one's go first"


def test_who_gives_up_leaves_the_line(stand: Stand) -> None:
    stand.feed(Capacity(2, rate=0.1))
    first, second = stand.open().session, stand.open(client=b"b").session
    stand.submit(first, 0), stand.submit(second, 0, client=b"b")
    stand.submit(first, 1)
    stand.feed(Capacity(3, rate=0.1))
    assert stand.submit(second, 1, client=b"b")[0].position == 2
    stand.say(Skip(first, 1))
    stand.submit(second, 1, client=b"b")
    assert stand.sent(Admit)[-1].session == second and stand.sent(Admit)[-1].index == 1


def test_a_busy_index_is_no_gap_until_its_client_has_given_up(stand: Stand) -> None:
    stand.feed(Capacity(1))
    session = stand.open().session
    stand.submit(session, 2)
    assert stand.submit(session, 1)[0].reason == "capacity"
    stand.say(Skip(session, 0))
    stand.wait(10.2)
    assert [index for index, *_ in ends(stand, session)] == [0] and not stand.heard(Rejected)
    stand.wait(0.1)  # retry_after + gap_s have passed since the Busy
    assert ends(stand, session) == [(0, "skipped", "gap"), (1, "skipped", "gap")]


def line_of_four(stand: Stand, first: int, rate: float) -> tuple[list[str], Busy]:
    """Sessions of clients a to d, each with its ``first`` index in and refused with another; what the last was told."""
    stand.feed(Capacity(4, rate=rate))
    names = (b"a", b"b", b"c", b"d")
    sessions = [stand.open(client=name).session for name in names]
    for name, session in zip(names, sessions, strict=True):
        stand.submit(session, first, client=name)
        stand.now += 0.01
    told = [stand.submit(session, 1 - first, client=name)[0] for name, session in zip(names, sessions, strict=True)][-1]
    assert (told.reason, told.position) == ("capacity", 4)
    return sessions, told


def test_what_is_held_back_is_told_to_come_when_the_refused_one_was_told_to(stand: Stand) -> None:
    sessions, told = line_of_four(stand, first=0, rate=0.5)
    assert told.retry_after_ms > 3000
    stand.now += 1.5
    behind = stand.submit(sessions[-1], 2, client=b"d")[0]
    assert (behind.reason, behind.resend_from) == ("held_back", 1)
    assert (behind.position, behind.retry_after_ms) == (4, told.retry_after_ms - 1500), "what is left, and its place"
    stand.feed(Capacity(5, rate=0.5))
    assert stand.submit(sessions[0], 1) == [], "the first in line is in"
    assert stand.submit(sessions[-1], 3, client=b"d")[0].position == 3, "the line has moved on"
    stand.now += told.retry_after_ms / 1000 - 1.505
    assert stand.submit(sessions[-1], 2, client=b"d")[0].retry_after_ms == 10, "no less than that"
    stand.now += 2.0
    late = stand.submit(sessions[-1], 2, client=b"d")[0]
    assert (late.retry_after_ms, late.position) == (10, 0), "it came too late, and stands in no line any more"


def test_what_is_held_back_makes_no_gap_of_the_index_that_was_told_to_come_later(stand: Stand) -> None:
    """Index 1 came before 0; 0 is to come in a time longer than a gap is waited for."""
    sessions, told = line_of_four(stand, first=1, rate=0.15)
    assert told.retry_after_ms > 1000 * stand.deadlines.gap_s
    assert stand.submit(sessions[-1], 2, client=b"d")[0].resend_from == 0
    stand.wait(told.retry_after_ms / 1000)
    stand.feed(Capacity(100))
    assert stand.submit(sessions[-1], 0, client=b"d") == [] and stand.sent(Admit)[-1].index == 0


def test_a_shorter_busy_does_not_shorten_one_that_still_counts(stand: Stand) -> None:
    stand.feed(Capacity(1, rate=0.05))
    session = stand.open().session
    stand.submit(session, 1)
    told_ms = stand.submit(session, 0)[0].retry_after_ms
    stand.feed(Capacity(1, rate=100.0))
    assert stand.submit(session, 0)[0].retry_after_ms < told_ms
    stand.wait(told_ms / 1000 + stand.deadlines.gap_s - 0.1)
    assert ends(stand, session) == []
    stand.wait(0.2)
    assert ends(stand, session) == [(0, "skipped", "gap")], "and its client has had all its time"


def test_a_refusal_of_a_former_connection_does_not_prolong_a_gap(stand: Stand) -> None:
    stand.feed(Capacity(1, rate=0.05))
    opened = stand.open()
    stand.submit(opened.session, 1), stand.submit(opened.session, 0)
    stand.lose()
    stand.say(Resume(opened.token, -1), client=b"b")
    stand.feed(Capacity(1, rate=100.0))
    assert stand.submit(opened.session, 0, client=b"b")[0].retry_after_ms == 10
    stand.wait(stand.deadlines.gap_s + 0.1)
    assert ends(stand, opened.session, b"b") == [(0, "skipped", "gap")]


def test_what_was_held_back_behind_a_busy_index_has_all_its_time_when_that_has_come(stand: Stand) -> None:
    stand.feed(Capacity(1))
    session = stand.open().session
    stand.submit(session, 2)
    for _ in range(24):  # its client tries again and again, and sends 1 when 0 is in
        assert stand.submit(session, 0)[0].reason == "capacity"
        stand.wait(0.5)
    stand.feed(Capacity(100))
    assert stand.submit(session, 0) == []
    stand.wait(9.9)
    assert stand.submit(session, 1) == [] and stand.sent(Admit)[-1].index == 1


def test_share_is_told_to_sessions_with_work_and_not_too_often(stand: Stand) -> None:
    session = stand.open().session
    idle = stand.open(client=b"b").session
    for index in range(4):
        stand.submit(session, index)
    stand.wait(1)
    for n in (6, 5, 4, 3):
        stand.feed(Capacity(n))
    stand.wait(0.3)
    stand.feed(Capacity(8))
    stand.wait(0.3)
    assert [share.n for share in stand.heard(Share)] == [3, 8]
    assert stand.heard(Share, b"b") == [] and idle


def test_a_share_that_became_less_is_told_to_who_has_more_than_that(stand: Stand) -> None:
    stand.feed(Capacity(4))
    session, other = stand.open().session, stand.open(client=b"b").session
    for index in range(3):
        stand.submit(session, index)
    stand.submit(other, 0, client=b"b")
    stand.wait(1)
    assert stand.heard(Share) == [], "it has all that the other leaves, and was told more when it was opened"
    stand.submit(other, 1, client=b"b")
    stand.wait(1)
    assert [share.n for share in stand.heard(Share)] == [2]


@pytest.mark.parametrize("light_first", [False, True])
def test_each_is_told_the_share_of_its_own_weight(light_first: bool) -> None:
    stand = Stand(window=32)
    stand.feed(Capacity(4))
    heavy, light = stand.open(weight=9).session, stand.open(client=b"b").session
    asking = [(heavy, b"a"), (light, b"b")]
    for index in range(5):
        for session, client in reversed(asking) if light_first else asking:
            stand.submit(session, index, client=client)
    stand.feed(Capacity(60))
    stand.wait(0.5)
    assert stand.heard(Share)[-1].n == 32 and stand.heard(Share, b"b")[-1].n == 6, "both want more than they have"


@pytest.mark.parametrize("low_first", [False, True])
def test_each_is_told_the_share_of_its_own_priority(low_first: bool) -> None:
    stand = Stand(window=32)
    stand.feed(Capacity(4))
    high, low = stand.open(priority="high").session, stand.open(client=b"b", priority="low").session
    asking = [(high, b"a"), (low, b"b")]
    for index in (0, 1):
        for session, client in reversed(asking) if low_first else asking:
            stand.submit(session, index, client=client)
    stand.feed(Capacity(20))
    stand.wait(0.5)
    assert stand.heard(Share)[-1].n == 20 and stand.heard(Share, b"b")[-1].n == 18, "the high one has two of them"


def test_who_wants_more_shares_what_the_others_leave(stand: Stand) -> None:
    stand.feed(Capacity(10))
    greedy = stand.open().session
    for index in range(10):
        stand.submit(greedy, index)
    others = [stand.open(client=name).session for name in (b"b", b"c")]
    assert stand.submit(others[0], 0, client=b"b") == []
    for index in range(4):
        assert stand.submit(others[1], index, client=b"c") == [], "of 9 places half, and not a third of 10"
    assert stand.submit(others[1], 4, client=b"c")[0].reason == "capacity"


def test_telling_shares_looks_at_no_session_without_work(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand sessions of whom few speak, it comes at nearly every admission and every end."""
    stand.feed(Capacity(2))
    first, second = stand.open(client=b"a").session, stand.open(client=b"b").session
    for number in range(2):
        stand.open(client=f"idle{number}".encode())
    looked_at: list[str] = []
    get = Sessions.get
    monkeypatch.setattr(stand.core, "check", lambda: None)
    monkeypatch.setattr(Sessions, "__iter__", lambda _: pytest.fail("it walks along all sessions"))
    monkeypatch.setattr(Sessions, "get", lambda self, id: looked_at.append(id) or get(self, id))
    stand.submit(first, 0, client=b"a")
    stand.submit(second, 0, client=b"b")
    stand.feed(Capacity(6))
    stand.wait(1)
    assert stand.heard(Share, b"a")[-1].n == stand.heard(Share, b"b")[-1].n == 5
    assert set(looked_at) == {first, second}


def test_what_ended_ones_wait_for_may_go_beyond_its_sessions_part_of_the_ring() -> None:
    stand = Stand(ring_blocks=16)
    session, other = stand.open().session, stand.open(client=b"b").session
    for index in (1, 2, 3, 4):
        assert stand.submit(session, index, n=60_000) == []  # two blocks each: 8, its half of the ring
    assert stand.submit(session, 5, n=60_000)[0].reason == "memory"
    stand.feed(JobEnded(Outcome(session, 1, "ok"), None, 0))  # its slot is still read
    assert stand.submit(session, 0, n=60_000) == [] and stand.sent(Admit)[-1].index == 0
    assert other


def test_a_full_ring_is_busy_memory_and_another_sessions_share_of_it_is_kept() -> None:
    stand = Stand(ring_blocks=8)  # the longest utterance (4 s of float) takes 4
    first, second = stand.open().session, stand.open(client=b"b").session
    assert stand.submit(first, 0, n=64000) == [] and stand.submit(first, 1, n=64000) == []
    assert stand.submit(first, 2, n=64000)[0].reason == "memory"
    assert stand.submit(second, 0, n=64000, client=b"b") == []


def test_who_waits_for_memory_is_told_how_many_wait_before_it() -> None:
    """Each end frees one slot."""
    stand = Stand(ring_blocks=8)
    stand.feed(Capacity(100, rate=1.0))
    names = (b"a", b"b", b"c", b"d")
    sessions = [stand.open(client=name).session for name in names]
    for index in (0, 1):
        assert stand.submit(sessions[0], index, n=64000) == []
        assert stand.submit(sessions[1], index, n=64000, client=b"b") == []
    told = [stand.submit(session, 2, n=64000, client=name)[0] for session, name in zip(sessions, names, strict=True)]
    assert [busy.reason for busy in told] == ["memory"] * 4
    assert [busy.position for busy in told[2:]] == [1, 2], "the first two have their parts, and stand before nobody"
    assert [busy.retry_after_ms for busy in told[2:]] == [1000, 2000]
    assert stand.submit(sessions[3], 2, n=64000, client=b"d")[0].position == 2, "and keeps its place"
    stand.wait(2.9)  # who was told one second is a second late, and more
    assert stand.submit(sessions[3], 2, n=64000, client=b"d")[0].position == 1


def test_who_has_its_part_of_the_ring_waits_for_an_end_of_its_own() -> None:
    stand = Stand(ring_blocks=12)
    stand.feed(Capacity(100, rate=1.0))
    names = (b"a", b"b", b"c")
    sessions = [stand.open(client=name).session for name in names]
    for index in (0, 1):
        for session, name in zip(sessions, names, strict=True):
            assert stand.submit(session, index, n=64000, client=name) == []
            stand.now += 0.001
    told = [stand.submit(session, 2, n=64000, client=name)[0] for session, name in zip(sessions, names, strict=True)]
    assert [(busy.reason, busy.position, busy.retry_after_ms) for busy in told] == [
        ("memory", 0, 1000), ("memory", 0, 2000), ("memory", 0, 3000)
    ]  # fmt: skip
    stand.wait(3.9)
    assert stand.core.books.ingress.claimants() == {sessions[2]}, "its request stands until it has had time to come"


def test_inputs_that_are_kept_are_wanted_when_they_fill_their_sessions_part_of_the_ring() -> None:
    stand = Stand(ring_blocks=8)
    session, other = stand.open().session, stand.open(client=b"b").session
    for index in (1, 2):
        stand.submit(session, index, n=64000)
    for _ in range(3):
        assert stand.submit(session, 0, n=64000)[0].reason == "memory"
        stand.wait(0.5)
    assert stand.sent(Spare)
    for index in (0, 1):  # nothing is reserved for who has its part
        assert stand.submit(other, index, n=64000, client=b"b") == []


def test_a_slot_is_used_again_only_when_the_scheduler_frees_it() -> None:
    stand = Stand(ring_blocks=4)
    session = stand.open().session
    stand.submit(session, 0, n=64000)
    stand.submit(session, 1, n=64000)
    from engine.gateway.events import JobEnded

    stand.feed(JobEnded(Outcome(session, 0, "ok")))
    assert stand.submit(session, 2, n=64000)[0].reason == "memory"
    stand.finish(session, 1)
    assert stand.submit(session, 2, n=64000) == []
    assert len({write.ref.generation for write in stand.written}) == 3


def test_a_long_utterance_is_not_starved_by_short_ones() -> None:
    stand = Stand(ring_blocks=4, max_sessions=8)
    small = [stand.open(client=bytes([65 + n])).session for n in range(4)]
    for n, session in enumerate(small):
        assert stand.submit(session, 0, n=1000, client=bytes([65 + n])) == []
    long = stand.open(client=b"long").session
    assert stand.submit(long, 0, n=120_000 // 2, client=b"long")[0].reason == "memory"
    for index in range(1, 8):
        stand.wait(0.4)
        stand.submit(long, 0, n=60_000, client=b"long")
        for n, session in enumerate(small):
            stand.finish(session, index - 1)
            stand.submit(session, index, n=1000, client=bytes([65 + n]))
    stand.submit(long, 0, n=60_000, client=b"long")
    assert (long, 0) in {(admit.session, admit.index) for admit in stand.sent(Admit)}
    assert stand.core.books.ingress.blocks.reserved == 0 and not stand.core.books.ingress.waiting


def test_a_reservation_ends_when_its_client_goes_away() -> None:
    stand = Stand(ring_blocks=2)
    one, two = stand.open().session, stand.open(client=b"b").session
    stand.submit(one, 0, n=1000)
    assert stand.submit(two, 0, n=60_000, client=b"b")[0].reason == "memory"
    stand.wait(0.9)
    stand.submit(two, 0, n=60_000, client=b"b")
    stand.wait(0.3)
    assert stand.core.books.ingress.blocks.reserved == 2
    stand.lose(b"b")
    assert stand.core.books.ingress.blocks.reserved == 0


# ---------------------------------------------------------------- gaps, skip, cancel, close


def test_a_missing_index_is_told_and_then_skipped(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 1)
    stand.wait(4.9)
    assert stand.heard(Gap) == []
    stand.wait(0.2)
    assert stand.heard(Gap) == [Gap(session, 0, 5000)]
    stand.wait(5)
    assert ends(stand, session) == [(0, "skipped", "gap"), (1, "ok", "")]
    assert stand.sent(Ended) == [Ended(Outcome(session, 0, "skipped", "gap"))]
    assert stand.codes(stand.submit(session, 0)) == ["too_late"]


def test_a_late_index_that_still_comes_in_time_is_taken(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 1)
    stand.wait(9)
    stand.run(session, 0)
    stand.wait(20)
    assert ends(stand, session) == [(0, "ok", ""), (1, "ok", "")]


def test_each_missing_index_has_its_own_clock(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 1)
    stand.wait(6)
    stand.run(session, 3)
    stand.wait(4.1)
    assert [index for index, *_ in ends(stand, session)] == [0, 1]
    stand.wait(6)
    assert [index for index, *_ in ends(stand, session)] == [0, 1, 2, 3]


def test_a_missing_index_is_not_given_up_while_its_client_is_away(stand: Stand) -> None:
    opened = stand.open()
    stand.run(opened.session, 1)
    stand.lose()
    stand.wait(30)
    stand.say(Resume(opened.token, -1), client=b"b")
    assert stand.submit(opened.session, 0, client=b"b") == []
    stand.finish(opened.session, 0)
    assert ends(stand, opened.session, b"b") == [(0, "ok", ""), (1, "ok", "")]


def test_skip_ends_an_index_at_once_and_leaves_known_ones_alone(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 1)
    stand.say(Skip(session, 0))
    assert ends(stand, session) == [(0, "skipped", "gap")]
    stand.say(Skip(session, 1))
    stand.finish(session, 1)
    assert ends(stand, session) == [(0, "skipped", "gap"), (1, "ok", "")]
    assert stand.codes(stand.say(Skip(session, 8))) == ["bad_index"]


def test_cancel_asks_the_scheduler_while_it_runs_and_is_ignored_afterwards(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    stand.say(Cancel(session, 0))
    assert stand.sent(CancelJob) == [CancelJob(session, 0)]
    stand.finish(session, 0, outcome="skipped", code="cancelled")
    stand.say(Cancel(session, 0))
    stand.say(Ack(session, 0))
    stand.say(Cancel(session, 0))
    assert len(stand.sent(CancelJob)) == 1
    assert ends(stand, session) == [(0, "skipped", "cancelled")]


def test_cancelling_what_never_came_ends_it(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 1)
    stand.say(Cancel(session, 0))
    assert ends(stand, session) == [(0, "skipped", "cancelled"), (1, "ok", "")]


def test_close_drain_ends_the_gaps_finishes_the_rest_and_then_says_closed(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 2)
    stand.run(session, 0)
    stand.say(Close(session))
    assert stand.codes(stand.submit(session, 3)) == ["bad_session"]
    assert not stand.heard(Closed)
    stand.finish(session, 2)
    assert [type(t.message) for t in stand.told][-2:] == [Outcome, Closed]
    assert ends(stand, session) == [(0, "ok", ""), (1, "skipped", "gap"), (2, "ok", "")]
    assert stand.heard(Closed) == [Closed(session, "drained")] and not stand.sent(SessionEnded)
    stand.say(Ack(session, 2))
    assert stand.sent(SessionEnded) == [SessionEnded(session)] and stand.core.snapshot()["sessions"] == 0
    assert stand.say(Ping()) == [Pong(7)] and stand.say(Ack(session, 2)) == [UnknownSession(session)]


def test_close_abort_cancels_what_runs(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    stand.submit(session, 2)
    stand.say(Close(session, "abort"))
    assert stand.sent(CancelJob) == [CancelJob(session, 0), CancelJob(session, 2)]
    for index in (0, 2):
        stand.finish(session, index, outcome="skipped", code="cancelled")
    assert [code for *_, code in ends(stand, session)] == ["cancelled", "gap", "cancelled"]
    assert stand.heard(Closed) == [Closed(session, "aborted")]


def test_an_unused_session_closes_at_once(stand: Stand) -> None:
    session = stand.open().session
    assert stand.say(Close(session)) == [Closed(session, "drained")]
    assert stand.core.snapshot()["sessions"] == 0 and stand.sent(SessionEnded) == [SessionEnded(session)]


def test_a_close_mode_nobody_knows(stand: Stand) -> None:
    session = stand.open().session
    assert stand.codes(stand.say(Close(session, "slam"))) == ["bad_message"]
    stand.run(session, 0)


# ---------------------------------------------------------------- clients that go and come back


def test_resume_sends_again_what_was_not_received(stand: Stand) -> None:
    opened = stand.open()
    stand.run(opened.session, 0, 1, 2)
    stand.lose()
    (again, *outcomes) = stand.say(Resume(opened.token, 0), client=b"b")
    assert isinstance(again, Opened) and (again.session, again.next_index) == (opened.session, 3)
    assert [o.index for o in outcomes] == [1, 2]
    assert stand.core.snapshot()["response_queue"] == 2  # 0 is acknowledged by last_received
    assert stand.codes(stand.submit(opened.session, 0, client=b"b")) == ["too_late"]


def test_what_ends_while_the_client_is_away_waits_for_it(stand: Stand) -> None:
    opened = stand.open()
    stand.submit(opened.session, 0)
    stand.lose()
    stand.finish(opened.session, 0, b"result")
    assert not stand.heard(Outcome)
    stand.say(Resume(opened.token, -1), client=b"b")
    assert stand.told[-1].payload == b"result" and stand.told[-1].client == b"b"


def test_a_second_client_with_the_token_takes_the_session_over(stand: Stand) -> None:
    opened = stand.open()
    stand.submit(opened.session, 0)
    stand.say(Resume(opened.token, -1), client=b"b")
    assert stand.heard(Closed, b"a") == [Closed(opened.session, "taken_over")]
    assert stand.submit(opened.session, 1) == [UnknownSession(opened.session)]
    stand.finish(opened.session, 0)
    assert ends(stand, opened.session, b"b") == [(0, "ok", "")] and ends(stand, opened.session, b"a") == []
    stand.lose(b"a")
    assert stand.submit(opened.session, 1, client=b"b") == []


@pytest.mark.parametrize("token", ["", "f" * 32, "é" * 32, "\ud800"])
def test_a_wrong_token_is_an_unknown_session(stand: Stand, token: str) -> None:
    stand.open()
    assert stand.say(Resume(token, -1), client=b"b") == [UnknownSession(token)]


def test_resuming_from_the_future_is_refused(stand: Stand) -> None:
    opened = stand.open()
    stand.run(opened.session, 0)
    assert stand.codes(stand.say(Resume(opened.token, 1), client=b"b")) == ["bad_index"]
    assert stand.submit(opened.session, 1) == []


def test_a_client_gone_for_detach_s_has_its_work_cancelled_and_its_outcomes_kept(stand: Stand) -> None:
    opened = stand.open()
    stand.run(opened.session, 0)
    stand.submit(opened.session, 2)
    stand.lose()
    stand.wait(59)
    assert not stand.sent(CancelJob)
    stand.wait(2)
    assert stand.sent(CancelJob) == [CancelJob(opened.session, 2)]
    stand.finish(opened.session, 2, outcome="skipped", code="cancelled")
    stand.wait(290)
    stand.say(Resume(opened.token, -1), client=b"b")
    assert [code for *_, code in ends(stand, opened.session, b"b")] == ["", "gap", "cancelled"]


def test_after_keep_s_more_it_is_forgotten(stand: Stand) -> None:
    opened = stand.open()
    stand.run(opened.session, 0)
    stand.lose()
    stand.wait(361)
    assert stand.sent(SessionEnded) == [SessionEnded(opened.session)]
    assert stand.say(Resume(opened.token, -1), client=b"b") == [UnknownSession(opened.token)]
    assert stand.core.snapshot()["outbox_bytes"] == 0


def test_a_closed_session_that_nobody_acknowledges_is_forgotten(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 0)
    stand.say(Close(session))
    stand.wait(301)
    assert stand.sent(SessionEnded) == [SessionEnded(session)] and stand.core.snapshot()["sessions"] == 0


def test_an_idle_connection_is_spoken_to_so_that_its_loss_shows(stand: Stand) -> None:
    session = stand.open().session
    before = len(stand.told)
    stand.wait(125)
    assert [t.message for t in stand.told[before:]] == [Share(session, 8)] * 2


# ---------------------------------------------------------------- slow and hostile clients


def test_a_session_over_its_budget_is_told_to_the_scheduler_until_it_acknowledges() -> None:
    stand = Stand(outbox_session_bytes=10_000)
    session = stand.open().session
    for index in range(3):
        stand.submit(session, index)
    stand.finish(session, 0, bytes(6000))
    assert stand.sent(Over) == []
    stand.finish(session, 1, bytes(6000))
    assert stand.sent(Over) == [Over((session,))]
    stand.say(Ack(session, 0))
    assert stand.sent(Over)[-1] == Over(())


def test_a_full_node_stops_only_sessions_above_their_part() -> None:
    stand = Stand(outbox_session_bytes=100_000, outbox_node_bytes=20_000)
    greedy, modest = stand.open().session, stand.open(client=b"b").session
    stand.submit(modest, 0, client=b"b")
    stand.finish(modest, 0, bytes(5000))
    stand.submit(greedy, 0)
    stand.finish(greedy, 0, bytes(18_000))
    assert stand.sent(Over) == [Over((greedy,))]


def test_no_more_than_the_budget_is_handed_to_a_connection_that_does_not_acknowledge() -> None:
    stand = Stand(outbox_session_bytes=20_000)
    session = stand.open().session
    for index in range(5):
        stand.submit(session, index)
        stand.finish(session, index, bytes(8000))
    assert [index for index, *_ in ends(stand, session)] == [0, 1]
    stand.say(Ack(session, 0))
    assert [index for index, *_ in ends(stand, session)] == [0, 1, 2]
    stand.say(Ack(session, 2))
    assert [index for index, *_ in ends(stand, session)] == [0, 1, 2, 3, 4]


def test_a_flood_that_never_reads_its_answers_is_cut_off_and_can_resume() -> None:
    stand = Stand(outbox_session_bytes=50_000)
    opened = stand.open()
    for _ in range(800):
        stand.say(Submit(opened.session, 99, "s16le", 0))
    assert stand.heard(Closed) == [Closed(opened.session, "slow_consumer")]
    assert len(stand.heard(Rejected)) < 600 and stand.core.snapshot()["clients"] == 0
    stand.say(Resume(opened.token, -1), client=b"b")
    assert stand.submit(opened.session, 0, client=b"b") == []


def test_a_resume_that_comes_late_on_the_same_connection_brings_everything_again_and_does_no_harm() -> None:
    stand = Stand(outbox_session_bytes=50_000)
    opened = stand.open(pipeline="text")
    for index in range(5):
        stand.say(Submit(opened.session, index, text="x"))
        stand.finish(opened.session, index, bytes(9000))
    stand.say(Resume(opened.token, -1))
    assert [outcome.index for outcome in stand.heard(Outcome)] == [0, 1, 2, 3, 4] * 2
    assert stand.say(Ping()) == [Pong(7)] and not stand.heard(Closed)


def test_asking_for_an_outcome_again_and_again_is_bounded() -> None:
    stand = Stand(outbox_session_bytes=50_000)
    opened = stand.open(pipeline="text")
    stand.say(Submit(opened.session, 0, text="x"))
    stand.finish(opened.session, 0, bytes(8000))
    for _ in range(50):
        stand.say(Submit(opened.session, 0, text="x"))
        stand.say(Resume(opened.token, -1))
    assert stand.heard(Closed)[0] == Closed(opened.session, "slow_consumer")


def test_texts_too_long_for_a_frame_end_as_output_too_long(stand: Stand) -> None:
    from engine.gateway.events import JobEnded
    from engine.gateway.wire import Letter
    from ipc.messages import MAX_CONTROL_BYTES, StageRecord

    session = stand.open().session
    stand.submit(session, 0)
    records = tuple(StageRecord("asr", "failed", n, reason="x" * 3000) for n in range(30))
    long = Outcome(session, 0, "ok", texts={"asr": "ü" * 20_000, "nmt": "y" * 30_000}, stages=records)
    stand.feed(JobEnded(long, b"audio", 3))
    (outcome,) = stand.heard(Outcome)
    assert (outcome.outcome, outcome.code) == ("error", "output_too_long") and outcome.texts["asr"].startswith("üü")
    letter = Letter()
    letter.add(outcome, None)
    assert sum(len(bytes(raw)) for raw in letter.frames[0][0]) < MAX_CONTROL_BYTES


# ---------------------------------------------------------------- progress


def test_progress_goes_to_sessions_that_ask_and_never_after_the_outcome(stand: Stand) -> None:
    quiet, curious = stand.open().session, stand.open(partials=True).session
    for session in (quiet, curious):
        stand.submit(session, 0)
        stand.feed(Progress(Status(session, 0, "asr", "processing")))
        stand.feed(Progress(Partial(session, 0, "asr", "hel")))
        stand.finish(session, 0)
        stand.feed(Progress(Partial(session, 0, "asr", "late")))
    assert [m.session for m in stand.heard(Status)] == [curious]
    assert [m.text for m in stand.heard(Partial)] == ["hel"]


def test_progress_is_the_first_to_be_dropped_under_pressure() -> None:
    stand = Stand(outbox_session_bytes=10_000)
    session = stand.open(partials=True).session
    for index in (0, 1):
        stand.submit(session, index)
    stand.finish(session, 0, bytes(6000))
    stand.feed(Progress(Partial(session, 1, "asr", "hel")))
    assert stand.heard(Partial) == [] and len(ends(stand, session)) == 1


# ---------------------------------------------------------------- the node stops


def test_a_stopping_node_takes_nothing_new_and_finishes_what_runs(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    stand.submit(session, 2)
    stand.feed(DrainNode(20.0))
    (busy,) = stand.submit(session, 3)
    assert busy.reason == "shutting_down" and busy.resend_from == 3
    assert stand.codes(stand.say(Open("t", source="en", target="de"))) == ["too_many_sessions"]
    stand.finish(session, 0)
    stand.finish(session, 2)
    assert [code for *_, code in ends(stand, session)] == ["", "gap", ""]
    assert AllFlushed() not in stand.others
    stand.say(Ack(session, 2))
    assert AllFlushed() in stand.others and stand.heard(Closed) == [Closed(session, "shutting_down")]


def test_a_stopping_node_does_not_wait_for_ever_for_acknowledgements(stand: Stand) -> None:
    session = stand.open().session
    stand.run(session, 0)
    stand.feed(DrainNode(20.0))
    stand.wait(1.9)
    assert AllFlushed() not in stand.others
    stand.wait(0.2)
    assert stand.others.count(AllFlushed()) == 1


def test_time_in_which_a_stopping_gateway_stood_still_does_not_count(stand: Stand) -> None:
    session = stand.open()
    stand.run(session.session, 0)
    stand.feed(DrainNode(20.0))
    stand.now += 3.0
    stand.say(Ping(), client=b"b")  # its connection was lost meanwhile
    assert AllFlushed() not in stand.others
    stand.say(Resume(session.token, 0), client=b"b")
    assert AllFlushed() in stand.others


def test_a_stopping_node_waits_a_moment_for_a_client_whose_connection_was_just_lost(stand: Stand) -> None:
    session = stand.open()
    stand.run(session.session, 0)
    stand.feed(DrainNode(20.0))
    stand.feed(ClientLost(b"a"))
    stand.wait(1.0)
    assert AllFlushed() not in stand.others
    stand.say(Resume(session.token, 0), client=b"b")
    assert AllFlushed() in stand.others


def test_a_stopping_node_does_not_wait_for_jobs_that_never_end(stand: Stand) -> None:
    session = stand.open().session
    stand.submit(session, 0)
    stand.feed(DrainNode(20.0))
    stand.wait(23)
    assert stand.others.count(AllFlushed()) == 1


def test_an_idle_node_is_flushed_at_once(stand: Stand) -> None:
    stand.feed(DrainNode(20.0))
    assert stand.others == [AllFlushed()]


# ---------------------------------------------------------------- one frame a turn


def test_several_messages_in_one_frame_are_answered_in_one_turn(stand: Stand) -> None:
    session = stand.open(pipeline="text").session
    before = len(stand.told)
    batch = (Submit(session, 0, text="a"), Submit(session, 1, text="b"), Ping(), Rejected("bad_message", "broken"))
    stand.feed(Arrived(b"a", batch))
    assert [type(t.message) for t in stand.told[before:]] == [Pong, Rejected]
    assert len(stand.sent(Admit)) == 2


def test_an_outcome_for_a_session_that_is_over_is_dropped_and_its_slots_come_back() -> None:
    stand = Stand(deadlines=DeadlinesSection(detach_s=0.1, keep_s=0.1))
    session = stand.open().session
    stand.submit(session, 0)
    stand.lose()
    stand.wait(1)
    assert stand.core.snapshot()["sessions"] == 0 and stand.core.snapshot()["ring"]["free"] == 63
    stand.finish(session, 0, b"late")
    stand.wait(0.1)
    assert stand.sent(Copied) == [Copied((1,))] and stand.core.snapshot()["ring"]["free"] == 64
