"""bench vram: does the lease book keep its promises, and how well does it use memory? (The real cores, virtual time.)

Three parts, all from one seed. *Leases*: histories of the real book over true devices, with outsiders, lag, silent
drivers and deaths (bench.vram_world); judged by the devices, never by the book (bench.vram_judge). *Node*: the real
scheduler and book on one card of 12 GiB, against "one model resident, batch 1" on the same trace (bench.vram_node).
*OOM*: the same node where memory runs out by design: others snatch it, or the estimates are a fifth too small.

With --gpus none of that: a real node with simulated stages plays a scenario on the stand-in driver
(bench.vram_rehearsal).
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import command, vram_rehearsal
from bench.report import ZERO, Goal, Report, at_least
from bench.vram_judge import PROMISES
from bench.vram_node import GIB, Figures, Plan, VirtualNode
from bench.vram_rehearsal import ScenarioError
from bench.vram_trace import Trace
from bench.vram_world import World
from engine.bar import bar

A_HISTORY = 1000  # requests
MIB, MOST_BYTES = 2**20, 2**40  # of a GPU
SHOWN = 20  # broken promises
SHOWN_COUNTS = (
    "listed",
    "unseen",
    "unseen_oom",
    "stalled",
    "snatched",
    "granted",
    "denied",
    "grown",
    "stuck",
    "parked",
    "asked_to_leave",
    "restarts",
    "lost_devices",
    "drains",
)
GOALS = {
    "vram_used_over_packing": Goal(at_least=0.9, fatal=True),
    "unseen_rate": Goal(at_most=0.06, fatal=True),
    "unseen_oom_rate": Goal(at_most=0.0005, fatal=True),
    "stalled_rate": Goal(at_most=0.02, fatal=True),
    "oom_rate": Goal(at_most=0.05, fatal=True),
    "throughput_gain": Goal(at_least=0.6, fatal=True),
    "vram_used_gain": Goal(at_least=0.5, fatal=True),
    "waiting_reduction": Goal(at_least=0.7, fatal=True),
}
EPILOG = """docs/vram.md says what each figure means.

examples:
  run_node.py bench vram
  run_node.py bench vram --requests 1000000 --jobs 2                       for a night
  run_node.py bench vram --gpus 8GiB,24GiB --scenario docs/examples/evening.toml"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 1 when a promise is broken, 2 when a rehearsal cannot be, else 0."""
    args = parser().parse_args(argv)
    if args.part:
        return play_part(args.seed, args.requests)
    try:
        report = rehearse(args.gpus, args.scenario) if args.gpus or args.scenario else measure(
            args.seed, args.requests, args.jobs
        )  # fmt: skip
    except ScenarioError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report.show(args.json)
    for one in report.results:
        if one.fails:
            print(f"broken: {one.metric} is {one.value:.4g}, and is to be {one.goal}", file=sys.stderr)
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "vram", __doc__, epilog=EPILOG, done="every promise was kept",
        wrong="one was broken (which, stands on standard error)",
        cut="how far it had come is said",
    )  # fmt: skip
    found.add_argument(
        "--requests", type=at_least(1), default=4000, metavar="N", help="for leases (default 4000; nightly 1000000)"
    )
    found.add_argument("--seed", type=int, default=1, metavar="S", help="the first seed (default 1)")
    found.add_argument("--jobs", type=at_least(1), default=1, metavar="J", help="processes that play them (default 1)")
    found.add_argument("--gpus", metavar="SIZES", help="rehearse: memory of each GPU, as in 8GiB,24GiB")
    found.add_argument("--scenario", type=Path, metavar="FILE", help="rehearse: what runs on them, a TOML file")
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    return found


def rehearse(gpus: str | None, scenario: Path | None) -> Report:
    if not gpus or not scenario:
        raise ScenarioError("a rehearsal needs --gpus and --scenario", "as in: --gpus 8GiB,24GiB --scenario FILE")
    return vram_rehearsal.rehearse(sizes(gpus), scenario)


def sizes(text: str) -> tuple[int, ...]:
    """Bytes of each GPU from "8GiB,24GiB". Raises ScenarioError."""
    units = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(GiB|MiB|GB|MB)", part.strip())
        if match is None or not MIB <= float(match[1]) * units[match[2]] <= MOST_BYTES:
            raise ScenarioError(f"--gpus: {part!r} is no size of a GPU", "write it like 8GiB, several like 8GiB,24GiB")
        found.append(int(float(match[1]) * units[match[2]]))
    return tuple(found)


def measure(seed: int, requests: int, jobs: int) -> Report:
    report = Report("vram")
    counts, used, packed, wrong = play(seed, requests, jobs)
    add_leases(report, counts, used, packed, wrong)
    try:
        add_gains(report, seed)
        add_oom(report, seed)
    except KeyboardInterrupt:
        raise cut_short(counts, requests) from None
    return report


def cut_short(counts: Counter[str], requests: int) -> command.CutShort:
    """To be raised after Ctrl-C: what had been done, in a line."""
    broken = sum(counts[promise] for promise in (*PROMISES, "broke_down"))
    done = f"{counts['requests']} of the leases' {requests} requests had been counted"
    return command.cut_short(f"{done}; promises broken: {broken}")


# ---------------------------------------------------------------- leases


