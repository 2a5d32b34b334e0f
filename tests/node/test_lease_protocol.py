"""Leases for programs in any language: docs/protocol.md, kept by a plain pyzmq and msgpack client."""

from __future__ import annotations

import ast
import importlib.util
import os
import resource
import socket as unix
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from engine import ctl
from engine.node import Node
from engine.process import start_time
from ipc import zmtp
from tests.node.rehearsal import config, kill, process_of, wait_until

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_lease.py"
MIB = 2**20
SILENCE_MS = 500


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("plain_lease", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = load_example()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(config(deadlines={"grace_s": 0.5})) as node:
        yield node


def folder(node: Node) -> str:
    return node.ctl_endpoint.removeprefix("ipc://").removesuffix("/ctl")


def request(**fields: Any) -> dict[str, Any]:
    return {
        "type": "LeaseRequest",
        "id": 1,
        "worker": "x",
        "device": "cpu",
        "nbytes": MIB,
        "pid": os.getpid(),
        **fields,
    }


def held(node: Node) -> list[dict[str, Any]]:
    return [row for row in node.stats()["leases"] if row["worker"].startswith("lease@")]


def grantable(node: Node) -> int:
    return int(wait_until(lambda: node.stats()["arbiter"].get("devices", {}).get("cpu", {}).get("grantable_bytes")))


@pytest.fixture
def socket(node: Node) -> Iterator[zmq.Socket]:
    socket = plain.connect(folder(node))
    yield socket
    plain.say(socket, {"type": "Release", "lease": 0})
    wait_until(lambda: not held(node))
    socket.close()


def stranger(node: Node, name: str) -> zmq.Socket:
    """A socket with any name."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.identity = name.encode()
    socket.connect(f"ipc://{folder(node)}/arbiter")
    return socket


def test_a_lease_is_granted_shown_and_given_back(node: Node, socket: zmq.Socket) -> None:
    granted = plain.acquire(socket, request(model="a render", unheard_of=1))
    assert (granted["type"], granted["id"], granted["nbytes"], granted["device"]) == ("Granted", 1, MIB, "cpu")
    (row,) = wait_until(lambda: held(node))
    name = socket.identity.decode()
    assert (row["worker"], row["lease"], row["state"]) == (name, granted["lease"], "held")
    assert (row["nbytes"], row["pid"], row["model"]) == (MIB, os.getpid(), "a render")
    assert plain.acquire(socket, request())["lease"] == granted["lease"], "the same question, the same answer"
    plain.say(socket, {"type": "Release", "lease": granted["lease"]})
    wait_until(lambda: not held(node))


def test_the_arbiter_chooses_among_devices(socket: zmq.Socket) -> None:
    assert plain.acquire(socket, request(device="", among=["cuda:5", "cpu"]))["device"] == "cpu"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nbytes": 2**50}, "needs 1048576.0 GiB on cpu"),
        ({"device": "cuda:9"}, "no device 'cuda:9'"),
        ({"wait_s": -1.0}, "no time to wait"),
        ({"priority": "urgent"}, "high, normal, low"),
        ({"device": "", "among": []}, "no device ''"),
    ],
)
def test_what_can_never_be_granted_is_denied_with_the_reason(
    fields: dict[str, Any], words: str, socket: zmq.Socket
) -> None:
    denied = plain.acquire(socket, request(id=7, **fields))
    assert denied["type"] == "Denied" and denied["id"] == 7 and words in denied["reason"]


def test_who_waits_is_told_why_and_who_is_asked_to_leave_hears_it(node: Node, socket: zmq.Socket) -> None:
    most = int(0.6 * grantable(node))
    lease = plain.acquire(socket, request(nbytes=most, preemptible=True))["lease"]
    other = plain.connect(folder(node), 2)
    plain.say(other, request(nbytes=most, wait_s=20.0))
    (waits,) = plain.hear(other, 5000)
    assert (waits["type"], waits["id"]) == ("LeaseWait", 1) and "can be granted" in waits["reason"]
    assert plain.hear(socket, 5000) == [{"type": "Leave", "lease": lease, "grace_s": 0.5}]
    plain.say(socket, {"type": "Release", "lease": lease})
    granted = wait_until(lambda: [one for one in plain.hear(other, 1000) if one["type"] == "Granted"], 20.0)
    assert granted[0]["nbytes"] == most
    plain.say(other, {"type": "Release", "lease": 0})
    other.close()


def test_who_has_waited_long_enough_is_denied_and_who_gives_up_is_forgotten(node: Node, socket: zmq.Socket) -> None:
    most = int(0.6 * grantable(node))
    plain.acquire(socket, request(nbytes=most))
    other = plain.connect(folder(node), 2)
    denied = plain.acquire(other, request(nbytes=most, wait_s=0.2))
    assert denied["type"] == "Denied" and "GiB" in denied["reason"]
    plain.say(other, request(id=2, nbytes=most, wait_s=60.0))
    assert plain.hear(other, 5000)[0]["type"] == "LeaseWait"
    plain.say(other, {"type": "Release", "lease": 0})
    wait_until(lambda: node.stats()["arbiter"]["waiting_total"] == 0)
    other.close()


def test_a_lease_outlives_its_connection_and_ends_with_its_process(node: Node) -> None:
    command = [sys.executable, str(EXAMPLE), str(MIB), "cpu"]
    with subprocess.Popen(
        command, env={**os.environ, "DRAGOMAN_FOLDER": folder(node)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        granted = ast.literal_eval(program.stdout.readline())
        assert granted["type"] == "Granted"
        (row,) = wait_until(lambda: held(node))
        assert row["pid"] == program.pid
        program.kill()
        wait_until(lambda: not held(node))
    socket = plain.connect(folder(node))
    plain.acquire(socket, request())
    socket.close()
    wait_until(lambda: held(node))
    again = plain.connect(folder(node))
    plain.acquire(again, request())  # the same one, on another connection
    assert len(held(node)) == 1
    plain.say(again, {"type": "Release", "lease": 0})
    wait_until(lambda: not held(node))
    again.close()


def test_a_lease_outlives_the_arbiter_and_the_same_question_finds_it(node: Node, socket: zmq.Socket) -> None:
    lease = plain.acquire(socket, request())["lease"]
    before = process_of(node, "arbiter")
    kill(before["pid"])
    wait_until(lambda: process_of(node, "arbiter")["incarnation"] > before["incarnation"])
    assert plain.acquire(socket, request())["lease"] == lease, "libzmq connects again by itself"


def test_frames_that_are_too_large_wrong_or_of_another_life_are_not_heard(node: Node, socket: zmq.Socket) -> None:
    life = plain.start_time()
    wrong = {
        "of another life": msgpack.packb([life + 1, 0, [request()]]),
        "no list": msgpack.packb(request()),
        "no message": msgpack.packb([life, 0, [{"type": "Nonsense"}]]),
        "a field of another type": msgpack.packb([life, 0, [request(nbytes="much")]]),
        "more than 64 KiB": msgpack.packb([life, 0, [request(model="x" * 2**16)]]),
    }
    for what, frame in wrong.items():
        socket.send(frame)
        assert not socket.poll(SILENCE_MS) and not held(node), what
    assert plain.acquire(socket, request())["type"] == "Granted", "and it may go on"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lease@{pid}/{long}#{life}", "more than 100 bytes"),
        ("lease@{pid}/1#1", "the process that this lease is for is not there"),
        ("lease@1/x#1", "the process that this lease is for is not there"),
        ("lease@{above}/1#{begun}", "a lease is for the process that asks for it"),  # which would never end
        ("anybody#1", ""),  # the node's own names are its own
        ("asr@cpu/9#1", ""),
        ("asr@cpu/0#77", ""),  # a life that never began
        ("nobody", ""),
    ],
)
def test_who_is_not_who_it_says_gets_nothing(name: str, words: str, node: Node) -> None:
    above = os.getppid()
    full = name.format(pid=os.getpid(), life=plain.start_time(), long="1" * 90, above=above, begun=start_time(above))
    life = int(full.rpartition("#")[2]) if "#" in full else 0
    socket = stranger(node, full)
    socket.send(msgpack.packb([life, 0, [request()]]))
    told = plain.hear(socket, 5000 if words else SILENCE_MS)
    assert ([one["type"] for one in told], words in str(told)) == (["Denied"] if words else [], True)
    assert not held(node) and process_of(node, "asr@cpu/0")["incarnation"] == 1
    socket.close()


def test_a_program_may_lease_for_one_that_it_has_started(node: Node) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as child:
        life = start_time(child.pid)
        socket = stranger(node, f"lease@{child.pid}/1#{life}")
        socket.send(msgpack.packb([life, 0, [request(pid=child.pid)]]))
        assert [one["type"] for one in plain.hear(socket, 5000)] == ["Granted"]
        socket.close()
        assert child.stdin is not None
        child.stdin.close()
    wait_until(lambda: not held(node))


def test_who_takes_the_name_of_a_workers_next_life_is_not_heard_and_that_life_loads(node: Node) -> None:
    before = process_of(node, "asr@cpu/0")
    life = before["incarnation"] + 1
    thief = stranger(node, f"asr@cpu/0#{life}")
    thief.send(msgpack.packb([life, 0, [request(worker="asr@cpu/0")]]))
    assert plain.hear(thief, SILENCE_MS) == []
    kill(before["pid"])
    wait_until(lambda: (now := process_of(node, "asr@cpu/0"))["incarnation"] == life and now["phase"] == "loaded")
    assert plain.hear(thief, 0) == []
    thief.close()


def test_a_worker_for_whom_the_arbiter_had_no_descriptor_left_is_heard_when_it_has(node: Node) -> None:
    arbiter, worker = process_of(node, "arbiter")["pid"], process_of(node, "nmt@cpu/0")
    limits = resource.prlimit(arbiter, resource.RLIMIT_NOFILE)
    resource.prlimit(arbiter, resource.RLIMIT_NOFILE, (3, limits[1]))
    kill(worker["pid"])

    def is_there(phase: str) -> bool:
        now = process_of(node, "nmt@cpu/0")
        return now["incarnation"] > worker["incarnation"] and now["phase"] == phase

    wait_until(lambda: is_there("waiting"))
    resource.prlimit(arbiter, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: is_there("loaded"))


def test_a_crowd_that_says_nothing_leaves_places_for_the_nodes_own(node: Node) -> None:
    arbiter, worker = process_of(node, "arbiter")["pid"], process_of(node, "tts@cpu/0")
    limits = resource.prlimit(arbiter, resource.RLIMIT_NOFILE)
    resource.prlimit(arbiter, resource.RLIMIT_NOFILE, (256, limits[1]))
    crowd = []
    try:
        for number in range(256):
            sock = unix.socket(unix.AF_UNIX)
            crowd.append(sock)
            sock.settimeout(5.0)
            sock.connect(f"{folder(node)}/arbiter")
            sock.sendall(zmtp.opening("DEALER", f"lease@{os.getpid()}/{number}#{plain.start_time()}"))
        kill(worker["pid"])
        wait_until(lambda: (now := process_of(node, "tts@cpu/0"))["phase"] == "loaded" and now["pid"] != worker["pid"])
        lines = ctl.ask(node.ctl_endpoint, "log")["lines"]
        assert sum("one program too many" in line for line in lines) == 1, "and it is said once"
    finally:
        for sock in crowd:
            sock.close()
        resource.prlimit(arbiter, resource.RLIMIT_NOFILE, limits)
