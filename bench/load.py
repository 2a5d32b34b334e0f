"""bench load: many speakers at once: how many get an answer, how soon, and what more there is to one alone?

First one user alone, then ``--users`` at once (``bench.load_users``), for ``--seconds`` each, at a running node
(``--connect``) or at one of the benchmark's own: the embedded demo models, those of ``--config``, or simulated stages
(``--simulated``: 30, 5, 30 and 5 ms). They say the files given, the demo's clips to demo models, else tones of a few
seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench import chart, command, workloads
from bench.drive import newest
from bench.load_users import PACES, Crowd, Ended, Load, Speech, quantile
from bench.report import ZERO, Goal, Report, at_least, figure
from engine import ctl, embedded, held_up, media
from engine.bar import bar
from engine.client import Client, NodeGone, Rejected
from engine.config import Config, DeadlinesSection
from engine.loading import wait_for_all
from ipc.errors import DragomanError, UsageError

LEAST_OK, MOST_OOM = 0.95, 0.05  # of all utterances
SUCCESS = Goal(at_least=LEAST_OK)
OOM = Goal(at_most=MOST_OOM)
IN_TIME = Goal(at_most=1)
EXPIRED = 1.01  # times its deadline, at least
SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
TONES_S = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
ALL_LOADED_S = 60.0  # how long a node may take from ready to all workers loaded
SLOW_S = 3.0  # nothing has ended for so long: it is said why, where the node's statistics tell
BAR = "{desc}: {n_fmt}/{total_fmt} s |{bar:20}|{postfix}"
BARS = 40  # most stretches of time that the picture counts outcomes in
EPILOG = """examples:
  run_node.py bench load --users 20 --seconds 60                    the embedded models
  run_node.py bench load --connect ipc://... --users 20 talk.mp3    a running node
  run_node.py bench load --simulated --users 8 --plot load.png

At the pace asap each user says the next when the last one's outcome is here; at the pace speech when it would have been
spoken, whatever is still on its way. docs/operations.md explains the figures.

Ctrl-C, or a node that ends, cuts it short: all sessions are closed, and what was measured until then is shown."""


@dataclass(frozen=True)
class Place:
    """The node that is measured. ``stats`` None: its operators' socket is not known."""

    endpoint: str
    limits: Mapping[str, Any]
    stats: Callable[[], Mapping[str, Any]] | None = None
    deadlines: DeadlinesSection | None = None  # None: not known


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 when an outcome was lost or out of order, else 0. Raises UsageError."""
    args = parser().parse_args(argv)
    chart.check(args.plot)
    loads: dict[int, Load] = {}
    cut: BaseException | None = None
    with place(args) as (node, speeches):
        before = oom_errors(node)
        try:
            for users in dict.fromkeys((*(() if args.no_alone else (1,)), args.users)):
                press(node, speeches, users, args.seconds, args.pace, args.pipeline, into=loads)
        except (KeyboardInterrupt, DragomanError) as error:
            cut = error
        oom = oom_errors(node) - before
    if cut is not None:
        loads = {users: load for users, load in loads.items() if load.ended or load.lost}
        if loads or not isinstance(cut, DragomanError):  # which says itself why nothing was measured
            said = command.cut_short("what was measured until then follows" if loads else "nothing has been measured")
            cut = cut if isinstance(cut, DragomanError) else said
        if not loads:
            raise cut
    report = summary(loads, oom, node.deadlines)
    report.show(args.json)
    sys.stdout.flush()
    if args.plot:  # last: who cannot draw it has the figures
        chart.draw(panels(loads), args.plot, f"{max(loads)} users at once, {args.seconds:g} s, pace {args.pace}")
    if cut is not None:
        raise cut
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "load", (__doc__ or "").partition("\n")[0], epilog=EPILOG, done=command.LENIENT,
        wrong="an outcome was lost or out of order, no node, or no picture can be written",
        cut="what was measured until then is shown",
    )  # fmt: skip
    found.add_argument("--users", type=at_least(1), default=20, metavar="N", help="at once (default 20)")
    found.add_argument("--no-alone", action="store_true", help="leave out the one user who comes first")
    add_load(found, 30.0)
    which = found.add_mutually_exclusive_group()
    which.add_argument("--connect", metavar="E", help="measure the node at this client endpoint")
    add_node(which)
    return found


def add_load(parser: argparse.ArgumentParser, seconds: float) -> None:
    """The options that say what the users say, and how."""
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO", help="sound files of any codec, or folders of them, said in turn"
    )
    parser.add_argument("--seconds", type=at_least(0.1), default=seconds, metavar="S",
                        help=f"of each load (default {seconds:g})")  # fmt: skip
    parser.add_argument("--pace", choices=PACES, default="asap", help="when a user says the next (default asap)")
    parser.add_argument("--pipeline", default="full", metavar="NAME", help="default: full")
    parser.add_argument("--source", metavar="LANG", help="language of AUDIO (default: en, where the node takes that)")
    parser.add_argument("--target", metavar="LANG", help="language wanted (default: de, likewise)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what was measured")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def add_node(which: argparse._ActionsContainer) -> None:
    """The options that choose a node of the benchmark's own."""
    which.add_argument("--config", type=Path, metavar="F", help="a node with this configuration")
    which.add_argument("--simulated", action="store_true", help="a node of simulated stages")


