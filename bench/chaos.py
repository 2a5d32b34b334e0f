"""bench chaos: does a client notice when processes of the node die? (Kills under load, judged by the clients' logs.)

A node of simulated stages serves several clients of both kinds, each in a process of its own. Victims are drawn over
the kinds of process and the ways to die, SIGKILL, SIGSEGV and SIGABRT; now and then one is stopped for a while and goes
on. The next kill waits until the node has recovered from the last: scheduler and gateway are each other's memory, and
both at once are not survived.

The verdict reads the clients' logs and nothing else: every utterance submitted has one outcome, in order, ok, and its
own. **Recovery** is the time from a kill until every client gets outcomes again. Before that, one kill of each kind
within 800 requests, the way Dynamo counts its failures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.report import ZERO, Goal, Report
from engine.config import Config, DeadlinesSection, DeviceSection, NodeSection, StageSection
from engine.node import Node
from ipc.errors import DragomanError

STAGE_MS = {"asr": 8.0, "repair": 2.0, "nmt": 8.0, "tts": 3.0}
SIGMA = 0.8  # of the logarithm of a stage's time: with two workers, later ones overtake
KINDS = ("worker", "scheduler", "gateway", "arbiter")
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
CLIENTS = ("engine", "plain", "engine", "plain")
RESTART_BUDGET = 1000
REQUESTS = 800
CALM_S = (0.3, 0.8)  # between recovery and the next kill
FREEZE_S = (0.1, 0.8)  # shorter than any limit on silence
FREEZES = 0.15  # share of the draws
RECOVERY_LIMIT_S = 15.0
POLL_S = 0.01
ALIVE_PHASES = ("loaded", "running", "serving")
GOALS = {"worker": 1.0, "scheduler": 1.5, "gateway": 2.0, "arbiter": 1.5}
SEEN_GOAL_MS = 50.0
KILLS_A_SECOND = 0.4
FLOW_S = 0.1  # what was on its way when the process died arrives within this


@dataclass(frozen=True)
class Kill:
    """One death that was caused: who, when (monotonic), how."""

    role: str
    incarnation: int
    at: float
    how: str

    @property
    def kind(self) -> str:
        return kind_of(self.role)


@dataclass
class Verdict:
    """What the logs say."""

    submitted: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    mixed_up: int = 0
    client_failures: int = 0
    reasons: list[str] = field(default_factory=list)
    arrivals: list[list[float]] = field(default_factory=list)  # per client, when its outcomes came


def kind_of(role: str) -> str:
    return "worker" if "@" in role else role


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 when anything was lost, doubled, out of order, mixed up or failed, else 0."""
    args = parser().parse_args(argv)
    report = Report("chaos")
    report.add("restart_budget", RESTART_BUDGET, "")
    report.add("seed", args.seed, "")
    if not args.no_single:
        for kind in KINDS:
            failed = single(kind, args.requests)
            report.add(f"failed_of_{args.requests}_{kind}", failed, "", ZERO)
    judge(report, args.seconds, *storm(args.seconds, args.seed, args.json))
    report.show(args.json)
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="run_node.py bench chaos", description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--seconds", type=float, default=60.0, metavar="N", help="of killing (default 60)")
    found.add_argument("--seed", type=int, default=1, metavar="S", help="of the draws (default 1)")
    found.add_argument("--requests", type=int, default=REQUESTS, help=f"for each single kill (default {REQUESTS})")
    found.add_argument("--no-single", action="store_true", help="without the single kills")
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return found


def config() -> Config:
    """Simulated stages that carry the mark; heartbeats short enough to see a recovery."""
    options: dict[str, dict[str, Any]] = {name: {"sleep_ms": ms, "sigma": SIGMA} for name, ms in STAGE_MS.items()}
    options["asr"] |= {"accepts": "audio", "mark": True}
    options["tts"] |= {"emits": "audio", "mark": True, "output_bytes": 32_000}
    return Config(
        node=NodeSection(log_level="error", restart_budget=RESTART_BUDGET),
        deadlines=DeadlinesSection(heartbeat_s=0.1),
        devices=DeviceSection(use=("cpu",)),
        stages={
            name: StageSection(kind="simulated", instances=2 if name == "nmt" else 1, options=table)
            for name, table in options.items()
        },
        pipelines={"full": tuple(options)},
    )


# ---------------------------------------------------------------- one kill


