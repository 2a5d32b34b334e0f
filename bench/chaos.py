"""bench chaos: does a client notice when processes of the node die? (Kills under load, judged by the clients' logs.)

A node of simulated stages serves several clients of both kinds, each in a process of its own, through a pipeline that
ends in samples of its own and through one that hands on what it was sent. Some of what they submit they cancel, leave
out, or want at once. Faults come from a deck (``bench.chaos_faults``), and the next waits until the node has recovered
from the last: scheduler and gateway are each other's memory, and both at once are not survived.

The verdict reads the clients' logs and nothing else (``bench.chaos_judge``). **Recovery** is the time from a death to
the moment when every client gets outcomes again. Before all that, one kill of each kind within 800 requests, the way
Dynamo counts its failures, and kills of the arbiter while a model loads, until the next lease is granted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import command
from bench.chaos_client import RESULT_SAMPLES
from bench.chaos_faults import KINDS, Faults, Kill, cards, kind_of
from bench.chaos_judge import Verdict, read_logs
from bench.report import ZERO, Goal, Report, at_least
from engine.bar import bar
from engine.config import Config, DeadlinesSection, DeviceSection, NodeSection, StageSection
from engine.corrections_file import OFF
from engine.failpoints import FILE
from engine.leasing import Lease
from engine.node import Node
from engine.supervisor.main import HOOKS
from ipc.errors import DragomanError

STAGE_MS = {"asr": 8.0, "repair": 2.0, "nmt": 8.0, "tts": 3.0}
SIGMA = 0.8  # of the logarithm of a stage's time: with two workers, later ones overtake
TWO_WORKERS = "nmt"  # the stage that has two, so that later utterances overtake
ONLY_WORKERS = tuple(f"{stage}@cpu/0" for stage in ("asr", "repair", "tts", "echo"))
CLIENTS = (("engine", "full"), ("plain", "full"), ("engine", "echo"), ("plain", "echo"))
RESTART_BUDGET = 1000
REQUESTS = 800
LOADS = 10  # in which the arbiter is killed
LOADER, LOAD_MS = "repair", 300.0  # who loads, and for how long
CALM_S = (0.3, 0.8)  # between recovery and the next kill
SILENT_S = 2.0  # a process that hangs is suspected after this
ABORT_S = 0.3
RECOVERY_LIMIT_S = 15.0
POLL_S = 0.01
ALIVE_PHASES = ("loaded", "running", "serving")
GOALS = {"worker": 1.0, "scheduler": 1.5, "gateway": 2.0, "arbiter": 1.5}
PAIR_GOAL_S = GOALS["worker"] + GOALS["arbiter"]
SEEN_GOAL_MS = 50.0
HUNG_GOAL_S = SILENT_S + 1.0
KILLS_A_SECOND = 0.48  # 2,000 in the 70 minutes of `make nightly`
A_DECK_S = 60.0  # in so long every kind of process is killed for certain
EPILOG = """It takes about a minute more than the seconds given. docs/operations.md explains the report.

examples:
  run_node.py bench chaos
  run_node.py bench chaos --seconds 3600 --seed 7 --log chaos.log     for a night"""
FLOW_S = 0.1  # what was on its way when the process died arrives within this


@dataclass
class Storm:
    """Everything that a storm was: the kills, one list for each card, and what the node and the clients said."""

    kills: list[list[Kill]] = field(default_factory=list)
    freezes: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    deaths: list[dict[str, Any]] = field(default_factory=list)  # as the node saw them
    restarts: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 when anything was lost, doubled, out of order, mixed up or failed, else 0."""
    args = parser().parse_args(argv)
    log = args.log or Path(tempfile.mkdtemp(prefix="dragoman-chaos-")) / "node.log"
    try:
        report = measure(args, log)
    except DragomanError:
        print(f"the log of the nodes is {log}", file=sys.stderr)
        raise
    report.show(args.json)
    if report.code(strict=args.strict):
        print(f"the log of the nodes is {log}", file=sys.stderr)
    elif not args.log:
        shutil.rmtree(log.parent)
    return report.code(strict=args.strict)


