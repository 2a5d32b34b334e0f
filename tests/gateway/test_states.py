"""State machines: what the tables allow happens, anything else raises and changes nothing."""

from __future__ import annotations

import itertools

import pytest

from engine.gateway import ledger, sessions
from engine.gateway.ledger import Entry, Ledger
from engine.gateway.outbox import Outbox
from engine.gateway.reorder import Reorder
from engine.gateway.sessions import Link, Session
from ipc.errors import IllegalMove
from ipc.messages import Admit, Open, Outcome


def session() -> Session:
    return Session("s.0", "t", Open("s"), "audio", 8, Reorder(0), acked=-1, next_index=0, highest=-1)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Link, Link)))
def test_links_of_sessions(before: Link, after: Link) -> None:
    mine = session()
    mine.link = before
    if after in sessions.MOVES[before]:
        mine.move(after, 5.0)
        assert (mine.link, mine.link_since) == (after, 5.0)
    else:
        with pytest.raises(IllegalMove):
            mine.move(after, 5.0)
        assert (mine.link, mine.link_since) == (before, 0.0)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ledger.State, ledger.State)))
def test_states_of_utterances(before: ledger.State, after: ledger.State) -> None:
    entry = Entry(0, ("text", 0, 0, 0), 0.0, before)
    if after in ledger.MOVES[before]:
        entry.move(after)
        assert entry.state is after
    else:
        with pytest.raises(IllegalMove):
            entry.move(after)
        assert entry.state is before


def test_an_utterance_is_not_forgotten_before_its_end() -> None:
    book = Ledger()
    book.open("s")
    book.admit(Admit("s", 0, 1000, text="a"), 0.0)
    with pytest.raises(ValueError, match="before its end"):
        book.forget("s", 0)
    assert book.end("s", 0) and not book.end("s", 0)
    book.forget("s", 0)
    book.check()


def test_an_index_is_entered_once() -> None:
    book = Ledger()
    book.open("s")
    book.admit(Admit("s", 0, 1000, text="a"), 0.0)
    with pytest.raises(ValueError, match="known"):
        book.enter_missing("s", 0, 0.0)
    book.check()


def test_an_index_ends_once_in_the_order_core_and_the_outbox() -> None:
    order, box = Reorder(0), Outbox(100, 100)
    order.put(1)
    box.put(Outcome("s", 1, "ok"), None)
    with pytest.raises(ValueError, match="already"):
        order.put(1)
    with pytest.raises(ValueError, match="already"):
        box.put(Outcome("s", 1, "error"), None)
    order.put(0)
    with pytest.raises(ValueError, match="already"):
        order.put(0)
    assert order.released == [0, 1]
    order.check()
    box.check()
