"""One history of leases in virtual time: the real book over true devices, from one seed.

Workers and programs play the lives that the trace gives them: they ask, load, grow, ask for more, unload, are asked to
leave and go or stay, die in any state and can get stuck in that. Outsiders take and give back without asking, drivers
lag and fall silent, a device is lost with all that lies on it, operators keep one empty for a while, the arbiter dies
and goes on from its journal. A ``Judge`` watches, a ``Packing`` is the measure of
how well memory is used.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from bench.vram_arbiter import VirtualArbiter
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from bench.vram_judge import LOOK_S, Judge, Process
from bench.vram_packing import Item, Packing
from bench.vram_trace import MIB, Estimates, Request, Trace
from engine.arbiter.events import DeviceLost, FromWorker, Waits
from engine.arbiter.kept import Kept
from ipc.messages import Denied, Gone, Granted, LeaseRequest, Leave, Orders, Release, Room, Settled, Vacate

NET_S = (0.0002, 0.002)
DEATH_IS_SEEN_S = (0.001, 0.02)
STEPS = 4  # allocations of a load
BUSY_SHARE = 0.6  # of its time on the device; afterwards it is idle, and may be parked for another
OVERDUE_SHARE = 0.1  # of the programs that are asked to leave
LOSS_SHARE, LOST_BY_S = 0.25, 3000.0  # of the histories with three devices or more; when at the latest
DRAIN_EVERY_S, DRAINED_S = 400.0, (5.0, 60.0)
ENDS_S = 1200.0  # after the last request, at the latest
CHECKED = 64  # one event in so many is followed by a look at the book's invariants


class World:
    """See the module's docstring."""

    def __init__(self, trace: Trace, waits: Waits | None = None) -> None:
        self.trace = trace
        self.chance = chance = random.Random(f"world {trace.seed}")
        self.clock = clock = Clock()
        self.waits = waits or Waits()
        lag_s = chance.choice((0.05, 0.5, 1.5))
        self.devices = {
            one.name: TrueDevice(one.name, one.total_bytes, clock, lambda: chance.uniform(0.0, lag_s))
            for one in trace.limits
        }
        self.judge = Judge(clock, trace.limits, self.waits, self.devices, trace.quiet or trace.listing == "ours")
        self.packing = Packing(trace.limits, clock)
        self.arbiter = VirtualArbiter(
            clock, chance, self.devices.values(), trace.limits, self.waits, self, trace.listing, trace.outsiders_listed
        )
        self.processes: dict[str, Process] = {}  # by name: the living, and workers' last lives
        self._roles: dict[tuple[str, str], list[str]] = {}  # (stage, device) -> roles that may begin anew
        self._role_count: dict[tuple[str, str], int] = {}
        self._newest: dict[str, Process] = {}  # role -> its newest life
        self._items: dict[Process, Item] = {}
        self._ids = itertools.count(1)
        self._grown: set[int] = set()  # questions for more that were granted, heard or not
        self._estimates = Estimates(chance)
        self._coming: Iterator[Request] = trace.requests()
        self._begun = clock.now
        self._over_at: float | None = None
        self._events = 0
        self._outsiders_stay = trace.outsiders
        self._trouble = random.Random(f"trouble {trace.seed}")
        self._drained = ""  # what operators keep empty now

    def run(self) -> None:
        """Until everybody has gone. Raises AssertionError when the book's own invariants break."""
        self.arbiter.start()
        self._next_request()
        self._look()
        self.clock.after(1.0, self._outsiders)
        self._plan_trouble()
        while not self._is_over():
            self.clock.step()
            self._events += 1
            if self._events % CHECKED == 0:
                self.arbiter.book.check()
        self.packing.settle()
        for device in self.devices.values():
            device.settle()
        self._empty()

    @property
    def used_byte_s(self) -> float:
        return sum(device.used_byte_s for device in self.devices.values())

    def _is_over(self) -> bool:
        if self._over_at is None:
            return False
        if self.clock.now > self._over_at + ENDS_S:
            for process in self._items:
                self.judge.broken("deadlocks", f"{process.peer} is still there at the end")
            return True
        return not self._items and not any(process.is_stuck for process in self._newest.values())

    def _empty(self) -> None:
        """Nobody is there any more; in a while the book must show it."""
        for device in self.devices.values():
            device.others(0)
        self.arbiter.blind.clear()
        self._outsiders_stay = False
        end = self.clock.now + 2 * self.waits.settle_s + 5.0
        while self.clock.now < end or not self.arbiter.alive:
            self.clock.step()
        self.arbiter.book.check()
        self.judge.end(self.arbiter)

    # ------------------------------------------------------------ requests

    def _next_request(self) -> None:
        request = next(self._coming, None)
        if request is None:
            self._over_at = self.clock.now
        else:
            self.clock.after(max(0.0, self._begun + request.arrives - self.clock.now), self._arrive, request)

    def _arrive(self, request: Request) -> None:
        self.judge.counts["requests"] += 1
        self.judge.counts["listed"] += self.trace.listing == "ours"
        process = self._program() if request.model is None else self._worker(request)
        process.request, process.life, process.idle, process.heard_at = request, process.life + 1, False, -1.0
        asked = request.asked_bytes if request.model is None else self._estimates.of(request.model)
        limits = {one.name: one for one in self.trace.limits}
        process.roams = request.roams
        if not process.roams:
            process.device = request.device or max(self.devices.values(), key=lambda one: one.free_bytes).name
        may_lie = limits.values() if process.roams else (limits[process.device],)
        process.asked_bytes = min(asked, max(one.most_bytes for one in may_lie))
        request.true_bytes = min(request.true_bytes, process.asked_bytes)
        process.question = LeaseRequest(
            next(self._ids), process.role, process.device, process.asked_bytes, process.kind_of_model,
            request.wait_s, request.preemptible, request.priority, pid=self.arbiter.pid(process.peer),
            among=tuple(limits) if process.roams else (),
        )  # fmt: skip
        process.words = [*[word for word in process.words if isinstance(word, Release)], process.question]
        (self.judge.roaming if process.roams else self.judge.present[process.device]).add(process)
        item = (-request.true_bytes, process.peer, request.device, process.kind_of_model)
        self._items[process] = item
        self.packing.arrive(item)
        self._repack()
        self._say(process, process.question)
        if request.fate == "dies waiting":
            self.clock.after(self.chance.expovariate(0.5), self._die, process, process.life)
        self._next_request()

    def _program(self) -> Process:
        process = Process(f"lease@{next(self._ids)}/0", 1)
        self.processes[process.peer] = process
        return process

    def _worker(self, request: Request) -> Process:
        assert request.model is not None
        place = request.model.stage, request.device
        free = self._roles.setdefault(place, [])
        if free:
            role = free.pop(0)
            before = self._newest[role]
            if before.alive:
                return before
            process = Process(role, before.incarnation + 1, life=before.life)
            del self.processes[before.peer]
        else:
            number = self._role_count[place] = self._role_count.get(place, -1) + 1
            process = Process(f"{place[0]}@{place[1]}/{number}", 1)
        self._newest[process.role] = self.processes[process.peer] = process
        return process

    def _free_role(self, process: Process) -> None:
        if not process.external:
            self._roles[process.request.model.stage, process.device].append(process.role)

    def _depart(self, process: Process) -> None:
        """It neither has a lease nor wants one."""
        process.question, process.granted_bytes, process.lease, process.measured_bytes = None, 0, 0, 0
        process.is_unseen, process.more, process.more_lease = False, None, 0
        process.life += 1
        self.judge.roaming.discard(process)
        if process.device:
            self.judge.present[process.device].discard(process)
        if (item := self._items.pop(process, None)) is not None:
            self.packing.depart(item)
            self._repack()

    def _repack(self) -> None:
        taken = {name: device.foreign_bytes for name, device in self.devices.items()}
        if self._drained:  # nobody is to come, who is there may stay
            taken[self._drained] = self.devices[self._drained].total_bytes - self.devices[self._drained].held_bytes
        self.packing.recompute(taken | {name: self.devices[name].total_bytes for name in self.arbiter.lost})

    # ------------------------------------------------------------ words

    def _say(self, process: Process, message: Any) -> None:
        self.clock.after(self.chance.uniform(*NET_S), self._said, process, message)

    def _said(self, process: Process, message: Any) -> None:
        """It arrives, if anybody is there to hear; else it is among the words for the next arbiter."""
        if not process.alive and self.chance.random() < 0.5:
            return  # what the dead had sent may arrive, or not
        if process.external and process.peer not in self.processes:
            return  # nor is anybody heard in the name of a process that is not there (``Holders.watch``)
        if isinstance(message, LeaseRequest) and message is process.question and self.arbiter.alive:
            self.judge.heard(process)
        if isinstance(message, (Settled, Release)) and self.arbiter.will_hear:
            self.judge.load_over(process)
        heard = self._to_arbiter(FromWorker(process.peer, message))
        if heard and isinstance(message, Release) and process.external:
            self.processes.pop(process.peer, None)

    def _to_arbiter(self, event: Any) -> bool:
        was_alive = self.arbiter.alive
        heard = self.arbiter.hear(event)
        if was_alive and not self.arbiter.alive:
            self.judge.arbiter_died()
        return heard

    def arbiter_is_up(self, known: Kept) -> None:
        self.judge.counts["restarts"] += 1
        self.judge.arbiter_died()
        self._tell_trouble()
        for process in self._newest.values():
            if not process.alive:
                self._death_is_told(process, stuck=process.is_stuck)
        for peer in [one.peer for device in known.devices for one in device.leases if one.external]:
            if peer not in self.processes or not self.processes[peer].alive:
                role, _, incarnation = peer.rpartition("#")
                self._to_arbiter(Gone(role, int(incarnation)))
        for process in list(self.processes.values()):
            if process.alive:
                for message in process.words:
                    self._say(process, message)

    # ------------------------------------------------------------ answers

    def decided(self, peer: str, granted: Granted) -> None:
        process = self.processes.get(peer)
        if process is None:
            return
        if process.question is not None and process.question.id == granted.id:
            if process in self.judge.roaming:
                process.device = granted.device
                self.judge.roaming.discard(process)
                self.judge.present[process.device].add(process)
            self.judge.granted(process, granted.nbytes, self.arbiter)
        elif process.more is not None and process.more.id == granted.id and process.more.id not in self._grown:
            self._grown.add(granted.id)
            self.judge.granted_more(process, granted.nbytes, self.arbiter)

    def told(self, peer: str, message: Any) -> None:
        process = self.processes.get(peer)
        if process is not None and process.more is not None and message.id == process.more.id:
            return self._more_is_answered(process, message)
        if process is None or not process.alive or process.question is None or message.id != process.question.id:
            return None
        if isinstance(message, Denied):
            self.judge.denied(process)
            process.words = []
            self._depart(process)
            self._free_role(process)
            if process.external:
                del self.processes[peer]
        elif isinstance(message, Granted):
            self.judge.counts["granted"] += 1
            process.lease, process.question, process.words = message.lease, None, []
            self._take_up(process)
        return None

    def wanted(self, message: Vacate | Room) -> None:
        """The scheduler parks somebody idle, if there is one."""
        if isinstance(message, Vacate) and message.nbytes:
            self.clock.after(self.chance.uniform(0.001, 0.05), self._make_room, message.device, message.by)

    def _make_room(self, device: str, by: str) -> None:
        idle = [one for one in self.judge.present[device] if one.idle and one.lease and one.role != by]
        if idle:
            self.judge.counts["parked"] += 1
            chosen = min(idle, key=lambda one: one.peer)
            self._die(chosen, chosen.life)

    def asked_to_leave(self, peer: str, message: Leave) -> None:
        self.judge.counts["asked_to_leave"] += 1
        process = self.processes.get(peer)
        if process is not None and self.chance.random() >= OVERDUE_SHARE:
            self.clock.after(self.chance.uniform(0.1, message.grace_s), self._end, process, process.life)

    # ------------------------------------------------------------ lives

    def _take_up(self, process: Process) -> None:
        """It may take its bytes."""
        request: Request = process.request
        late = 0.0 if request.model is None else request.model.late_share
        part = int(request.true_bytes * (1 - late)) // STEPS
        if request.fate == "dies loading":
            self.clock.after(self.chance.random() * request.load_s, self._die, process, process.life)
        self.clock.after(request.load_s / STEPS, self._grow, process, process.life, part, 1)

    def _grow(self, process: Process, life: int, part: int, step: int) -> None:
        if process.life != life or not process.alive:
            return
        request: Request = process.request
        fails = request.fate == "fails to load" and step == STEPS // 2
        taken = not fails and self._take(process, part)
        if not taken:
            return self._let_go(process, *([] if process.external else [Settled(process.lease, -1, ok=False)]))
        if step < STEPS:
            return self.clock.after(request.load_s / STEPS, self._grow, process, life, part, step + 1)
        self._loaded(process)
        return None

    def _take(self, process: Process, nbytes: int) -> bool:
        """Allocate; False: out of memory, and judged."""
        device = self.devices[process.device]
        if device.take(process.peer, nbytes):
            return True
        self.judge.out_of_memory(process, nbytes - device.free_bytes)
        return False

    def _loaded(self, process: Process) -> None:
        request: Request = process.request
        if request.model is not None:
            if self.trace.measured:
                process.measured_bytes = self.devices[process.device].held[process.peer]
            process.words = [Settled(process.lease, process.measured_bytes or -1, load_ms=1000 * request.load_s)]
            self._say(process, process.words[0])
            self._estimates.measured(request.model, request.true_bytes)
            self.clock.after(BUSY_SHARE * request.hold_s, self._rest, process, process.life)
        self.clock.after(0.1 * request.hold_s, self._grow_late, process, process.life)
        self.clock.after(0.2 * request.hold_s, self._ask_for_more, process, process.life)
        self.clock.after(request.hold_s, self._end, process, process.life)

    def _grow_late(self, process: Process, life: int) -> None:
        """The first runs take their workspace."""
        if process.life == life and process.alive:
            held = self.devices[process.device].held[process.peer]
            if not self._take(process, process.request.true_bytes - held):
                self._die(process, life)

    def _ask_for_more(self, process: Process, life: int) -> None:
        if process.life == life and process.alive and process.request.grows_bytes:
            process.more = LeaseRequest(
                next(self._ids), process.role, process.device, process.request.grows_bytes, process.kind_of_model, 5.0,
                grows=True, pid=self.arbiter.pid(process.peer),
            )  # fmt: skip
            process.words = [*process.words, process.more]
            self._say(process, process.more)

    def _more_is_answered(self, process: Process, message: Any) -> None:
        if not process.alive or not isinstance(message, (Granted, Denied)):
            return
        process.words.remove(process.more)
        process.more = None
        if isinstance(message, Granted):
            process.more_lease = message.lease
            minus, who, device, model = self._items[process]
            self.packing.depart(self._items[process])
            self._items[process] = (minus - message.nbytes, who, device, model)
            self.packing.arrive(self._items[process])
            self._repack()
            if not self._take(process, message.nbytes):
                self._die(process, process.life)

    def _rest(self, process: Process, life: int) -> None:
        if process.life == life and process.alive:
            process.idle = process.request.fate == "parks"

    def _end(self, process: Process, life: int) -> None:
        if process.life != life or not process.alive:
            return
        if process.request.fate == "unloads" and process.more is None:
            self._let_go(process)
        else:
            self._die(process, life)

    def _let_go(self, process: Process, *words: Any) -> None:
        """It unloads, and lives on."""
        more = [Release(process.more_lease)] if process.more_lease else []
        process.words = [*words, Release(process.lease), *more]
        self.devices[process.device].give_back(process.peer)
        for word in process.words:
            self._say(process, word)
        self._depart(process)
        self._free_role(process)

    def _die(self, process: Process, life: int) -> None:
        if process.life != life or not process.alive:
            return
        process.alive = False
        process.words = []
        process.is_stuck = process.request.is_stuck
        if process.device and not process.is_stuck:
            self.devices[process.device].give_back(process.peer)
        self._depart(process)
        self.clock.after(self.chance.uniform(*DEATH_IS_SEEN_S), self._death_is_seen, process)

    def _death_is_seen(self, process: Process) -> None:
        if process.is_stuck:
            self.judge.counts["stuck"] += 1
            self._death_is_told(process, stuck=True)
            return self.clock.after(self.chance.uniform(1.0, 30.0), self._has_ended, process)
        return self._is_gone(process)

    def _has_ended(self, process: Process) -> None:
        """After all."""
        process.is_stuck = False
        self.devices[process.device].give_back(process.peer)
        self._is_gone(process)

    def _is_gone(self, process: Process) -> None:
        self._death_is_told(process)
        self._free_role(process)
        if process.external:
            self.processes.pop(process.peer, None)

    def _death_is_told(self, process: Process, *, stuck: bool = False) -> None:
        if self.arbiter.will_hear:
            self.judge.load_over(process)
        self._to_arbiter(Gone(process.role, process.incarnation, stuck=stuck))

    # ------------------------------------------------------------ everybody else

    def _look(self) -> None:
        self.judge.look(self.arbiter)
        self.clock.after(LOOK_S, self._look)

    def _outsiders(self) -> None:
        """One of them grows or shrinks, on some device."""
        if not self._outsiders_stay:
            return
        device = self.chance.choice(list(self.devices.values()))
        step = int(device.total_bytes * self.chance.choice((0.002, 0.01, 0.05, -0.02, -0.05)))
        if step < device.free_bytes - 64 * MIB:
            device.others(min(device.foreign_bytes + step, device.total_bytes // 4))
            self._repack()
        self.clock.after(self.chance.expovariate(1 / 5.0), self._outsiders)

    def _plan_trouble(self) -> None:
        self.clock.after(self.chance.expovariate(1 / 120.0), self._kill_arbiter)
        self.clock.after(self.chance.expovariate(1 / 200.0), self._silence_driver)
        if len(self.devices) >= 3 and self._trouble.random() < LOSS_SHARE:
            self.clock.after(self._trouble.uniform(0.0, LOST_BY_S), self._lose)
        self.clock.after(self._trouble.expovariate(1 / DRAIN_EVERY_S), self._drain)

    def _lose(self) -> None:
        """A device computes no more: it is not read again, and whoever is there dies of it."""
        name = self._trouble.choice(list(self.devices))
        self.judge.counts["lost_devices"] += 1
        self.arbiter.lost.add(name)
        self._tell_trouble()
        for process in sorted(self.judge.present[name], key=lambda one: one.peer):
            if process.granted_bytes:
                self.clock.after(self._trouble.uniform(0.1, 3.0), self._die, process, process.life)
        self._repack()

    def _drain(self) -> None:
        """Operators keep a device empty for a while, or use it again."""
        if self._over_at is not None:
            self._drained = ""
            return self._tell_trouble()
        if self._drained:
            self._drained = ""
            self.clock.after(self._trouble.expovariate(1 / DRAIN_EVERY_S), self._drain)
        else:
            self._drained = self._trouble.choice(list(self.devices))
            self.judge.counts["drains"] += 1
            self.clock.after(self._trouble.uniform(*DRAINED_S), self._drain)
        self._repack()
        return self._tell_trouble()

    def _tell_trouble(self) -> None:
        """To the arbiter, and each new one before all else."""
        self.judge.drained.clear()  # what it has not heard it cannot keep to
        if self._to_arbiter(Orders(drained=(self._drained,) if self._drained else ())) and self._drained:
            self.judge.drained.add(self._drained)
        for name in self.arbiter.lost:
            if self._to_arbiter(DeviceLost(name, "lost")):
                self.judge.lost.add(name)

    def _kill_arbiter(self) -> None:
        if self._over_at is None:
            self.arbiter.doom()
            self.clock.after(self.chance.expovariate(1 / 120.0), self._kill_arbiter)

    def _silence_driver(self) -> None:
        device = self.chance.choice(list(self.devices))
        self.arbiter.blind.add(device)
        self.clock.after(self.chance.uniform(0.5, 5.0), self.arbiter.blind.discard, device)
        if self._over_at is None:
            self.clock.after(self.chance.expovariate(1 / 200.0), self._silence_driver)
