"""The report of a benchmark: a list of metrics, each with its goal, as a table for people or one JSON object.

A **performance** goal that is missed is shown, and that is all: it says something about this machine too. A
**correctness** metric (order, mix-ups, impossible intervals) that is off its goal makes the benchmark fail, since then
the other figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("dragoman", "numpy", "pyzmq", "msgpack", "msgspec")


@dataclass(frozen=True)
class Goal:
    """A bound on a metric: ``at_least`` or ``at_most``. ``fatal``: missing it makes the benchmark fail."""

    at_least: float | None = None
    at_most: float | None = None
    fatal: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within the bound (NaN never is)."""
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return above and below and value == value

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"= {self.at_least:g}" if self.at_least == self.at_most else f"{self.at_least:g} to {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


ZERO = Goal(at_least=0, at_most=0, fatal=True)


@dataclass(frozen=True)
class Result:
    """One metric. ``goal`` None: shown for the reader, not judged."""

    metric: str
    value: float
    unit: str
    goal: Goal | None = None

    @property
    def holds(self) -> bool | None:
        return None if self.goal is None else self.goal.holds(self.value)

    @property
    def fails(self) -> bool:
        """Whether this makes the whole benchmark worthless."""
        return self.goal is not None and self.goal.fatal and not self.holds

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "value": round(self.value, 4) if self.value == self.value else None,
            "unit": self.unit,
            "goal": None if self.goal is None else str(self.goal),
            "holds": self.holds,
        }


@dataclass
class Report:
    """What a benchmark found."""

    name: str
    results: list[Result] = field(default_factory=list)

    def add(self, metric: str, value: float, unit: str, goal: Goal | None = None) -> None:
        self.results.append(Result(metric, float(value), unit, goal))

    def __getitem__(self, metric: str) -> float:
        return next(r.value for r in self.results if r.metric == metric)

    @property
    def exit_code(self) -> int:
        """1 when a correctness metric is off, else 0."""
        return int(any(result.fails for result in self.results))

    def code(self, *, strict: bool) -> int:
        """``exit_code``; with ``strict`` a goal that is missed is a failure too."""
        return self.exit_code or int(strict and any(result.holds is False for result in self.results))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "results": [result.as_json() for result in self.results],
            "machine": machine(),
            "versions": versions(),
        }

    def show(self, as_json: bool, out: TextIO | None = None) -> None:
        """Print one JSON object and nothing else, or a table."""
        out = out or sys.stdout
        print(json.dumps(self.as_json(), ensure_ascii=False) if as_json else self.table(), file=out)

    def table(self) -> str:
        """The metrics, one a line, under a line that says on what machine."""
        here = machine()
        rows = [("metric", "value", "unit", "goal", "")] + [_row(result) for result in self.results]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        head = f"bench {self.name} on {here['cores']} cores ({here['cpu']}), Linux {here['kernel']}"
        lines = ["  ".join(_pad(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
                 for row in rows]  # fmt: skip
        return "\n".join([head, *(line.rstrip() for line in lines)])


def _row(result: Result) -> tuple[str, str, str, str, str]:
    verdict = {None: "", True: "holds", False: "FAILS" if result.fails else "missed"}[result.holds]
    return result.metric, figure(result.value, ".4g"), result.unit, str(result.goal or ""), verdict


def figure(value: float, form: str) -> str:
    """A number for people; "-" where there is none (NaN)."""
    return format(value, form) if value == value else "-"


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column == 1 else cell.ljust(width)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Versions of what was measured."""
    import zmq

    found = {"python": platform.python_version(), "libzmq": zmq.zmq_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a source tree that was never installed
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def at_least(low: float) -> Callable[[str], Any]:
    """For argparse: a number (whole where ``low`` is) not below ``low``."""

    def number(text: str) -> Any:
        try:
            value = type(low)(text)
        except ValueError:
            kind = "whole number" if isinstance(low, int) else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind}") from None
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is too small; the lowest is {low:g}")
        return value

    number.__name__ = "number"
    return number
