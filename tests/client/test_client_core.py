"""Promises of a session's core: which utterance may go on the wire when."""

from __future__ import annotations

from typing import Any

import pytest

from engine.client_core import SessionCore
from engine.client_utterance import Utterance

OPENING = {"tag": "t", "window": 8, "first_index": 0}


@pytest.fixture
def core() -> SessionCore:
    """An open session that may have one unended utterance at a time."""
    core = SessionCore(OPENING)
    core.open(0.0)
    answer(core, "Opened", session="s", token="x", next_index=0, share=1, window=8)
    return core


def answer(core: SessionCore, kind: str, **fields: Any) -> None:
    core.handle({"type": kind, **fields}, None, 0.0)
    core.check()


def said(core: SessionCore) -> list[int]:
    """Everything that may go on the wire now, as if it went."""
    found = []
    while (utterance := core.sendable(0.0)) is not None:
        core.message(utterance)
        found.append(utterance.index)
    return found


def submit(core: SessionCore, *indices: int) -> list[int]:
    for index in indices:
        core.submit(Utterance(index))
    return said(core)


def test_a_share_that_is_used_up_holds_back_higher_indices(core: SessionCore) -> None:
    assert submit(core, 0, 1) == [0]


def test_below_a_skip_nothing_is_held_back(core: SessionCore) -> None:
    assert submit(core, 0, 1) == [0]
    core.skip(2)
    assert said(core) == [2, 1]


def test_below_what_the_node_has_accepted_nothing_is_held_back_even_after_a_resume(core: SessionCore) -> None:
    submit(core, 2)
    answer(core, "Accepted", index=2)
    assert submit(core, 0) == [0]
    core.resume(1.0)
    answer(core, "Opened", session="s", token="x", next_index=1, share=1, window=8)
    assert submit(core, 1) == [1]


def test_an_index_that_the_node_misses_goes_at_once(core: SessionCore) -> None:
    assert submit(core, 0, 1) == [0]
    answer(core, "Gap", session="s", index=1, after_ms=5000)
    assert said(core) == [1]


def test_a_session_that_is_opened_again_has_nothing_at_the_node(core: SessionCore) -> None:
    submit(core, 1)
    answer(core, "Accepted", index=1)
    core.resume(1.0)
    answer(core, "UnknownSession", session="x")
    answer(core, "Opened", session="s2", token="y", next_index=0, share=1, window=8)
    assert submit(core, 0) == [0]
