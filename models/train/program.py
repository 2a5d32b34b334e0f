"""The command line that every training program has."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

DEMO = Path(__file__).parents[1] / "demo"


def run(train: Callable[[Path, int, bool], Path], doc: str | None, name: str) -> None:
    """Read the command line, train, print what was written. ``name``: of the file or folder in models/demo."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=DEMO / name, help="what to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch (default: every core)")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(chosen.threads)
    print(train(chosen.out, chosen.seed, chosen.quick))