def single(kind: str, requests: int) -> int:
    """Requests of ``requests`` that did not come back well although one process of this kind was killed."""
    samples = np.zeros(4_000, np.int16)
    with Node(config()) as node, node.client() as client:
        with client.session(source="en", target="de") as session:
            good = 0
            for index in tqdm(range(requests), f"one kill: {kind}", leave=False, disable=None):
                session.submit(samples)
                if index == requests // 4:
                    row = random.Random(kind).choice([r for r in processes(node) if kind_of(r["role"]) == kind])
                    os.kill(row["pid"], signal.SIGKILL)
            good = sum(outcome.ok for outcome in session.outcomes(timeout_s=60.0))
    return requests - good


# ---------------------------------------------------------------- many


def storm(seconds: float, seed: int, quiet: bool) -> tuple[list[Kill], Verdict, list[dict[str, Any]], int]:
    """Kill for ``seconds``: the kills, the clients' verdict, the deaths as the node saw them, and its restarts."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="dragoman-chaos-") as folder, Node(config()) as node:
        logs = [Path(folder) / f"{number}-{kind}.jsonl" for number, kind in enumerate(CLIENTS)]
        with clients(node.endpoint, logs, seed) as all_flow:
            wait(all_flow, "the clients get outcomes")
            deaths = Deaths(node)
            kills = [kill for kill in kill_for(seconds, node, chance, quiet) if deaths.look()]
        verdict = read_logs(logs)
        restarts = sum(row["incarnation"] - 1 for row in processes(node))
        normal_run(node)
    return kills, verdict, list(deaths.seen.values()), restarts


class Deaths:
    """The deaths a node tells of; it keeps the last hundred."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.seen: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self) -> bool:
        """Take in what it tells now; whether there was any."""
        self.seen |= {(death["role"], death["incarnation"]): death for death in self._node.stats()["deaths"]}
        return bool(self.seen)


def kill_for(seconds: float, node: Node, chance: random.Random, quiet: bool) -> Iterator[Kill]:
    """Kill, wait for recovery, rest; again until the time is over."""
    end = time.monotonic() + seconds
    with tqdm(total=round(seconds), desc="killing", unit="s", leave=False, disable=quiet or None) as bar:
        while (left := end - time.monotonic()) > 0:
            bar.update(max(0, round(seconds - left) - bar.n))
            kind = chance.choice(KINDS)
            row = chance.choice([r for r in processes(node) if kind_of(r["role"]) == kind])
            if chance.random() < FREEZES:
                freeze(row["pid"], chance.uniform(*FREEZE_S))
            else:
                how = chance.choice(SIGNALS)
                kill = Kill(row["role"], row["incarnation"], time.monotonic(), how.name)
                os.kill(row["pid"], how)
                wait(partial(has_recovered, node, kill), f"{kill.role} comes back")
                yield kill
            time.sleep(chance.uniform(*CALM_S))


def freeze(pid: int, seconds: float) -> None:
    """Stop a process for a while; nobody may be harmed."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def has_recovered(node: Node, kill: Kill) -> bool:
    """Whether the role's next life does its work, and the node knows everything again."""
    stats = node.stats()
    row = next((r for r in stats["processes"] if r["role"] == kill.role), None)
    if row is None or row["incarnation"] <= kill.incarnation or not row["phase"].startswith(ALIVE_PHASES):
        return False
    if kill.kind == "scheduler":
        return bool(stats["scheduler"].get("handed_over")) and not stats["scheduler"].get("slots_unknown")
    return kill.kind != "gateway" or bool(stats["gateway"].get("whole"))


def processes(node: Node) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = node.stats()["processes"]
    return rows


def normal_run(node: Node) -> None:
    """After everything, the node must still do its work. Raises DragomanError."""
    with node.client() as client, client.session(source="en", target="de") as session:
        for _ in range(20):
            session.submit(np.zeros(4_000, np.int16))
        if not all(outcome.ok for outcome in session.outcomes(timeout_s=30.0)):
            raise DragomanError("after the last kill a normal run failed", "see the node's log")


