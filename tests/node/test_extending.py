"""Stages and policies of other packages: found by their entry points, used like our own, harmless if broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import config, wait_until

PACKAGE = '''
from stages.base import Declaration, Output, Stage


class Shout(Stage):
    declaration = Declaration(name="shout", accepts="text", emits="text")

    def run(self, items):
        return [Output(text=item.text.upper() + "!") for item in items]


class Second:
    """Prefers the last worker by name."""

    def order(self, stage, workers):
        return sorted((worker.role for worker in workers), reverse=True)


class Broken:
    def order(self, stage, workers):
        raise RuntimeError("no idea")
'''
ENTRIES = """[dragoman.stages]
shout = loud:Shout
torn = nowhere_at_all:Shout

[dragoman.placement]
second = loud:Second
broken = loud:Broken
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip installs it, on the path of the node's processes."""
    about = tmp_path / "loud-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "loud.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)


def texts(**fields: object) -> dict:
    return {
        "stages": {"shout": {"kind": "shout", "devices": ["cpu"], "instances": 2}},
        "pipelines": {"full": ["shout"]},
        **fields,
    }


def say(node: Node, *said: str) -> list:
    with node.client() as client, client.session(target="en") as session:
        for text in said:
            session.submit(text)
        return list(session.outcomes(timeout_s=30))


def test_a_stage_of_another_package_runs_like_our_own() -> None:
    with Node(texts()) as node:
        (outcome,) = say(node, "hello")
    assert outcome.texts == {"shout": "HELLO!"}


@pytest.mark.parametrize(("placement", "favourite"), [("second", "shout@cpu/1"), ("earliest", None)])
def test_a_policy_of_another_package_says_who_gets_what(placement: str, favourite: str | None) -> None:
    with Node(texts(node={"placement": placement, "send_ahead": 0})) as node:
        wait_until(lambda: [row["phase"] for row in node.stats()["processes"]].count("loaded") == 2)
        outcomes = [say(node, "one")[0] for _ in range(6)]
    workers = {outcome.stages[0]["worker"] for outcome in outcomes}
    assert workers == ({favourite} if favourite else {"shout@cpu/0", "shout@cpu/1"})


def test_a_policy_that_fails_is_replaced_and_said_and_nothing_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with Node(texts(node={"placement": "broken"})) as node:
        outcomes = say(node, *"abcdefgh")
        assert node.stats()["deaths"] == []
    assert [outcome.outcome for outcome in outcomes] == ["ok"] * 8
    assert "placement broken failed (RuntimeError('no idea')); earliest from now on" in capfd.readouterr().err


def test_a_kind_or_a_policy_that_is_not_there_is_one_line() -> None:
    with pytest.raises(DragomanError, match=r"which is no kind of stage; did you mean shout\? there are asr, .*shout"):
        Node({"stages": {"shout": {"kind": "shot"}}}).start()
    with pytest.raises(DragomanError, match="kind 'torn' is installed and cannot be used: ModuleNotFoundError"):
        Node({"stages": {"shout": {"kind": "torn"}}}).start()
    with pytest.raises(DragomanError, match=r"node.placement is 'best'; use earliest .*second"):
        Node(config(node={"placement": "best"})).start()