# ---------------------------------------------------------------- where, and what is said


@contextmanager
def place(args: argparse.Namespace) -> Iterator[tuple[Place, list[list[Speech]]]]:
    """The node that the arguments name, and what users say to it: a list for each pair of languages."""
    if args.connect is not None:
        if not args.connect:
            raise UsageError("--connect names no endpoint", "give one, as in ipc:///…/client (serve prints its own)")
        with reached(args.connect) as client:
            limits = dict(client.limits)
        yield Place(args.connect, limits, operators(args.connect)), spoken(args, limits)
        return
    config = chosen(args)
    check_users(args.users, config)
    sounds = read(args.audio, config.node.max_utterance_s)
    with started(config) as node:
        yield node, spoken(args, node.limits, sounds)


def check_users(users: int, config: Config) -> None:
    """Raise UsageError for more users than this node takes, a session each."""
    if users > (most := config.node.max_sessions):
        raise UsageError(f"--users {users}: the node takes {most} sessions", f"give {most} at most, or raise "
                         "node.max_sessions in the --config")  # fmt: skip


@contextmanager
def reached(endpoint: str) -> Iterator[Client]:
    """A client of the node there. Raises DragomanError when there is none."""
    client = Client(endpoint)
    try:
        client.start()
    except NodeGone as error:
        raise DragomanError(f"--connect: {error.text}", error.mend or "start a node: run_node.py serve") from error
    with client:
        yield client


@contextmanager
def started(config: Config) -> Iterator[Place]:
    """A node of the benchmark's own, all its workers loaded."""
    from engine.node import Node

    with Node(config) as node:
        with node.client() as client:
            limits = dict(client.limits)
        wait_for_all(node.stats, ALL_LOADED_S)
        yield Place(node.endpoint, limits, node.stats, config.deadlines)


def chosen(args: argparse.Namespace) -> Config:
    """The configuration of a node of the benchmark's own."""
    from engine import config_file

    if args.simulated:
        return workloads.translation()
    if args.config:
        return workloads.unkept(config_file.load(args.config, os.environ))
    config = config_file.load(None, os.environ, base=embedded.config())
    embedded.check(config)
    return config


def operators(endpoint: str) -> Callable[[], Mapping[str, Any]] | None:
    """What asks the node at a client endpoint for its statistics, where the endpoint tells its operators' socket."""
    if not (endpoint.startswith("ipc://") and endpoint.endswith("/client")):
        return None
    return lambda: ctl.ask(endpoint.removesuffix("/client") + "/ctl", "stats")


def read(given: Sequence[str], max_s: float) -> list[np.ndarray]:
    """The sound of files, and of what is sound in folders: int16, shape (n,), 16 kHz each. Raises UsageError."""
    sounds = []
    for path in map(Path, given):
        if path.is_dir():
            sounds += read_folder(path, max_s)
        elif path.is_file():
            sounds.append(read_file(path, max_s))
        else:
            raise UsageError(f"there is no file or folder {path}", "give sound files, or folders of them")
    return sounds


def read_file(path: Path, max_s: float) -> np.ndarray:
    """The sound of one file. Raises UsageError."""
    try:
        return media.read(path, max_s).samples
    except media.MediaError as error:
        raise UsageError(error.text, error.mend) from error


def read_folder(folder: Path, max_s: float) -> list[np.ndarray]:
    """What is sound in a folder and below it, by name. Raises UsageError when nothing is."""
    sounds = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with suppress(UsageError):
                sounds.append(read_file(path, max_s))
    if not sounds:
        raise UsageError(f"nothing in {folder} is sound of at most {max_s:g} s", "give sound files, or folders of them")
    return sounds