def measure(args: argparse.Namespace, log: Path) -> Report:
    """Single kills, then the storm. Raises DragomanError when the node does not come back."""
    report = Report("chaos")
    report.add("restart_budget", RESTART_BUDGET, "")
    report.add("seed", args.seed, "")
    if not args.no_single:
        for kind in KINDS:
            failed = single(kind, args.requests, log)
            report.add(f"failed_of_{args.requests}_{kind}", failed, "", ZERO)
        report.add("grant_max_s", max(next_grants(LOADS, log)), "s", Goal(at_most=GOALS["arbiter"]))
    judge(report, args.seconds, storm(args.seconds, args.seed, log))
    return report


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "chaos", (__doc__ or "").partition("\n")[0], epilog=EPILOG, done=command.STRICT,
        wrong="something was lost, doubled, out of order, mixed up or failed, somebody restarted who was not killed, "
        "or there were too few kills",
    )  # fmt: skip
    found.add_argument("--seconds", type=at_least(5.0), default=60.0, metavar="N", help="of killing (default 60)")
    found.add_argument("--seed", type=int, default=1, metavar="S", help="of the draws (default 1)")
    found.add_argument("--requests", type=at_least(10), default=REQUESTS, metavar="R",
                       help=f"in each of the four runs with one kill that come first (default {REQUESTS})")  # fmt: skip
    found.add_argument("--no-single", action="store_true", help="leave those four runs out, and the kills in loads")
    found.add_argument("--log", type=Path, metavar="F", help="keep the nodes' log here (default: only after a failure)")
    found.add_argument("--strict", action="store_true", help="a time over its goal is a failure too")
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return found


def config(load_ms: float = 0.0) -> Config:
    """Simulated stages that carry the mark; waits short enough to see a recovery, and who hangs ended soon."""
    options: dict[str, dict[str, Any]] = {name: {"sleep_ms": ms, "sigma": SIGMA} for name, ms in STAGE_MS.items()}
    options["echo"] = {"accepts": "audio", "emits": "same", "sleep_ms": STAGE_MS["asr"], "sigma": SIGMA}
    options[LOADER] |= {"load_ms": load_ms}
    options["asr"] |= {"accepts": "audio", "mark": True}
    options["tts"] |= {"emits": "audio", "mark": True, "output_bytes": 2 * RESULT_SAMPLES["full"]}
    return Config(
        node=NodeSection(restart_budget=RESTART_BUDGET),
        deadlines=DeadlinesSection(heartbeat_s=0.1, silent_s=SILENT_S, abort_s=ABORT_S),
        devices=DeviceSection(use=("cpu",), estimates_file=OFF),  # of stages that are none
        stages={
            name: StageSection(
                kind="simulated",
                instances=2 if name == TWO_WORKERS else 1,
                timeout_base_s=SILENT_S,
                timeout_per_audio=0.0,
                options=table,
            )
            for name, table in options.items()
        },
        pipelines={"full": tuple(STAGE_MS), "echo": ("echo",)},
    )


# ---------------------------------------------------------------- one kill


def single(kind: str, requests: int, log: Path | None = None) -> int:
    """Requests of ``requests`` that did not come back well although one process of this kind was killed."""
    samples = np.zeros(4_000, np.int16)
    with Node(config(), log_file=log) as node, node.client() as client:
        with client.session(source="en", target="de") as session:
            good = 0
            for index in bar(range(requests), f"one kill: {kind}"):
                session.submit(samples)
                if index == requests // 4:
                    row = random.Random(kind).choice([r for r in processes(node) if kind_of(r["role"]) == kind])
                    os.kill(row["pid"], signal.SIGKILL)
            good = sum(outcome.ok for outcome in session.outcomes(timeout_s=60.0))
    return requests - good


