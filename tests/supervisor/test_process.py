"""Promises of the process kit: orphans leave, logs never block, the node says where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from engine import logs, process
from engine.boot import Boot
from engine.config import DeadlinesSection
from engine.exits import ORPHANED
from engine.process import Lifeline
from engine.supervisor.children import memfd
from engine.supervisor.environment import package_root
from ipc.errors import DragomanError
from ipc.messages import Alive, Report, Stop, ToSupervisor
from ipc.sockets import Poll, Router


def boot(**changes: object) -> Boot:
    record = Boot(
        role="asr@cpu/0", incarnation=3, node="0123abcd", parent_pid=os.getpid(), death_fd=-1,
        endpoints={}, rings=(), deadlines=DeadlinesSection(),
    )  # fmt: skip
    return msgspec.structs.replace(record, **changes)


def enter_in_a_process(record: Boot) -> subprocess.CompletedProcess[str]:
    code = (
        "from engine import process\n"
        "boot = process.enter()\n"
        "print(boot.role, open('/proc/self/comm').read().strip(), open('/proc/self/oom_score_adj').read().strip())\n"
        "process.leave(0)\n"
    )
    fd = memfd("boot", msgspec.msgpack.encode(record))
    try:
        return subprocess.run(
            [sys.executable, "-c", code, "--boot-fd", str(fd)], pass_fds=(fd,), timeout=60, text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": package_root()}, check=False,
        )  # fmt: skip
    finally:
        os.close(fd)


def test_a_process_enters_under_its_own_name_and_is_the_first_to_go_when_memory_ends() -> None:
    ran = enter_in_a_process(boot())
    assert ran.stdout.split() == ["asr@cpu/0", "drg:asr@cpu/0", "300"] and ran.stderr == ""


def test_a_process_whose_supervisor_is_already_gone_leaves_at_once() -> None:
    ran = enter_in_a_process(boot(parent_pid=2**22 - 1))
    assert (ran.returncode, ran.stdout) == (ORPHANED, "")


def test_hooks_are_said_loudly() -> None:
    ran = enter_in_a_process(boot(hooks={"gateway.reorder": "bypass"}))
    assert "WARNING" in ran.stderr and "gateway.reorder=bypass" in ran.stderr


@pytest.mark.parametrize(("system", "release"), [("Darwin", "23.1.0"), ("Linux", "4.19.0-26-amd64"), ("Linux", "5.3")])
def test_where_the_node_cannot_run_it_says_so_in_one_line(system: str, release: str) -> None:
    with pytest.raises(DragomanError, match=r"the node needs Linux 5\.4 or newer, this is") as caught:
        process.require_linux(system, release)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("release", ["5.4.0", "6.1.0-28-amd64", "6.18.44-fc", "10.0-rc1"])
def test_where_it_can_it_does(release: str) -> None:
    process.require_linux("Linux", release)


def test_heartbeats_and_reports_are_sent_no_oftener_than_agreed(tmp_path) -> None:
    endpoint = f"ipc://{tmp_path}/supervisor"
    router = Router(endpoint, 1, ToSupervisor)
    line = Lifeline(boot(endpoints={"supervisor": endpoint}))
    line.start()
    start = process.now()
    for step in range(8):
        now = start + step / 4 + 0.01
        line.beat(f"at {step}", now)
        if line.report_due(now):
            line.report({"step": step}, now)
        line.flush()
    heard = []
    poll = Poll()
    poll.add(router)
    poll.add(line.link)
    while len(heard) < 6:
        assert poll.wait(5.0), heard
        assert line.read() == []
        heard += [(peer, message) for peer, _, batch in router.drain() for message in batch]
    assert {peer for peer, _ in heard} == {"asr@cpu/0#3"}
    assert [m for _, m in heard if isinstance(m, Alive)] == [
        Alive("started"), Alive("at 2"), Alive("at 4"), Alive("at 6")
    ]  # fmt: skip
    assert [m for _, m in heard if isinstance(m, Report)] == [Report({"step": 0}), Report({"step": 4})]
    router.send("asr@cpu/0#3", [Stop()])
    assert poll.wait(5.0)
    assert line.read() == [Stop()]
    line.close()
    router.close()


def test_a_log_that_nobody_reads_stops_nobody_and_says_later_what_is_missing() -> None:
    reading, writing = os.pipe()
    handler = logs.LineHandler(writing)
    for n in range(1000):
        handler.write(f"line {n} " + "x" * 500)
    assert handler.dropped > 0
    lost = handler.dropped
    kept = os.read(reading, 2**20).count(b"\n")
    assert kept + lost == 1000
    handler.write("again")
    assert os.read(reading, 2**20) == f"again [{lost} lines before this one were dropped]\n".encode()
    os.close(reading)
    handler.write("nobody is there")  # and this raises nothing
    os.close(writing)


def test_a_line_is_never_torn() -> None:
    reading, writing = os.pipe()
    logs.LineHandler(writing).write("first\n" + "x" * 100_000)
    data = os.read(reading, 2**20)
    assert data.startswith(b"first\n    x") and data.endswith(b"x\n") and len(data) == 4096
    os.close(reading)
    os.close(writing)


def test_a_process_is_named_by_pid_and_start_time() -> None:
    assert process.start_time(os.getpid()) > 0
    assert process.start_time(2**22 - 1) == 0