def spoken(
    args: argparse.Namespace, limits: Mapping[str, Any], sounds: Sequence[np.ndarray] | None = None
) -> list[list[Speech]]:
    """What users say: a list for each pair of languages. ``sounds``: the files', where they have been read already."""
    if args.pipeline not in limits["pipelines"]:
        there = ", ".join(limits["pipelines"])
        raise UsageError(f"the node has no pipeline {args.pipeline!r}", f"it has {there}")
    if sounds is None:
        sounds = read(args.audio, limits["max_utterance_s"])
    if not sounds and any(map(embedded.is_demo, limits.get("models", {}).values())):
        return clips(args, limits.get("targets", {}).get(args.pipeline, ()))
    source = language(args.source, "en", limits["sources"].get(args.pipeline, ()))
    target = language(args.target, "de", limits["targets"].get(args.pipeline, ()))
    if not sounds:
        if any(limits.get("models", {}).values()):  # simulated stages have none
            print("no AUDIO given: users say tones, in which real models hear nothing", file=sys.stderr)
        sounds = [workloads.tone(seconds) for seconds in TONES_S]
    return [[Speech(samples, source, target) for samples in sounds]]


def language(wanted: str | None, usual: str, known: Sequence[str]) -> str:
    """The language to ask for; ``known``: those the node takes, none: it does not say."""
    if wanted is not None or not known:
        return wanted or ""
    return usual if usual in known else known[0]


def clips(args: argparse.Namespace, targets: Sequence[str] = ()) -> list[list[Speech]]:
    """The demo's spoken sentences, by their languages, of those that are asked for. Raises DragomanError.

    ``targets``: languages that the node translates into; none: it does not say.
    """
    path = embedded.DEMO / "clips" / "clips.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DragomanError(f"cannot read {path}: {error}", embedded.RESTORE) from error
    found: dict[tuple[str, str], list[Speech]] = {}
    for clip in entries:
        pair = args.source or clip["source"], args.target or clip["target"]
        if pair[0] == clip["source"] and pair[0] != pair[1]:
            samples = media.read(path.parent / clip["file"], media.LONGEST_S).samples
            found.setdefault(pair, []).append(Speech(samples, *pair))
    if not found:
        sources = dict.fromkeys(clip["source"] for clip in entries)
        pairs = [(a, b) for a in sources for b in targets if a != b] or [(c["source"], c["target"]) for c in entries]
        there = f"there are {', '.join('→'.join(pair) for pair in dict.fromkeys(pairs))}"
        if args.source in sources:
            raise UsageError(f"--target {args.target} is what is spoken: it is not translated into itself", there)
        raise UsageError(f"no clip of the demo is spoken in {args.source!r}", f"give AUDIO, or another: {there}")
    return list(found.values())


# ---------------------------------------------------------------- one load


def press(
    node: Place, speeches: Sequence[Sequence[Speech]], users: int, seconds: float, pace: str, pipeline: str,
    what: str = "", into: dict[int, Load] | None = None,
) -> Load:  # fmt: skip
    """So many users for so long. Raises what the first of them that cannot go on raises; UsageError when refused.

    ``into``: is given what was measured under the number of users, also where this raises.
    """
    crowd = Crowd(node.endpoint, speeches, users, seconds, pace, pipeline)
    what = f"{what}{users} user{'s' if users > 1 else ''}"
    silence = Silence(node.stats)
    try:
        crowd.start()
        with bar(total=round(seconds), desc=what, bar_format=BAR) as shown:
            while not crowd.join():
                show(shown, crowd)
                for line in silence.look(len(crowd.load().ended), crowd.elapsed_s):
                    shown.write(line, file=sys.stderr)
    except Rejected as error:
        raise UsageError(f"the node refuses these users: {error.text}", error.mend) from error
    finally:
        crowd.stop()
        if into is not None:
            into[users] = crowd.load()
    return crowd.load()


def show(shown: tqdm, crowd: Crowd) -> None:
    """How far a load is, and what it has come to."""
    if not crowd.begun:
        shown.set_postfix_str(f"{crowd.seated} have a session")
        return
    load = crowd.load()
    shown.update(min(round(crowd.elapsed_s), shown.total) - shown.n)
    shown.set_postfix_str(
        f"{len(load.ended)} utterances, {load.throughput:.3g}/s, p50 {figure(load.latency_s(0.5), '.3g')} s, "
        f"p99 {figure(load.latency_s(0.99), '.3g')} s, {len(load.ended) - len(load.ok)} not ok"
    )


