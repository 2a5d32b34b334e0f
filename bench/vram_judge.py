"""Whether the book keeps its promises, judged by the true devices and never by the book. Pure.

* ``overcommitted``: a grant after which what living holders have and may yet take by their leases, what the dead have
  left and other programs' memory as the newest reading showed it are more than there is. ``above_ceiling``: likewise.
  A driver's sum cannot tell the growth of one from that of another who may grow too, so a book that has nothing else
  may think that others have taken what they have not. An excess up to what *any* book may think so is ``unseen`` and
  not held against it: what holders had not taken at the newest reading of what they may take, as far as something
  else has grown there since their grants. In a quiet trace, or where the driver lists our processes, there is no such
  doubt.
* ``oom``: an allocation within its lease that found too little, though other programs have not taken as much as it
  lacks since the reading upon which somebody was granted last there: then all that was granted had to fit. What
  outsiders have snatched is ``snatched``: no book can know of it before. And one beside a holder whose grant was unseen
  is ``unseen_oom``.
* ``starved``: a question that was answered later than its patience, the time that loads of others took, and three
  seconds (a silent driver keeps a load's end from being seen for up to two).
* ``deadlocks``: six seconds in which a request fits, and nobody loads, leaves, is answered, or has waited for so long
  that others may not pass. ``stalled`` are those where the book has a reason, be it a wrong one: it waits for memory or
  a place of the dead that the driver has long shown back, or counts twice what it cannot tell apart.
* ``stale``: a grant upon a reading older than ``unreadable_s``, or upon an earlier arbiter's.
* ``passed``: a grant behind the one of the node's own that has waited longest, loads left out, of those that waited
  beyond their time to be passed and three seconds. Not where the book has all places for models taken: it may lack one.
* ``out_of_use``: a grant on a device that the arbiter was told is lost, or is to be kept empty.
* ``two_loads``: two at once on one device. ``too_many_models``: a grant after which more models than ``max_models`` lie
  on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.vram_arbiter import VirtualArbiter
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from engine.arbiter.events import Waits
from engine.arbiter.lease import LEAVING
from engine.arbiter.line import PRIORITIES
from engine.limits import Limits
from ipc.messages import LeaseRequest

SLACK_S = 3.0
STUCK_S = 6.0  # more than ``settle_s``
LOOK_S = 1.0
PASSING_SHARE = 0.5  # of its patience, for which a request that lacks room lets others pass (DESIGN, "Lease policy")
PROMISES = (
    "oom", "overcommitted", "above_ceiling", "stale", "starved", "passed", "deadlocks", "out_of_use", "two_loads",
    "too_many_models", "kept_for_nobody",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Process:
    """The truth about a worker or a program. ``words``: what it says again to each new arbiter."""

    role: str
    incarnation: int
    device: str = ""  # "": any, until it has a lease
    roams: bool = False  # any will do
    alive: bool = True
    request: Any = None  # of the trace
    question: LeaseRequest | None = None  # until it is answered
    more: LeaseRequest | None = None  # besides what it has, until that is answered
    more_lease: int = 0  # once it has it
    asked_bytes: int = 0
    granted_bytes: int = 0  # by the book, even if it has not heard of it
    lease: int = 0  # once it has
    measured_bytes: int = 0  # what it said it holds
    life: int = 0  # counts requests, so that what was planned for one does not happen to the next
    idle: bool = False
    words: list[Any] = field(default_factory=list)
    is_stuck: bool = False  # dead, and its memory not free
    grown_before: int = 0  # what had grown there, in all, when it was granted
    is_unseen: bool = False  # its grant was one too many, as the book could not know
    heard_at: float = -1.0  # when the arbiter of now heard the question; below 0: it has not
    turns_at: float = 0.0  # loading time on its device until then

    @property
    def peer(self) -> str:
        return f"{self.role}#{self.incarnation}"

    @property
    def external(self) -> bool:
        return self.role.startswith("lease@")

    @property
    def kind_of_model(self) -> str:
        return "" if self.request is None or self.request.model is None else self.request.model.name


class Judge:
    """See the module's docstring."""

    def __init__(
        self, clock: Clock, limits: Iterable[Limits], waits: Waits, devices: dict[str, TrueDevice], exact: bool
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # promise -> when it was broken first, and how
        self._clock = clock
        self._exact = exact
        self._limits = {one.name: one for one in limits}
        self._waits = waits
        self._devices = devices
        self.present: dict[str, set[Process]] = {name: set() for name in devices}  # with a question or a lease
        self.roaming: set[Process] = set()  # with a question that any device may answer
        self.lost: set[str] = set()  # devices, as the arbiter was told
        self.drained: set[str] = set()
        self._loading: dict[str, set[Process]] = {name: set() for name in devices}
        self._turns: dict[str, float] = dict.fromkeys(devices, 0.0)  # seconds in which somebody loaded
        self._loading_since: dict[str, float] = dict.fromkeys(devices, 0.0)
        self._foreign_known = dict.fromkeys(devices, 0)  # what outsiders had when all that is granted must have fit
        self._seen: dict[str, dict[str, int]] = {name: {} for name in devices}  # the reading last looked at
        self._grown = dict.fromkeys(devices, 0)  # what has grown from one to the next, in all
        self._answered_at: dict[str, float] = dict.fromkeys(devices, 0.0)
        self._stuck_s: dict[str, float] = dict.fromkeys(devices, 0.0)

    def broken(self, promise: str, text: str) -> None:
        self.counts[promise] += 1
        self.first.setdefault(promise, f"{promise} at {self._clock.now:.3f}: {text}")

    # ------------------------------------------------------------ what happens

    def heard(self, process: Process) -> None:
        """An arbiter has a question, perhaps one it was asked before."""
        if process.heard_at < 0:
            process.heard_at, process.turns_at = self._clock.now, self._turns_until_now(process)

    def granted(self, process: Process, nbytes: int, arbiter: VirtualArbiter) -> None:
        if process.granted_bytes:
            return  # the same answer again
        if process.device in self.lost or process.device in self.drained:
            self.broken("out_of_use", f"{process.peer} on {process.device}")
        self._judge_turn(process, arbiter)
        self._answered(process)
        self._judge(process, nbytes, arbiter)
        if not process.external:
            if self._loading[process.device]:
                self.broken("two_loads", f"{process.peer} on {process.device}")
            if len(self._models(process.device)) > self._limits[process.device].max_models:
                self.broken("too_many_models", f"{process.peer} on {process.device}")
            self._set_loading(process, True)

    def granted_more(self, process: Process, nbytes: int, arbiter: VirtualArbiter) -> None:
        """Besides what it has."""
        self.counts["grown"] += 1
        self._judge(process, nbytes, arbiter)

    def _judge_turn(self, process: Process, arbiter: VirtualArbiter) -> None:
        name = process.device
        there = [one for memory, leases in arbiter.book.books() if memory.limits.name == name for one in leases]
        own = [one for one in there if not one.external]
        # Without the lease that is granted now, but with what its holder has let go and the driver has not shown back.
        models = {one.kind_of_model for one in own if one.peer != process.peer or one.state in LEAVING}
        if len(models) >= self._limits[name].max_models:
            return
        most = PASSING_SHARE * self._waits.lease_wait_s + SLACK_S
        others = [one for one in self.present[name] - {process} if one.question is not None and one.heard_at >= 0]
        # Whom the book does not know it has ended in the same moment: that answer is on its way.
        elders = [one for one in others if not one.external and self._waited_alone(one) > most]
        elders = [one for one in elders if arbiter.book.knows(one.peer)]
        if elders and self._rank(elder := max(elders, key=self._waited_alone)) < self._rank(process):
            self.broken("passed", f"{process.peer} before {elder.peer} on {name}")

    def _waited_alone(self, process: Process) -> float:
        """Without the time that loads of others took."""
        return self._waited(process) - self._turns_until_now(process) + process.turns_at

    def _rank(self, process: Process) -> float:
        assert process.question is not None
        return process.heard_at + PRIORITIES[process.question.priority] * self._waits.lease_wait_s

    def _judge(self, process: Process, nbytes: int, arbiter: VirtualArbiter) -> None:
        if self._clock.now - arbiter.read_at[process.device] > self._waits.unreadable_s:
            self.broken("stale", f"{process.peer} on {process.device}")
        device, before = self._devices[process.device], process.granted_bytes
        foreign_read = arbiter.foreign_read[process.device]
        self._look_at_reading(process.device, arbiter)
        if not before:
            process.grown_before = self._grown[process.device]
        process.granted_bytes, self._foreign_known[process.device] = before + nbytes, foreign_read
        committed = self._committed(process.device) + device.lagging_bytes + foreign_read
        usable = self._limits[process.device].usable_bytes
        doubt = 0 if self._exact or committed <= usable else self._untaken(process, before, arbiter)
        for promise, most in (("overcommitted", device.total_bytes), ("above_ceiling", usable)):
            if committed - doubt > most:
                self.broken(promise, f"{process.peer} on {device.name}: {committed} of {most} bytes")
        process.is_unseen = committed - doubt <= usable < committed
        self.counts["unseen"] += process.is_unseen
        self.counts["blind"] += not self._exact

    def _untaken(self, process: Process, before: int, arbiter: VirtualArbiter) -> int:
        """What the book put down to holders there that they have not, as far as any book may. ``before``: what
        ``process`` might take. Growth counts once: first for the latest grants, as only what came later can be theirs.
        """
        name, believed = process.device, Counter[str]()
        for memory, leases in arbiter.book.books():
            if memory.limits.name == name:
                for lease in leases:
                    believed[lease.peer] += lease.held_bytes
        thought = open_ = 0
        for one in sorted(self.present[name], key=lambda one: -one.grown_before):
            may_take, held = before if one is process else one.granted_bytes, arbiter.held_read[name].get(one.peer, 0)
            thought += max(0, min(may_take, believed[one.peer]) - held)
            open_ += max(0, min(may_take - held, self._grown[name] - one.grown_before - open_))
        return min(thought, open_)

    def _look_at_reading(self, name: str, arbiter: VirtualArbiter) -> None:
        """Add up whatever has grown, outsiders and holders; what fell meanwhile may have hidden it."""
        now = {"": arbiter.foreign_read[name], **arbiter.held_read[name]}
        self._grown[name] += sum(max(0, nbytes - self._seen[name].get(peer, 0)) for peer, nbytes in now.items())
        self._seen[name] = now

    def denied(self, process: Process) -> None:
        self.counts["denied"] += 1
        self._answered(process)

    def load_over(self, process: Process) -> None:
        """The book has heard that it is."""
        if process.device:
            self._set_loading(process, False)

    def out_of_memory(self, process: Process, lacking: int) -> None:
        """``lacking``: bytes that were not free."""
        if self._devices[process.device].foreign_bytes - self._foreign_known[process.device] >= lacking:
            self.counts["snatched"] += 1
        elif any(one.is_unseen for one in self.present[process.device]):
            self.counts["unseen_oom"] += 1
        else:
            self.broken("oom", process.peer)

    def arbiter_died(self) -> None:
        """Nobody has asked the next one yet, and it has read nothing."""
        self._stuck_s = dict.fromkeys(self._devices, 0.0)
        for waiting in (*self.present.values(), self.roaming):
            for process in waiting:
                process.heard_at = -1.0

    # ------------------------------------------------------------ from time to time

    def look(self, arbiter: VirtualArbiter) -> None:
        roaming = self._waiting(self.roaming)
        for process in roaming:
            if self._is_overdue(process):
                self._starve(process)
        for name in self._devices:
            self._look_at_reading(name, arbiter)
            waiting = self._waiting(self.present[name])
            for process in waiting:
                if self._is_overdue(process):
                    self._starve(process)
            waiting += roaming
            serves = arbiter.alive and not any(name in out for out in (arbiter.blind, self.lost, self.drained))
            could = serves and self._could_be_served(name, waiting)
            self._stuck_s[name] = self._stuck_s[name] + LOOK_S if could else 0.0
            if self._stuck_s[name] >= STUCK_S:
                self._stuck_s[name] = 0.0
                dead = self._thought_dead(name, arbiter)
                doubt = self._doubt(name) + sum(max(row["nbytes"], row["held_bytes"]) for row in dead)
                if self._could_be_served(name, waiting, doubt, len(dead)):
                    self.broken("deadlocks", f"{[one.peer for one in waiting]} on {name}")
                self.counts["stalled"] += 1

    @staticmethod
    def _waiting(processes: Iterable[Process]) -> list[Process]:
        return [one for one in processes if one.question is not None and one.heard_at >= 0]

    def _doubt(self, name: str) -> int:
        """Bytes that the sums of a driver leave in doubt: whatever nobody measured, and a tenth (``SHOWN_BACK``)."""
        return sum(int(1.1 * self._held(one)) - one.measured_bytes for one in self.present[name])

    @staticmethod
    def _thought_dead(name: str, arbiter: VirtualArbiter) -> list[dict[str, Any]]:
        """Leases whose memory the book still waits for."""
        rows = arbiter.book.snapshot(0.0)["leases"]
        return [row for row in rows if row["device"] == name and row["state"] in ("draining", "deficit", "lost")]

    def _could_be_served(self, name: str, waiting: list[Process], doubt: int = 0, dead_models: int = 0) -> bool:
        device, limits = self._devices[name], self._limits[name]
        if self._loading[name] or device.lagging_bytes or self._clock.now - self._answered_at[name] < LOOK_S:
            return False
        committed = self._committed(name)
        room = limits.usable_bytes - committed - device.foreign_bytes - limits.margin(device.free_bytes) - doubt
        models = self._models(name)
        if any(one.asked_bytes > room and self._waited(one) >= PASSING_SHARE * self._patience(one) for one in waiting):
            return False
        return any(
            one.asked_bytes <= room
            and (one.external or one.kind_of_model in models or len(models) + dead_models < limits.max_models)
            for one in waiting
        )

    def end(self, arbiter: VirtualArbiter) -> None:
        """Everybody has gone, and the driver has shown it."""
        report = arbiter.book.snapshot(self._clock.now)
        left = [row for row in report["leases"] if row["device"] not in self.lost]  # what lay there is lost for good
        for row in (*left, *report["waiting"]):
            self.broken("kept_for_nobody", f"{row}")

    # ------------------------------------------------------------ inside

    def _models(self, name: str) -> set[str]:
        """Those that lie on a device, or may."""
        return {one.kind_of_model for one in self.present[name] if one.granted_bytes and not one.external}

    def _committed(self, name: str) -> int:
        held = self._devices[name].held
        mine = {one.peer for one in self.present[name]}
        others = sum(nbytes for peer, nbytes in held.items() if peer not in mine)
        return others + sum(max(one.granted_bytes, held.get(one.peer, 0)) for one in self.present[name])

    def _held(self, process: Process) -> int:
        return self._devices[process.device].held.get(process.peer, 0)

    def _answered(self, process: Process) -> None:
        for name in [process.device] if process.device else self._devices:
            self._answered_at[name] = self._clock.now
        if self._is_overdue(process):
            self._starve(process)
        self.counts["waited_ms"] += int(1000 * self._waited(process))

    def _starve(self, process: Process) -> None:
        self.broken("starved", f"{process.peer} on {process.device} after {self._waited(process):.1f} s")
        process.heard_at = self._clock.now  # counted once a patience

    def _is_overdue(self, process: Process) -> bool:
        return process.heard_at >= 0 and self._waited_alone(process) > self._patience(process) + SLACK_S

    def _waited(self, process: Process) -> float:
        return self._clock.now - process.heard_at if process.heard_at >= 0 else 0.0

    def _patience(self, process: Process) -> float:
        assert process.question is not None
        return self._waits.lease_wait_s if process.question.wait_s is None else process.question.wait_s

    def _turns_until_now(self, process: Process) -> float:
        """Seconds in which somebody loaded where it waits; of one that roams, on all devices together."""
        names = self._devices if process.roams else [process.device]
        under_way = [self._clock.now - self._loading_since[name] for name in names if self._loading[name]]
        return sum(self._turns[name] for name in names) + sum(under_way)

    def _set_loading(self, process: Process, loads: bool) -> None:
        name, loading = process.device, self._loading[process.device]
        if (process in loading) == loads:
            return
        if not loading:
            self._loading_since[name] = self._clock.now
        (loading.add if loads else loading.discard)(process)
        if not loading:
            self._turns[name] += self._clock.now - self._loading_since[name]
