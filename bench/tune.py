"""bench tune: how many instances and how large batches serve most? (``bench load`` at every point of a grid.)

Each point of the grid is a node of its own with that configuration, under the load of ``--users`` users who say the
next when they have heard the last. The best is the point with the highest throughput of those where hardly a run is out
of memory, nearly all utterances end well, and 99 % of them within their deadline. The **knee** is the lowest point of
the grid that is about as good: beyond it more costs memory and brings next to nothing.

The node is first measured as it is configured. Without ``--grid`` the grid is that of its busiest stage: its batches,
and instances about what its device has memory for (S6: as many as have room beside the rest, one less for safety).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import chart, command, load, tune_file, tune_grid, written
from bench.drive import newest
from bench.load_users import Load, Speech
from bench.report import Report, at_least, figure
from bench.tune_grid import Axis, Point
from engine import config_file
from engine.config import Config
from ipc.errors import DragomanError, UsageError

ABOUT_AS_GOOD = 0.95  # of the best's throughput, at the knee
EPILOG = """examples:
  run_node.py bench tune talk.mp3 --config node.toml --write tuned.toml
  run_node.py bench tune --simulated --seconds 5 --grid max_batch=1,2,4 --stages asr nmt --plot tune.png
  run_node.py bench tune --config node.toml --grid asr.instances=1,2,3 asr.max_batch=2,4,8

A knob is any number of the configuration: asr.max_batch, node.send_ahead; a stage's knob without its stage is set for
each of --stages. --write changes these knobs in --config's text, which keeps its comments; without --config it writes
an env file (serve --env-file)."""


@dataclass(frozen=True)
class Trial:
    """What one configuration came to. ``point`` None: no point of the grid, but the configuration as it is."""

    load: Load
    point: Point | None = None
    is_configured: bool = False
    oom: float = 0.0  # times out of memory for each utterance
    over_deadline: float = float("nan")  # 99 % took no more than so many times their deadline
    refusal: str = ""  # why the node did not start, or broke off
    stats: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def serves(self) -> bool:
        """Whether it may be chosen at all."""
        if self.refusal or self.load.lost or self.load.reordered:
            return False
        return self.oom < load.MOST_OOM and self.load.success_rate > load.LEAST_OK and self.over_deadline <= 1


@dataclass
class Tuning:
    """The grid, and what was measured. ``start``: instances by S6; 0: a grid was given, or the memory is not known."""

    axes: list[Axis] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    start: int = 0

    @property
    def best(self) -> Trial | None:
        """The highest throughput of those that serve; None: none does."""
        return max((one for one in self.trials if one.serves), key=lambda one: one.load.throughput, default=None)

    @property
    def knee(self) -> Trial | None:
        """The lowest point of the grid that is about as good as the best."""
        if (best := self.best) is None:
            return None
        enough = ABOUT_AS_GOOD * best.load.throughput
        good = [one for one in self.trials if one.serves and one.point and one.load.throughput >= enough]
        return min(good, key=lambda one: tune_grid.steps(self.axes, one.point or ()), default=best)

    @property
    def configured(self) -> Trial:
        return next(one for one in self.trials if one.is_configured)

    def name(self, trial: Trial) -> str:
        return tune_grid.words(self.axes, trial.point) if trial.point else "as configured"

    def changes(self, config: Config) -> dict[str, tune_grid.Number]:
        """The fields that are otherwise at the best point than in the configuration."""
        if self.best is None or self.best.point is None:
            return {}
        found = tune_grid.changes(self.axes, self.best.point)
        return {field: number for field, number in found.items() if tune_grid.value(config, field) != number}


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; returns 1 when at no point the node serves, else 0. Raises UsageError."""
    args = parser().parse_args(argv)
    check(args)
    config = load.chosen(args)
    take_audio(args, config)
    tuning, cut = Tuning(), None
    try:
        tune(config, args, Tuner(args, load.read(args.audio, config.node.max_utterance_s)), into=tuning)
    except KeyboardInterrupt:
        what = "what was measured until then follows" if tuning.trials else "nothing has been measured"
        cut = command.cut_short(what)
        if not tuning.trials:
            raise cut from None
    if args.json:
        report(tuning).show(as_json=True)
    else:
        print(table(tuning) + "\n\n" + verdict(tuning))
    sys.stdout.flush()
    if args.write and cut is None and tuning.best is not None:  # the best of a part is not what was asked for
        write(args, tuning.changes(config_file.load(args.config, {}) if args.config else config))
    if args.plot:  # last: who cannot draw it has all the rest
        title = f"{args.users} users, {args.seconds:g} s at each point; {verdict(tuning)}"
        chart.draw(panels(tuning), args.plot, title)
    if cut is not None:
        raise cut
    return int(tuning.best is None)


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "tune", (__doc__ or "").partition("\n")[0], epilog=EPILOG, done="done",
        wrong="at no point did the node serve well (nothing is written), or a file cannot be written",
        cut="what was measured until then is shown, nothing is written",
    )  # fmt: skip
    load.add_load(found, 20.0)
    found.add_argument("--users", type=at_least(1), default=20, metavar="N", help="at once (default 20)")
    found.add_argument("--grid", nargs="+", action="extend", metavar="KNOB=V,V", help="the knobs and their values")
    found.add_argument("--stages", nargs="+", metavar="STAGE", help="whose knobs are tuned (default: the busiest, or "
                       "with --grid all)")  # fmt: skip
    found.add_argument("--write", type=Path, metavar="FILE", help="write the configuration with the best values")
    load.add_node(found.add_mutually_exclusive_group())
    return found


