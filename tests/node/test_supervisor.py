"""Promises about a node's processes as an operator sees them, with stand-ins for everything but the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zmq
from conftest import FAKES, HERE, StartNode, make_config
from living import descriptors, is_alive, processes, state, wait_until

from engine import ctl
from engine.node import Node
from engine.supervisor.environment import package_root
from engine.supervisor.notify import Watchdog
from ipc.errors import ConfigError, DragomanError
from ipc.messages import Answer

WORKERS = {"asr@cpu/0", "repair@cpu/0", "nmt@cpu/0", "tts@cpu/0"}
ROLES = {"arbiter", "scheduler", "gateway", *WORKERS}


def lives(node: Node) -> dict[str, tuple[int, int, int]]:
    """role -> (incarnation, pid, start time)."""
    return {p["role"]: (p["incarnation"], p["pid"], p["start_time"]) for p in node.stats()["processes"]}


def test_a_node_is_ready_by_message_and_answers_its_operators(start_node: StartNode) -> None:
    node = start_node(fakes=True)
    assert node.endpoint.startswith("ipc://") and node.endpoint.endswith(f"/{node.name}/client")
    stats = node.stats()
    assert set(lives(node)) == ROLES
    assert (stats["mode"], stats["gpu_count"], stats["phase"]) == ("pipelined", 0, "serving")
    assert stats["success_rate"] == 1.0 and stats["per_gpu"][0]["device"] == "cpu"
    assert ctl.ask(node.ctl_endpoint, "health") == {
        "ready": True,
        "reason": "",
        "phase": "serving",
        "stages": {},
        "notes": [],
        "unreadable": [],
        "publishes": False,
    }
    with pytest.raises(DragomanError, match="no verb 'dance'; there are stats, health, log, restart"):
        ctl.ask(node.ctl_endpoint, "dance")


@pytest.mark.parametrize("body", [b"", b"\xc1", b"GET / HTTP/1.1", b"\x81\xa4type\xa3Ask", b"\xdd\xff\xff\xff\xff"])
def test_what_is_no_question_gets_an_answer_that_says_so(start_node: StartNode, body: bytes) -> None:
    node = start_node(fakes=True)
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(node.ctl_endpoint)
        socket.send(body)
        assert socket.poll(10_000)
        answer = msgspec.msgpack.decode(socket.recv(), type=Answer)
    assert not answer.ok and "not a question" in answer.error
    assert node.stats()["phase"] == "serving"


def test_drain_by_an_operator_ends_the_node_with_0(start_node: StartNode) -> None:
    node = start_node(fakes=True)
    assert node.drain() == 0
    assert node.wait(10) == 0
    assert not processes(node.name)


def test_everybody_learns_of_everybody(start_node: StartNode) -> None:
    node = start_node(fakes=True)

    def all_seen() -> bool:
        stats = node.stats()
        reports = {**stats["workers"], **{role: stats[role] for role in ("arbiter", "scheduler", "gateway")}}
        return all(set(report.get("seen", ())) == ROLES - {role} for role, report in reports.items())

    wait_until(all_seen, 5.0)


def test_a_killed_worker_is_back_at_once_and_nobody_else_noticed(start_node: StartNode) -> None:
    node = start_node(fakes=True)
    before = lives(node)
    os.kill(before["nmt@cpu/0"][1], signal.SIGKILL)
    wait_until(lambda: lives(node).get("nmt@cpu/0", (1,))[0] == 2, 5.0)
    after = lives(node)
    assert {r: v for r, v in after.items() if r != "nmt@cpu/0"} == {r: v for r, v in before.items() if r != "nmt@cpu/0"}
    wait_until(lambda: ctl.ask(node.ctl_endpoint, "health")["ready"], 5.0)


def test_a_stopped_worker_is_condemned_killed_and_replaced(start_node: StartNode) -> None:
    node = start_node(fakes=True, deadlines={"silent_s": 0.5})
    old = lives(node)["tts@cpu/0"][1]
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: lives(node).get("tts@cpu/0", (1,))[0] == 2, 5.0)
    assert not is_alive(old)


@pytest.mark.parametrize("role", ["arbiter", "scheduler", "gateway"])
def test_a_central_process_that_dies_too_often_ends_the_node(start_node: StartNode, role: str) -> None:
    node = start_node(fakes=True, restart_budget=1)
    os.kill(lives(node)[role][1], signal.SIGKILL)
    wait_until(lambda: lives(node).get(role, (1,))[0] == 2, 5.0)
    os.kill(lives(node)[role][1], signal.SIGKILL)
    assert node.wait(10) == 1
    assert not processes(node.name)


@pytest.mark.parametrize("role", ["arbiter", "scheduler", "gateway"])
def test_a_stopped_central_process_is_condemned_killed_and_replaced(start_node: StartNode, role: str) -> None:
    node = start_node(fakes=True, deadlines={"silent_s": 0.5})
    before = lives(node)
    os.kill(before[role][1], signal.SIGSTOP)
    wait_until(lambda: lives(node).get(role, (1,))[0] == 2, 5.0)
    assert {r for r, life in lives(node).items() if life != before[r]} == {role}


def test_who_does_not_obey_is_killed_and_the_node_still_ends_with_0(start_node: StartNode) -> None:
    node = start_node(fakes=True, hooks={"nmt@cpu/0": "deaf"}, deadlines={"stop_s": 0.2})
    node.close()
    assert node.wait(0) == 0


def test_a_worker_that_cannot_boot_ends_the_start_with_one_line(start_node: StartNode) -> None:
    with pytest.raises(DragomanError, match=r"^nmt@cpu/0 cannot start: exit code 3: the model file is broken$"):
        start_node(fakes=True, hooks={"nmt@cpu/0": "boot"})


def test_a_worker_that_dies_again_and_again_ends_the_start_within_its_budget(start_node: StartNode) -> None:
    with pytest.raises(DragomanError, match="nmt@cpu/0 cannot start: exit code 1"):
        start_node(fakes=True, hooks={"nmt@cpu/0": "die"}, restart_budget=2)


def test_a_worker_that_never_speaks_does_not_hang_the_start_for_ever(start_node: StartNode) -> None:
    with pytest.raises(DragomanError, match="said nothing within 1 s of its start"):
        start_node(fakes=True, hooks={"nmt@cpu/0": "mute"}, deadlines={"boot_s": 1.0}, restart_budget=0)


def test_a_death_during_the_start_is_healed(start_node: StartNode) -> None:
    node = start_node(fakes=True, hooks={"asr@cpu/0": "once"})
    wait_until(lambda: lives(node).get("asr@cpu/0", (1,))[0] == 2, 5.0)


def test_a_configuration_that_cannot_be_used_is_told_as_such() -> None:
    with pytest.raises(ConfigError, match=r"stages\.asr\.devices names 'cuda:9'"):
        Node(make_config(stages={"asr": {"devices": ("cuda:9",)}}), modules=FAKES).start()


def test_a_process_inherits_what_it_needs_and_not_the_supervisor_s_end_of_the_death_pipe(start_node: StartNode) -> None:
    node = start_node(fakes=True)
    before = lives(node)
    rings = {
        role: {target.split()[0].removeprefix("/memfd:") for target in descriptors(pid).values() if "memfd:" in target}
        for role, (_, pid, _) in before.items()
    }
    assert rings.pop("gateway") == {"ring:gateway", "ring:tts@cpu/0"}
    assert rings.pop("asr@cpu/0") == {"ring:gateway"}
    assert rings.pop("tts@cpu/0") == {"ring:tts@cpu/0"}
    assert rings.pop("arbiter") == {"journal"}
    assert all(names == set() for names in rings.values())
    ours = {target for target in descriptors(node.pid).values() if target.startswith("pipe:")}
    for role, (_, pid, _) in before.items():
        shared = [fd for fd, target in descriptors(pid).items() if target in ours and fd > 2]
        flags = [int(line.split()[1], 8) for fd in shared for line in fdinfo(pid, fd) if line.startswith("flags")]
        assert [flag & os.O_ACCMODE for flag in flags] == [os.O_RDONLY], f"{role} holds a writing end"


def fdinfo(pid: int, fd: int) -> list[str]:
    return Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()


def test_every_process_is_in_a_group_of_its_own_and_ignores_ctrl_c(start_node: StartNode) -> None:
    node = start_node(fakes=True)
    before = lives(node)
    for _, pid, _ in before.values():
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGINT)
    wait_until(lambda: all(state(pid) == "S" for _, pid, _ in before.values()), 2.0)
    assert lives(node) == before


SERVE = """
import sys, json
from conftest import FAKES, make_config
from engine.supervisor.main import run
sys.exit(run(make_config(), foreground=False, announce=lambda line: print(line, flush=True), modules=FAKES))
"""


def serve() -> subprocess.Popen[str]:
    """A node in the foreground of a process of its own, as ``serve`` runs it, once it said ready."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), package_root()])}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] != "ready":
        lines.append(process.stdout.readline().strip())
        assert lines[-1], process.communicate()
    assert any(line.startswith("clients at ipc://") for line in lines)
    assert any(line.startswith("mode pipelined") for line in lines)
    assert any("MiB of shared memory" in line for line in lines)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_exit_code_is_0(number: signal.Signals) -> None:
    process = serve()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "draining: 0 in flight" in out and "Traceback" not in err