def one(seed: int, requests: int) -> dict[str, Any]:
    """One history: what was counted, how memory was used, and what is wrong with it."""
    world = World(Trace(seed, requests))
    try:
        world.run()
        wrong = list(world.judge.first.values())
    except Exception as error:  # whatever it is, this seed shows it
        world.judge.counts["broke_down"] += 1
        wrong = [f"{type(error).__name__}: {error}"]
    return {
        "counts": dict(world.judge.counts),
        "used": world.used_byte_s,
        "packed": world.packing.byte_s,
        "wrong": [f"seed {seed}: {text}" for text in wrong],
    }


def play_part(first: int, requests: int) -> int:
    """For ``--jobs``: a JSON object a line, one for each history."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it, and ends it
    for seed, count in histories(first, requests):
        print(json.dumps(one(seed, count)), flush=True)
    return 0


def histories(first: int, requests: int) -> Iterator[tuple[int, int]]:
    """Seeds, and how many requests each has."""
    for number, begun in enumerate(range(0, requests, A_HISTORY)):
        yield first + number, min(A_HISTORY, requests - begun)


def play(first: int, requests: int, jobs: int) -> tuple[Counter[str], float, float, list[str]]:
    """All of them, in ``jobs`` processes: counts, bytes x s used and packed, what is wrong. Ctrl-C tells how far."""
    counts: Counter[str] = Counter()
    used = packed = 0.0
    wrong: list[str] = []
    try:
        with bar(total=requests, desc="leases", unit="request") as shown:
            for told in _told(first, requests, jobs):
                counts.update(told["counts"])
                used, packed, wrong = used + told["used"], packed + told["packed"], wrong + told["wrong"]
                shown.update(told["counts"].get("requests", 0))
    except KeyboardInterrupt:
        print("\n".join([*wrong[:SHOWN], ""]), end="", file=sys.stderr)
        raise cut_short(counts, requests) from None
    return counts, used, packed, wrong


def _told(first: int, requests: int, jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from (one(seed, count) for seed, count in histories(first, requests))
        return
    share = -(-requests // jobs // A_HISTORY) * A_HISTORY
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.vram", "--part", "--seed", str(first + begun // A_HISTORY),
             "--requests", str(min(share, requests - begun))],
            stdout=subprocess.PIPE, text=True,
        )
        for begun in range(0, requests, share)
    ]  # fmt: skip
    try:
        for process in running:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)
            if process.wait():
                raise RuntimeError(f"a part ended with code {process.returncode}")
    finally:
        for process in running:
            process.kill()
            process.wait()


def add_leases(report: Report, counts: Counter[str], used: float, packed: float, wrong: list[str]) -> None:
    for text in wrong[:SHOWN]:
        print(text, file=sys.stderr)
    report.add("requests", counts["requests"], "")
    for promise in (*PROMISES, "broke_down"):
        report.add(promise, counts[promise], "", ZERO)
    report.add("vram_used_over_packing", used / max(1.0, packed), "ratio", GOALS["vram_used_over_packing"])
    report.add("unseen_rate", counts["unseen"] / max(1, counts["blind"]), "ratio", GOALS["unseen_rate"])
    report.add("unseen_oom_rate", counts["unseen_oom"] / max(1, counts["blind"]), "ratio", GOALS["unseen_oom_rate"])
    report.add("stalled_rate", counts["stalled"] / max(1, counts["requests"]), "ratio", GOALS["stalled_rate"])
    for name in SHOWN_COUNTS:
        report.add(name, counts[name], "")


# ---------------------------------------------------------------- the node


def add_gains(report: Report, seed: int) -> None:
    """Against "one model resident, batch 1": the same utterances, card, policy of turns, and stage times."""
    ours = VirtualNode(Plan(seed)).run()
    theirs = VirtualNode(Plan(seed, max_models=1, max_batch=1)).run()
    used_ours, used_theirs = (one.used_byte_s / one.makespan_s for one in (ours, theirs))
    gains = {
        "throughput_gain": theirs.makespan_s / ours.makespan_s - 1,
        "vram_used_gain": used_ours / used_theirs - 1,
        "waiting_reduction": 1 - ours.waited_s / max(1e-9, theirs.waited_s),
    }
    for name, value in gains.items():
        report.add(name, value, "ratio", GOALS[name])
    report.add("failed", ours.failed + theirs.failed, "utterances", ZERO)
    report.add("oom_unforced", ours.ooms + theirs.ooms, "", ZERO)


FORCED_NODES = 5  # of each kind: in one of 200 utterances a few visits of the outsider decide
FORCED = {
    "outsider": {"outsider": True},
    "estimates": {"card_bytes": 9 * GIB, "estimate_factor": 0.8},
}


def forced(how: str, seed: int) -> list[Figures]:
    """Nodes that run out of memory in one of the ``FORCED`` ways."""
    return [VirtualNode(Plan(seed + n, **FORCED[how])).run() for n in range(FORCED_NODES)]  # type: ignore[arg-type]


def add_oom(report: Report, seed: int) -> None:
    """Over some nodes each; the worse of the two is the rate."""
    rates = []
    for name in FORCED:
        nodes = forced(name, seed)
        ooms = sum(one.ooms for one in nodes)
        rates.append(ooms / max(1, sum(one.runs + one.loads for one in nodes)))
        report.add(f"oom_{name}", ooms, "runs and loads", Goal(at_least=1, fatal=True))
        report.add(f"failed_{name}", sum(one.failed for one in nodes), "utterances")
    report.add("oom_rate", max(rates), "ratio", GOALS["oom_rate"])


if __name__ == "__main__":
    sys.exit(main())
