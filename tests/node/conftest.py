"""Nodes for tests: real processes, simulated stages, small deadlines, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from living import processes, shared_memory_files, wait_until

from engine.config import Config
from engine.node import Node

FAKES = dict.fromkeys(("arbiter", "scheduler", "gateway", "worker"), "fake_child")
HERE = Path(__file__).parent

STAGES: dict[str, dict[str, Any]] = {
    "asr": {"kind": "simulated", "options": {"accepts": "audio", "sleep_ms": 5}},
    "repair": {"kind": "simulated", "options": {"sleep_ms": 5}},
    "nmt": {"kind": "simulated", "options": {"sleep_ms": 5, "translates": True}},
    "tts": {"kind": "simulated", "options": {"emits": "audio", "output_bytes": 64_000, "sleep_ms": 5}},
}
DEADLINES: dict[str, float] = {
    "heartbeat_s": 0.1, "silent_s": 1.5, "boot_s": 20.0, "retry_delay_s": 0.2, "gap_s": 1.0, "drain_s": 5.0,
    "flush_s": 0.5, "stop_s": 1.0, "abort_s": 0.3, "oom_hold_s": 0.2, "backoff_first_s": 0.05,
}  # fmt: skip

StartNode = Callable[..., Node]


def make_config(
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    pipelines: Mapping[str, tuple[str, ...]] | None = None,
    deadlines: Mapping[str, float] | None = None,
    rings: Mapping[str, int] | None = None,
    devices: Mapping[str, Any] | None = None,
    **node: Any,
) -> Config:
    """A configuration of simulated stages. ``stages`` updates ``STAGES`` by name, option by option; a stage that is not
    among them is added. ``pipelines`` default: one, "full", of all stages in order. Further arguments: [node]."""
    made = {name: {**stage, "options": dict(stage["options"])} for name, stage in STAGES.items()}
    for name, changes in (stages or {}).items():
        stage = made.setdefault(name, {"kind": "simulated", "options": {}})
        options = {**stage["options"], **changes.get("options", {})}
        stage.update({**changes, "options": options})
    tables = {
        "stages": made,
        "pipelines": pipelines or {"full": tuple(made)},
        "deadlines": {**DEADLINES, **(deadlines or {})},
        "node": {"ring_budget_bytes": 32 * 2**20, "max_utterance_s": 30.0, **node},
        "devices": {"use": ("cpu",), **(devices or {})},
        "rings": dict(rings or {}),
    }
    return msgspec.convert(tables, Config)


@pytest.fixture
def start_node(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNode]:
    """``start_node(stages=..., hooks={...}, fakes=False, **config)`` -> a started Node.

    See ``make_config`` for the arguments. ``hooks``: test hooks. ``fakes``: with processes that only speak the
    supervisor's protocol. ``config``: a whole ``Config`` instead. At the end every node is closed, and none may leave
    a process or a file in shared memory behind.
    """
    before = shared_memory_files()
    started: list[Node] = []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))

    def start(
        *, hooks: Mapping[str, str] | None = None, fakes: bool = False, config: Config | None = None, **changes: Any
    ) -> Node:
        monkeypatch.setenv("DRAGOMAN_TEST_HOOKS", ",".join(f"{k}={v}" for k, v in (hooks or {}).items()))
        node = Node(config or make_config(**changes), modules=FAKES if fakes else None)
        started.append(node.start())
        return node

    yield start
    for node in started:
        node.close()
        wait_until(lambda node=node: not processes(node.name), 2.0, f"processes left: {processes(node.name)}")
    assert shared_memory_files() == before


@pytest.fixture
def pids() -> Callable[[Node], dict[str, int]]:
    """``pids(node)`` -> role -> pid, as the node's statistics say."""
    return lambda node: {p["role"]: p["pid"] for p in node.stats()["processes"]}
