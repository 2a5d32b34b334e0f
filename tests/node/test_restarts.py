"""Restart after restart, nothing grows: no descriptor, no mapping, no shared memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from engine.node import Node
from tests.node.living import descriptors
from tests.node.rehearsal import Marks, config, kill, maps, process_of, wait_until

RESTARTS = int(os.environ.get("DRAGOMAN_TEST_RESTARTS", "12"))  # nightly: 10000
WARM_UP = 3


def shared_bytes(pid: int) -> int:
    """Bytes of the memory files that a process has open."""
    total = 0
    for fd, target in descriptors(pid).items():
        if "memfd:" in target:
            with suppress(FileNotFoundError):  # a boot record, closed by now
                total += os.stat(f"/proc/{pid}/fd/{fd}").st_size
    return total


def belongings(node: Node) -> dict[str, tuple[int, int, int]]:
    """Per process that is not restarted: descriptors, mappings of memory files, bytes of those."""
    pids = {role: process_of(node, role)["pid"] for role in ("scheduler", "gateway", "arbiter")} | {"node": node.pid}
    return {
        role: (len(descriptors(pid)), sum("memfd:" in line for line in maps(pid)), shared_bytes(pid))
        for role, pid in pids.items()
    }


@pytest.mark.timeout(60 + 3 * RESTARTS)
def test_what_a_node_has_open_does_not_grow_with_its_restarts() -> None:
    with Node(config(node={"restart_budget": 100_000})) as node:
        for number in range(WARM_UP + RESTARTS):
            old = process_of(node, "tts@cpu/0")
            kill(old["pid"])
            wait_until(lambda old=old: is_back(node, old["incarnation"]), 20.0)
            if number == WARM_UP:
                before = belongings(node)
        wait_until(lambda: belongings(node) == before)  # the last dead one's pipe may just be being read
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            session.submit(marks.make("t", 0))
            assert [o.outcome for o in session.outcomes(timeout_s=30)] == ["ok"]
    assert not Path(f"/proc/{node.pid}").exists()


def is_back(node: Node, old: int) -> bool:
    rows = [row for row in node.stats()["processes"] if row["role"] == "tts@cpu/0"]
    return bool(rows) and rows[0]["incarnation"] > old and rows[0]["phase"] == "loaded"
