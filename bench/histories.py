"""bench histories: does every simulated history end well? (The real cores in virtual time, with deaths and delays.)

Each history is a whole node with its clients from one seed (bench.simulation). A seed whose history does not end well
is printed, and stays as a test. The paths say how often each recovery was needed: one that is never needed is never
tested.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from bench import command
from bench.report import ZERO, Goal, Report, at_least
from bench.simulation import World
from engine.bar import bar

PATHS = (
    "scheduler dies with unended jobs",
    "scheduler dies with unacknowledged ends",
    "scheduler dies with runs on board",
    "a dead scheduler's last words are heard",
    "gateway dies with unacknowledged outcomes",
    "gateway dies with unended utterances",
    "a client resumes",
    "a run is dropped for a new epoch",
    "a free input waits for a deaf reader",
    "a result has no slot before a deaf reader speaks",
    "a run outlasts silence",
    "a load outlasts silence",
    "one sent ahead is overtaken",
    "condemned",
    "a model leaves for another",
    "a further model works",
    "sent twice",
    "Busy",
    "a session is over its outbox",
    "a client leaves that never acknowledged",
    "a connection is lost",
    "closed: taken_over",
    "an index is skipped",
    "an index is missed",
    "closed with indices missing",
    "ended as cancelled",
    "expired in a queue",
    "expired in a run",
    "a stage is left out for a deadline",
    "speech is given up for a deadline",
    "a failure is reported",
    "a batch fails as a whole",
    "ended as failed",
    "ended as poison",
    "poison kills a batch",
    "poison outlives a scheduler",
    "poison outlives a gateway",
    "the node is stopped",
    "a death while the node stops",
    "ended as shutting_down",
)
SHOWN = 20  # failing seeds
EPILOG = """A hundred histories take about a second on one core. From 1,000 on each path must have been taken at least
once; below, a 0 says nothing. "failed" must be 0: the seeds that failed are told on standard error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Play them; returns 1 when one does not end well, else 0."""
    args = parser().parse_args(argv)
    if args.part:
        return play_part(args.seed, args.count)
    paths, failures = play(args.seed, args.count, max(1, args.jobs))
    report = Report("histories")
    report.add("histories", args.count, "")
    report.add("failed", len(failures), "", ZERO)
    for path in PATHS:
        report.add(f"path: {path}", paths[path], "", Goal(at_least=1) if args.count >= 1000 else None)
    for path in sorted(paths.keys() - set(PATHS)):
        report.add(f"path: {path}", paths[path], "")
    for failure in failures[:SHOWN]:
        print(failure, file=sys.stderr)
    report.show(args.json)
    return report.exit_code


def parser() -> argparse.ArgumentParser:
    found = command.parser(
        "histories", __doc__, epilog=EPILOG, done="all ended well",
        wrong="some did not",
    )  # fmt: skip
    found.add_argument(
        "--count", type=at_least(1), default=2000, metavar="N", help="histories (default 2000; nightly 1000000)"
    )
    found.add_argument("--seed", type=int, default=1, metavar="S", help="the first seed (default 1)")
    found.add_argument("--jobs", type=at_least(1), default=1, metavar="J", help="processes that play them (default 1)")
    found.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    found.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    return found


def one(seed: int, *, plain: bool = False) -> tuple[Counter[str], str]:
    """One history: the recoveries it took, and what is wrong with it ("": nothing)."""
    world = World(seed, plain=plain)
    try:
        world.run()
    except Exception as error:  # whatever it is, this seed shows it
        return world.paths, f"seed {seed}: {type(error).__name__}: {error}"
    return world.paths, ""


def play_part(first: int, count: int) -> int:
    """For ``--jobs``: a JSON object a line, of a hundred histories each."""
    for start in range(first, first + count, 100):
        found = [one(seed) for seed in range(start, min(start + 100, first + count))]
        paths = sum((paths for paths, _ in found), Counter())
        print(json.dumps({"count": len(found), "paths": paths, "failures": [f for _, f in found if f]}), flush=True)
    return 0


def play(first: int, count: int, jobs: int) -> tuple[Counter[str], list[str]]:
    """All of them, in ``jobs`` processes."""
    paths: Counter[str] = Counter()
    failures: list[str] = []
    with bar(total=count, desc="histories", unit="history") as shown:
        for told in _told(first, count, jobs):
            paths.update(told["paths"])
            failures += told["failures"]
            shown.update(told["count"])
    return paths, failures


def _told(first: int, count: int, jobs: int) -> Iterator[dict]:
    share = -(-count // jobs)
    starts = range(first, first + count, share)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.histories", "--part", "--seed", str(start),
             "--count", str(min(share, first + count - start))],
            stdout=subprocess.PIPE, text=True,
        )
        for start in starts
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


if __name__ == "__main__":
    sys.exit(main())
