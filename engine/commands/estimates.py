"""``estimates``: what was measured of models' memory, and what the next start asks for because of it."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from engine import corrections, corrections_file
from engine.commands import OK, choosing
from engine.commands.tables import nbytes, table
from engine.corrections import Context, History
from ipc.errors import DragomanError

EPILOG = """examples:
  run_node.py estimates
  run_node.py estimates --json | jq '.models[].estimate_bytes'
  run_node.py estimates --forget asr
  run_node.py estimates --forget 'asr@NVIDIA L4'
  run_node.py estimates --forget all

A node measures what each model takes when it has loaded, and the most that it takes in runs; its next start asks for
that. stages.NAME.estimate_bytes goes before it, devices.estimates_file says where it is kept.

exit codes: 0 shown or forgotten, 1 nothing is known by that name, or the file cannot be written, 78 configuration"""


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "estimates",
        help="what models were measured to take",
        description="Show, or forget, what nodes have measured of their models' memory on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choosing.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--forget", metavar="WHAT", help="forget what was measured of this stage, on "
                        "any kind of device or on one (STAGE@DEVICE), of one line (KEY@DEVICE), or all")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    config, _ = choosing.config(args)
    file = corrections_file.place(config.devices.estimates_file, os.environ)
    if file is None:
        raise DragomanError('devices.estimates_file is "off": nothing is kept', "give it a file")
    forgotten = _forget(file, args.forget) if args.forget else 0
    history = corrections_file.read(file)
    if args.json:
        rows = corrections.rows(history)
        told = {"models": rows, "contexts": corrections.context_rows(history)}
        print(json.dumps({"file": str(file), "version": history.version, "forgotten": forgotten, **told}))
    elif args.forget:
        print(f"forgot {forgotten} model{'s' if forgotten != 1 else ''}; the next start asks for what the files say")
    else:
        print(page(file, history))
    return OK


def _forget(file: Path, name: str) -> int:
    """How many records were forgotten. Raises DragomanError when there is none by that name."""
    known = corrections_file.read(file)
    if not known.forget(name)[1]:
        there = ", ".join(sorted({record.subject.names[1] for record in known.models.values()}))
        raise DragomanError(f"nothing was measured of {name!r}", f"there is {there}" if there else "there is nothing")
    forgotten = 0

    def forget(history: History) -> History:
        nonlocal forgotten
        history, forgotten = history.forget(name)
        return history

    try:
        corrections_file.change(file, forget)
    except OSError as error:
        raise DragomanError(f"cannot write {file}: {error.strerror}", "look at who owns it") from error
    return forgotten


def page(file: Path, history: History) -> str:
    """The history as text."""
    if not history.models:
        return f"nothing was measured yet ({file})"
    head = ["stage", "device", "asks for", "files say", "loads", "last measured", "when", "model", "key"]
    models = table(head, [_row(row) for row in corrections.rows(history)])
    contexts = [[one.library or "none", one.device, nbytes(max(one.nbytes)), one.loads] for one in _contexts(history)]
    around = table(["library", "device", "takes besides its models", "loads"], contexts)
    return f"{models}\n\n{around}\n\nkept in {file}" if contexts else f"{models}\n\nkept in {file}"


def _contexts(history: History) -> list[Context]:
    return [one for _, one in sorted(history.contexts.items())]


def _row(row: Any) -> list[Any]:
    loads = [one for one in row["samples"] if one["phase"] == "load"]
    last = loads[-1] if loads else None
    measured = f"{nbytes(last['nbytes'])}{_doubt(last)}" if last else None
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["at"])) if last else None
    return [
        row["stage"], row["device"], nbytes(row["estimate_bytes"]), nbytes(row["guess_bytes"]), row["loads"], measured,
        when, row["model"] or row["kind"], row["key"].partition("@")[0],
    ]  # fmt: skip


def _doubt(sample: Any) -> str:
    """Why a load's measurement cannot lower an estimate, in a word."""
    return "" if sample["proven"] else " (noisy)" if sample["note"] else " (to be confirmed)"
