"""While a node starts, who waits for it hears how far it is, and nobody starts another beside it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import StartNode, make_config
from living import processes, wait_until

from engine import embedded, media
from engine.commands import choosing, finding
from engine.config import Config
from engine.node import Node
from ipc.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
LOADS_MS = 3000.0


def slow(load_ms: float = LOADS_MS) -> Config:
    """A node of one stage, whose model takes so long to load."""
    options = {"accepts": "audio", "load_ms": load_ms}
    return make_config(stages={"asr": {"options": options}}, pipelines={"full": ("asr",), "transcribe": ("asr",)})


def command(*argv: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_node.py"), *map(str, argv)]


def test_a_program_that_starts_a_node_hears_which_stage_loads(start_node: StartNode) -> None:
    heard: list[str] = []
    with Node(slow(), news=heard.append) as node:
        assert node.stats()["phase"] == "serving"
    assert any(line.startswith("loading asr") for line in heard), heard
    assert len(heard) == len(set(heard))


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A node of this user that was told to serve and loads."""
    (tmp_path / "node.toml").write_text(choosing.as_toml(slow()), encoding="utf-8")
    node = subprocess.Popen(
        command("serve"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wait_until(finding.starting, LIMIT_S, "no node is starting")
    yield node
    node.send_signal(signal.SIGTERM)
    said, _ = node.communicate(timeout=LIMIT_S)
    assert "loading asr" in said and "ready\n" in said


def test_a_command_waits_for_the_node_that_starts(starting: subprocess.Popen[str], tmp_path: Path) -> None:
    media.write_wav(tmp_path / "a.wav", np.zeros(1600, np.int16), 16_000)
    argv = command("translate", "a.wav", "--out", "out", "--pipeline", "transcribe")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "waiting for the node that is starting" in done.stderr
    assert "using the running node" in done.stderr and "private node" not in done.stderr


def test_a_node_that_will_not_be_found_is_not_waited_for() -> None:
    heard: list[object] = []
    with Node(slow(1500.0), news=lambda line: heard.append(finding.starting())) as node:
        assert processes(node.name)
    assert heard and set(heard) == {None}


def test_a_port_in_use_ends_the_start_before_a_model_loads(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        config = msgspec.structs.replace(slow(), node=msgspec.structs.replace(slow().node, endpoints=(endpoint,)))
        (tmp_path / "node.toml").write_text(choosing.as_toml(config), encoding="utf-8")
        done = subprocess.run(command("serve"), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and endpoint in line and "change node.endpoints" in line
    assert "loading" not in done.stdout


def test_a_model_that_does_not_load_ends_the_start_with_file_field_and_configurations_exit_code(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    shutil.copytree(embedded.DEMO / "nmt", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.bin", 100_000)
    (tmp_path / "own.toml").write_text('[stages.nmt]\nmodel = "./cut"\n[pipelines]\nfull = ["nmt"]\n')
    argv = command("serve", "--config", "own.toml")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 78
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(
        f"error: own.toml: stages.nmt.model cannot be used: cannot load the nmt model {tmp_path}/cut"
    )
    with pytest.raises(ConfigError, match=r"own\.toml: stages\.nmt\.model"), Node(tmp_path / "own.toml"):
        pass


def test_who_finds_no_node_is_told_of_one_that_is_elsewhere(start_node: StartNode) -> None:
    with Node(slow(0.0)) as node:  # a program's own: it does not let itself be found
        asked = subprocess.run(command("stats"), capture_output=True, text=True, check=False)
        assert asked.returncode == 1
        assert "start one with: python run_node.py serve" in asked.stderr
        assert "; or give --connect ipc://" in asked.stderr, "this one, or another that happens to run here"
        assert node.ctl_endpoint in finding.elsewhere()
    assert node.ctl_endpoint not in finding.elsewhere()
