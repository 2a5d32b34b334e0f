"""What befalls the node of a rehearsal, besides what its clients ask: deaths, faults of GPUs, operators, programs.

After each death of the arbiter somebody asks for a small lease, and it is noted when that was granted.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Union

import msgspec

from bench.standin_driver import Driver
from engine import ctl
from engine.leasing import Lease
from engine.node import Node
from engine.supervisor.orders import VERBS
from ipc.errors import DragomanError

GIB = 2**30
CORES = ("arbiter", "scheduler", "gateway")
ASKED_BYTES = 2**20
PATIENCE_S = 10.0
REFUSED, SHORT = 3, 4  # exit codes of a program that got no lease, or no memory within it

Gib = Annotated[float, msgspec.Meta(ge=0, le=4096)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Happening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="what"):
    """[[events]]: one of them, as ``what`` says, ``at_s`` after the first utterance."""

    at_s: Seconds


class Kill(Happening, frozen=True, kw_only=True, tag="kill"):
    """A process of the node dies, by SIGKILL."""

    process: str  # arbiter, scheduler, gateway, a worker's role, or a stage: any worker of it
    while_loading: str = ""  # not before a worker of this stage loads its model


class Lose(Happening, frozen=True, kw_only=True, tag="lose"):
    """The driver calls a GPU lost."""

    gpu: int


class Ecc(Happening, frozen=True, kw_only=True, tag="ecc"):
    """A GPU's memory has an uncorrectable error."""

    gpu: int


class Hang(Happening, frozen=True, kw_only=True, tag="hang"):
    """Calls into the driver return only after ``for_s``."""

    gpu: int | None = None  # absent: of every GPU
    for_s: Seconds


class Order(Happening, frozen=True, kw_only=True, tag="order"):
    """An operator gives an order, as to ``run_node.py ctl``."""

    order: str  # "drain cuda:1"


class Program(Happening, frozen=True, kw_only=True, tag="program"):
    """A program outside the node asks for a lease, takes memory, and ends."""

    gib: Gib  # its lease
    takes_gib: Gib | None = None  # what it takes, its context included; absent: as much
    device: str = ""  # absent: the first to have room
    for_s: Seconds  # from the grant on; a preemptible one also ends when it is asked to leave
    wait_s: Seconds = 60.0  # for the grant
    preemptible: bool = False
    priority: Literal["high", "normal", "low"] = "normal"


Event = Union[Kill, Lose, Ecc, Hang, Order, Program]


def complaint(event: Event, stages: Iterable[str], gpus: int) -> str:
    """Why this cannot happen; "": it can."""
    stages = tuple(stages)
    match event:
        case Kill(process=process) if process.partition("@")[0] not in (*CORES, *stages):
            return f"the node has no process {process!r}: there are {', '.join((*CORES, *stages))}"
        case Kill(while_loading=stage) if stage and stage not in stages:
            return f"while_loading: there is no stage {stage!r}"
        case Lose(gpu=gpu) | Ecc(gpu=gpu) | Hang(gpu=gpu) if gpu is not None and not 0 <= gpu < gpus:
            return f"an event is on GPU {gpu}, and there are {gpus}"
        case Order(order=order) if order.split()[:1] not in [[verb] for verb in VERBS] or len(order.split()) != 2:
            return f"{order!r} is no order: write one of {', '.join(VERBS)}, and what it is about"
        case Kill(process=where) | Order(order=where) | Program(device=where):
            if (found := re.search(r"cuda:(\d+)", where)) and int(found[1]) >= gpus:
                return f"{where!r}: there are {gpus} GPUs, from cuda:0 on"
    return ""


