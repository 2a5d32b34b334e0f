"""Clients that flood, never read, or send nonsense cost their own connection and nobody else's; the node goes on."""

from __future__ import annotations

import msgpack
import pytest
from stand import Stand, samples

from engine.gateway.events import Arrived, JobEnded, LeaveNow
from engine.gateway.strangers import BUDGET_BYTES, MOST, REFILL_BYTES_PER_S, Strangers
from engine.gateway.wire import MAX_MESSAGES, MAX_REFUSED, Letter, read
from ipc.messages import (
    MAX_CONTROL_BYTES,
    Ack,
    Close,
    Closed,
    Open,
    Opened,
    Outcome,
    Partial,
    Ping,
    Pong,
    Progress,
    Rejected,
    Resume,
    Status,
    Submit,
    UnknownSession,
)

NIL = b"\xc0"


def told_bytes(stand: Stand, client: bytes) -> int:
    letter = Letter()
    for tell in stand.told:
        if tell.client == client:
            letter.add(tell.message, None)
    return sum(len(frame) for parts in letter.parts() for frame in parts)


# ---------------------------------------------------------------- what one frame may cost


def test_a_frame_of_nonsense_is_answered_a_few_times_and_then_once() -> None:
    answers, _ = read([b"\xdc" + (2000).to_bytes(2, "big") + NIL * 2000])
    assert len(answers) == MAX_REFUSED + 1 and {answer.code for answer in answers} == {"bad_message"}
    assert f"the other {2000 - MAX_REFUSED} are not read" in answers[-1].text


@pytest.mark.parametrize("one", [NIL, msgpack.packb({"type": "Ping"})])
def test_a_frame_of_too_many_messages_is_one_refusal(one: bytes) -> None:
    count = MAX_MESSAGES + 1
    answers, _ = read([b"\xdc" + count.to_bytes(2, "big") + one * count])
    assert [answer.code for answer in answers] == ["bad_message"]
    assert len(read([b"\xdc" + MAX_MESSAGES.to_bytes(2, "big") + one * MAX_MESSAGES])[0]) > 1


def test_a_frame_full_of_the_shortest_message_about_a_session_is_taken() -> None:
    shortest = msgpack.packb({"type": "Ack", "session": "a.0", "through": 5})
    count = (MAX_CONTROL_BYTES - 3) // len(shortest)
    assert len(read([b"\xdc" + count.to_bytes(2, "big") + shortest * count])[0]) == count


# ---------------------------------------------------------------- connections without a session


