"""``lease``: run any program under a lease of the node's arbiter, so that it and the node share a device's memory."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.commands import asking, finding
from engine.commands.inputs import UsageError
from engine.commands.waiting import Waiting, reason_of
from engine.config_env import LEASE_BYTES
from engine.leasing import WAIT_S, Lease
from ipc.errors import DragomanError

GIB = 2**30
MOST_GIB = 2**20
LONGEST_S = 30 * 86_400
EPILOG = """examples:
  run_node.py lease --gib 6 -- python train.py
  run_node.py lease --gib 6 --device cuda:1 --wait 600 --preemptible -- ./render

The program takes this command's place (its pid, its exit code); the lease ends when it ends, whatever way. On a GPU it
sees that GPU alone (CUDA_VISIBLE_DEVICES), and DRAGOMAN_LEASE_BYTES says how much it may use: a lease is a promise,
nothing keeps a program from taking more. With --preemptible it is sent SIGTERM when the node needs the memory.

exit codes: the program's; 1: no lease (the reason is said), 2: wrong arguments"""


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "lease",
        help="run a program under a lease of GPU memory",
        description="Run any program under a lease of the running node's arbiter, so that it and the node share a\n"
        "device's memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gib", type=float, required=True, metavar="N", help="memory that the program needs, in GiB")
    parser.add_argument(
        "--device",
        default="",
        metavar="D",
        help="where: its name, its UUID, or how that begins (default: the first GPU to have room; the CPU if there is"
        " none)",
    )
    parser.add_argument(
        "--wait", type=float, default=WAIT_S, metavar="S", help=f"seconds to wait for room (default {WAIT_S:g})"
    )
    parser.add_argument("--preemptible", action="store_true", help="the node may ask for the memory back (SIGTERM)")
    parser.add_argument(
        "--priority", choices=("high", "normal", "low"), default="normal", help="among those that wait (default normal)"
    )
    parser.add_argument("--connect", metavar="CTL", help="the node's ctl endpoint (default: the running node's)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ...", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("lease needs a program to run", "write it after --, as in: lease --gib 6 -- python train.py")
    if not 1 / GIB <= args.gib < MOST_GIB:
        raise UsageError(f"--gib is {args.gib:g}", f"give what the program needs, in GiB, below {MOST_GIB:,}")
    if not 0 <= args.wait <= LONGEST_S:
        raise UsageError(f"--wait is {args.wait:g}", f"give seconds from 0 to {LONGEST_S:,}")
    if shutil.which(command[0]) is None:
        text = (
            f"{command[0]!r} is not to be executed"
            if Path(command[0]).exists()
            else f"there is no program {command[0]!r}"
        )
        raise DragomanError(text, "nothing was leased")
    endpoint = finding.ctl_endpoint(args.connect)
    stats = asking.ask(endpoint, "stats")
    device = named(args.device, (stats.get("arbiter") or {}).get("devices") or {})
    more = "run_node.py explain" + (f" --connect {args.connect}" if args.connect else "")
    with Waiting(args.wait, more, lambda: reason_of(os.getpid(), asking.ask(endpoint, "stats"))) as waiting:
        lease = Lease(
            int(args.gib * GIB), device, wait_s=args.wait, preemptible=args.preemptible,
            priority=args.priority, name=command[0], ctl_endpoint=endpoint, on_wait=waiting.told,
        ).acquire()  # fmt: skip
    environ = {**os.environ, LEASE_BYTES: str(lease.nbytes)}
    if lease.uuid:
        environ["CUDA_VISIBLE_DEVICES"] = lease.uuid
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, environ)  # the lease is this process's, and stays
    except OSError as error:
        lease.release()
        text = f"{command[0]} cannot be run: {error.strerror}"
        raise DragomanError(text, "a script needs a first line like #!/bin/sh") from error


def named(given: str, devices: Mapping[str, Mapping[str, Any]]) -> str:
    """The device whose name or UUID this is, or that alone has a UUID which begins so; else what was given.

    Raises UsageError where several UUIDs begin so.
    """
    if not given or given in devices:
        return given
    meant = {name: row["uuid"] for name, row in devices.items() if row["uuid"].startswith(given)}
    whole = [name for name, uuid in meant.items() if uuid == given]
    if len(meant) > 1 and not whole:
        several = ", ".join(f"{name} ({uuid})" for name, uuid in meant.items())
        raise UsageError(f"--device {given!r} may mean {several}", "write more of the UUID, or the name")
    return next(iter(whole or meant), given)