class Events:
    """Plays the events of one rehearsal, each once it is due. ``context_bytes``: of each process on a GPU."""

    def __init__(self, events: Sequence[Event], driver: Driver, context_bytes: int) -> None:
        self.next_grants: list[float] = []  # from a death of the arbiter, in s; others' loads after it left out
        self.refused: list[str] = []  # orders, by the operators' socket
        self.total = len(events)
        self.missing: list[Event] = sorted(events, key=lambda one: one.at_s)  # that have not happened
        self.programs: list[subprocess.Popen[bytes]] = []
        self.endless = 0  # who asked after a death of the arbiter and was never granted anything
        self._driver = driver
        self._context_bytes = context_bytes
        self._asking: list[threading.Thread] = []

    def play(self, node: Node, since_s: float) -> None:
        """Let happen what is due."""
        due = [one for one in self.missing if one.at_s <= since_s]
        self.missing = [one for one in self.missing if one not in due or not self._play(one, node)]

    def _play(self, event: Event, node: Node) -> bool:
        """Returns whether it has happened."""
        match event:
            case Kill():
                return self._kill(event, node)
            case Lose(gpu=gpu):
                self._driver.lose(gpu)
            case Ecc(gpu=gpu):
                self._driver.set(gpu, ecc=2, ecc_uncorrected=1)
            case Hang(gpu=one, for_s=for_s):
                self._driver.hang(for_s, one)
            case Order(order=order):
                verb, target = order.split()
                try:
                    ctl.ask(node.ctl_endpoint, verb, target=target)
                except DragomanError as error:
                    self.refused.append(f"{order}: {error}")
            case Program():
                self._start(event, node)
        return True

    def _kill(self, event: Kill, node: Node) -> bool:
        rows = [row for row in node.stats()["processes"] if row["pid"]]
        loading = [row for row in rows if row["phase"] == "loading"]
        if event.while_loading and not any(_is_of(row, event.while_loading) for row in loading):
            return False
        pid = next((row["pid"] for row in rows if _is_of(row, event.process)), 0)
        if not pid:
            return False
        os.kill(pid, signal.SIGKILL)
        if event.process == "arbiter":
            self._in_the_background(lambda: self._ask(node.ctl_endpoint, time.monotonic()))
        return True

    def _in_the_background(self, what: Callable[[], None]) -> None:
        self._asking.append(threading.Thread(target=what, name="asking"))
        self._asking[-1].start()

    def _ask(self, endpoint: str, died_at: float) -> None:
        answers: list[float] = []
        try:
            # Who is told to wait hears of what: an arbiter is there again, and knows its devices.
            with Lease(ASKED_BYTES, ctl_endpoint=endpoint, on_wait=lambda _: answers.append(time.monotonic())):
                answers.append(time.monotonic())
                self.next_grants.append(answers[0] - died_at)
        except DragomanError:
            self.endless += 1

    def _start(self, event: Program, node: Node) -> None:
        nbytes = int(event.gib * GIB)
        takes = nbytes if event.takes_gib is None else int(event.takes_gib * GIB)
        options = {
            "nbytes": nbytes, "device": event.device, "wait_s": event.wait_s, "preemptible": event.preemptible,
            "priority": event.priority, "ctl_endpoint": node.ctl_endpoint,
        }  # fmt: skip
        told = msgspec.json.encode({"lease": options, "takes": takes - self._context_bytes, "for_s": event.for_s})
        command = [sys.executable, "-m", "bench.vram_program", told.decode()]
        self.programs.append(subprocess.Popen(command, stdout=subprocess.PIPE))

    def end(self) -> None:
        """Wait for who asks, and end the programs that still run: their memory is not wanted any more.

        One that has just begun has ``PATIENCE_S`` to show whether it gets what it wants.
        """
        for thread in self._asking:
            thread.join()
        over = time.monotonic() + PATIENCE_S
        for program in self.programs:
            assert program.stdout is not None
            select.select([program.stdout], [], [], max(0.0, over - time.monotonic()))  # a word, or its end
        for program in self.programs:
            program.terminate()
            program.communicate()

    def ended_with(self, code: int) -> int:
        """How many programs have ended with this exit code."""
        return sum(program.returncode == code for program in self.programs)


def _is_of(row: dict[str, Any], process: str) -> bool:
    role: str = row["role"]
    return process in (role, role.partition("@")[0])