def check(args: argparse.Namespace) -> None:
    """What can be wrong without a node. Raises UsageError."""
    chart.check(args.plot)
    if args.write and args.simulated:
        raise UsageError("--write is for real stages", "write simulated ones into a file and give that as --config")
    written.check(args.write, "--write")


def take_audio(args: argparse.Namespace, config: Config) -> None:
    """AUDIO that stands behind --grid or --stages, which take whatever follows: what can only be a file is one.

    Raises UsageError when nothing is left of the option.
    """
    for option, is_one in (("grid", lambda text: "=" in text), ("stages", config.stages.__contains__)):
        given = getattr(args, option) or []
        audio = [text for text in given if not is_one(text) and Path(text).exists()]
        rest = [text for text in given if text not in audio]
        if audio and not rest:
            raise UsageError(
                f"--{option} has {audio[0]} alone, a file", f"AUDIO goes before --{option}, or behind its own"
            )
        setattr(args, option, rest or None)
        args.audio += audio


# ---------------------------------------------------------------- measuring


class Tuner:
    """Measures one configuration after the other, all with the same speech."""

    def __init__(self, args: argparse.Namespace, sounds: Sequence[Any]) -> None:
        self.args = args
        self.sounds = sounds
        self._speeches: list[list[Speech]] = []

    def measure(self, config: Config, what: str) -> Trial:
        """A node with this configuration under the load. Raises DragomanError when it does not start or breaks off."""
        args = self.args
        print(what, file=sys.stderr, flush=True)
        with load.started(config) as node:
            self._speeches = self._speeches or load.spoken(args, node.limits, self.sounds)
            found = load.press(node, self._speeches, args.users, args.seconds, args.pace, args.pipeline, f"{what}: ")
            stats = newest(node.stats, "scheduler") if node.stats else {}
        oom = stats["oom_errors"] / max(1, len(found.ended))
        over = load.over_deadline(found, config.deadlines)
        return Trial(found, oom=oom, over_deadline=over, refusal=without_model(stats), stats=stats)