def test_a_stranger_that_floods_is_told_no_more_than_its_budget() -> None:
    stand = Stand()
    for _ in range(3 * BUDGET_BYTES // 200 // 100):
        stand.feed(Arrived(b"x", (Ping(),) * 50 + (Rejected("bad_message", "broken"),) * 25 + (Ack("no.0", 1),) * 25))
    assert 200 < len(stand.told) <= BUDGET_BYTES // 200 + 1 and told_bytes(stand, b"x") < BUDGET_BYTES
    assert stand.say(Ping(), client=b"y") == [Pong(7)]


def test_a_monitor_that_pings_every_half_second_is_answered_for_ever() -> None:
    stand = Stand()
    for _ in range(5000):
        assert stand.say(Ping(), client=b"m") == [Pong(7)]
        stand.now += 0.5


def test_opening_and_closing_again_and_again_without_reading_comes_to_an_end() -> None:
    stand = Stand(outbox_session_bytes=50_000)
    for _ in range(1000):
        opened = [m for m in stand.say(Open("s", source="en", target="de"), client=b"x") if isinstance(m, Opened)]
        for answer in opened:
            stand.say(Close(answer.session), client=b"x")
    assert 10 < len(stand.heard(Opened, b"x")) < 200 and stand.core.snapshot()["sessions"] == 0
    assert stand.open(client=b"y")


def test_a_connection_that_was_parted_with_is_told_nothing_more_and_another_one_resumes() -> None:
    stand = Stand(outbox_session_bytes=50_000)
    opened = stand.open(client=b"x")
    while not stand.heard(Closed, b"x"):
        stand.say(Submit(opened.session, 99, "s16le", 0), client=b"x")
    before = len(stand.told)
    for message in (Resume(opened.token, -1), Ping(), Open("t", source="en", target="de"), Ack(opened.session, 0)):
        assert stand.say(message, client=b"x") == []
    assert len(stand.told) == before
    assert isinstance(stand.say(Resume(opened.token, -1), client=b"y")[0], Opened)


def test_what_strangers_owe_is_forgotten_when_paid_and_never_more_than_so_many() -> None:
    strangers = Strangers()
    for n in range(3 * MOST):
        strangers.may_hear(b"%d" % n, 100, 0.0)
    assert len(strangers) == MOST and not strangers.may_hear(b"new", 100, 0.0)
    assert strangers.may_hear(b"new", 100, 100 / REFILL_BYTES_PER_S + 0.01) and len(strangers) == 1


# ---------------------------------------------------------------- deaf clients with sessions


def test_what_all_connections_have_unread_together_is_half_of_the_outbox_at_most() -> None:
    stand = Stand(outbox_session_bytes=100_000, outbox_node_bytes=160_000)
    for client in (b"a", b"b", b"c", b"d"):
        stand.open(client=client)
    sessions = {session.client: session.id for session in stand.core.books.sessions}
    for client, session in sessions.items():
        for index in range(6):
            stand.submit(session, index, client=client)
            stand.finish(session, index, bytes(8000))
    unread = {client: len(stand.heard(Outcome, client)) for client in sessions}
    assert unread == dict.fromkeys(sessions, 2)  # 8.5 kB each, and a quarter of 80 kB
    stand.say(Ack(sessions[b"a"], 1))
    assert len(stand.heard(Outcome)) == 4, "who reads gets on"


def test_many_connections_that_flood_share_one_budget_of_unread_answers() -> None:
    stand = Stand(outbox_session_bytes=4 * 2**20, outbox_node_bytes=6 * 2**20)
    sessions = {client: stand.open(client=client).session for client in (b"a", b"b", b"c", b"d")}
    for client, session in sessions.items():
        stand.feed(Arrived(client, (Submit(session, 99, "s16le", 0),) * 10_000))  # 200 bytes each: 2 MB
    assert stand.heard(Closed, b"a") == [Closed(sessions[b"a"], "slow_consumer")]
    left = stand.core.books.sessions.clients.values()
    assert len(left) == 3 and sum(client.answer_bytes for client in left) <= 6 * 2**20


# ---------------------------------------------------------------- the node's own end


def test_when_the_process_must_leave_every_accepted_utterance_ends_and_every_client_is_told() -> None:
    stand = Stand()
    first, other = stand.open().session, stand.open(client=b"b").session
    stand.submit(first, 0)
    stand.submit(first, 2)
    stand.submit(other, 0, client=b"b")
    stand.feed(LeaveNow())
    codes = [(outcome.index, outcome.outcome, outcome.code) for outcome in stand.heard(Outcome)]
    assert codes == [(0, "error", "shutting_down"), (1, "skipped", "gap"), (2, "error", "shutting_down")]
    assert [outcome.code for outcome in stand.heard(Outcome, b"b")] == ["shutting_down"]
    assert stand.heard(Closed) == [Closed(first, "shutting_down")]
    assert stand.heard(Closed, b"b") == [Closed(other, "shutting_down")]
    stand.feed(JobEnded(Outcome(first, 0, "ok")))
    assert len(stand.heard(Outcome)) == 3


# ---------------------------------------------------------------- progress, and one answer


def test_progress_too_long_for_a_frame_is_cut() -> None:
    stand = Stand()
    session = stand.open(partials=True).session
    stand.submit(session, 0)
    stand.feed(Progress(Partial(session, 0, "asr", "\U0001f600" * 100_000)))
    stand.feed(Progress(Status(session, 0, "asr", "retrying", reason="x" * 100_000)))
    for kind in (Partial, Status):
        letter = Letter()
        letter.add(stand.heard(kind)[0], None)
        (frames,) = letter.parts()
        assert len(frames[0]) <= MAX_CONTROL_BYTES
    assert stand.heard(Partial)[0].text.startswith("\U0001f600")


@pytest.mark.parametrize("index", [1.0, "0", True, None])
def test_an_index_that_is_none_is_answered_once_with_the_window(index: object) -> None:
    stand = Stand()
    session, data = stand.open().session, samples()
    submit = {"type": "Submit", "session": session, "index": index, "dtype": "s16le", "nbytes": len(data)}
    messages, payload = read([msgpack.packb([submit]), data])
    before = len(stand.told)
    stand.feed(Arrived(b"a", messages, payload))
    (answer,) = (tell.message for tell in stand.told[before:])
    assert (answer.code, answer.session, answer.window) == ("bad_index", session, (0, 7))
    stand.feed(Arrived(b"stranger", messages, payload))
    assert stand.heard(Rejected, b"stranger")[0].window is None, "a session's window is its holder's business"
    assert not stand.heard(UnknownSession, b"stranger")
