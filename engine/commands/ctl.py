"""``ctl``: change a running node, one thing at a time, without starting it anew."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from engine.commands import FAILED, OK, asking, finding
from engine.commands.inputs import UsageError

LOOK_S = 0.1
WHAT = {  # verb -> what its target is, what it does
    "restart": ("WORKER|STAGE", "end a worker's process after the batch it runs, and start another"),
    "drain": ("DEVICE", "begin nothing new on a device and take its models off it, when their batches are done"),
    "resume": ("DEVICE", "use a drained device again"),
    "load": ("STAGE", "load a stage's models now, in use or not"),
    "unload": ("STAGE", "give a stage's memory back now, pinned or not; it loads again when it has work"),
    "pin": ("STAGE", "its models never leave for others"),
    "unpin": ("STAGE", "they may, whatever the configuration says"),
    "set": ("KNOB=VALUE", "change a knob within its bounds; a wrong name lists them"),
}
EPILOG = """examples:
  run_node.py ctl restart asr@cuda:1/0
  run_node.py ctl drain cuda:1 --wait 60 && nvidia-smi -i 1 ...; run_node.py ctl resume cuda:1
  run_node.py ctl set stages.asr.max_batch=1

STAGE is a stage, or one of its further models: tts, tts.es. `stats` names workers and devices.

No utterance fails by an order: batches that run are finished, what waits goes to other workers or waits, as long as its
deadline allows. Orders hold until they are undone or the node stops, whichever of its processes dies meanwhile; `stats`
shows them.

--wait waits until it is so: drain and unload until the models are gone and the driver shows their memory back; restart
until the next process is there, with its model where the last one had one; load until the stage's workers have their
models (but extra ones, and those on standby), or have had them, where keep_alive_s is short. The others are done when
they are taken; what resume lets load goes on by itself.

exit codes: 0 taken (with --wait: done), 1 refused, not done in time, or no node; 2 wrong arguments"""


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "ctl",
        help="restart a worker, drain a device, load, pin, change a knob",
        description="Give a running node an order:\n"
        + "\n".join(f"  {verb + ' ' + target:24}{text}" for verb, (target, text) in WHAT.items()),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("order", choices=WHAT, metavar="ORDER", help=", ".join(WHAT))
    parser.add_argument("target", metavar="TARGET", help="what it is about")
    parser.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait so long at most until it is done")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--connect", metavar="CTL", help="the node's ctl endpoint (default: the running node's)")


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.wait < float("inf"):
        raise UsageError(f"--wait is {args.wait:g}", "give seconds from 0")
    if args.order == "set" and (pinned := re.match(r"stages\.(.+)\.pinned\b", args.target)):
        raise UsageError(
            "pinned is no knob, but an order", f"run_node.py ctl pin {pinned[1].replace('.models.', '.')}, or ctl unpin"
        )
    if args.order == "set" and not all(map(str.strip, args.target.partition("="))):
        raise UsageError(f"ctl set {args.target} gives no value", "write ctl set KNOB=VALUE (stages.asr.max_batch=1)")
    endpoint = finding.ctl_endpoint(args.connect)
    before = asking.ask(endpoint, "stats") if args.wait else {}
    answer = asking.ask(endpoint, args.order, target=args.target)
    if not args.json:
        print(words(answer), flush=True)
    pending, after = wait(endpoint, answer, before, args.wait) if args.wait else ([], {})
    if args.json:
        print(json.dumps({**answer, "pending": pending}))
    elif after and not pending and (done := done_words(answer, after)):
        print(done)
    if not pending:
        return OK
    print(f"error: not done after {args.wait:g} s: {', '.join(pending)}; it goes on", file=sys.stderr)
    return FAILED


def words(answer: Mapping[str, Any]) -> str:
    """A taken order as one line."""
    target, workers = answer["target"], ", ".join(answer["workers"]) or "no worker"
    match answer["verb"]:
        case "restart":
            return f"restarting after the batches they run: {workers}"
        case "drain":
            return f"draining {target}: {workers}"
        case "resume" if why := answer.get("lost"):
            return f"{target} is drained no more, but it is lost and grants nothing: {why}"
        case "resume":
            return f"{target} is used again: {workers}"
        case "load":
            return f"loading: {workers}"
        case "unload":
            return f"unloading: {workers}"
        case "pin" | "unpin":
            return f"{answer['verb']}ned: {workers}"
    return f"{target} is {answer['value']}"


def done_words(answer: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    """What has come of an order that was waited for; "": it was done when it was taken."""
    workers = ", ".join(answer["workers"])
    match answer["verb"]:
        case "restart":
            return f"restarted: {workers}"
        case "drain" if answer.get("target") in stats.get("quarantined", ()):
            return f"drained {answer['target']}, which is lost: no worker is there any more"
        case "drain":
            return f"drained {answer['target']}: its models are gone and their memory is back"
        case "load":
            left = ", ".join(role for role in answer["workers"] if role not in loaded(stats))
            return f"loaded: {workers}" + (f"; left again already (keep_alive_s): {left}" if left else "")
        case "unload":
            return f"unloaded, their memory is back: {workers}"
    return ""


def wait(
    endpoint: str, answer: Mapping[str, Any], before: Mapping[str, Any], limit_s: float
) -> tuple[list[str], dict[str, Any]]:
    """Workers that have not done what they were ordered to after so long, and the statistics that say so.

    ``before``: the statistics from before the order.
    """
    until = time.monotonic() + limit_s
    while (pending := undone(stats := asking.ask(endpoint, "stats"), answer, before)) and time.monotonic() < until:
        time.sleep(LOOK_S)
    return pending, stats


def undone(stats: Mapping[str, Any], answer: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Workers that, by the node's statistics, have not done yet what this order wants of them."""
    waited = set(stats["operators"]["pending"])
    match answer["verb"]:
        case "load":
            waited = set(answer["workers"]) - loaded(stats) - left(stats, before)
        case "restart":
            waited |= loaded(before) - loaded(stats)
        case "drain" if answer.get("target") in stats.get(
            "quarantined", ()
        ):  # the dead do not go, nor does their memory
            waited = set(lives(stats))
        case "drain":
            waited |= {role for role, _ in leases(stats)}
        case "unload":  # its next life may have loaded again by now
            now = lives(stats)
            waited |= {role for role, life in leases(stats) if life != now.get(role)}
    return [role for role in answer["workers"] if role in waited]


def left(stats: Mapping[str, Any], before: Mapping[str, Any]) -> frozenset[str]:
    """Workers that have had their model since and left, as one with a short ``keep_alive_s`` does: another life has
    come, and what was before did not die."""
    had, died = lives(before), {(row["role"], row["incarnation"]) for row in stats["deaths"]}
    return frozenset(r for r, life in lives(stats).items() if 0 < had.get(r, 0) < life and (r, life - 1) not in died)


def lives(stats: Mapping[str, Any]) -> dict[str, int]:
    """The present life of each process."""
    return {row["role"]: row["incarnation"] for row in stats["processes"]}


def loaded(stats: Mapping[str, Any]) -> frozenset[str]:
    """Workers that have their model."""
    return frozenset(row["role"] for row in stats["processes"] if row["phase"].startswith("loaded"))


def leases(stats: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Holder and its life of each lease that the arbiter shows, those too whose memory is on its way back."""
    for lease in stats["leases"]:
        role, _, life = lease["worker"].rpartition("#")
        yield role, int(life)
