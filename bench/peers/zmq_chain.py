"""The peer ``zmq``: processes in a row, plain pyzmq PUSH/PULL between them, raw frames.

    client --PUSH--> stage 1 --PUSH--> ... --PUSH--> stage 4 --PUSH--> client

It is what a careful afternoon with pyzmq gives: no shared memory and no copies in Python, but no identity, order across
workers, deadlines, retries, back-pressure or leases either. Each stage reads one byte of every page, like the node's
no-op stages do, and passes the frame on.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zmq

PAGE = 4096
START_S = 20.0  # the first frame must be through by then
ROOT = Path(__file__).resolve().parents[2]


class Chain:
    """Four stage processes and the client's two sockets. Use it as a context manager.

    ``sleep_ms``: what each stage sleeps per frame (one entry a stage); 0 touches the pages and passes on.
    """

    def __init__(self, sleep_ms: Sequence[float] = (0, 0, 0, 0)) -> None:
        self.sleep_ms = tuple(sleep_ms)
        self._context: zmq.Context = zmq.Context()
        self._stages: list[subprocess.Popen] = []

    def __enter__(self) -> Chain:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the stages and wait until a first frame has come through."""
        # Names without a file ("@"): nothing is left behind, however this process ends.
        name = f"ipc://@dragoman-peer-{os.getpid()}-{secrets.token_hex(4)}"
        addresses = [f"{name}/{n}" for n in range(len(self.sleep_ms) + 1)]
        self._results = self._context.socket(zmq.PULL)
        self._results.bind(addresses[-1])
        for source, target, sleep_ms in zip(addresses, addresses[1:], self.sleep_ms, strict=False):
            self._stages.append(_spawn(source, target, sleep_ms))
        self._work = self._context.socket(zmq.PUSH)
        self._work.connect(addresses[0])
        self.push(b"first")
        if not self._results.poll(START_S * 1000):
            raise TimeoutError(f"the pyzmq chain did not answer within {START_S:g} s")
        self.pull()

    @property
    def pids(self) -> list[int]:
        """The stages' processes; the client is whoever calls."""
        return [stage.pid for stage in self._stages]

    def push(self, data: bytes | np.ndarray) -> None:
        """Send one utterance into the chain."""
        self._work.send(data, copy=False)

    def pull(self) -> memoryview:
        """The next result, in the order pushed."""
        return self._results.recv(copy=False).buffer

    def close(self) -> None:
        """End the stages."""
        for stage in self._stages:
            stage.kill()
            stage.wait()
        self._stages = []
        self._context.destroy(linger=0)


def _spawn(source: str, target: str, sleep_ms: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench.peers.zmq_chain", source, target, str(sleep_ms), str(os.getpid())]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)  # Ctrl-C is ours alone


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent goes; leave at once if it has gone already."""
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def stage(source: str, target: str, sleep_ms: float) -> None:
    """One stage: take a frame, touch its pages, sleep, pass it on; for ever."""
    context: zmq.Context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.bind(source)
    push.connect(target)
    while True:
        frame = pull.recv(copy=False)
        int(np.frombuffer(frame.buffer, np.uint8)[::PAGE].sum())
        if sleep_ms:
            time.sleep(sleep_ms / 1000)  # stands for the stage's work
        push.send(frame, copy=False)


if __name__ == "__main__":
    die_with(int(sys.argv[4]))
    stage(sys.argv[1], sys.argv[2], float(sys.argv[3]))