def test_the_second_signal_stops_at_once() -> None:
    process = serve()
    children = children_of(process.pid)
    os.kill(children["drg:gateway"], signal.SIGSTOP)  # so that the drain cannot end by itself
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and "draining" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(is_alive(pid) for pid in children.values())


def children_of(pid: int) -> dict[str, int]:
    """title -> pid."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {Path(f"/proc/{child}/comm").read_text().strip(): child for child in found}


def test_systemd_is_told(tmp_path: Path, start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        node = start_node(fakes=True)
        assert channel.recv(100) == b"READY=1"
        node.close()
        assert channel.recv(100) == b"STOPPING=1"


def test_systemd_s_watchdog_hears_of_a_supervisor_that_works_and_of_no_other(
    tmp_path: Path, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")

        def until_ready() -> set[bytes]:
            said: set[bytes] = set()
            while b"READY=1" not in said:
                said.add(channel.recv(100))
            return said

        with ThreadPoolExecutor(1) as reading:  # from the start: the socket holds ten, and what comes then is lost
            heard = reading.submit(until_ready)
            node = start_node(fakes=True)
            assert heard.result() <= {b"READY=1", b"WATCHDOG=1"}
        assert channel.recv(100) == b"WATCHDOG=1"
        os.kill(node.pid, signal.SIGSTOP)
        channel.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:  # what it had said before
                channel.recv(100)
        os.kill(node.pid, signal.SIGCONT)
        channel.settimeout(10)
        assert channel.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "many"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}])
def test_no_watchdog_is_told_that_asks_for_nothing_or_for_somebody_else(environ: dict[str, str]) -> None:
    assert Watchdog(environ).interval_s == float("inf")