def tune(config: Config, args: argparse.Namespace, tuner: Tuner, into: Tuning) -> None:
    """The configuration as it is, then every other point of the grid."""
    stages = chosen_stages(args, config)
    axes = tune_grid.axes(args.grid, config, stages) if args.grid else []
    can_write(args, axes)
    first = replace(tuner.measure(config, "as configured"), is_configured=True)
    if not args.grid:
        stage = busiest(first.stats, stages)
        into.start = start_instances(first.stats, stage)
        room = f"; by memory it may begin with {into.start} instances" if into.start else ""
        print(f"the grid is that of the busiest stage, {stage}{room}", file=sys.stderr)
        axes = tune_grid.usual(stage, config, into.start)
        can_write(args, axes)
    own = tune_grid.present(config, axes)
    points = list(tune_grid.points(axes))
    into.axes = axes
    into.trials.append(replace(first, point=own if own in points else None))
    for number, point in enumerate(points, 1):
        if point != own:
            what = f"{number}/{len(points)} {tune_grid.words(axes, point)}"
            measure = partial(tuner.measure, tune_grid.configured(config, axes, point), what)
            into.trials.append(tried(measure, point))


def tried(measure: Callable[[], Trial], point: Point) -> Trial:
    """A trial, or why there is none: a configuration that needs too much does not end the tuning."""
    try:
        return replace(measure(), point=point)
    except UsageError:
        raise
    except DragomanError as error:
        return Trial(Load(0), point, refusal=error.text)


def without_model(stats: Mapping[str, Any]) -> str:
    """Who has no model although it should, and why; "": nobody. What was measured is not that configuration then."""
    for role, row in stats["scheduler"]["workers"].items():
        if row["waiting_for"] and not row["standby"]:
            return f"{role} has no model: {row['waiting_for']}"
    return ""


def chosen_stages(args: argparse.Namespace, config: Config) -> list[str]:
    """The stages that are tuned. Raises UsageError."""
    for name in args.stages or ():
        if name not in config.stages:
            raise UsageError(f"--stages: there is no stage {name!r}, nor such a file",
                             f"there are {', '.join(config.stages)}; AUDIO goes before --stages")  # fmt: skip
    return list(args.stages or config.stages)


def busiest(stats: Mapping[str, Any], stages: Sequence[str]) -> str:
    """Of these stages the one whose workers were busy most: it is the bottleneck."""
    return max(stages, key=lambda name: _busy_s(stats["scheduler"], name))


def _busy_s(scheduler: Mapping[str, Any], stage: str) -> float:
    """Seconds that each of a stage's workers was busy; utterances of one run count once."""
    row = scheduler["stages"][stage]
    workers = [worker for role, worker in scheduler["workers"].items() if role.partition("@")[0] == stage]
    runs, utterances = (sum(worker[name] for worker in workers) for name in ("runs", "utterances"))
    if not (runs and utterances and row["loaded"]):
        return 0.0
    return float(row["avg_processing_ms"] / 1000 * row["done"] * runs / utterances / row["loaded"])


def start_instances(stats: Mapping[str, Any], stage: str) -> int:
    """Instances of a stage that its GPU has memory for, by the node's book; 0: it is on the CPU, or not known."""
    leases = [row for row in stats["leases"] if row["device"] != "cpu" and row["nbytes"]]
    own = [row for row in leases if row["worker"].partition("@")[0] == stage]
    if not own:
        return 0
    device = own[0]["device"]
    seen = stats["arbiter"]["devices"].get(device, {})
    rest = sum(row["nbytes"] for row in leases if row["device"] == device and row not in own)
    reserve = rest + max(0, seen.get("foreign_bytes", 0))
    return tune_grid.start_value(seen.get("total_bytes", 0), reserve, max(row["nbytes"] for row in own))


# ---------------------------------------------------------------- what is told


COLUMNS = ("", "utterances/s", "audio s/s", "ok", "out of memory", "p50 s", "p99 s", "of deadline", "")


