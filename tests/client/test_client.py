"""What a user of ``engine.Client`` may rely on, against a node that answers what the test says."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_node import FakeNode

from engine.client import RIDE_S, Busy, Client, NodeGone, Rejected, SessionClosed, default_endpoint
from engine.client_utterance import Place, Utterance
from ipc.messages import (
    Accepted,
    Ack,
    Cancel,
    Close,
    Closed,
    Hello,
    Open,
    Outcome,
    Partial,
    Ping,
    Resume,
    Share,
    Skip,
    StageRecord,
    Status,
    Submit,
)  # fmt: skip
from ipc.messages import Busy as BusyMessage
from ipc.messages import Rejected as RejectedMessage

SECOND = np.arange(16_000, dtype=np.int16)


def test_outcomes_come_in_order_and_end_when_everything_has_one(client: Client) -> None:
    with client.session(source="en", target="de") as session:
        indices = [session.submit(SECOND) for _ in range(5)]
        outcomes = list(session.outcomes())
    assert indices == [0, 1, 2, 3, 4]
    assert [(o.index, o.outcome, o.transcript) for o in outcomes] == [(i, "ok", f"heard {i}") for i in range(5)]


def test_open_says_what_was_asked_and_submit_carries_s16le(client: Client, node: FakeNode) -> None:
    session = client.session(source="en", target="fr", pipeline="full", models={"asr": "small"}, priority="high",
                             window=9, first_index=7, tag="me")  # fmt: skip
    session.submit(SECOND, budget_s=2.5, skip=("repair",))
    list(session.outcomes(timeout_s=5))
    asked = node.of(Open)[0]
    assert (asked.tag, asked.source, asked.target, asked.models, asked.window) == (
        "me",
        "en",
        "fr",
        {"asr": "small"},
        9,
    )
    sent = node.of(Submit)[0]
    assert (sent.index, sent.dtype, sent.nbytes, sent.budget_ms, sent.skip) == (7, "s16le", 32_000, 2500, ("repair",))
    samples = next(samples for _, said, samples in node.frames if sent in said)
    assert samples == SECOND.tobytes()


def test_f32le_is_an_option(node: FakeNode) -> None:
    with Client(node.endpoint, dtype="f32le") as client, client.session() as session:
        session.submit(SECOND)
    sent = node.of(Submit)[0]
    assert (sent.dtype, sent.nbytes) == ("f32le", 64_000)


def test_audio_of_an_outcome_arrives_with_its_rate(client: Client, node: FakeNode) -> None:
    wave = np.linspace(-1, 1, 2205, dtype="<f4")

    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        head = Outcome(message.session, message.index, "ok", dtype="f32le", nbytes=wave.nbytes, sample_rate=22_050)
        return [Accepted(message.session, message.index), (head, wave.tobytes())]

    node.answer = answer
    with client.session() as session:
        session.submit("hello")
        (outcome,) = session.outcomes(timeout_s=5)
    assert outcome.sample_rate == 22_050 and outcome.audio is not None
    np.testing.assert_array_equal(outcome.audio, wave)


def test_a_thousand_submits_before_the_first_read_with_window_8(client: Client, node: FakeNode) -> None:
    node.window = node.share = 8
    with client.session(window=8) as session:
        for _ in range(1000):
            session.submit("word")
        outcomes = list(session.outcomes(timeout_s=5))
    assert [o.index for o in outcomes] == list(range(1000))
    assert wait_for(lambda: node.of(Ack)[-1].through == 999)


def test_never_more_unended_than_the_share_nor_beyond_the_window(client: Client, node: FakeNode) -> None:
    """The node ends an utterance only when it has waited in vain for one more."""
    node.share, node.window = 3, 5
    unended: list[int] = []
    most, acked, farthest = 0, -1, 0

    def answer(message: object) -> list | None:
        nonlocal most, acked, farthest
        if isinstance(message, Ack):
            acked = message.through
        if not isinstance(message, Submit):
            return None
        unended.append(message.index)
        most, farthest = max(most, len(unended)), max(farthest, message.index - acked)
        return [Accepted(message.session, message.index)]

    def end_one() -> None:
        if unended and unended[-1] < 29:
            quiet.wait(0.03)
        if unended:
            node._send(node.bound[session.id], [Outcome(session.id, unended.pop(0), "ok")])

    quiet = threading.Event()
    node.answer, node.idle = answer, end_one
    session = client.session(window=5)
    for _ in range(30):
        session.submit("word")
    assert [o.index for o in session.outcomes(timeout_s=5)] == list(range(30))
    assert most == 3 and farthest <= 5


def test_a_changed_share_is_kept_from_then_on(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    session = client.session()
    session.submit("0")
    node.tell(session.id, Share(session.id, 2))
    client.pump(0.05)
    session.submit("1")
    third = Utterance(2, {"text": "2"})
    session.core.submit(third)
    client.pump(0.1)
    assert third.place is Place.QUEUED
    node.tell(session.id, Outcome(session.id, 0, "ok"))
    assert wait_for(lambda: [m.index for m in node.of(Submit)] == [0, 1, 2], client)


def test_acknowledgements_ride_with_the_next_submit(client: Client, node: FakeNode) -> None:
    node.share = node.window = 4
    session = client.session(window=4)
    for _ in range(64):
        session.submit("word")
    list(session.outcomes(timeout_s=5))
    client.pump(0.05)
    riding = sum(any(isinstance(m, Ack) for m in said) for _, said, _ in node.frames if isinstance(said[-1], Submit))
    assert riding > 8
    assert node.of(Ack)[-1].through == 63
    assert all(isinstance(said[0], Ack) for _, said, _ in node.frames if isinstance(said[-1], Submit) and len(said) > 1)


def test_an_acknowledgement_without_a_ride_goes_alone_while_calls_go_on(client: Client, node: FakeNode) -> None:
    session = client.session()
    session.submit("word")
    next(session.outcomes(timeout_s=5))
    client.pump(2 * RIDE_S)
    assert wait_for(lambda: [ack.through for ack in node.of(Ack)] == [0])


def test_everything_is_acknowledged_when_the_last_outcome_has_been_read(client: Client, node: FakeNode) -> None:
    session = client.session()
    session.submit("word")
    assert len(list(session.outcomes(timeout_s=5))) == 1
    assert wait_for(lambda: [ack.through for ack in node.of(Ack)] == [0])


def test_everything_received_is_acknowledged_when_the_client_closes(client: Client, node: FakeNode) -> None:
    session = client.session()
    session.submit("word")
    next(session.outcomes(timeout_s=5))
    client.close()
    assert wait_for(lambda: [ack.through for ack in node.of(Ack)] == [0])


def test_busy_is_sent_again_from_resend_from_after_the_wait(client: Client, node: FakeNode) -> None:
    """0 and 1 are taken, 2 is busy twice, 3 to 5 are held back behind it: nothing is lost and the order stays."""
    refused = {2: 2}
    admitted: list[int] = []

    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        index, session = message.index, message.session
        if refused.get(2) and index >= 2:
            if index == 2:
                refused[2] -= 1
            reason = "capacity" if index == 2 else "held_back"
            return [BusyMessage(session, index, reason, 5, 30, 2)]
        if index != len(admitted):
            return [BusyMessage(session, index, "held_back", 5, 30, len(admitted))]
        admitted.append(index)
        return [Accepted(session, index), Outcome(session, index, "ok")]

    node.answer = answer
    session = client.session()
    for _ in range(6):
        session.submit(SECOND)
    assert [o.index for o in session.outcomes(timeout_s=5)] == list(range(6))
    assert admitted == list(range(6))
    bodies = [samples for _, said, samples in node.frames if isinstance(said[-1], Submit)]
    assert all(samples == SECOND.tobytes() for samples in bodies)


def test_busy_is_waited_out(client: Client, node: FakeNode) -> None:
    """Sent again not before ``retry_after_ms``, then first the one that was refused, alone until it is answered."""
    came: list[tuple[float, int]] = []

    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        came.append((time.monotonic(), message.index))
        if len(came) == 1:
            return [BusyMessage(message.session, message.index, "capacity", 1, 200, 0)]
        return [] if message.index == 0 else None

    node.answer = answer
    session = client.session()
    session.submit("a")
    assert wait_for(lambda: session.core.hold_reason, client)
    session.core.submit(Utterance(1, {"text": "b"}))
    client.pump(0.5)
    assert [index for _, index in came] == [0, 0]
    assert came[1][0] - came[0][0] >= 0.2
    node.tell(session.id, Accepted(session.id, 0))
    assert wait_for(lambda: [index for _, index in came] == [0, 0, 1], client)


def test_a_stopping_node_makes_submit_raise_busy_and_the_index_stays_free(client: Client, node: FakeNode) -> None:
    session = client.session()
    node.answer = lambda m: (
        [BusyMessage(m.session, m.index, "shutting_down", 0, 50, m.index)] if isinstance(m, Submit) else None
    )
    session.submit("word")
    client.pump(0.05)
    with pytest.raises(Busy, match="stopping"):
        session.submit("another")
    assert session.core.next_index == 1
    node.tell(session.id, Closed(session.id, "shutting_down"))
    with pytest.raises(SessionClosed, match="stopping"):
        list(session.outcomes(timeout_s=5))


def test_a_new_life_of_the_node_that_remembers_is_resumed(client: Client, node: FakeNode) -> None:
    """Utterances 0 and 1 were accepted, 2 was lost with the old life: only 2 is sent again."""
    node.answer = lambda m: ([Accepted(m.session, m.index)] if m.index < 2 else []) if isinstance(m, Submit) else None
    session = client.session()
    for text in ("a", "b", "c"):
        session.submit(text)
    client.pump(0.05)
    node.next_index[session.id] = 2
    before = len(node.heard)
    node.answer = lambda m: (
        [Outcome(m.session, i, "ok") for i in range(3)] if isinstance(m, Submit)
        else [] if isinstance(m, Ack) else None  # only the number in its Pong shows that it is another
    )  # fmt: skip
    node.restart(remembers=True)
    assert [o.index for o in session.outcomes(timeout_s=5)] == [0, 1, 2]
    later = node.heard[before:]
    assert next(m.last_received for m in later if isinstance(m, Resume)) == -1
    assert [m.index for m in later if isinstance(m, Submit)] == [2]


def test_a_node_without_memory_gets_the_session_and_all_unanswered_again(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: (
        [Accepted(m.session, m.index)] + ([Outcome(m.session, 0, "ok")] if m.index == 0 else [])
        if isinstance(m, Submit) else None
    )  # fmt: skip
    session = client.session(source="en", tag="me")
    for _ in range(3):
        session.submit(SECOND)
    client.pump(0.05)
    old = session.id
    before = len(node.heard)
    node.answer = lambda m: None
    node.restart(remembers=False)
    assert [o.index for o in session.outcomes(timeout_s=5)] == [0, 1, 2]
    later = node.heard[before:]
    (opened,) = [m for m in later if isinstance(m, Open)]
    assert (opened.tag, opened.first_index, opened.source) == ("me", 1, "en")
    assert [m.index for m in later if isinstance(m, Submit)] == [1, 2]
    assert session.id != old


def test_a_whole_node_started_anew_with_the_same_number_is_noticed(client: Client, node: FakeNode) -> None:
    """Its Pong carries the incarnation we know; that it does not know the session shows all the same."""
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    session = client.session()
    session.submit("word")
    client.pump(0.05)
    node.answer = lambda m: None
    node.restart(remembers=False, silent=True)
    assert [o.index for o in session.outcomes(timeout_s=5)] == [0]
    assert len(node.of(Open)) == 2


def test_outcomes_sent_twice_are_seen_once(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: (
        [Accepted(m.session, m.index)] + [Outcome(m.session, m.index, "ok")] * 2 if isinstance(m, Submit) else None
    )
    session = client.session()
    session.submit("a")
    session.submit("b")
    client.pump(0.05)
    assert [o.index for o in session.outcomes(timeout_s=5)] == [0, 1]


def test_taken_over_ends_the_session_clearly_and_is_not_fought(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    session = client.session()
    session.submit("word")
    node.tell(session.id, Closed(session.id, "taken_over"))
    with pytest.raises(SessionClosed, match="taken_over"):
        list(session.outcomes(timeout_s=5))
    with pytest.raises(SessionClosed):
        session.submit("word")
    client.pump(0.6)
    assert not node.of(Resume)


def test_a_rejected_utterance_has_its_end_in_order_and_holds_up_nothing(client: Client, node: FakeNode) -> None:
    def answer(message: object) -> list | None:
        if isinstance(message, Submit) and message.index == 1:
            return [RejectedMessage("bad_text", "not for this pipeline", message.session, 1)]
        return None

    node.answer = answer
    session = client.session()
    for text in ("a", "b", "c"):
        session.submit(text)
    outcomes = {o.index: o for o in session.outcomes(timeout_s=5)}
    assert [o.outcome for o in outcomes.values()].count("rejected") == 1
    assert (outcomes[1].outcome, outcomes[1].code, outcomes[1].error) == (
        "rejected",
        "bad_text",
        "not for this pipeline",
    )
    assert [s.index for s in node.of(Skip)] == [1]


def test_open_rejected_is_raised_and_the_client_goes_on(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: (
        [RejectedMessage("bad_language", "no xx here", tag=m.tag, accepted=("en",))] if isinstance(m, Open) else None
    )
    with pytest.raises(Rejected, match="bad_language: no xx here; accepted: en") as caught:
        client.session(source="xx")
    assert caught.value.code == "bad_language"
    node.answer = lambda m: None
    client.session(source="en").submit("word")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": "tts"}, r"models must map stages to models, as \{'tts': 'anna'\}, not 'tts'"),
        ({"models": {"tts": 3}}, r"models must map stages to models, .*, not \{'tts': 3\}"),
        ({"priority": 3}, "priority must be a string, not 3"),
        ({"source": None}, "source must be a string, not None"),
        ({"weight": 1.5}, "weight must be a whole number, not 1.5"),
        ({"window": True}, "window must be a whole number, not True"),
    ],
)
def test_an_option_of_the_wrong_type_is_one_line_that_names_it(
    client: Client, node: FakeNode, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(Rejected, match=f"^bad_message: {said}$"):
        client.session(**wrong)
    assert not node.of(Open)
    client.session(source="en").submit("word")


def test_every_attempt_has_all_keys_whatever_the_message_leaves_out(client: Client, node: FakeNode) -> None:
    short = (StageRecord("asr", "completed", 1, "asr@cpu/0", begun_ns=5, ended_ns=7), StageRecord("nmt", "pending"))
    node.answer = lambda m: (
        [Accepted(m.session, m.index), Outcome(m.session, m.index, "error", "expired", stages=short)]
        if isinstance(m, Submit)
        else None
    )
    session = client.session()
    session.submit("word")
    (outcome,) = session.outcomes(timeout_s=5)
    assert [sorted(attempt) for attempt in outcome.stages] == [sorted(StageRecord.__struct_fields__)] * 2
    assert [msgspec.convert(attempt, StageRecord) for attempt in outcome.stages] == list(short)


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.zeros(0, np.int16), "empty_audio"),
        (np.array([0.0, np.nan], np.float32), "bad_audio"),
        (np.zeros(16_000 * 121, np.int16), "audio_too_long"),
        (np.zeros(10, np.int64), "bad_audio_format"),
        ("x" * 4001, "text_too_long"),
        ("\ud800", "bad_text"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_its_index_is_used(client: Client, samples: object, code: str) -> None:
    session = client.session()
    with pytest.raises(Rejected) as caught:
        session.submit(samples)
    assert caught.value.code == code and "\n" not in str(caught.value)
    assert session.submit("word") == 0


def test_indices_are_checked(client: Client) -> None:
    session = client.session()
    session.submit("a", index=0)
    list(session.outcomes(timeout_s=5))
    for index, code in (
        (0, "too_late"),
        (-1, "bad_index"),
        (1.0, "bad_index"),
        (True, "bad_index"),
        (2**63, "bad_index"),
    ):
        with pytest.raises(Rejected) as caught:
            session.submit("b", index=index)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_given_indices_may_come_in_any_order(client: Client, node: FakeNode) -> None:
    """With room for one, a lower index is still sent: it is what the higher one waits for."""
    node.share = 1
    held: list[int] = []

    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        held.append(message.index)
        ended = [Outcome(message.session, i, "ok") for i in sorted(held)] if message.index == 0 else []
        return [Accepted(message.session, message.index), *ended]

    node.answer = answer
    session = client.session()
    for index in (2, 1, 0):
        session.submit("word", index=index)
    assert [o.index for o in session.outcomes(timeout_s=5)] == [0, 1, 2]


def test_skip_and_cancel_reach_the_node(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: (
        [Accepted(m.session, m.index)] if isinstance(m, Submit)
        else [Outcome(m.session, m.index, "skipped", "cancelled")] if isinstance(m, Cancel) else None
    )  # fmt: skip
    session = client.session()
    session.skip(0)
    assert session.submit("word") == 1
    session.cancel(1)
    assert [(o.index, o.code) for o in session.outcomes(timeout_s=5)] == [(0, "gap"), (1, "cancelled")]


def test_close_waits_until_nothing_can_be_sent_back(client: Client, node: FakeNode) -> None:
    """Close(drain) would make a gap of what the node had no room for: it goes last."""
    busy = [True]

    def answer(message: object) -> list | None:
        if isinstance(message, Submit) and busy.pop():
            busy.append(False)
            return [BusyMessage(message.session, message.index, "capacity", 1, 50, message.index)]
        return None

    node.answer = answer
    with client.session() as session:
        session.submit("word")
        session.close()
        outcomes = list(session.outcomes(timeout_s=5))
    assert [(o.index, o.outcome) for o in outcomes] == [(0, "ok")]
    order = [type(m) for m in node.heard if isinstance(m, (Submit, Close))]
    assert order == [Submit, Submit, Close]


def test_outcomes_that_come_while_closing_are_acknowledged_and_can_be_read(client: Client, node: FakeNode) -> None:
    def answer(message: object) -> list | None:
        if isinstance(message, Submit):
            return [Accepted(message.session, message.index)]
        if isinstance(message, Close):
            return [Outcome(message.session, 0, "ok"), Closed(message.session, "drained")]
        return None

    node.answer = answer
    with client.session() as session:
        session.submit("word")
    assert wait_for(lambda: [ack.through for ack in node.of(Ack)][-1:] == [0])
    assert [o.index for o in session.outcomes()] == [0]


def test_an_exception_in_the_block_aborts_the_session(client: Client, node: FakeNode) -> None:
    with pytest.raises(KeyError), client.session() as session:
        session.submit("word")
        raise KeyError
    assert wait_for(lambda: [c.mode for c in node.of(Close)] == ["abort"])


def test_progress_is_told_in_order_and_before_the_outcome_is_read(client: Client, node: FakeNode) -> None:
    def answer(message: object) -> list | None:
        if not isinstance(message, Submit):
            return None
        s, i = message.session, message.index
        return [Accepted(s, i), Status(s, i, "asr", "processing", 1), Partial(s, i, "asr", "hel"), Outcome(s, i, "ok")]

    node.answer = answer
    told: list = []
    session = client.session(on_progress=told.append)
    session.submit("word")
    list(session.outcomes(timeout_s=5))
    assert node.of(Open)[0].partials is True
    assert [(p.stage, p.state, p.text) for p in told] == [("asr", "processing", None), ("asr", "", "hel")]


def test_unread_outcomes_are_bounded(node: FakeNode) -> None:
    with Client(node.endpoint, max_unread=4) as client:
        session = client.session()
        with pytest.raises(Busy, match="read some with outcomes"):
            for _ in range(100):
                session.submit("word")
                client.pump(0.01)
        assert len(list(session.outcomes(timeout_s=5))) >= 4
        session.submit("word")


def test_unread_audio_is_bounded_in_bytes(node: FakeNode) -> None:
    node.answer = lambda m: (
        [Accepted(m.session, m.index),
         (Outcome(m.session, m.index, "ok", dtype="s16le", nbytes=1000, sample_rate=16_000), bytes(1000))]
        if isinstance(m, Submit) else None
    )  # fmt: skip
    with Client(node.endpoint, max_unread_bytes=3000) as client:
        session = client.session()
        with pytest.raises(Busy):
            for _ in range(100):
                session.submit("word")
                client.pump(0.01)
        assert 3 <= len(list(session.outcomes(timeout_s=5))) <= 5


def test_two_sessions_of_one_client_are_read_as_they_come(client: Client) -> None:
    first, second = client.session(tag="a"), client.session(tag="b")
    for _ in range(5):
        first.submit("x")
        second.submit("y")
    seen = [(o.tag, o.index) for o in client.outcomes(timeout_s=5)]
    assert [i for tag, i in seen if tag == "a"] == [i for tag, i in seen if tag == "b"] == list(range(5))
    first.submit("x")
    assert [(o.tag, o.index) for o in first.outcomes(timeout_s=5)] == [("a", 5)]
    assert list(client.outcomes(timeout_s=5)) == []


def test_frames_stay_below_64_kib(client: Client, node: FakeNode) -> None:
    session = client.session()
    for _ in range(40):
        session.submit("\N{GRINNING FACE}" * 4000)
    assert len(list(session.outcomes(timeout_s=5))) == 40
    assert max(size for size, _, _ in node.frames) <= 64 * 1024
    with pytest.raises(ValueError, match="longer than a frame"):
        client.session(models={"asr": "x" * 70_000})


def test_no_node_is_one_line_that_says_what_to_do(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(NodeGone, match="no answer from ipc://") as caught,
        Client(f"ipc://{socket_path}", patience_s=0.2),
    ):
        pass
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(socket_path.parent))
    monkeypatch.setenv("TMPDIR", str(socket_path.parent))
    monkeypatch.setattr("engine.client.SHARED_TEMP", str(socket_path.parent))
    with pytest.raises(NodeGone, match=r"no node is running.*start one"):
        default_endpoint()
    with pytest.raises(NodeGone, match="ipc://PATH or tcp://HOST:PORT"), Client("nonsense"):
        pass


def test_a_node_that_dies_is_noticed_while_waiting(node: FakeNode) -> None:
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    with Client(node.endpoint, patience_s=0.3) as client:
        session = client.session()
        session.submit("word")
        client.pump(0.05)
        node.close_socket()
        with pytest.raises(NodeGone):
            list(session.outcomes())
        node._do(node._bind)


def test_outcomes_can_be_waited_for_with_a_limit(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    session = client.session()
    session.submit("word")
    with pytest.raises(TimeoutError, match="1 are outstanding"):
        list(session.outcomes(timeout_s=0.05))


def test_pings_go_out_while_something_is_outstanding_and_stop_after(client: Client, node: FakeNode) -> None:
    node.answer = lambda m: [Accepted(m.session, m.index)] if isinstance(m, Submit) else None
    session = client.session()
    session.submit("word")
    client.pump(1.2)
    assert len(node.of(Ping)) >= 2
    node.tell(session.id, Outcome(session.id, 0, "ok"))
    list(session.outcomes(timeout_s=5))
    client.pump(0.2)
    before = len(node.of(Ping))
    client.pump(0.7)
    assert len(node.of(Ping)) == before


def test_the_first_words_are_hello_and_no_routing_id_is_set(client: Client, node: FakeNode) -> None:
    client.session()
    assert isinstance(node.heard[0], Hello) and node.heard[0].version == 1
    assert all(len(connection) == 5 and connection[0] == 0 for connection in node.bound.values())


def test_the_client_needs_nothing_of_the_node() -> None:
    """msgspec, the configuration and soxr stay out of a program that only speaks with a node."""
    code = (
        "import sys; from engine import Client; Client('ipc:///x');"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('msgspec', 'soxr', 'ctranslate2', 'pynvml', 'tqdm')"
        " or m in ('engine.config', 'ipc.messages', 'engine.node', 'engine.process')]; sys.exit(str(bad) if bad else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def wait_for(condition, client: Client | None = None) -> bool:
    """Turn (with ``client``) until ``condition`` holds, at most 5 s."""
    pause = threading.Event()
    for _ in range(500):
        if condition():
            return True
        client.pump(0.01) if client else pause.wait(0.01)
    return False
