"""bench pipeline: is the line as fast as a line can be? (Stages of 30/5/30/5 ms and a tenth of it, 200 utterances.)

Each round runs the node pipelined at 30 ms and at 3 ms, with 40 % of every stage inside the interpreter lock, with a
backlog of 20, and in its own serial mode. Every utterance carries a random 64-bit mark that the first stage reads from
shared memory and the last writes into its result, so an utterance that got another's data shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench import command, line, workloads
from bench.drive import Run, backlog, progress, within
from bench.report import ZERO, Goal, Report, at_least
from engine.config import Config
from stages.simulated import MARK_PREFIX

STAGES = tuple(workloads.W1_MS)
UTTERANCES, SHORT, WARM_UP = 200, 20, 3
LIMIT_S = 300.0  # of one backlog; the longest takes 14 s
GOALS = {
    "eff_30ms": Goal(at_least=0.99),
    "eff_3ms": Goal(at_least=0.975),
    "speedup_over_serial": Goal(at_least=2.29),
    "serial_over_sleeps": Goal(at_most=1.03),
    "of_limit_30ms": Goal(at_least=0.97),
    "latency_reduction": Goal(at_least=0.50),
    "eff_gil40": Goal(at_least=0.97),
}


@dataclass(frozen=True)
class Measured:
    """One backlog through one node, and what is wrong with it if anything."""

    run: Run
    durations: list[list[float]]  # seconds, utterance x stage, as they really occurred
    mixed_up: int

    @property
    def eff(self) -> float:
        """Throughput over that of the ideal line with the same stage times."""
        return line.makespan(self.durations) / self.run.makespan_s

    @property
    def bottleneck_busy(self) -> float:
        """Share of the time that the busiest stage's worker spent in runs."""
        return max(map(sum, zip(*self.durations, strict=True))) / self.run.makespan_s

    def of_limit(self, scale: float) -> float:
        """Throughput over that of the ideal line with the nominal stage times."""
        nominal = [ms * scale / 1000 for ms in workloads.W1_MS.values()]
        return line.makespan([nominal] * len(self.durations)) / self.run.makespan_s


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when outcomes were lost, mixed up or out of order, else 0."""
    args = parser().parse_args(argv)
    report = connected(args) if args.connect else private(args)
    report.show(args.json)
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "pipeline", (__doc__ or "").partition("\n")[0], done=command.STRICT,
        wrong="outcomes were lost, mixed up or out of order",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--strict", action="store_true", help="a goal that is missed is a failure too")
    found.add_argument("--connect", metavar="E", help="measure the node at this endpoint with what its stages take")
    found.add_argument(
        "--rounds", type=at_least(1), default=3, help="rounds; the median of them is reported (default 3)"
    )
    found.add_argument("--utterances", type=at_least(1), default=UTTERANCES, help="in each backlog (default 200)")
    return found


def private(args: argparse.Namespace) -> Report:
    """All variants, interleaved, each with a node of its own."""
    variants: dict[str, Callable[[], tuple[Config, int]]] = {
        "30ms": lambda: (workloads.translation(), args.utterances),
        "serial": lambda: (workloads.translation(mode="serial"), args.utterances),
        "3ms": lambda: (workloads.translation(0.1), args.utterances),
        "gil40": lambda: (workloads.translation(gil_share=0.4), args.utterances),
        "short": lambda: (workloads.translation(), SHORT),
        "short_serial": lambda: (workloads.translation(mode="serial"), SHORT),
    }
    found: dict[str, list[Measured]] = {name: [] for name in variants}
    for number in range(args.rounds):
        for name, variant in variants.items():
            print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(measure(*variant(), what=name))
    return summary(found)


def measure(config: Config, count: int, what: str) -> Measured:
    """Start a node, warm it up, send a backlog of ``count`` marked utterances through it, stop it."""
    from engine.node import Node

    marks, utterances = workloads.marked(count)
    with within(LIMIT_S, what), ExitStack() as stack:
        node = stack.enter_context(Node(config))
        client = stack.enter_context(node.client())
        return marked_backlog(client, marks, utterances, what)


def marked_backlog(client: Any, marks: list[int], utterances: list[Any], what: str) -> Measured:
    with progress(WARM_UP, f"{what}: warm-up") as bar, client.session() as session:
        backlog(session, utterances[:WARM_UP], bar)
    with progress(len(utterances), what) as bar, client.session() as session:
        run = backlog(session, utterances, bar)
    return Measured(run, line.stage_times(run.outcomes, STAGES), mixed_up(run, marks))


def mixed_up(run: Run, marks: Sequence[int]) -> int:
    """Ok outcomes whose transcript or audio carries another mark than was sent under their index, or a torn one."""
    wrong = 0
    for outcome in run.outcomes:
        if outcome.outcome == "ok":
            mark = marks[outcome.index]
            heard = outcome.texts.get("asr") == MARK_PREFIX + mark.to_bytes(8, "little").hex()
            wrong += not (heard and workloads.carries(outcome.audio, mark))
    return wrong


def summary(found: dict[str, list[Measured]]) -> Report:
    """The metrics: medians over the rounds, ratios made within a round, faults summed over everything."""
    report = Report("pipeline")
    rounds = list(zip(*found.values(), strict=True))
    by_name = [dict(zip(found, values, strict=True)) for values in rounds]

    def add(metric: str, value: Callable[[dict[str, Measured]], float], unit: str = "ratio") -> None:
        report.add(metric, median(value(one) for one in by_name), unit, GOALS.get(metric))

    add("eff_30ms", lambda one: one["30ms"].eff)
    add("of_limit_30ms", lambda one: one["30ms"].of_limit(1))
    add("eff_3ms", lambda one: one["3ms"].eff)
    add("of_limit_3ms", lambda one: one["3ms"].of_limit(0.1))
    add("speedup_over_serial", lambda one: one["serial"].run.makespan_s / one["30ms"].run.makespan_s)
    add("serial_over_sleeps", lambda one: one["serial"].run.makespan_s / line.serial(one["serial"].durations))
    add("bottleneck_busy_serial", lambda one: one["serial"].bottleneck_busy)
    add("bottleneck_busy_pipelined", lambda one: one["30ms"].bottleneck_busy)
    add("latency_reduction", lambda one: 1 - one["short"].run.mean_latency_s / one["short_serial"].run.mean_latency_s)
    add("eff_gil40", lambda one: one["gil40"].eff)
    add("of_limit_gil40", lambda one: one["gil40"].of_limit(1))
    add("makespan_30ms", lambda one: one["30ms"].run.makespan_s, "s")
    add("makespan_serial", lambda one: one["serial"].run.makespan_s, "s")
    add("makespan_3ms", lambda one: one["3ms"].run.makespan_s, "s")
    everything = [measured for one in found.values() for measured in one]
    add_faults(report, [measured.run for measured in everything])
    report.add("mixed_up", sum(measured.mixed_up for measured in everything), "outcomes", ZERO)
    wrong = sum(measured.run.failed + measured.mixed_up for measured in everything)
    report.add("error_rate", wrong / sum(len(measured.run.outcomes) for measured in everything), "ratio", ZERO)
    return report


def add_faults(report: Report, runs: Sequence[Run]) -> None:
    """What makes every other figure worthless."""
    report.add("reordered", sum(line.reordered(o.index for o in run.outcomes) for run in runs), "outcomes", ZERO)
    report.add("not_ok", sum(run.failed for run in runs), "outcomes", ZERO)
    report.add("overlapping_runs", sum(line.overlaps(run.outcomes) for run in runs), "runs", ZERO)


def connected(args: argparse.Namespace) -> Report:
    """Efficiency of the node at ``--connect``, whatever its stages are, with a 5 s tone as every utterance."""
    from engine.client import Client

    report = Report("pipeline")
    tone = workloads.tone()
    with Client(args.connect) as client:
        stages = tuple(client.limits["pipelines"]["full"])
        source, target = (next(iter(client.limits[kind].get("full", ())), "") for kind in ("sources", "targets"))
        with progress(args.utterances, "running node") as bar, client.session(source, target) as session:
            run = backlog(session, [tone] * args.utterances, bar)
    durations = line.stage_times(run.outcomes, stages)
    report.add("eff", line.makespan(durations) / run.makespan_s, "ratio")
    report.add("rate", len(run.outcomes) / run.makespan_s, "1/s")
    add_faults(report, [run])
    return report


if __name__ == "__main__":
    sys.exit(main())
