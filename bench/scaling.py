"""bench scaling: do two GPUs serve twice, and four GPUs four times as much? (With 1, 2 and 4 workers of each stage.)

The GPUs are a stand-in driver's, with one worker of each stage on each; a sleep stands for a GPU's work. A backlog of
200 utterances comes from as many sessions as there are GPUs, and the time it takes is compared with that of the ideal
line with so many workers, fill and drain included: with its nominal stage times (``of_limit``), and with those that
really occurred (``eff``).

Its order must not hold a single session to one line. Utterances of very different length (log-normal, sigma 0.6)
overtake each other and wait for their turn at the gateway (``held_max``); two GPUs must serve their session twice as
fast all the same (``one_session_x2``).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec
from tqdm import tqdm

from bench import command, line, workloads
from bench.drive import PATIENCE_S, Run, arrived, backlog, newest, progress, within
from bench.pipeline import STAGES, add_faults, mixed_up
from bench.report import ZERO, Goal, Report, at_least
from bench.standin_driver import Driver, Gpu
from engine.config import Config
from engine.loading import wait_for_all

UTTERANCES, LONG = 200, 600  # in a backlog of several sessions, of one
WARM_UP = 4  # utterances for each GPU
GPUS = (1, 2, 4)
SIGMA = 0.6  # of the logarithm of an utterance's length
LIMIT_S = 300.0  # of one backlog; the longest takes 20 s
GOALS = {
    "x4_of_limit_30ms": Goal(at_least=0.97),
    "one_session_x2": Goal(at_least=1.9),
    "held_max": Goal(at_least=1, fatal=True),
    "success_rate": Goal(at_least=1, fatal=True),
}


@dataclass(frozen=True)
class Measured:
    """One backlog through one node, dealt out to sessions in turn."""

    gpus: int
    sessions: list[Run]
    mixed_up: int
    held_max: int  # the most outcomes that ever waited for a lower index

    @property
    def makespan_s(self) -> float:
        return max(run.makespan_s for run in self.sessions)

    @property
    def outcomes(self) -> list[Any]:
        """In the order submitted."""
        found = [(o.index, number, o) for number, run in enumerate(self.sessions) for o in run.outcomes]
        return [outcome for *_, outcome in sorted(found, key=lambda one: one[:2])]

    @property
    def eff(self) -> float:
        """Throughput over that of the ideal line with as many workers and the same stage times."""
        return line.makespan(line.stage_times(self.outcomes, STAGES), self.gpus) / self.makespan_s

    @property
    def of_limit(self) -> float:
        """Throughput over that of the ideal line with as many workers and the nominal stage times."""
        nominal = [ms / 1000 for ms in workloads.W1_MS.values()]
        return line.makespan([nominal] * len(self.outcomes), self.gpus) / self.makespan_s


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when outcomes failed, were mixed up or out of order, else 0."""
    args = parser().parse_args(argv)
    rounds = []
    for number in range(args.rounds):
        say = f"round {number + 1}/{args.rounds}"
        rounds.append({gpus: measure(gpus, args.utterances, say, sessions=gpus) for gpus in GPUS})
    single = {gpus: measure(gpus, args.long, "one session", sigma=SIGMA) for gpus in GPUS[:2]}
    report = summary(rounds, single)
    report.show(args.json)
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "scaling", (__doc__ or "").partition("\n")[0], done=command.STRICT,
        wrong="outcomes failed, were lost, mixed up or out of order",
    )  # fmt: skip
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--strict", action="store_true", help="a goal that is missed is a failure too")
    found.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="their median counts (default 3)")
    found.add_argument("--utterances", type=at_least(1), default=UTTERANCES, metavar="N",
                       help=f"in each backlog of several sessions (default {UTTERANCES})")  # fmt: skip
    found.add_argument("--long", type=at_least(1), default=LONG, metavar="N",
                       help=f"in each backlog of one session, of various lengths (default {LONG})")  # fmt: skip
    return found


# ---------------------------------------------------------------- one node