@contextmanager
def clients(endpoint: str, logs: Sequence[Path], seed: int) -> Iterator[Callable[[], bool]]:
    """Client processes that submit until the end of the block; gives whether each has had an outcome."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.chaos_client", endpoint, kind, str(log), f"{seed}{number}"],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for number, (kind, log) in enumerate(zip(CLIENTS, logs, strict=True))
    ]  # fmt: skip
    try:
        yield lambda: all(log.exists() and '"outcome"' in log.read_text() for log in logs)
        for client in running:
            assert client.stdin is not None
            client.stdin.close()
        for client in running:
            client.wait(60.0)
    finally:
        for client in running:
            client.kill()
            client.wait()


def wait(holds: Callable[[], bool], what: str) -> None:
    """Raises DragomanError when it takes longer than RECOVERY_LIMIT_S."""
    end = time.monotonic() + RECOVERY_LIMIT_S
    while not holds():
        if time.monotonic() > end:
            raise DragomanError(f"not within {RECOVERY_LIMIT_S:g} s: {what}", "see the node's log")
        time.sleep(POLL_S)


# ---------------------------------------------------------------- the verdict


def read_logs(logs: Sequence[Path]) -> Verdict:
    """Judge the clients' logs."""
    verdict = Verdict()
    for log in logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        judge_log(verdict, log.stem, lines)
    return verdict


def judge_log(verdict: Verdict, name: str, lines: Sequence[dict[str, Any]]) -> None:
    """One client: every utterance submitted has one outcome, ok, in order, and its own."""
    submitted = {line["index"] for line in lines if line["kind"] == "submit"}
    outcomes = [line for line in lines if line["kind"] == "outcome"]
    ended = Counter(line["index"] for line in outcomes)
    order = [line["index"] for line in outcomes]
    bad = [line for line in outcomes if line["outcome"] != "ok"]
    gave_up = [line["text"] for line in lines if line["kind"] == "error"]
    unfinished = not gave_up and not any(line["kind"] == "end" for line in lines)
    verdict.submitted += len(submitted)
    verdict.lost += len(submitted - ended.keys())
    verdict.duplicated += sum(count - 1 for count in ended.values())
    verdict.reordered += sum(b <= a for a, b in itertools.pairwise(order))
    verdict.mixed_up += sum(not line["right"] for line in outcomes) + len(ended.keys() - submitted)
    judge_wire(verdict, lines)
    verdict.client_failures += len(bad) + len(gave_up) + unfinished
    verdict.reasons += [f"{name}: {line['index']} {line['outcome']} {line['code']} {line['error']}" for line in bad]
    verdict.reasons += [f"{name}: {text}" for text in gave_up] + [f"{name}: did not end"] * unfinished
    verdict.arrivals.append([line["at"] for line in outcomes])


def judge_wire(verdict: Verdict, lines: Sequence[dict[str, Any]]) -> None:
    """What came over the wire: in order and once, but for what a client that has resumed is sent again."""
    last = -1
    for line in lines:
        if line["kind"] != "wire":
            continue
        if line["what"] == "Opened":
            last = -1
        elif line["index"] == last:
            verdict.duplicated += 1
        elif line["index"] < last:
            verdict.reordered += 1
        else:
            last = line["index"]


def recovery_s(kill: Kill, arrivals: Sequence[Sequence[float]]) -> float:
    """From the kill until every client that waits gets outcomes again."""
    nexts = [next((at for at in client if at > kill.at + FLOW_S), None) for client in arrivals]
    return max((at - kill.at for at in nexts if at is not None), default=float("nan"))


def judge(
    report: Report,
    seconds: float,
    kills: list[Kill],
    verdict: Verdict,
    deaths: list[dict[str, Any]],
    restarts: int,
) -> None:
    """Enter everything into the report."""
    report.add("kills", len(kills), "", Goal(at_least=int(KILLS_A_SECOND * seconds)))
    report.add("utterances", verdict.submitted, "")
    for name in ("lost", "duplicated", "reordered", "mixed_up", "client_failures"):
        report.add(name, getattr(verdict, name), "", ZERO)
    report.add("collateral_restarts", restarts - len(kills), "", ZERO)
    for kind in KINDS:
        times = [recovery_s(kill, verdict.arrivals) for kill in kills if kill.kind == kind]
        report.add(f"kills_{kind}", len(times), "", Goal(at_least=1))
        report.add(f"recovery_max_s_{kind}", max(times, default=float("nan")), "s", Goal(at_most=GOALS[kind]))
        report.add(f"recovery_p99_s_{kind}", float(np.quantile(times, 0.99)) if times else float("nan"), "s")
    seen = {(death["role"], death["incarnation"]): death["seen_s"] for death in deaths}
    delays = [1000 * (seen.get((kill.role, kill.incarnation), float("inf")) - kill.at) for kill in kills]
    report.add("seen_max_ms", max(delays, default=float("nan")), "ms", Goal(at_most=SEEN_GOAL_MS))
    for reason in verdict.reasons[:20]:
        print(reason, file=sys.stderr)
