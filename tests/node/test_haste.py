"""On a whole node: what a session gives up for its deadline, and what it gets instead."""

from __future__ import annotations

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, identities

SLOW = {
    "repair": [{"index": 1, "action": "sleep", "ms": 3000.0}],
    # The first session's last ones: so long may it take from then on, and repair is left out with a second to spare.
    "nmt": [{"index": index, "action": "sleep", "ms": 3000.0, "session": "fail"} for index in (4, 5)],
    "tts": [{"index": 3, "action": "sleep", "ms": 3000.0}],
}
OPTIONAL = {"repair": {"required": False}}


def carry(node: Node, on_deadline: str) -> list:
    marks = Marks()
    with (
        node.client() as client,
        client.session(source="en", target="de", tag=on_deadline, on_deadline=on_deadline) as session,
    ):
        for index in range(6):
            budget_s = 1.5 if index in (1, 3) else None
            session.submit(marks.make(on_deadline, index, 2000), budget_s=budget_s)
        outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare(on_deadline, outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    return outcomes


def test_late_utterances_lose_what_their_session_says_and_no_worker_is_touched() -> None:
    with Node(config(2.0, cues=SLOW, stages=OPTIONAL)) as node:
        before = identities(node)
        found = {on_deadline: carry(node, on_deadline) for on_deadline in ("fail", "skip_repair", "text")}
        assert identities(node) == before
    ends = {how: [(o.outcome, o.code, o.audio is not None) for o in outcomes] for how, outcomes in found.items()}
    well, expired = ("ok", "", True), ("error", "expired", False)
    assert ends["fail"] == [well, expired, well, expired, well, well]
    assert ends["skip_repair"] == [well, well, well, expired, well, well]
    assert ends["text"] == [well, well, well, ("ok", "", False), well, well]
    assert "repair: skipped" in found["text"][1].degraded
    assert "tts: no speech" in found["text"][3].degraded and {"asr", "nmt"} <= set(found["text"][3].texts)
    assert all(not o.degraded for o in found["fail"])
