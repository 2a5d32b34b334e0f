"""bench hop compares like with like: both lines give back what was sent, and all their processes are counted."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bench import hop, workloads
from bench.peers.zmq_chain import Chain

ROOT = Path(__file__).resolve().parents[2]


class Echo:
    """A line in this process; ``spoil`` changes what comes back."""

    def __init__(self, payloads, spoil=lambda array: array):
        self.groups = {"client": [os.getpid()]}
        self._payloads, self._spoil, self._queue = payloads, spoil, []

    def push(self, number):
        self._queue.append(self._payloads[number % len(self._payloads)])

    def pull(self):
        return self._spoil(self._queue.pop(0))

    def ready(self):
        while len(self._queue) > 3:
            yield self.pull()


@pytest.fixture
def payloads():
    return workloads.numbered(4)


def test_both_lines_get_the_documented_320_kb(payloads):
    assert {p.nbytes for p in payloads} == {320_000}
    assert len({p.tobytes() for p in payloads}) == 4


def test_a_line_that_gives_back_something_else_is_noticed(payloads):
    assert hop.check(Echo(payloads), payloads) == 0
    assert hop.check(Echo(payloads, lambda array: array[::-1] + 1), payloads) == 4
    assert hop.check(Echo(payloads, lambda array: None), payloads) == 4


def test_a_saturated_line_is_emptied_before_the_clock_stops(payloads):
    echo = Echo(payloads)
    assert hop.saturated(echo, 50) > 0
    assert echo._queue == []


def figures(scale):
    return hop.Figures(0.001 * scale, 0.002 * scale, {"client": 0.001 * scale, "workers": 0.002 * scale}, 1000 / scale)


def test_ratios_are_made_within_a_round():
    report = hop.summary(
        [(figures(1), figures(2)), (figures(10), figures(20)), (figures(3), figures(6))], known_cpu=True
    )
    assert report["p50_over_zmq_320k"] == pytest.approx(2)
    assert report["rate_over_zmq_320k"] == pytest.approx(0.5)
    assert report["cpu_over_zmq_320k"] == pytest.approx(2)
    assert report["node_cpu_workers_320k"] == pytest.approx(12_000)


def test_without_the_nodes_processes_no_cpu_is_claimed():
    report = hop.summary([(figures(1), figures(2))], known_cpu=False)
    assert not [result for result in report.results if "node_cpu" in result.metric or "cpu_over" in result.metric]


def test_every_process_of_the_node_is_in_exactly_one_group():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        listed = [{"role": "asr@cpu/0", "pid": child.pid}]
        groups = hop.parts(listed, os.getpid())
        assert child.pid in groups["workers"] and os.getpid() in groups["others"]
        everybody = [pid for pids in groups.values() for pid in pids]
        assert len(everybody) == len(set(everybody))
        child.stdin.close()


def test_the_chain_is_four_processes_and_gives_back_what_it_got(payloads):
    with Chain() as chain:
        assert len(set(chain.pids)) == 4
        for sent in payloads:
            chain.push(sent)
        for sent in payloads:
            assert np.array_equal(np.frombuffer(chain.pull(), np.float32), sent)
        pids = chain.pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_the_chain_does_not_outlive_a_killed_benchmark():
    code = "from bench.peers.zmq_chain import Chain\nwith Chain() as c: print(*c.pids, flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        fds = [os.pidfd_open(pid) for pid in pids]
        owner.kill()
        for fd in fds:
            assert select.select([fd], [], [], 10)[0], "a stage of the chain still runs"
            os.close(fd)


def test_a_real_node_gives_back_what_it_got_and_keeps_order(payloads):
    with ExitStack() as stack:
        node = hop.open_node(stack, None, payloads)
        assert set(node.groups) == {"gateway", "scheduler", "workers", "others", "client"}
        assert len(node.groups["workers"]) == 4
        assert hop.check(node, payloads) == 0
        hop.saturated(node, 40)
    assert node.indices == list(range(44)) and node.not_ok == 0
