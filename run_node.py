#!/usr/bin/env python3
"""Dragoman's command line: ``python run_node.py VERB ...``. The verbs live in ``engine/commands``."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are loaded ends it without a traceback

try:
    import msgspec  # noqa: F401 - these two are what every verb needs
    import zmq  # noqa: F401

    from engine import __version__
    from engine.commands import CONFIGURATION, FAILED, INTERRUPTED, USAGE, VERBS
    from engine.commands.inputs import UsageError
    from ipc.errors import ConfigError, DragomanError
except ImportError as error:  # another Python than the environment's, or too old a one
    sys.exit(f"error: this Python cannot run Dragoman ({error}); run: make env, then .venv/bin/python run_node.py ...")

DESCRIPTION = "Dragoman: a node that translates speech on this machine's own GPUs (or its CPU)."
EPILOG = """examples:
  run_node.py demo                                       see it work, without a download
  run_node.py serve                                      run the node; then, elsewhere:
  run_node.py translate talk.mp3 --out OUT --source en --target de
  run_node.py stats                                      what the node is doing
  run_node.py doctor                                     what is missing here

run_node.py VERB --help tells more. Exit codes: 0 ok, 1 failed, 2 usage, 78 configuration, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. What a user can mend is one line on standard error."""
    _show_everything()
    args = parser().parse_args(argv)
    try:
        verb = importlib.import_module(f"engine.commands.{args.verb}")
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = int(verb.run(args))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _say(error, USAGE)
    except ConfigError as error:
        return _say(error, CONFIGURATION)
    except DragomanError as error:
        return _say(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        sys.stderr.close()
        return FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of the output has nowhere to go
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED


class Parser(argparse.ArgumentParser):
    """Of the whole line or of one verb. What it does not know it tells itself, with its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
        prog="run_node.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"dragoman {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        importlib.import_module(f"engine.commands.{verb}").add(verbs)
    return top


def _show_everything() -> None:
    """What the terminal has no character for is shown as a question mark; it ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _say(error: DragomanError, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
