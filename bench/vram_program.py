"""A program outside the node, of a rehearsal: it asks for a lease, takes memory on that GPU, and ends with it."""

from __future__ import annotations

import json
import os
import sys
import time

from bench.vram_events import REFUSED, SHORT
from engine.leasing import Lease
from ipc.errors import DragomanError
from stages.base import StageError
from stages.vram import Vram

LOOK_S = 0.05


def main(told: str) -> int:
    """``told``: what ``bench.vram_events`` says of it."""
    wanted = json.loads(told)
    lease = Lease(**wanted["lease"])
    try:
        lease.acquire()
    except DragomanError as error:
        print(f"a program got no lease: {error}", file=sys.stderr)
        return REFUSED
    try:
        if lease.uuid and wanted["takes"] > 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = lease.uuid
            vram = Vram()
            vram.open()
            vram.take(wanted["takes"])
    except StageError:
        return SHORT
    print("it has what it wants", flush=True)
    until = time.monotonic() + wanted["for_s"]
    while time.monotonic() < until and not lease.asked_to_leave:
        time.sleep(LOOK_S)
    return 0  # lease and memory end with the process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
