"""A program on the stand-in driver: a process that asks it through the real pynvml, and takes memory in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.standin_driver import Driver

ROOT = Path(__file__).parents[2]
MIB = 2**20
NOT_SUPPORTED, NOT_LOADED, LOST = 3, 9, 15  # NVML's
OUT_OF_MEMORY, NO_GPU, CONTEXT_LOST, FORBIDDEN, NO_HANDLE = -1, -2, -3, -4, -6  # the stand-in's own

PROGRAM = """
import ctypes, json, os, sys
import pynvml
library = ctypes.CDLL("libnvidia-ml.so.1")
library.standin_allocate.restype = ctypes.c_int64
library.standin_allocate.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
library.standin_free.argtypes = [ctypes.c_int64]
gpu = pynvml.nvmlDeviceGetHandleByIndex
uuid = pynvml.nvmlDeviceGetHandleByUUID

def allocate(where, nbytes):
    return library.standin_allocate(str(where).encode(), nbytes)

def churn(where, nbytes, rounds):
    held = []
    for _ in range(rounds):
        while (handle := allocate(where, nbytes)) > 0:
            held.append(handle)
        for handle in held[::2]:
            library.standin_free(handle)
        held = held[1::2]
    return len(held) * nbytes

def memory(handle, version=None):
    found = pynvml.nvmlDeviceGetMemoryInfo(handle, version)
    return {name: getattr(found, name) for name, _ in found._fields_}

def processes(handle):
    return {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}

def fields(handle, *ids):
    return [(v.nvmlReturn, v.value.uiVal) for v in pynvml.nvmlDeviceGetFieldValues(handle, ids)]

def stall():
    library.standin_open.restype = ctypes.c_void_p
    library.standin_stall.argtypes = [ctypes.c_void_p]
    library.standin_stall(library.standin_open(os.environb[b"STANDIN_NVML_STATE"]))

for line in sys.stdin:
    try:
        answer = eval(line)
    except pynvml.NVMLError as error:
        answer = {"error": error.value}
    print(json.dumps(answer, default=str), flush=True)
"""


class Program:
    """A process on the stand-in that evaluates expressions; NVML errors come back as {"error": code}."""

    def __init__(self, driver: Driver) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=driver.environ(os.environ), cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self("pynvml.nvmlInit()")

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, expression: str) -> Any:
        self.begin(expression)
        return self.end()

    def begin(self, expression: str) -> None:
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill it and leave it unreaped: the driver takes a zombie for dead."""
        self.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
