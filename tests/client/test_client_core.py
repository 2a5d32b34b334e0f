"""Promises of a session's core: which utterance may go on the wire when."""

from __future__ import annotations

from typing import Any

import pytest

from engine.client_core import ECHO_S, SessionCore, State
from engine.client_utterance import Utterance

OPENING = {"tag": "t", "window": 8, "first_index": 0}


@pytest.fixture
def core() -> SessionCore:
    """An open session that may have one unended utterance at a time."""
    core = SessionCore(OPENING)
    core.open(0.0)
    answer(core, "Opened", session="s", token="x", next_index=0, share=1, window=8)
    return core


def answer(core: SessionCore, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """The node says this; returns what the core answers at once."""
    said = core.handle({"type": kind, **fields}, None, 0.0)
    core.check()
    return said


def resumed(core: SessionCore, next_index: int) -> list[dict[str, Any]]:
    """The node is another one, which knows the session up to here; returns what it is told at once."""
    core.resume(1.0)
    return answer(core, "Opened", session="s", token="x", next_index=next_index, share=1, window=8)


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
    resumed(core, next_index=1)
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


# ---------------------------------------------------------------- after a resume


def ends(core: SessionCore, index: int) -> None:
    answer(core, "Outcome", session="s", index=index, outcome="ok")


def test_what_a_resume_says_is_received_needs_no_acknowledgement(core: SessionCore) -> None:
    submit(core, 0)
    ends(core, 0)
    (said_,) = core.resume(1.0)
    assert said_["last_received"] == 0
    answer(core, "Opened", session="s", token="x", next_index=1, share=1, window=8)
    assert core.ack() is None
    submit(core, 1)
    ends(core, 1)
    assert core.ack() == {"type": "Ack", "session": "s", "through": 1}


@pytest.mark.parametrize("when", ["before", "while it resumes"])
def test_a_cancel_is_said_again_to_a_node_that_came_back(core: SessionCore, when: str) -> None:
    submit(core, 0)
    answer(core, "Accepted", index=0)
    if when == "before":
        assert core.cancel(0) == [{"type": "Cancel", "session": "s", "index": 0}]
        again = resumed(core, next_index=1)
    else:
        core.resume(1.0)
        assert core.cancel(0) == []
        again = answer(core, "Opened", session="s", token="x", next_index=1, share=1, window=8)
    assert again == [{"type": "Cancel", "session": "s", "index": 0}]


def test_what_was_cancelled_and_the_node_has_never_had_is_skipped_after_a_resume(core: SessionCore) -> None:
    submit(core, 0)
    core.cancel(0)
    assert resumed(core, next_index=0) == []
    utterance = core.sendable(0.0)
    assert utterance is not None and core.message(utterance) == {"type": "Skip", "session": "s", "index": 0}


@pytest.mark.parametrize("next_index", [0, 1])
def test_a_skip_whose_end_has_not_come_is_said_again_after_a_resume(core: SessionCore, next_index: int) -> None:
    core.skip(0)
    assert said(core) == [0]
    assert resumed(core, next_index) == []
    assert said(core) == [0]
    answer(core, "Outcome", session="s", index=0, outcome="skipped", code="gap")
    assert not core.unended


def test_a_late_refusal_of_what_has_ended_is_no_answer_to_a_resume(core: SessionCore) -> None:
    submit(core, 0)
    answer(core, "Outcome", session="s", index=0, outcome="skipped", code="gap")
    core.resume(1.0)
    answer(core, "Rejected", session="s", index=0, code="too_late", text="index 0 has ended without being accepted")
    assert (core.state, core.failure) == (State.RESUMING, None)
    answer(core, "Rejected", session="s", index=0, code="bad_index", text="the node has no index 0")
    assert core.state is State.CLOSED and core.failure is not None


def test_who_was_taken_over_by_an_earlier_resume_of_its_own_takes_the_session_back(core: SessionCore) -> None:
    """Its connection broke behind that Resume, which came when the next one had been answered."""
    core.resume(1.0)
    resumed(core, next_index=0)
    (again,) = answer(core, "Closed", session="s", reason="taken_over")
    assert (again["type"], core.state) == ("Resume", State.RESUMING)
    answer(core, "Opened", session="s", token="x", next_index=0, share=1, window=8)
    assert answer(core, "Closed", session="s", reason="taken_over") == [] and core.state is State.CLOSED


def test_who_was_taken_over_by_another_client_leaves_it_the_session(core: SessionCore) -> None:
    resumed(core, next_index=0)
    assert answer(core, "Closed", session="s", reason="taken_over") == [] and core.state is State.CLOSED


def test_a_resume_that_was_lost_long_ago_is_nobodys_takeover(core: SessionCore) -> None:
    core.resume(1.0)
    resumed(core, next_index=0)
    assert core.handle({"type": "Closed", "session": "s", "reason": "taken_over"}, None, ECHO_S + 1) == []
    assert core.state is State.CLOSED


def test_busy_is_counted_whatever_becomes_of_it(core: SessionCore) -> None:
    core.submit(Utterance(0))
    assert said(core) == [0] and core.refused == 0
    answer(core, "Busy", index=0, resend_from=0, reason="capacity", retry_after_ms=0)
    assert said(core) == [0] and core.refused == 1
    answer(core, "Accepted", index=0)
    assert core.refused == 1
