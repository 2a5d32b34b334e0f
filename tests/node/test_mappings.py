"""Who maps what: audio goes through shared memory only, writable for its producer only, and no process sees more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from engine.node import Node
from tests.node.rehearsal import Marks, assert_in_order, config, maps, process_of

COUNT = 50
SAMPLES = 160_000  # 320,000 bytes


def rings(pid: int) -> dict[str, set[str]]:
    """memfd mappings of a process that are shared: name -> permissions."""
    found: dict[str, set[str]] = {}
    for line in maps(pid):
        if match := re.match(r"\S+ (\S{4}) .* /memfd:(\S+)", line):
            found.setdefault(match[2], set()).add(match[1])
    return found


def writable_descriptors(pid: int) -> dict[str, set[bool]]:
    """Rings that a process has open: name -> whether its descriptors may write."""
    found: dict[str, set[bool]] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if match := re.match(r"/memfd:ring:(\S+)", os.readlink(entry)):
            (flags,) = re.findall(r"^flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text(), re.M)
            found.setdefault(match[1], set()).add(int(flags, 8) & os.O_ACCMODE != os.O_RDONLY)
    return found


def test_a_consumer_holds_no_descriptor_that_could_be_mapped_writable() -> None:
    with Node(config(1.0)) as node:
        seen = {row["role"]: writable_descriptors(row["pid"]) for row in node.stats()["processes"]}
    assert seen.pop("gateway") == {"gateway": {True}, "tts@cpu/0": {False}}
    assert seen.pop("tts@cpu/0") == {"tts@cpu/0": {True}}
    assert seen.pop("asr@cpu/0") == {"gateway": {False}}
    assert not any(seen.values()), f"nobody else has a ring open: {seen}"


def test_one_writable_ring_per_producer_and_none_where_nobody_needs_it() -> None:
    with Node(config(1.0)) as node:
        pids = {row["role"]: row["pid"] for row in node.stats()["processes"]} | {"supervisor": node.pid}
        seen = {role: rings(pid) for role, pid in pids.items()}
    writable = {role: [n for n, p in found.items() if "rw-s" in p] for role, found in seen.items()}
    assert {role for role, names in writable.items() if names} == {"gateway", "tts@cpu/0"}
    assert all(len(names) == 1 for names in writable.values() if names)
    for role in ("supervisor", "arbiter", "scheduler", "repair@cpu/0", "nmt@cpu/0"):
        assert not seen[role], f"{role} maps {seen[role]}"
    assert set().union(*seen["asr@cpu/0"].values()) == {"r--s"}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_scheduler_and_workers_send_less_than_4_kb_per_utterance(tmp_path) -> None:
    with Node(config(1.0, out_bytes=200_000)) as node:
        roles = ["scheduler", *(f"{stage}@cpu/0" for stage in ("asr", "repair", "nmt", "tts"))]
        pids = [str(process_of(node, role)["pid"]) for role in roles]
        log = tmp_path / "calls"
        tracer = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", "trace=sendto,sendmsg,write,writev", "-o", str(log)]
            + [a for p in pids for a in ("-p", p)]
        )
        time.sleep(1.0)  # strace has no other way to say that it is attached
        if tracer.poll() is not None:
            pytest.skip("strace may not attach to processes here")
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(COUNT):
                session.submit(marks.make("t", index, SAMPLES))
            outcomes = list(session.outcomes(timeout_s=30))
        tracer.terminate()
        tracer.wait()
    assert_in_order(outcomes)
    sent = sum(int(n) for n in re.findall(r"(?:sendto|sendmsg|write|writev)\(.*= (\d+)$", log.read_text(), re.M))
    assert sent > COUNT * 100, "strace saw nothing"
    assert sent / COUNT < 4096, f"{sent / COUNT:.0f} bytes per utterance"
