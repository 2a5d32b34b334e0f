"""bench models: memory and load time of models of real size on the CPU, beside what the node estimates.

Models are written first (``models synthesize KIND --shape NAME``), one at a time, and deleted after their run; each is
loaded and run on the longest input in a process of its own. A ratio is estimate over measured peak.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import command
from bench.report import Goal, Report, at_least
from engine.config import Config, NodeSection, StageSection
from engine.supervisor import environment
from engine.supervisor.survey import survey
from ipc.errors import DragomanError
from models import shapes

DONE, WRONG = "done (a ratio that is off its goal is shown)", "something was wrong (which, stands on standard error)"
CLOSE = Goal(at_least=0.85, at_most=1.15)
MB = 1e6


def main(argv: Sequence[str]) -> int:
    args = _arguments(argv)
    report = Report("models")
    for name in args.shape or shapes.SHAPES:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="shape-") as folder:
            print(f"{name}: writing", file=sys.stderr, flush=True)
            kind = shapes.SHAPES[name].kind
            path = written(name, Path(folder) / name)
            print(f"{name}: loading and running", file=sys.stderr, flush=True)
            _add(
                report, name.replace("-", "_").replace(".", "_"), estimated(kind, path, args), weighed(kind, path, args)
            )
    report.show(args.json)
    return report.exit_code


def written(name: str, out: Path) -> Path:
    """The model of this shape. Raises DragomanError when it cannot be written."""
    try:
        return shapes.plan(name).write(out, shapes.silent)
    except ImportError as error:
        raise DragomanError(f"cannot write the shape {name}: {error}", f"pip install {error.name}") from error
    except OSError as error:
        raise DragomanError(f"cannot write to {out}: {error.strerror}", "give another --folder") from error


def estimated(kind: str, model: Path, args: argparse.Namespace) -> int:
    """Bytes the node would ask for on the CPU with the stage's default options, for inputs no longer than measured."""
    limits = {"max_utterance_s": args.audio_s, "max_text_chars": args.chars}
    node = NodeSection(**{name: value for name, value in limits.items() if value})
    config = Config(node=node, stages={kind: StageSection(model=str(model))}, pipelines={"one": (kind,)})
    return survey(config)[kind].estimates["cpu"]


def weighed(kind: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What ``bench.model_run`` says. Raises DragomanError when it ended badly."""
    limits = {"audio_s": args.audio_s, "chars": args.chars, "limit_s": args.limit_s}
    options = {"threads": args.threads} | {name: value for name, value in limits.items() if value}
    command = [sys.executable, "-m", "bench.model_run", kind, str(model), json.dumps(options)]
    environ = environment.USUAL | os.environ  # as a worker's
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environ)
    if done.returncode:
        if done.returncode == -signal.SIGKILL:
            mend = "it may have been for want of memory: give a smaller --shape, or --audio-s or --chars"
            raise DragomanError(f"measuring {model.name} was killed", mend)
        raise DragomanError(f"measuring {model.name} ended with code {done.returncode}", "what it said stands above")
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{model.name}: {found['outcome']}", file=sys.stderr, flush=True)
    return found


def _add(report: Report, name: str, estimate: int, found: dict[str, Any]) -> None:
    report.add(f"{name}_estimate", estimate / MB, "MB")
    report.add(f"{name}_loaded", found["loaded_bytes"] / MB, "MB")
    report.add(f"{name}_peak", found["peak_bytes"] / MB, "MB")
    report.add(f"{name}_peak_private", found["private_bytes"] / MB, "MB")
    report.add(f"{name}_estimate_over_peak", estimate / found["peak_bytes"], "ratio", CLOSE)
    report.add(f"{name}_load", found["load_s"], "s")
    report.add(f"{name}_run", found["run_s"], "s")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = command.parser("models", __doc__, done=DONE, wrong=WRONG)
    add_arguments(parser)
    parser.add_argument("--threads", type=at_least(1), default=2, metavar="N", help="of the model's library (2)")
    parser.add_argument("--limit-s", type=at_least(0.0), metavar="S", help="stop a run after so long (600)")
    return parser.parse_args(argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, where they are written, how long their input is: also of ``bench card``."""
    parser.add_argument(
        "--shape",
        action="append",
        choices=list(shapes.SHAPES),
        metavar="NAME",
        help=f"only this one, of {', '.join(shapes.SHAPES)} (repeatable)",
    )
    parser.add_argument("--folder", type=folder, metavar="DIR", help="where models are written meanwhile (TMPDIR)")
    parser.add_argument("--audio-s", type=at_least(0.1), metavar="S", help="length of the speech (the node's longest)")
    parser.add_argument("--chars", type=at_least(1), metavar="N", help="length of a text (the longest its stage takes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def folder(text: str) -> str:
    if not os.access(text, os.W_OK | os.X_OK) or not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder that can be written to")
    return text