def next_grants(count: int, log: Path | None = None) -> list[float]:
    """Seconds from the arbiter's death in the middle of a load until the next lease is granted, so many times.

    A program outside the node asks for it, and waits for that load first: what is left of the load is in the figure.
    """
    with Node(config(LOAD_MS), log_file=log) as node:
        return [next_grant(node) for _ in bar(range(count), "kills in a load")]


def next_grant(node: Node) -> float:
    """One of them. Raises DragomanError when the node does not come back."""
    role, kills = f"{LOADER}@cpu/0", list[Kill]()

    def kill_the_arbiter(_: str) -> None:
        if not kills:
            kills.append(killed(node, "arbiter"))

    while not kills:  # the load may be over before the program asks
        worker = killed(node, role)
        wait(lambda: any(r["role"] == role and r["phase"] == "loading" for r in processes(node)), f"{role} loads")
        with Lease(2**20, "cpu", ctl_endpoint=node.ctl_endpoint, on_wait=kill_the_arbiter):
            granted_at = time.monotonic()
        wait(partial(have_recovered, node, [worker, *kills]), f"{role} came back")
    return granted_at - kills[0].at


def killed(node: Node, role: str) -> Kill:
    """A process, killed now."""
    row = next(row for row in processes(node) if row["role"] == role)
    os.kill(row["pid"], signal.SIGKILL)
    return Kill(role, row["incarnation"], time.monotonic(), "SIGKILL")


# ---------------------------------------------------------------- many


def storm(seconds: float, seed: int, log: Path | None = None) -> Storm:
    """Do harm for ``seconds``."""
    chance = random.Random(seed)
    found = Storm()
    with tempfile.TemporaryDirectory(prefix="dragoman-chaos-") as folder:
        points = Path(folder) / "failpoints"
        points.touch()
        with hooked(points), Node(config(), log_file=log) as node:
            faults = Faults(partial(processes, node), points, chance)
            logs = [Path(folder) / f"{number}-{'-'.join(kind)}.jsonl" for number, kind in enumerate(CLIENTS)]
            with clients(node.endpoint, logs, seed) as all_flow:
                wait(all_flow, "the clients get outcomes")
                deaths = Deaths(node)
                for kills in harm_for(seconds, node, faults, chance):
                    found.kills.append(kills)
                    deaths.look()
            found.verdict = read_logs(logs)
            found.restarts = sum(row["incarnation"] - 1 for row in processes(node))
            found.freezes, found.deaths = faults.freezes, list(deaths.seen.values())
            normal_run(node)
    return found


@contextmanager
def hooked(points: Path) -> Iterator[None]:
    """Nodes started within read failpoints from this file."""
    before = os.environ.get(HOOKS)
    os.environ[HOOKS] = f"{FILE}={points}"
    try:
        yield
    finally:
        os.environ.pop(HOOKS)
        if before is not None:
            os.environ[HOOKS] = before


class Deaths:
    """The deaths a node tells of; it keeps the last hundred."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.seen: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self) -> None:
        """Take in what it tells now."""
        self.seen |= {(death["role"], death["incarnation"]): death for death in self._node.stats()["deaths"]}


def harm_for(seconds: float, node: Node, faults: Faults, chance: random.Random) -> Iterator[list[Kill]]:
    """Play a card, wait for recovery, rest; again until the time is over. Gives each card's kills, if any."""
    end = time.monotonic() + seconds
    deck = cards(chance)
    with bar(total=round(seconds), desc="killing", unit="s") as shown:
        while (left := end - time.monotonic()) > 0:
            shown.update(max(0, round(seconds - left) - shown.n))
            if kills := faults.play(*next(deck)):
                last = {kill.role: kill for kill in kills}  # the one of each that its present life comes after
                wait(partial(have_recovered, node, last.values()), f"{' and '.join(last)} came back")
                yield kills
            time.sleep(chance.uniform(*CALM_S))


