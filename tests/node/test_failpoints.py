"""Whoever dies at whatever step of an utterance's life: every utterance has its one outcome, ok and in order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine import failpoints
from engine.failpoints import POINTS, SIGNALS, Armed
from engine.node import Node
from ipc.errors import ConfigError
from tests.node.rehearsal import STAGES, Marks, assert_in_order, config, kill, process_of, wait_until

COUNT = 16
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
AT_THE_END = ("worker.released", "worker.stopping")
AT_THE_START = ("worker.granted", "worker.loaded", "arbiter.asked", "arbiter.written", "arbiter.told")
UNDER_LOAD = [name for name in POINTS if name not in (*AT_THE_START, *AT_THE_END, "gateway.restoring")]


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


@pytest.mark.parametrize("way", ["segv", "abrt", "exit"])
@pytest.mark.parametrize("point", ["gateway.heard", "scheduler.sent", "worker.writing"])
def test_whatever_way_it_dies(point: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"{point}={way}@5{':tts' if point.startswith('worker') else ''}")
    with Node(config(sleep_ms=4.0)) as node:
        outcomes = carry(node)
        assert len(deaths(node)) == 1
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


@pytest.mark.parametrize("point", ["gateway.copied", "gateway.writing", "scheduler.decided", "worker.writing"])
def test_who_hangs_at_a_step_is_ended_and_costs_nothing_but_time(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ":tts" if point.startswith("worker") else ""
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"{point}=stop@5{stage}")
    limits = {name: {"timeout_base_s": 1.0, "timeout_per_audio": 0.0} for name in STAGES}
    with Node(config(sleep_ms=4.0, stages=limits, deadlines={"silent_s": 1.0, "abort_s": 0.2})) as node:
        outcomes = carry(node)
        assert deaths(node) == [stage[1:] or point.partition(".")[0]]
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


def test_a_worker_that_dies_while_it_gives_its_lease_back_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model does not load, its stage is not required: it has no say any more, and the rest serves."""
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", "worker.released=kill@1:repair")
    broken = {"repair": [{"index": -1, "action": "bad_model", "text": "no such file"}]}
    with Node(config(cues=broken, stages={"repair": {"required": False}})) as node:
        outcomes = carry(node)
        dead = deaths(node)
        holders = {lease["worker"].partition("@")[0] for lease in wait_until(lambda: node.stats()["leases"])}
    assert dead[:1] == ["repair"] and set(dead) == {"repair"}
    assert holders == {"asr", "nmt", "tts"}
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


def test_a_worker_that_dies_while_it_stops_does_not_keep_the_node_from_ending_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", "worker.stopping=kill@1")
    with Node(config()) as node:
        outcomes = carry(node)
        os.kill(node.pid, signal.SIGTERM)
        assert node.wait(20.0) == 0
    assert [o.outcome for o in outcomes] == ["ok"] * COUNT


def test_failpoints_can_be_armed_while_the_node_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "points"
    file.write_text("")
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"failpoints.file={file}")
    with Node(config(sleep_ms=4.0)) as node:
        carry(node, 2)
        file.write_text("scheduler.decided=kill@2\nworker.granted=kill@1:asr#2\n")
        os.kill(process_of(node, "scheduler")["pid"], signal.SIGUSR1)
        carry(node)
        file.write_text("worker.granted=kill@1:asr#2\n")
        kill(process_of(node, "asr@cpu/0")["pid"])
        carry(node)
        assert deaths(node) == ["scheduler", "asr", "asr"]


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({"failpoints.file": "/nowhere/points"}, "cannot be read"),
        ({"gateway.copid": "kill@1"}, "did you mean gateway.copied"),
        ({"foo.bar": "baz"}, "there is no test hook 'foo.bar'"),
        ({"gateway.reorder": "bypas"}, "write gateway.reorder=bypass"),
    ],
)
def test_a_hook_that_nobody_knows_is_refused(hooks: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        failpoints.check(hooks)


@pytest.mark.parametrize("text", ["nonsense", "gateway.told=boom@1", "gateway.copid=kill@1", None])
def test_a_file_of_failpoints_that_is_wrong_arms_nothing_and_ends_nobody(
    text: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, log = tmp_path / "points", tmp_path / "log"
    file.write_text("# nothing yet\n\n")
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", f"failpoints.file={file}")
    with Node(config(), log_file=log) as node:
        file.unlink() if text is None else file.write_text(text)
        os.kill(process_of(node, "gateway")["pid"], signal.SIGUSR1)
        outcomes = carry(node, 3)
        wait_until(lambda: "nothing is armed" in log.read_text())
        assert not deaths(node)
    assert [o.outcome for o in outcomes] == ["ok"] * 3


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
