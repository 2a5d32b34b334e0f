"""Promises of ``engine.Node`` to the program that embeds it."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import StartNode, make_config
from living import processes, wait_until

from engine import Client, Node
from engine.supervisor.folder import DEFAULT, base_folder
from ipc.errors import ConfigError, DragomanError

SOUND = np.ones(1600, np.int16)


def test_a_node_in_a_with_statement_translates_and_leaves_nothing() -> None:
    with Node(make_config()) as node, node.client() as client, client.session(source="en", target="de") as session:
        for _ in range(5):
            session.submit(SOUND)
        outcomes = list(session.outcomes(timeout_s=20))
        name = node.name
    assert [(o.index, o.outcome) for o in outcomes] == [(n, "ok") for n in range(5)]
    assert not processes(name)


def test_a_configuration_may_be_a_dict_or_a_file(tmp_path: Path) -> None:
    stage = {"kind": "simulated", "options": {"suffix": "!"}}
    tree = {"stages": {"shout": stage}, "pipelines": {"full": ["shout"]}, "devices": {"use": ["cpu"]}}
    file = tmp_path / "node.toml"
    file.write_text(
        '[devices]\nuse = ["cpu"]\n[pipelines]\nfull = ["shout"]\n'
        '[stages.shout]\nkind = "simulated"\n[stages.shout.options]\nsuffix = "!"\n'
    )
    for config in (tree, str(file), file):
        with Node(config) as node, node.client() as client, client.session() as session:
            session.submit("hello")
            assert next(iter(session.outcomes(timeout_s=20))).texts == {"shout": "hello!"}


def test_a_wrong_configuration_names_the_field() -> None:
    with pytest.raises(ConfigError, match="windw"):
        Node({"node": {"windw": 3}}).start()


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"nowhere/node\.toml") as caught:
        Node("/nowhere/node.toml").start()
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    cue = {"index": -1, "action": "bad_model", "text": "no tokenizer.json in /models/x"}
    with pytest.raises(DragomanError, match=r"no tokenizer\.json in /models/x") as caught:
        Node(make_config(stages={"asr": {"options": {"cues": [cue]}}}), log_level="error").start()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the program that embeds the node tells its user, and nobody else


def test_the_log_of_an_embedded_node_goes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", "arbiter.told=kill@1")
    file = tmp_path / "node.log"
    file.write_text("before\n")
    with Node(make_config(), log_file=file):
        pass
    text = file.read_text()
    assert text.startswith("before\n") and "arbiter (life 1) died" in text
    assert capfd.readouterr().err == ""


def test_what_is_asked_of_a_node_that_was_not_started_says_so() -> None:
    node = Node(make_config())
    for ask in (lambda: node.endpoint, lambda: node.pid, node.stats, node.client, lambda: node.wait(0)):
        with pytest.raises(DragomanError, match="has not been started"):
            ask()
    node.close()


def test_a_node_is_started_once(start_node: StartNode) -> None:
    node = start_node()
    with pytest.raises(DragomanError, match="started before"):
        node.start()
    node.close()
    node.close()
    with pytest.raises(DragomanError, match="started before"):
        node.start()


def test_draining_first_and_closing_then_loses_nothing(start_node: StartNode) -> None:
    node = start_node(stages={"nmt": {"options": {"sleep_ms": 1000}}})
    with node.client() as client:
        session = client.session(source="en", target="de")
        for _ in range(3):
            session.submit(SOUND)
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(o.outcome for o in session.outcomes(timeout_s=20)))
        reader.start()
        wait_until(lambda: node.stats()["active"] + node.stats()["queued"], 10)
        assert node.drain() > 0
        node.close()
        reader.join(20)
    assert seen == ["ok"] * 3 and node.wait(0) == 0


def test_drain_counts_what_is_in_flight_now_and_not_a_second_ago(start_node: StartNode) -> None:
    node = start_node(stages={"nmt": {"options": {"sleep_ms": 3000}}})
    with node.client() as client:
        seen: set[int] = set()
        session = client.session(source="en", target="de", on_progress=lambda news: seen.add(news.index))
        for _ in range(3):
            session.submit(SOUND)
        client.run(lambda: len(seen) == 3, 20)
        assert node.drain() == 3
        assert node.drain() == 3  # asked again: the same


def test_two_nodes_live_side_by_side(start_node: StartNode) -> None:
    one, two = start_node(), start_node()
    assert one.endpoint != two.endpoint
    for node in (two, one):
        with node.client() as client, client.session() as session:
            session.submit(SOUND)
            assert next(iter(session.outcomes(timeout_s=20))).outcome == "ok"


def test_only_a_published_node_is_found_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Node(make_config()):
        assert not (base_folder() / DEFAULT).exists()
    with Node(make_config(), publish=True) as node:
        assert os.readlink(base_folder() / DEFAULT) == node.name
        with Client() as client, client.session() as session:
            session.submit(SOUND)
            assert next(iter(session.outcomes(timeout_s=20))).outcome == "ok"


def test_the_sockets_are_the_user_s_alone(start_node: StartNode) -> None:
    folder = base_folder() / start_node().name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {"supervisor", "scheduler", "arbiter", "client", "ctl"} <= {entry.name for entry in folder.iterdir()}


def test_the_statistics_are_plain_json_with_the_agreed_names(start_node: StartNode) -> None:
    stats = json.loads(json.dumps(start_node().stats()))
    names = (
        "node mode mode_reason gpu_count total_requests completed_requests failed_requests success_rate per_gpu "
        "max_concurrent active queued total failed rejected oom_errors last_oom queue_usage jobs slots leases "
        "processes gateway scheduler arbiter workers"
    )
    assert set(names.split()) <= set(stats)
    assert set(stats["per_gpu"][0]) == {"device", "requests", "avg_time_s", "request_queue", "response_queue"}
    assert {"role", "incarnation", "pid", "start_time", "phase", "age_ms"} <= set(stats["processes"][0])


def test_the_configuration_crosses_unchanged() -> None:
    config = make_config(window=7)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=type(config)) == config
