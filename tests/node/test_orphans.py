"""Promise: however a node's head dies, within a second none of its processes is left, and the next start works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE, StartNode, make_config
from living import is_alive, processes, shared_memory_files, state, wait_until

from engine import ctl
from engine.node import Node
from engine.supervisor.environment import COOKIE, package_root
from engine.supervisor.folder import base_folder
from ipc.errors import DragomanError

LEFT_WITHIN_S = 1.0
SOUND = np.ones(1600, np.int16)


@pytest.fixture(autouse=True)
def nothing_in_shared_memory() -> Iterator[None]:
    before = shared_memory_files()
    yield
    assert shared_memory_files() == before


def kill_head(node: str, head: int, start_node: StartNode) -> None:
    """SIGKILL to ``head`` (the supervisor, or the host): nothing of ``node`` may be left, and another starts."""
    victims = processes(node)
    assert victims, "there is nothing to be left"
    os.kill(head, signal.SIGKILL)
    wait_until(lambda: not processes(node), LEFT_WITHIN_S, f"{node}: {processes(node)} of {victims}")
    wait_until(lambda: not any(is_alive(pid) for pid in victims), LEFT_WITHIN_S)
    another = start_node()
    assert translate_one(another) == "ok"
    assert not (base_folder() / node).exists()  # the next start removed the dead node's folder


def translate_one(node: Node) -> str:
    with node.client() as client, client.session(source="en", target="de") as session:
        session.submit(SOUND)
        return next(iter(session.outcomes(timeout_s=20))).outcome


def test_supervisor_killed_while_nothing_happens(start_node: StartNode) -> None:
    node = start_node()
    kill_head(node.name, node.pid, start_node)


def test_supervisor_killed_during_a_load(start_node: StartNode) -> None:
    node = Node(make_config(stages={"nmt": {"options": {"load_ms": 60_000}}}))
    failure: list[DragomanError] = []

    def start() -> None:
        try:
            node.start()
        except DragomanError as error:
            failure.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: node._process, 10)
    name = name_of_children(node.pid)
    wait_until(lambda: phase(name, "nmt@cpu/0") == "loading", 20)
    kill_head(name, node.pid, start_node)
    thread.join(10)
    assert "ended before the node was ready" in str(failure)


def test_supervisor_killed_while_a_worker_hangs_in_a_run(start_node: StartNode) -> None:
    cue = {"index": 0, "action": "hang", "attempt": 0}
    node = start_node(stages={"nmt": {"options": {"cues": [cue]}}})
    with node.client() as client:
        session = client.session(source="en", target="de")
        session.submit(SOUND)
        wait_until(lambda: "nmt" in str([job for job in node.stats()["jobs"] if "processing" in str(job)]), 20)
        kill_head(node.name, node.pid, start_node)


def test_supervisor_killed_while_a_worker_is_in_a_native_call_that_keeps_the_interpreter(start_node: StartNode) -> None:
    node = start_node(fakes=True, hooks={"nmt@cpu/0": "native"}, deadlines={"silent_s": 60.0})
    kill_head(node.name, node.pid, start_node)


def test_supervisor_killed_while_a_worker_is_stopped(start_node: StartNode, pids) -> None:
    node = start_node()
    worker = pids(node)["tts@cpu/0"]
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: state(worker) == "T", 5)
    kill_head(node.name, node.pid, start_node)


HOST = """
import sys, threading
from conftest import make_config
from engine.node import Node

nodes = []
def start():
    nodes.append(Node(make_config()).start())

thread = threading.Thread(target=start)
thread.start()
thread.join()
print(nodes[0].name, nodes[0].pid, flush=True)
for line in sys.stdin:
    print(nodes[0].stats()["phase"], flush=True)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script without a main guard that starts a node from a thread which then ends."""
    script = tmp_path / "notebook.py"
    script.write_text(HOST)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), package_root()])}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()  # type: ignore[union-attr]


def test_a_node_outlives_the_thread_that_started_it_and_not_the_program(
    host: subprocess.Popen[str], start_node: StartNode
) -> None:
    assert host.stdin is not None and host.stdout is not None
    name, supervisor = host.stdout.readline().split()
    host.stdin.write("how are you\n")
    host.stdin.flush()
    assert host.stdout.readline() == "serving\n"
    kill_head(name, host.pid, start_node)
    wait_until(lambda: not is_alive(int(supervisor)), LEFT_WITHIN_S)


def test_a_host_that_ends_without_a_farewell_takes_its_node_along(host: subprocess.Popen[str]) -> None:
    assert host.stdin is not None and host.stdout is not None
    name, supervisor = host.stdout.readline().split()
    host.stdin.close()
    assert host.wait(10) == 0
    wait_until(lambda: not processes(name) and not is_alive(int(supervisor)), LEFT_WITHIN_S)


def test_an_error_in_the_with_block_ends_the_node_at_once(start_node: StartNode) -> None:
    with pytest.raises(ZeroDivisionError), Node(make_config(), modules=None) as node:
        name, supervisor = node.name, node.pid
        raise ZeroDivisionError
    assert not processes(name) and not is_alive(supervisor)


def test_a_worker_s_own_children_go_with_it(start_node: StartNode, pids) -> None:
    node = start_node(fakes=True, hooks={"nmt@cpu/0": "parent"})
    worker = pids(node)["nmt@cpu/0"]
    wait_until(lambda: grandchildren(worker), 5)
    child = grandchildren(worker)[0]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(child), LEFT_WITHIN_S)


def grandchildren(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of_children(supervisor: int) -> str:
    """The node's id, from the environment of one of its processes."""
    wait_until(lambda: grandchildren(supervisor), 10)
    found: list[str] = []

    def look() -> bool:
        for pid in grandchildren(supervisor):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(COOKIE.encode() + b"="):
                    found.append(entry.partition(b"=")[2].decode())
        return bool(found)

    wait_until(look, 5)
    return found[0]


def phase(node: str, role: str) -> str:
    stats = ctl.ask(f"ipc://{base_folder() / node / 'ctl'}", "stats")
    return next((p["phase"] for p in stats["processes"] if p["role"] == role), "")
