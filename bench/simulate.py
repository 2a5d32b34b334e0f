"""bench simulate: a day of many speakers on many GPUs, played by the real cores in virtual time.

The gateway's, the scheduler's and the arbiter's cores are the node's own; workers, GPUs and sessions are simulated, and
workers die and GPUs fail. docs/capacity.md says what that leaves out. The same seed is the same day.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from bench import capacity_options, capacity_picture, command
from bench.capacity_day import Day
from bench.capacity_figures import MOST_WAITING_S, Figures
from bench.capacity_node import CapacityNode
from bench.report import ZERO, Goal, Report
from engine.bar import bar

USUAL = Day(worker_mtbf_h=24.0, gpu_mtbf_h=72.0)
PERCENTILES = (50, 90, 99)
GOALS = {
    "waiting_p99_s": Goal(at_most=MOST_WAITING_S),
    "success_rate": Goal(at_least=0.95),
    "cpu_s": Goal(at_most=120.0),
}
EPILOG = """examples:
  run_node.py bench simulate                               a day of 8 GPUs and 1,000 sessions (about a minute)
  run_node.py bench simulate --hours 1 --load 0.95 --times asr=2,nmt=1.2+0.2 --json"""


class NobodySpoke(Exception):
    """There is nothing to judge."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play the day; returns 1 when an outcome was lost or out of order (``--strict``: or a goal missed), else 0."""
    found = parser()
    args = found.parse_args(argv)
    day = capacity_options.day_of(found, args, USUAL)
    began = time.process_time()
    try:
        figures = play(day, "the day")
    except NobodySpoke as error:
        found.error(str(error))
    report = Report("simulate")
    add_figures(report, day, figures)
    report.add("cpu_s", time.process_time() - began, "s", GOALS["cpu_s"] if day.hours <= USUAL.hours else None)
    if not args.json:
        print(capacity_picture.scene(day))
    report.show(args.json)
    if not args.json:
        print(f"\n{capacity_picture.stages(figures)}\n\n{capacity_picture.bottleneck(day, figures)}")
    return report.code(strict=args.strict)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "simulate", __doc__, epilog=EPILOG, done=command.STRICT,
        wrong="an outcome was lost or out of order", kind=capacity_options.Parser,
    )  # fmt: skip
    capacity_options.add(found, USUAL)
    found.add_argument(
        "--strict", action="store_true", help="a goal for waiting or time that is missed is a failure too"
    )
    return found


def play(day: Day, what: str) -> Figures:
    """Play it, with a progress bar in virtual minutes on standard error. Raises NobodySpoke."""
    with progress(day, what) as shown:
        figures = CapacityNode(day).run(lambda seconds: shown.update(round(seconds / 60)))
    if not figures.spoken:
        raise NobodySpoke(f"nobody speaks in {day.hours:g} hours: more --hours, more --sessions or shorter pauses")
    return figures


def progress(day: Day, what: str) -> tqdm:
    """In whole minutes: hours would be sums of sixtieths, with all their digits."""
    return bar(total=round(60 * day.hours), desc=what, unit=" min", mininterval=0.5)


def add_figures(report: Report, day: Day, figures: Figures) -> None:
    """The metrics of one simulated day."""
    report.add("utterances", figures.spoken, "")
    report.add("throughput", figures.throughput, "1/s")
    report.add("load", day.offered, "ratio")
    for percent in PERCENTILES:
        goal = GOALS.get(f"waiting_p{percent}_s")
        report.add(f"waiting_p{percent}_s", figures.waiting_s(percent), "s", goal)
    for percent in PERCENTILES:
        report.add(f"latency_p{percent}_s", figures.latency_s(percent), "s")
    report.add("extra_p99_s", figures.extra_s(99), "s")
    report.add("sessions_served", figures.sessions_served, "sessions")
    report.add("success_rate", figures.success_rate, "ratio", GOALS["success_rate"])
    for code, count in sorted(figures.outcomes.items()):
        if code != "ok":
            report.add(f"ended_{code}", count, "utterances")
    report.add("busy", figures.busy, "answers")
    report.add("worker_deaths", figures.deaths, "")
    report.add("gpu_failures", figures.outages, "")
    for name, stage in figures.stages.items():
        report.add(f"utilisation_{name}", stage.utilisation, "ratio")
    report.add("lost", figures.lost, "outcomes", ZERO)
    report.add("reordered", figures.reordered, "outcomes", ZERO)


if __name__ == "__main__":
    sys.exit(main())