def measure(gpus: int, count: int, say: str, sessions: int = 1, sigma: float = 0.0) -> Measured:
    """Start a node on so many GPUs, warm it up, send ``count`` marked utterances through it, stop it."""
    from engine.node import Node

    what = f"{say}: {gpus} GPU{'s' if gpus > 1 else ''}"
    print(what, file=sys.stderr, flush=True)
    marks, utterances = workloads.marked(count)
    with within(LIMIT_S, what), ExitStack() as stack:
        stack.enter_context(standin(gpus))
        node = stack.enter_context(Node(config(gpus, sigma)))
        wait_for_all(node.stats)
        client = stack.enter_context(node.client())
        with progress(WARM_UP * gpus, f"{what}: warm-up") as bar, client.session() as session:
            backlog(session, utterances[:1] * WARM_UP * gpus, bar)
        with progress(count, what) as bar:
            runs = dealt(client, utterances, min(sessions, count), bar)
        wrong = sum(mixed_up(run, marks[number :: len(runs)]) for number, run in enumerate(runs))
        return Measured(gpus, runs, wrong, int(newest(node.stats, "gateway")["gateway"]["held_max"]))


def config(gpus: int, sigma: float = 0.0) -> Config:
    """W1 with a worker of each stage on each GPU; all stage times of an utterance vary by the same factor."""
    names = tuple(f"cuda:{number}" for number in range(gpus))
    base = workloads.translation()
    stages = {
        name: msgspec.structs.replace(section, devices=names, options={**section.options, "sigma": sigma})
        for name, section in base.stages.items()
    }
    return msgspec.structs.replace(base, devices=msgspec.structs.replace(base.devices, use=names), stages=stages)


@contextmanager
def standin(gpus: int) -> Iterator[None]:
    """Nodes started within find so many stand-in GPUs, and no other."""
    before = dict(os.environ)
    with Driver([Gpu()] * gpus) as driver:
        os.environ.update(driver.environ(os.environ))
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def dealt(client: Any, utterances: Sequence[Any], sessions: int, bar: tqdm) -> list[Run]:
    """Send everything at once, dealt out to so many sessions in turn, and wait for all outcomes; a run a session."""
    opened = [client.session(tag=f"s{number}") for number in range(sessions)]
    runs = {session.tag: Run() for session in opened}
    begun = time.perf_counter()

    def note(outcome: Any) -> None:
        runs[outcome.tag].received_s.append(time.perf_counter() - begun)
        runs[outcome.tag].outcomes.append(outcome)
        bar.update()

    for number, utterance in enumerate(utterances):
        opened[number % sessions].submit(utterance)
        for outcome in arrived(client):
            note(outcome)
    for outcome in client.outcomes(timeout_s=PATIENCE_S):
        note(outcome)
    return list(runs.values())


# ---------------------------------------------------------------- the report


def summary(rounds: Sequence[Mapping[int, Measured]], single: Mapping[int, Measured]) -> Report:
    """The metrics: medians over the rounds, ratios made within a round, faults summed over everything."""
    report = Report("scaling")

    def add(metric: str, value: float, unit: str = "ratio") -> None:
        report.add(metric, value, unit, GOALS.get(metric))

    for gpus in GPUS:
        add(f"x{gpus}_of_limit_30ms", median(one[gpus].of_limit for one in rounds))
        add(f"x{gpus}_eff_30ms", median(one[gpus].eff for one in rounds))
        add(f"x{gpus}_speedup_30ms", median(one[1].makespan_s / one[gpus].makespan_s for one in rounds))
    one, two = (single[gpus] for gpus in GPUS[:2])
    times = line.stage_times(one.outcomes, STAGES)
    add("one_session_x2", one.makespan_s / two.makespan_s)
    add("one_session_x2_ideal", line.makespan(times) / line.makespan(times, 2))
    add("one_session_x2_eff", two.eff)
    add("held_max", two.held_max, "outcomes")
    everything = [*(measured for one in rounds for measured in one.values()), *single.values()]
    runs = [run for measured in everything for run in measured.sessions]
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    add("success_rate", sum(outcome.ok for outcome in outcomes) / len(outcomes))
    add_faults(report, runs)
    report.add("mixed_up", sum(measured.mixed_up for measured in everything), "outcomes", ZERO)
    return report


if __name__ == "__main__":
    sys.exit(main())
