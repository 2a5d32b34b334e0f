"""The options of ``bench simulate`` and ``bench plan``: what is to be simulated, checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bench.capacity_day import Day
from bench.capacity_times import Speech, parse_times

USAGE = 2


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help says what there is)", file=sys.stderr)
        raise SystemExit(USAGE)


def add(parser: argparse.ArgumentParser, day: Day) -> None:
    """All of them; ``day`` gives the defaults."""
    spoken = parser.add_mutually_exclusive_group()
    for name, kind, letter, what in (
        ("--gpus", whole(1, 64), "N", "GPUs; each has one worker of every stage"),
        ("--sessions", whole(1, 100_000), "N", "sessions, all open at once"),
        ("--hours", number(0.01, 24 * 31), "H", "virtual hours in which they speak"),
        ("--utterance", number(0.1, 30), "S", "mean length of an utterance in seconds"),
        ("--spread", number(0, 1), "X", "sigma of its logarithm (lengths are log-normal); 0: all are alike"),
        ("--batch", whole(1, 64), "N", "utterances in one run at most"),
        (
            "--factor",
            number(0, 1),
            "X",
            "what each further utterance of a run adds, as a share of the first one's time",
        ),
        ("--send-ahead", whole(0, 8), "N", "as node.send_ahead"),
        ("--mtbf", number(0, 1e6), "H", "mean hours between two deaths of one worker; 0: none die"),
        ("--gpu-mtbf", number(0, 1e6), "H", "mean hours between two failures of one GPU; 0: none fail"),
        ("--gpu-away", number(1, 86_400), "S", "seconds until a GPU that has failed is back"),
        ("--seed", whole(0, 2**63), "S", "of everything random"),
    ):
        default = _default(day, name)
        parser.add_argument(name, type=kind, metavar=letter, default=default, help=f"{what} (default {default:g})")
    load = "follows from --pause" if day.load is None else f"{day.load:g}"
    pause = "follows from --load" if day.load is not None else f"{day.pause_s:g}"
    spoken.add_argument(
        "--load", type=number(0.01, 2), metavar="X",
        help=f"how much is spoken, as a share of what full batches of the slowest stage can do (default: {load})",
    )  # fmt: skip
    spoken.add_argument(
        "--pause", type=number(0, 86_400), metavar="S",
        help=f"mean pause in seconds between two utterances of a session (default: {pause})",
    )  # fmt: skip
    parser.add_argument(
        "--times", type=_times, metavar="STAGE=S,...", default=dict(day.times),
        help="seconds that a stage takes for one utterance, asr=3, or base+per second of audio, asr=1.5+0.3 "
        "(default: the seed's 3, 0.5, 3, 0.5 s for 5 s of audio, half of it fixed, half with the length)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def day_of(parser: argparse.ArgumentParser, args: argparse.Namespace, usual: Day) -> Day:
    """What was asked for; ends the process with a line when that cannot be."""
    load = args.load if args.load is not None or args.pause is not None else usual.load
    try:
        return Day(
            gpus=args.gpus, sessions=args.sessions, hours=args.hours, load=load,
            pause_s=usual.pause_s if args.pause is None else args.pause,
            speech=Speech(args.utterance, args.spread), times=args.times, batch=args.batch, factor=args.factor,
            send_ahead=args.send_ahead, worker_mtbf_h=args.mtbf, gpu_mtbf_h=args.gpu_mtbf, gpu_away_s=args.gpu_away,
            seed=args.seed,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))


def whole(low: int, high: int) -> Callable[[str], int]:
    """For argparse: a whole number within these bounds."""
    return _bounded(int, "a whole number", low, high)


def number(low: float, high: float) -> Callable[[str], float]:
    """For argparse: a number within these bounds."""
    return _bounded(float, "a number", low, high)


def _bounded(kind: Callable[[str], Any], what: str, low: float, high: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low:g} to {high:g}")
        return value

    return parse


def _times(text: str) -> Any:
    try:
        return parse_times(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _default(day: Day, name: str) -> float:
    found: dict[str, float] = {
        "--utterance": day.speech.mean_s, "--spread": day.speech.sigma, "--mtbf": day.worker_mtbf_h,
        "--gpu-mtbf": day.gpu_mtbf_h, "--gpu-away": day.gpu_away_s,
    }  # fmt: skip
    return found[name] if name in found else getattr(day, name[2:].replace("-", "_"))