class Silence:
    """Says why nothing of a load ends, where the node's statistics tell, each reason once, whatever its figures."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]] | None) -> None:
        self._stats = stats
        self._told: set[str] = set()
        self._ended, self._since = -1, 0.0

    def look(self, ended: int, now: float) -> Iterator[str]:
        """The lines to say, when no more have ended for SLOW_S. ``ended``: how many have; ``now``: seconds."""
        if ended != self._ended:
            self._ended, self._since = ended, now
        if self._stats is None or now - self._since < SLOW_S:
            return
        with suppress(DragomanError):  # it may be gone: its users say so
            for line in held_up.lines(self._stats()):
                reason = "".join(sign for sign in line if not sign.isdigit())
                if reason not in self._told:
                    self._told.add(reason)
                    yield line


def oom_errors(node: Place) -> float:
    """Loads, warm-ups and runs of the node that ran out of memory; NaN when it does not say."""
    try:
        return float(newest(node.stats, "scheduler")["oom_errors"]) if node.stats else float("nan")
    except DragomanError:
        return float("nan")


def deadline_s(deadlines: DeadlinesSection, audio_s: float) -> float:
    """The time an utterance may take, by the node's configuration."""
    return min(deadlines.budget_base_s + deadlines.budget_per_audio * audio_s, deadlines.budget_max_s)


def over_deadline(load: Load, deadlines: DeadlinesSection) -> float:
    """99 % of all that ended, however it did, took no more than so many times its deadline."""
    return quantile([_over(one, deadline_s(deadlines, one.audio_s)) for one in load.ended], 0.99)


def _over(one: Ended, deadline_s: float) -> float:
    """What expired was late, also where the node saw that beforehand and gave it up."""
    taken = one.latency_s / deadline_s
    return max(taken, EXPIRED) if one.code == "expired" else taken


# ---------------------------------------------------------------- the report


def summary(loads: Mapping[int, Load], oom: float, deadlines: DeadlinesSection | None) -> Report:
    """The metrics of the largest load, and against one user alone where both were measured."""
    report = Report("load")
    full = loads[max(loads)]
    report.add("users", full.users, "")
    add_figures(report, full, "")
    if deadlines is not None:
        report.add("p99_over_deadline", over_deadline(full, deadlines), "ratio", IN_TIME)
    if oom == oom:
        report.add("oom_rate", oom / max(1, sum(len(load.ended) for load in loads.values())), "ratio", OOM)
    for end, count in sorted(full.ends.items()):
        report.add(f"ended_{end}", count, "utterances")
    if len(loads) > 1:
        alone = loads[min(loads)]
        add_figures(report, alone, "alone_")
        report.add("throughput_over_alone", ratio(full.throughput, alone.throughput), "ratio")
        report.add("p50_over_alone", ratio(full.latency_s(0.5), alone.latency_s(0.5)), "ratio")
    report.add("lost", sum(load.lost for load in loads.values()), "utterances", ZERO)
    report.add("reordered", sum(load.reordered for load in loads.values()), "outcomes", ZERO)
    return report


def add_figures(report: Report, load: Load, prefix: str) -> None:
    report.add(f"{prefix}utterances", len(load.ended), "utterances")
    report.add(f"{prefix}success_rate", load.success_rate, "ratio", SUCCESS)
    report.add(f"{prefix}latency_mean", load.mean_s, "s")
    for name, share in SHARES.items():
        report.add(f"{prefix}latency_{name}", load.latency_s(share), "s")
    report.add(f"{prefix}throughput", load.throughput, "1/s")
    report.add(f"{prefix}audio_throughput", load.audio_throughput, "s/s")
    report.add(f"{prefix}busy", load.refused, "refusals")


def ratio(over: float, under: float) -> float:
    return over / under if under else float("nan")


def panels(loads: Mapping[int, Load]) -> list[chart.Panel]:
    """Throughput and latency over time, and how the latencies are spread, a line for each load."""
    named = {f"{users} user{'s' if users > 1 else ''}": load for users, load in loads.items()}
    return [
        chart.Panel("seconds", "utterances/s", {name: rates(load) for name, load in named.items()}),
        chart.Panel(
            "seconds", "latency, s",
            {name: [(one.ended_s, one.latency_s) for one in load.ok] for name, load in named.items()}, dots=True,
        ),
        chart.Panel("latency, s", "share that took no longer", {name: spread(load) for name, load in named.items()}),
    ]  # fmt: skip


def rates(load: Load) -> chart.Points:
    """Utterances a second in stretches of the time that hold some ten each, at their middles."""
    if not load.ok:
        return []
    bars = min(BARS, max(1, len(load.ok) // 10))
    counts, edges = np.histogram([one.ended_s for one in load.ok], bars, (0.0, load.seconds))
    width = float(edges[1])
    return [(float(edge) + width / 2, float(count) / width) for count, edge in zip(counts, edges, strict=False)]


def spread(load: Load) -> chart.Points:
    """Latency -> the share of utterances that took no longer."""
    found = sorted(one.latency_s for one in load.ok)
    return [(latency, (number + 1) / len(found)) for number, latency in enumerate(found)]


if __name__ == "__main__":
    sys.exit(main())
