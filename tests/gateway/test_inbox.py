"""Whoever sends long frames is heard in turn with everybody else, and nobody's messages change places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gateway.events import Arrived
from engine.gateway.inbox import MOST, PART, Inbox

FRAMES = st.lists(st.tuples(st.sampled_from((b"a", b"b", b"c")), st.integers(1, 5 * PART), st.integers(0, 3)))


@given(FRAMES)
def test_each_client_is_heard_in_order_and_none_twice_while_another_waits(frames: list[tuple[bytes, int, int]]) -> None:
    inbox, sent, heard, waited = Inbox(), dict[bytes, list[int]](), dict[bytes, list[int]](), dict[bytes, int]()

    def take() -> None:
        part = inbox.take()
        inbox.check()
        assert len(part.messages) <= PART and part.payload == part.messages[0] // 1000
        heard.setdefault(part.client, []).extend(part.messages)
        waited.pop(part.client)
        for client in waited:
            waited[client] += 1
        if heard[part.client] != sent[part.client]:
            waited[part.client] = 0
        assert all(turns < 3 for turns in waited.values()), "each of the other two has been heard since"

    for number, (client, count, takes) in enumerate(frames):
        messages = tuple(1000 * number + at for at in range(count))
        inbox.put(Arrived(client, messages, number))
        inbox.check()
        sent.setdefault(client, []).extend(messages)
        waited.setdefault(client, 0)
        for _ in range(min(takes, len(inbox))):
            take()
    while inbox:
        take()
    assert heard == sent


def test_it_is_full_until_a_frame_is_through() -> None:
    inbox = Inbox()
    for number in range(MOST):
        assert not inbox.is_full
        inbox.put(Arrived(b"%d" % number, tuple(range(PART + 1))))
    for _ in range(MOST):
        assert inbox.is_full
        inbox.take()
    inbox.take()
    assert not inbox.is_full and len(inbox) == MOST - 1


def test_an_empty_one_has_nothing() -> None:
    inbox = Inbox()
    inbox.put(Arrived(b"a", ()))
    assert inbox.take() == Arrived(b"a", ()) and not inbox
    with pytest.raises(IndexError):
        inbox.take()
