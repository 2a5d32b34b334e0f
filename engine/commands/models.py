"""``models``: what a configuration names; clockwork models; the demo models, scored and made."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from engine.choices import spread
from engine.commands import FAILED, OK, choosing
from engine.commands.inputs import UsageError
from engine.commands.tables import nbytes, table
from engine.config import Config, StageSection
from ipc.errors import DragomanError


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "models",
        help="list models, score the demo models, or make models",
        description="List the models of a configuration; score the demo models; train them anew; or write clockwork\n"
        "models: real file formats, hand-set weights, fixed words, no training.",
        epilog="examples:\n  run_node.py models list --config node.toml\n"
        "  run_node.py models evaluate models/demo --json\n"
        "  run_node.py models synthesize asr --out models/asr\n"
        "\nexit codes: 0 ok, 1 a required model is missing, scores too low or could not be made, 2 usage,\n"
        "78 configuration",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="list | evaluate | synthesize | make-demo")
    listing = what.add_parser(
        "list",
        help="the models the configuration names: size, languages, what is missing",
        description="A row for each stage's model, as far as its files tell; nothing is loaded.",
        epilog="examples:\n  run_node.py models list\n  run_node.py models list --config node.toml\n"
        "\nexit codes: 0 every required model is there, 1 one is missing, 2 usage, 78 configuration",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choosing.add_config(listing)
    scoring = what.add_parser(
        "evaluate",
        help="score the demo models on data they have never seen",
        description="Make test sentences and speech on the spot, from combinations and voices that were kept out of\n"
        "training, send them through a private node, and score what comes back. Two minutes on two cores.",
        epilog="examples:\n  run_node.py models evaluate\n  run_node.py models evaluate models/demo --json --count 10\n"
        "\nexit codes: 0 every aim is reached, 1 one is not, 2 usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scoring.add_argument("folder", nargs="?", default="", metavar="DIR", help="the models (default: the ones shipped)")
    scoring.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    scoring.add_argument("--count", type=int, default=100, metavar="N", help="utterances for each score (default 100)")
    scoring.add_argument("--seed", type=int, default=1, help="of the test data (default 1)")
    scoring.add_argument("--recordings", metavar="DIR", help="score nothing; say what the recogniser hears in these")
    scoring.add_argument("--source", default="en", metavar="LANG", help="their language, or auto (default en)")
    training = what.add_parser(
        "make-demo",
        help="train the demo models anew",
        description="Train the demo models from the phrase book and espeak-ng alone; needs torch (extra 'train').\n"
        "It took an hour on two cores.",
        epilog="examples:\n  run_node.py models make-demo --out /tmp/demo\n"
        "  run_node.py models make-demo --out /tmp/demo --only tts\n"
        "\nexit codes: 0 written, 1 it could not be made, 2 usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_argument("--out", required=True, metavar="DIR", help="where to write them")
    training.add_argument("--only", action="append", default=[], choices=["asr", "nmt", "repair", "tts", "clips"],
                          help="only this one (more than once: these)")  # fmt: skip
    training.add_argument("--seed", type=int, default=1, help="of the training (default 1)")
    training.add_argument("--threads", type=int, default=0, help="of torch (default: every core)")
    training.add_argument("--force", action="store_true", help="write even over what is there")
    training.add_argument("--quick", action="store_true", help="a few steps only: files that load and can do nothing")
    making = what.add_parser(
        "synthesize",
        help="write a clockwork model, or one of real size",
        description="Write a clockwork model: the real file format, hand-set weights, fixed words. With --shape a\n"
        "model of a published one's architecture and size whose weights mean nothing, to measure memory and load time.",
        epilog="examples:\n  run_node.py models synthesize asr --out models/asr\n"
        "  run_node.py models synthesize repair --out models/repair.gguf\n"
        "  run_node.py models synthesize asr --shape whisper-small --out /tmp/small --json\n"
        "\nexit codes: 0 written, 1 it could not be written (no room on the disk), 2 usage, or DIR holds something\n"
        "already",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    making.add_argument("kind", help="asr | asr-tones | nmt | repair | tts")
    making.add_argument("--out", required=True, metavar="DIR", help="where to write it: a new or empty folder")
    making.add_argument(
        "--shape",
        metavar="NAME",
        help="whisper-large-v3 | whisper-small | m2m100-418m | m2m100-418m-int8 | qwen2.5-3b | piper-medium",
    )
    making.add_argument("--force", action="store_true", help="write even over what is there")
    making.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "evaluate": _evaluate, "synthesize": _synthesize, "make-demo": _make_demo}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    config, words = choosing.config(args)
    print(words)
    rows, ok = inventory(config)
    print(table(["stage", "kind", "model", "size", "languages", "state"], rows))
    return OK if ok else FAILED


def inventory(config: Config) -> tuple[list[list[Any]], bool]:
    """A row per stage and further model, and whether every required model can be used as far as its files tell."""
    rows, ok = [], True
    for name, section in spread(config).stages.items():
        row, usable = _facts(name, section)
        rows.append(row)
        ok = ok and (usable or not section.required)
    return rows, ok


def _facts(name: str, section: StageSection) -> tuple[list[Any], bool]:
    import stages
    from stages.base import StageError

    kind = section.kind or name
    try:
        facts = stages.find(kind).describe(section.model, section.options)
    except StageError as error:
        return [name, kind, section.model, None, None, error.text], False
    except (ImportError, KeyError) as error:
        return [name, kind, section.model, None, None, str(error.args[0] if error.args else error)], False
    known = section.languages or facts.languages
    languages = "any" if known is None else " ".join(sorted(known))
    languages += f" to {' '.join(sorted(facts.targets))}" if facts.targets else ""
    if section.model and not Path(section.model).expanduser().exists():
        return [name, kind, section.model, None, None, "a name: its library fetches it when the node starts"], True
    return [name, kind, section.model, nbytes(facts.weights_bytes), languages, "there"], True


def _evaluate(args: argparse.Namespace) -> int:
    from engine import embedded
    from engine.commands import evaluating, translate

    if args.count < 1:
        raise UsageError(f"--count {args.count} scores nothing", "give at least 1")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} is negative", "give a whole number from 0 on")
    folder, say = Path(args.folder) if args.folder else embedded.DEMO, translate.speaker(args.json)
    if args.recordings:
        report = evaluating.recordings(folder, Path(args.recordings), args.source, say)
    else:
        report = evaluating.evaluate(folder, args.count, args.seed, say)
    report.show(args.json)
    return report.exit_code


def _make_demo(args: argparse.Namespace) -> int:
    from engine.commands import training

    out = Path(args.out)
    if not args.force and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"{out} holds something already", "give a new folder, or --force to write over it")
    if args.seed < 0 or args.threads < 0:
        raise UsageError("--seed and --threads cannot be negative", "give whole numbers from 0 on")
    print(training.make(Path(args.out), args.only, args.seed, args.threads, args.quick))
    return OK


def _synthesize(args: argparse.Namespace) -> int:
    from engine.commands import shaping
    from models import clockwork

    if args.kind not in clockwork.KINDS:
        raise UsageError(f"there is no clockwork model {args.kind!r}", f"use one of: {', '.join(clockwork.KINDS)}")
    out = Path(args.out)
    if not args.force and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"{out} holds something already", "give a new folder, or --force to write over it")
    made = shaping.make(args.kind, args.shape, out) if args.shape else _clockwork(args.kind, out)
    if args.json:
        print(json.dumps(made, ensure_ascii=False))
        return OK
    stage = args.kind.partition("-")[0]
    article = "an" if stage[0] in "aeio" else "a"
    print(f"{made['path']}  ({nbytes(made['bytes'])}); use it as the model of {article} {stage} stage")
    return OK


def _clockwork(kind: str, out: Path) -> dict[str, Any]:
    from engine.commands import shaping
    from models import clockwork

    begun = time.monotonic()
    try:
        with shaping.whole(out):
            path = clockwork.synthesize(kind, out)
    except ImportError as error:
        raise DragomanError(f"cannot make a {kind} model: {error}", f"pip install {error.name}") from error
    seconds = round(time.monotonic() - begun, 2)
    return {"kind": kind, "path": str(path), "bytes": _size(path), "seconds": seconds}


def _size(path: Path) -> int:
    from stages.base import weights_bytes

    return weights_bytes(str(path))
