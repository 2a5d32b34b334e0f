"""Whoever dies at whatever step of an utterance's life: every utterance has its one outcome, ok and in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import failpoints
from engine.failpoints import POINTS, SIGNALS, Armed
from engine.node import Node
from ipc.errors import ConfigError
from tests.node.rehearsal import Marks, assert_in_order, config

COUNT = 16
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
AT_THE_START = ("worker.granted", "worker.loaded", "arbiter.asked", "arbiter.written", "arbiter.told")
UNDER_LOAD = [name for name in POINTS if name not in (*AT_THE_START, "gateway.restoring")]


def carry(node: Node, count: int = COUNT) -> list:
    marks = Marks()
    with node.client() as client, client.session(source="en", target="de", tag="t") as session:
        for index in range(count):
            session.submit(marks.make("t", index))
        outcomes = list(session.outcomes(timeout_s=30))
    for outcome in outcomes:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(outcomes)
    return outcomes


def deaths(node: Node) -> list[str]:
    return [death["role"].partition("@")[0] for death in node.stats()["deaths"]]


@pytest.mark.parametrize("point", UNDER_LOAD)
def test_a_death_at_this_step_costs_nothing_but_time(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ":tts" if point.startswith("worker") else ""
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"{point}=kill@5{stage}")
    with Node(config(sleep_ms=4.0)) as node:
        outcomes = carry(node)
        dead = deaths(node)
    assert [(o.outcome, o.code) for o in outcomes] == [("ok", "")] * COUNT
    assert dead == [stage[1:] or point.partition(".")[0]], "it died there, once, and nobody else did"


@pytest.mark.parametrize("point", AT_THE_START)
def test_a_death_while_models_load_is_healed(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"{point}=kill@1{':nmt' if point.startswith('worker') else ''}")
    with Node(config()) as node:
        outcomes = carry(node)
        assert len(deaths(node)) == 1
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


def test_a_gateway_that_dies_while_it_is_restored_is_restored_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", "gateway.copied=kill@5,gateway.restoring=kill@1#2")
    with Node(config(sleep_ms=4.0)) as node:
        outcomes = carry(node)
        assert deaths(node) == ["gateway", "gateway"]
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


@pytest.mark.parametrize("spec", ["kill", "kill@0", "kil@3", "kill@3:", "kill@x", ""])
def test_a_failpoint_that_says_nothing_sensible_is_refused(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="write WAY@COUNT"):
        failpoints.check({"gateway.read": spec})


def test_only_the_life_and_stage_that_is_meant_is_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, role, life, on in (
        ("kill@1", "asr@cpu/0", 1, True), ("kill@1", "asr@cpu/0", 2, False), ("kill@1*", "asr@cpu/0", 2, True),
        ("kill@1#2", "asr@cpu/0", 2, True), ("kill@1#2", "asr@cpu/0", 1, False), ("kill@1:nmt", "asr@cpu/0", 1, False),
        ("kill@1:asr", "asr@cuda:1/0", 1, True),
    ):  # fmt: skip
        armed: dict[str, Armed] = {}
        monkeypatch.setattr(failpoints, "_armed", armed)
        failpoints.arm({"worker.ran": spec}, role, life)
        assert bool(armed) == on, (spec, role, life)


def test_the_operators_page_names_every_point_and_way() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in (*POINTS, *SIGNALS, "exit"))
