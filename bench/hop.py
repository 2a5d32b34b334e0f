"""bench hop: what the node adds to an utterance, against four chained pyzmq processes. (Idle stages, 320 KB.)

Interleaved rounds: one utterance in flight through the chain, then through the node; then both saturated. CPU is
that of all processes involved, the client's included, from the kernel's per-process clocks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

from bench import command, line, workloads
from bench.drive import PATIENCE_S, arrived
from bench.peers.zmq_chain import Chain
from bench.processes import total_cpu_s, tree
from bench.report import ZERO, Goal, Report

IN_FLIGHT = 64  # of the chain when saturated; the node's own admission decides for the node
PAYLOADS = 16  # different utterances, sent in turn
GOALS = {
    "p50_over_zmq_320k": Goal(at_most=1.25),
    "rate_over_zmq_320k": Goal(at_least=0.8),
    "cpu_over_zmq_320k": Goal(at_most=1.3),
}


Groups = dict[str, list[int]]  # what a process is part of -> process ids


class Line(Protocol):
    """Something that takes utterances in and gives results back in order. ``groups``: whose CPU counts, and as what."""

    groups: Groups

    def push(self, number: int) -> None: ...

    def pull(self) -> np.ndarray:
        """The next result, waiting for it."""

    def ready(self) -> Iterator[np.ndarray]:
        """Results that are here already."""


class ChainLine:
    """The peer's end."""

    def __init__(self, chain: Chain, payloads: Sequence[np.ndarray]) -> None:
        self.groups: Groups = {"stages": chain.pids, "client": [os.getpid()]}
        self._chain = chain
        self._payloads = payloads
        self._outstanding = 0

    def push(self, number: int) -> None:
        self._chain.push(self._payloads[number % len(self._payloads)])
        self._outstanding += 1

    def pull(self) -> np.ndarray:
        self._outstanding -= 1
        return np.frombuffer(self._chain.pull(), np.float32)

    def ready(self) -> Iterator[np.ndarray]:
        while self._outstanding >= IN_FLIGHT:
            yield self.pull()


class NodeLine:
    """The node's end: the public client. Notes order and states as it goes."""

    def __init__(self, session: Any, groups: Groups, payloads: Sequence[np.ndarray]) -> None:
        self.groups = groups
        self.indices: list[int] = []
        self.not_ok = 0
        self._session = session
        self._payloads = payloads

    def push(self, number: int) -> None:
        self._session.submit(self._payloads[number % len(self._payloads)])

    def pull(self) -> np.ndarray:
        return self._note(next(self._session.outcomes(timeout_s=PATIENCE_S)))

    def ready(self) -> Iterator[np.ndarray]:
        for outcome in arrived(self._session):
            yield self._note(outcome)

    def _note(self, outcome: Any) -> np.ndarray:
        self.indices.append(outcome.index)
        self.not_ok += outcome.outcome != "ok"
        return outcome.audio


@dataclass(frozen=True)
class Figures:
    """One line's figures in one round."""

    p50_s: float
    p99_s: float
    cpu_by: dict[str, float]  # seconds per utterance with one in flight, by group
    rate: float  # utterances a second, saturated

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_by.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when results were wrong or out of order, else 0."""
    args = parser().parse_args(argv)
    payloads = workloads.numbered(PAYLOADS)
    with ExitStack() as stack:
        chain = ChainLine(stack.enter_context(Chain()), payloads)
        node = open_node(stack, args.connect, payloads)
        rounds, mixed_up = run(args, chain, node)
    report = summary(rounds, known_cpu=not args.connect)
    report.add("reordered", line.reordered(node.indices), "outcomes", ZERO)
    report.add("not_ok", node.not_ok, "outcomes", ZERO)
    if not args.connect:  # a node's own stages make something else of what they get
        report.add("mixed_up", mixed_up, "outcomes", ZERO)
    report.show(args.json)
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "hop", (__doc__ or "").partition("\n")[0], done=command.LENIENT,
        wrong="outcomes were not ok, mixed up or out of order",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--connect", metavar="E", help="measure the node at this endpoint (its own stages; no CPU)")
    found.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported (default 5)")
    found.add_argument("--utterances", type=int, default=400, help="per round, one in flight (default 400)")
    found.add_argument("--saturated", type=int, default=1200, help="per round, saturated (default 1200)")
    return found


def open_node(stack: ExitStack, endpoint: str | None, payloads: Sequence[np.ndarray]) -> NodeLine:
    """A session with a private node, or with the one at ``endpoint``."""
    from engine.client import Client
    from engine.node import Node

    groups: Groups = {}
    if endpoint:
        client = stack.enter_context(Client(endpoint, dtype="f32le"))
    else:
        node = stack.enter_context(Node(workloads.passing()))
        client = stack.enter_context(node.client(dtype="f32le"))
        groups = {**parts(node.stats()["processes"], node.pid), "client": [os.getpid()]}
    return NodeLine(stack.enter_context(client.session()), groups, payloads)


def parts(processes: Sequence[dict[str, Any]], supervisor: int) -> Groups:
    """The node's processes in the groups that the report shows; nothing under the supervisor is left out."""
    named = {process["pid"]: process["role"] for process in processes}
    groups: Groups = {"gateway": [], "scheduler": [], "workers": [], "others": []}
    for pid in tree(supervisor):
        role = named.get(pid, "")
        groups["workers" if "@" in role else role if role in groups else "others"].append(pid)
    return groups


