#!/usr/bin/env python3
"""A lease of a device's memory, taken by a plain ZeroMQ client: docs/protocol.md, "Leases". Needs pyzmq and msgpack.

python plain_lease.py 1000000000 cuda:0        # granted, or the reason why not; held until standard input ends
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import zmq

REPEAT_MS = 2000  # an arbiter that is started again has forgotten who waited


def start_time() -> int:
    """This process's, in clock ticks since boot: field 22 of its stat, counted behind the name in brackets."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def connect(folder: str, number: int = 1) -> zmq.Socket[bytes]:
    """A socket for this process's lease of that number."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 1000
    socket.identity = f"lease@{os.getpid()}/{number}#{start_time()}".encode()
    socket.connect(f"ipc://{folder}/arbiter")
    return socket


def say(socket: zmq.Socket[bytes], message: dict[str, Any]) -> None:
    socket.send(msgpack.packb([start_time(), 0, [message]]))


def hear(socket: zmq.Socket[bytes], timeout_ms: int) -> list[dict[str, Any]]:
    """The messages of one frame; none when there is none in time."""
    return list(msgpack.unpackb(socket.recv())[2]) if socket.poll(timeout_ms) else []


def acquire(socket: zmq.Socket[bytes], request: dict[str, Any]) -> dict[str, Any]:
    """The ``Granted`` or ``Denied`` that answers this ``LeaseRequest``."""
    while True:
        say(socket, request)
        while told := hear(socket, REPEAT_MS):
            for message in told:
                if message["type"] in ("Granted", "Denied"):
                    return message
                print(message.get("reason", ""), file=sys.stderr)


def main() -> int:
    if len(sys.argv) != 3 or not sys.argv[1].isdecimal():
        print("usage: plain_lease.py BYTES DEVICE, as in: plain_lease.py 1000000000 cuda:0", file=sys.stderr)
        return 2
    nbytes, device = int(sys.argv[1]), sys.argv[2]
    base = os.environ.get("XDG_RUNTIME_DIR")
    parent = f"{base}/dragoman" if base else f"{tempfile.gettempdir()}/dragoman-{os.getuid()}"
    socket = connect(os.environ.get("DRAGOMAN_FOLDER", f"{parent}/default"))
    answer = acquire(socket, {
        "type": "LeaseRequest", "id": 1, "worker": "plain", "device": device, "nbytes": nbytes, "pid": os.getpid(),
        "model": "plain_lease.py", "wait_s": 10.0,
    })  # fmt: skip
    print(answer, flush=True)
    if answer["type"] == "Denied":
        return 1
    sys.stdin.read()  # here is the work: on that device, with so much memory
    say(socket, {"type": "Release", "lease": answer["lease"]})
    socket.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