def table(tuning: Tuning) -> str:
    """A row for each trial."""
    rows = [COLUMNS, *(_row(tuning, one) for one in tuning.trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _row(tuning: Tuning, one: Trial) -> tuple[str, ...]:
    if one.refusal:
        return (tuning.name(one), *[""] * (len(COLUMNS) - 2), one.refusal)
    marks = [name for name, which in (("best", tuning.best), ("knee", tuning.knee)) if which is one]
    marks += ["as configured"] if one.is_configured and one.point else []
    marks += [] if one.serves else ["does not serve"]
    return (
        tuning.name(one), f"{one.load.throughput:.3g}", f"{one.load.audio_throughput:.3g}",
        f"{one.load.success_rate:.1%}", f"{one.oom:.1%}", figure(one.load.latency_s(0.5), ".3g"),
        figure(one.load.latency_s(0.99), ".3g"), figure(one.over_deadline, ".0%"), ", ".join(marks),
    )  # fmt: skip


def verdict(tuning: Tuning) -> str:
    """The best and the knee in one line."""
    best, knee = tuning.best, tuning.knee
    if best is None or knee is None:
        return "at no point did the node serve: out of memory < 5 %, ok > 95 %, p99 within the deadline"
    text = f"best: {tuning.name(best)}, {best.load.throughput:.3g} utterances/s"
    if not best.is_configured and tuning.configured.load.throughput:
        text += f", {best.load.throughput / tuning.configured.load.throughput:.2f} × as configured"
    if knee is not best:
        text += f"; knee: {tuning.name(knee)}, {knee.load.throughput / best.load.throughput:.0%} of that"
    return text


def report(tuning: Tuning) -> Report:
    """The same for programs: each trial under its point, then the best and the knee."""
    found = Report("tune")
    for one in tuning.trials:
        name = tuning.name(one).replace(" ", ",")
        load.add_figures(found, one.load, f"{name}:")
        found.add(f"{name}:oom_rate", one.oom, "ratio", load.OOM)
        found.add(f"{name}:p99_over_deadline", one.over_deadline, "ratio", load.IN_TIME)
    if tuning.start:
        found.add("start_instances", tuning.start, "")
    for word, which in (("best", tuning.best), ("knee", tuning.knee)):
        if which is not None:
            found.add(f"{word}_throughput", which.load.throughput, "1/s")
            for axis, number in zip(tuning.axes, which.point or (), strict=False):
                found.add(f"{word}_{axis.name}", number, "")
    if tuning.best is not None:
        over = load.ratio(tuning.best.load.throughput, tuning.configured.load.throughput)
        found.add("best_over_configured", over, "ratio")
    return found


def panels(tuning: Tuning) -> list[chart.Panel]:
    """Throughput and latency over the values of the last axis, a line for each point of the others."""
    *others, last = tuning.axes
    lines: dict[str, list[Trial]] = {}
    for one in sorted((t for t in tuning.trials if t.point and not t.refusal), key=lambda t: t.point or ()):
        lines.setdefault(tune_grid.words(others, (one.point or ())[:-1]) or "all", []).append(one)
    chosen = [one for one in (tuning.best, tuning.knee) if one is not None and one.point]

    def panel(y: str, height: Callable[[Trial], float]) -> chart.Panel:
        def at(one: Trial) -> tuple[float, float]:
            return float((one.point or (0,))[-1]), height(one)

        series = {name: [at(one) for one in trials if height(one) == height(one)] for name, trials in lines.items()}
        return chart.Panel(last.name, y, series, marked=[at(one) for one in chosen])

    return [
        panel("utterances/s", lambda one: one.load.throughput),
        panel("p50, s", lambda one: one.load.latency_s(0.5)),
        panel("p99, s", lambda one: one.load.latency_s(0.99)),
    ]


def can_write(args: argparse.Namespace, axes: Sequence[Axis]) -> None:
    """Raise DragomanError when the configuration's text is not one that these knobs can be changed in."""
    if args.write and args.config:
        changes = {field: axis.values[-1] for axis in axes for field in axis.fields}
        tune_file.edited(args.config.read_text(encoding="utf-8"), changes)


def write(args: argparse.Namespace, changes: Mapping[str, tune_grid.Number]) -> None:
    """Write the configuration with these fields changed, or an env file of them. Raises DragomanError."""
    made = tune_file.env_file(changes)
    if args.config:
        made = tune_file.edited(args.config.read_text(encoding="utf-8"), changes)
    written.write(args.write, made.encode(), "--write")
    listed = ", ".join(f"{field} = {number}" for field, number in changes.items()) or "nothing: it was best as it is"
    how = f"{args.config} with" if args.config else "an env file (serve --env-file) with"
    print(f"{args.write}: {how} {listed}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
