"""bench plan: how many sessions do so many GPUs serve, what limits them, what would a GPU more or other batches do?

Plays the day as ``bench simulate`` does, then the same with one GPU more and with batches twice and half as large, and
looks for the most sessions of this rhythm that each serves. docs/capacity.md says what a simulation leaves out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import capacity_options, capacity_picture, command
from bench.capacity_day import Day
from bench.capacity_figures import MOST_WAITING_S, Figures
from bench.capacity_node import CapacityNode
from bench.report import Report
from bench.simulate import NobodySpoke, add_figures, play
from engine.bar import bar

USUAL = Day(gpus=4, sessions=200, hours=1.0, load=None, pause_s=120.0)
FULL_LOAD = 1.1  # of what the node can do at most: as many sessions are too many, as a rule
PRECISION = 0.02  # of the most sessions, a share of them; one session where that is less
SEARCH_HOURS = 0.5  # of each step of the search
SUCCESS = 0.95
EPILOG = """examples:
  run_node.py bench plan --gpus 4 --sessions 200
  run_node.py bench plan --gpus 2 --sessions 50 --pause 20 --times asr=0.8+0.05,nmt=0.6 --batch 2 --json"""


@dataclass(frozen=True)
class Variant:
    """A node, what it did for the sessions that were asked for, and how many of them it could serve."""

    name: str
    day: Day
    figures: Figures
    most: int


def main(argv: Sequence[str] | None = None) -> int:
    """Plan; returns 1 when an outcome was lost or out of order, else 0."""
    found = parser()
    args = found.parse_args(argv)
    day = capacity_options.day_of(found, args, USUAL)
    try:
        variants = [explore(name, one) for name, one in variants_of(day).items()]
    except NobodySpoke as error:
        found.error(str(error))
    report = summary(variants)
    if args.json:
        print(json.dumps(report.as_json() | as_json(variants), ensure_ascii=False))
    else:
        print(capacity_picture.scene(day))
        report.show(as_json=False)
        print(f"\n{capacity_picture.stages(variants[0].figures)}\n")
        print("\n".join(advice(variants)))
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "plan", __doc__, epilog=EPILOG, done="done",
        wrong="an outcome was lost or out of order", kind=capacity_options.Parser,
    )  # fmt: skip
    capacity_options.add(found, USUAL)
    return found


def variants_of(day: Day) -> dict[str, Day]:
    """The node as asked for and its neighbours, all with sessions that speak as often."""
    day = replace(day, load=None, pause_s=day.mean_pause_s)
    found = {
        "as_asked": day,
        "one_more_gpu": replace(day, gpus=day.gpus + 1),
        "bigger_batch": replace(day, batch=2 * day.batch),
    }
    if day.batch > 1:
        found["smaller_batch"] = replace(day, batch=day.batch // 2)
    return found


def explore(name: str, day: Day) -> Variant:
    what = name.replace("_", " ")
    figures = play(day, what)
    return Variant(name, day, figures, most_sessions(day, is_enough(figures), what))


def most_sessions(day: Day, served: bool, what: str) -> int:
    """The most sessions of this rhythm that are served: found by halving, and right but for chance.

    ``served``: whether those of the day are. Where they are, the most are no fewer, else they are fewer.
    """
    low, high = (day.sessions, 0) if served else (0, day.sessions)  # served; too many, 0: not known
    guess = max(1, round(FULL_LOAD * day.sessions / day.offered))
    with bar(desc=f"{what}: most sessions", unit=" trials") as shown:
        while not high or high - low > max(1, PRECISION * high):
            if low < guess and (not high or guess < high):
                middle, guess = guess, 0  # once: what else there is lies below, as a rule
            else:
                middle = (low + high) // 2 if high else 2 * low
            if serves(replace(day, sessions=middle, hours=SEARCH_HOURS)):
                low = middle
            else:
                high = middle
            shown.update()
    return low


def serves(day: Day) -> bool:
    """Whether waiting and success are as promised."""
    return is_enough(CapacityNode(day).run())


def is_enough(figures: Figures) -> bool:
    return figures.waiting_s(99) <= MOST_WAITING_S and figures.success_rate >= SUCCESS


def summary(variants: Sequence[Variant]) -> Report:
    """The metrics: those of the node as asked for, then what its neighbours would change."""
    asked, *others = variants
    report = Report("plan")
    report.add("sessions", asked.day.sessions, "sessions")
    report.add("sessions_most", asked.most, "sessions")
    add_figures(report, asked.day, asked.figures)
    for other in others:
        report.add(f"sessions_most_{other.name}", other.most, "sessions")
        report.add(f"waiting_p99_s_{other.name}", other.figures.waiting_s(99), "s")
        report.add(f"throughput_{other.name}", other.figures.throughput, "1/s")
    return report


def advice(variants: Sequence[Variant]) -> list[str]:
    """What it comes to, a sentence each."""
    asked, *others = variants
    day, figures = asked.day, asked.figures
    verdict = "are served" if is_enough(figures) else "are too many"
    return [
        f"{day.sessions} sessions {verdict}: 99 of 100 utterances wait {figures.waiting_s(99):.3g} s at most, "
        f"{100 * figures.success_rate:.4g} % come back well. This node serves about {asked.most} sessions.",
        capacity_picture.bottleneck(day, figures),
        *(
            f"{_words(other)}: about {other.most} sessions ({_change(asked, other)}); with {day.sessions}, 99 of 100 "
            f"utterances wait {other.figures.waiting_s(99):.3g} s at most."
            for other in others
        ),
    ]


def _words(variant: Variant) -> str:
    if variant.name == "one_more_gpu":
        return "One more GPU"
    return f"Batches of {variant.day.batch}{' (if memory suffices)' if variant.name == 'bigger_batch' else ''}"


def _change(before: Variant, after: Variant) -> str:
    return f"{100 * (after.most / before.most - 1):+.0f} %" if before.most else "this node serves none"


def as_json(variants: Sequence[Variant]) -> dict[str, Any]:
    """What is no metric: sentences, and the variants by name."""
    return {
        "advice": advice(variants),
        "bottleneck": variants[0].figures.bottleneck,
        "variants": {
            one.name: {
                "gpus": one.day.gpus,
                "batch": one.day.batch,
                "sessions_most": one.most,
                "load": round(one.day.offered, 4),
                "utilisation": {name: round(stage.utilisation, 4) for name, stage in one.figures.stages.items()},
            }
            for one in variants
        },
    }


if __name__ == "__main__":
    sys.exit(main())