def have_recovered(node: Node, kills: Iterable[Kill]) -> bool:
    return all(has_recovered(node, kill) for kill in kills)


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
            [sys.executable, "-m", "bench.chaos_client", endpoint, *kind, str(log), f"{seed}{number}"],
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
            with suppress(subprocess.TimeoutExpired):  # then its log has no end, and the judge says so
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


# ---------------------------------------------------------------- the report


def measures(group: Sequence[Kill]) -> str:
    """Whose recovery the clients see of these kills; "": nobody's.

    The arbiter is on no utterance's way, so its recovery shows when a worker that died with it comes back. A worker's
    shows where its stage has no other.
    """
    first = group[0]
    if len(group) == 1:
        return first.kind if first.kind in ("scheduler", "gateway") or first.role in ONLY_WORKERS else ""
    return "arbiter" if first.kind == "arbiter" else "pair"


def recovery_s(kill: Kill, arrivals: Sequence[Sequence[float]]) -> float:
    """From the kill until every client that waits gets outcomes again."""
    nexts = [next((at for at in client if at > kill.at + FLOW_S), None) for client in arrivals]
    return max((at - kill.at for at in nexts if at is not None), default=float("nan"))


def judge(report: Report, seconds: float, found: Storm) -> None:
    """Enter everything into the report."""
    kills = [kill for group in found.kills for kill in group]
    verdict = found.verdict
    report.add("kills", len(kills), "", Goal(at_least=int(KILLS_A_SECOND * seconds), fatal=True))
    report.add("kills_at_points", sum(" at " in kill.how for kill in kills), "")
    report.add("points_not_reached", sum("not reached" in kill.how for kill in kills), "")
    report.add("kills_of_hung", sum(kill.how == "hang" for kill in kills), "")
    report.add("freezes", found.freezes, "")
    report.add("utterances", verdict.submitted, "")
    for end in sorted(verdict.ends):
        report.add(f"ended_{end}", verdict.ends[end], "")
    for name in ("lost", "duplicated", "reordered", "mixed_up", "client_failures"):
        report.add(name, getattr(verdict, name), "", ZERO)
    report.add("collateral_restarts", found.restarts - len(kills), "", ZERO)
    for kind in KINDS:
        times = [recovery_s(group[0], verdict.arrivals) for group in found.kills if measures(group) == kind]
        often = Goal(at_least=1, fatal=True) if seconds >= A_DECK_S else None
        report.add(f"kills_{kind}", sum(kill.kind == kind for kill in kills), "", often)
        add_recovery(report, kind, times, GOALS[kind])
    pairs = [recovery_s(group[0], verdict.arrivals) for group in found.kills if measures(group) == "pair"]
    add_recovery(report, "pair", pairs, PAIR_GOAL_S)
    hung = [kill.hung_s for kill in kills if kill.hung_s]
    report.add("hung_max_s", max(hung, default=float("nan")), "s", Goal(at_most=HUNG_GOAL_S) if hung else None)
    seen = {(death["role"], death["incarnation"]): death["seen_s"] for death in found.deaths}
    delays = [1000 * (seen.get((k.role, k.incarnation), float("inf")) - k.at) for k in kills if k.exact]
    goal = Goal(at_most=SEEN_GOAL_MS) if delays else None
    report.add("seen_max_ms", max(delays, default=float("nan")), "ms", goal)
    report.add("seen_p99_ms", float(np.quantile(delays, 0.99)) if delays else float("nan"), "ms")
    for reason in verdict.reasons[:20]:
        print(reason, file=sys.stderr)


def add_recovery(report: Report, kind: str, times: Sequence[float], goal: float) -> None:
    """The longest, and for many the 99th percentile."""
    report.add(f"recovery_max_s_{kind}", max(times, default=float("nan")), "s", Goal(at_most=goal) if times else None)
    report.add(f"recovery_p99_s_{kind}", float(np.quantile(times, 0.99)) if times else float("nan"), "s")
