"""The verbs of the command line, one file each: ``add(verbs)`` describes it to argparse, ``run(args)`` does it.

A verb returns an exit code and raises DragomanError for what a user can mend; ``run_node.py`` turns that into one line
on standard error.
"""

from __future__ import annotations

from engine.exits import CONFIGURATION, FAILED, INTERRUPTED, OK

__all__ = ["CONFIGURATION", "FAILED", "INTERRUPTED", "OK", "USAGE", "VERBS"]
USAGE = 2  # the command line is wrong; argparse's own code

VERBS = (
    "serve",
    "translate",
    "demo",
    "bench",
    "stats",
    "explain",
    "health",
    "doctor",
    "models",
    "lease",
    "estimates",
    "ctl",
)