def run(args: argparse.Namespace, chain: Line, node: Line) -> tuple[list[tuple[Figures, Figures]], int]:
    """Check both lines, then measure them in turn: (chain, node) of each round, and how many results were wrong."""
    payloads = workloads.numbered(PAYLOADS)
    mixed_up = sum(check(one, payloads) for one in (chain, node))
    rounds = []
    for number in range(args.rounds):
        print(f"round {number + 1}/{args.rounds}", file=sys.stderr, flush=True)
        alone = [one_in_flight(one, args.utterances) for one in (chain, node)]
        rates = [saturated(one, args.saturated) for one in (chain, node)]
        chained, through = (Figures(*first, rate) for first, rate in zip(alone, rates, strict=True))
        rounds.append((chained, through))
    return rounds, mixed_up + sum(check(one, payloads) for one in (chain, node))


def check(one: Line, payloads: Sequence[np.ndarray]) -> int:
    """Send every payload once, one in flight; how many came back as something else."""
    wrong = 0
    for number, sent in enumerate(payloads):
        one.push(number)
        back = one.pull()
        wrong += back is None or not np.array_equal(back, sent)
    return wrong


def one_in_flight(one: Line, count: int) -> tuple[float, float, dict[str, float]]:
    """Median and 99th percentile of the latency, and CPU per utterance by group, in seconds."""
    latencies = []
    before = cpu_by(one.groups)
    for number in range(count):
        begun = time.perf_counter()
        one.push(number)
        one.pull()
        latencies.append(time.perf_counter() - begun)
    used = {name: (cpu - before[name]) / count for name, cpu in cpu_by(one.groups).items()}
    return median(latencies), float(np.percentile(latencies, 99)), used


def cpu_by(groups: Groups) -> dict[str, float]:
    """CPU seconds so far of each group."""
    return {name: total_cpu_s(pids) for name, pids in groups.items()}


def saturated(one: Line, count: int) -> float:
    """Results per second when the line is kept as full as it lets itself be."""
    done = 0
    begun = time.perf_counter()
    for number in range(count):
        one.push(number)
        done += sum(1 for _ in one.ready())
    while done < count:
        one.pull()
        done += 1
    return count / (time.perf_counter() - begun)


def summary(rounds: Sequence[tuple[Figures, Figures]], known_cpu: bool) -> Report:
    """Ratios are made within a round, then their median is taken."""
    report = Report("hop")

    def add(metric: str, value: Callable[[Figures, Figures], float], unit: str = "ratio") -> None:
        report.add(metric, median(value(chain, node) for chain, node in rounds), unit, GOALS.get(metric))

    add("p50_over_zmq_320k", lambda chain, node: node.p50_s / chain.p50_s)
    add("rate_over_zmq_320k", lambda chain, node: node.rate / chain.rate)
    if known_cpu:
        add("cpu_over_zmq_320k", lambda chain, node: node.cpu_s / chain.cpu_s)
    add("node_p50_320k", lambda _, node: node.p50_s * 1e3, "ms")
    add("node_p99_320k", lambda _, node: node.p99_s * 1e3, "ms")
    add("node_rate_320k", lambda _, node: node.rate, "1/s")
    add("zmq_p50_320k", lambda chain, _: chain.p50_s * 1e3, "ms")
    add("zmq_p99_320k", lambda chain, _: chain.p99_s * 1e3, "ms")
    add("zmq_rate_320k", lambda chain, _: chain.rate, "1/s")
    add("zmq_cpu_320k", lambda chain, _: chain.cpu_s * 1e6, "µs/utt")
    if known_cpu:
        add("node_cpu_320k", lambda _, node: node.cpu_s * 1e6, "µs/utt")
        for name in rounds[0][1].cpu_by:
            add(f"node_cpu_{name}_320k", lambda _, node, name=name: node.cpu_by[name] * 1e6, "µs/utt")  # type: ignore[misc]
    return report


if __name__ == "__main__":
    sys.exit(main())
