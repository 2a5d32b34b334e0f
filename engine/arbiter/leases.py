"""Who holds how much of which device: requests in, grants and refusals out. Pure.

A worker asks before it makes its first call into a driver. A request is granted when its device's room (``room``)
covers it, nobody else is loading there (one load at a time, so that what appears in memory is known to be the
loader's), and the device does not yet hold ``max_models`` models. Otherwise it waits:

* it is told why, in words, and again when the reason changes;
* smaller requests behind it may pass it, until half of its patience is gone: then it holds back those behind it;
* its patience (``lease_wait_s``) runs only while memory is what it lacks, not while somebody else's load is under way;
* when that is spent it is denied, with the bytes it needs and the bytes there are. What would not fit on the empty
  device is denied at once.

A lease ends with its holder's death, a failed load, or ``Release``. Nothing is granted upon a reading older than
``unreadable_s``. Frames of the dead that arrive late are dropped: the book remembers the newest life known to be gone.

The book outlives its arbiter: ``keep`` gives what the next one must know, ``restore`` takes it back. Workers then say
again what was not answered and their last words about their leases, and the supervisor who is dead: the book may hear
all of it twice. A load that was under way keeps its turn until its holder, or its holder's death, ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from engine.arbiter import words
from engine.arbiter.events import Action, Event, FromWorker, Obstacle, Sample, Send, Tick, Waits
from engine.arbiter.kept import Kept, KeptDevice
from engine.arbiter.lease import ALIVE, ON_DEVICE, Lease, LeaseState, move
from engine.arbiter.room import DeviceMemory, Limits, Reading
from engine.arbiter.wants import Wants
from ipc.messages import Denied, Gone, Granted, LeaseRequest, LeaseWait, Release, Settled

PASSING_SHARE = 0.5  # of its patience, after which a waiting request lets nobody pass


class Leases:
    """The book of all devices."""

    def __init__(self, limits: Iterable[Limits], waits: Waits) -> None:
        self._waits = waits
        self._devices = {one.name: DeviceMemory(one) for one in limits}
        self._leases: dict[str, list[Lease]] = {name: [] for name in self._devices}  # per device, oldest first
        self._next_number = 1
        self._gone: dict[str, int] = {}  # role -> newest incarnation known to be dead
        self._load_times_ms: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self.wants = Wants(waits.grace_s)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what is to be done about it, in order."""
        match event:
            case FromWorker(peer, LeaseRequest() as message):
                return self._request(peer, message, now)
            case FromWorker(peer, Settled() as message):
                return self._settled(peer, message, now)
            case FromWorker(peer, Release(lease=number)):
                return self._let_go(self._of(peer, number), now)
            case Gone(role=role, incarnation=incarnation):
                return self._bury(role, incarnation, now)
            case Reading():
                return self._read(event, now)
            case Tick():
                return [action for device in self._devices for action in self._serve(device, now)]
        raise TypeError(f"not an event: {event!r}")

    def due_in(self, now: float) -> float | None:
        """Seconds until time alone changes something here; None: never."""
        dues = []
        for lease in self._all():
            if lease.state is LeaseState.REQUESTED and lease.impatient:
                left = lease.patience_s - (now - lease.looked_at)
                passing = left - (1 - PASSING_SHARE) * self._waits.lease_wait_s
                dues.append(passing if passing > 0 else left)
            elif lease.state is LeaseState.DRAINING:
                dues.append(lease.since + self._waits.settle_s - now)
            elif (due := self.wants.due_in(lease, now)) is not None:
                dues.append(due)
        return max(0.0, min(dues)) if dues else None

    # ------------------------------------------------------------ asking

    def _request(self, peer: str, message: LeaseRequest, now: float) -> list[Action]:
        if self._is_gone(peer):
            self._counts["late"] += 1
            return []
        known = [lease for lease in self._all() if lease.peer == peer and lease.id == message.id]
        if known:
            return self._repeat(known[0], now)
        memory = self._devices.get(message.device)
        lease = Lease(
            peer, message.id, message.device, message.nbytes, message.model, LeaseState.REQUESTED, now,
            patience_s=self._waits.lease_wait_s if message.wait_s is None else message.wait_s, looked_at=now,
            preemptible=message.preemptible, grows=message.grows,
        )  # fmt: skip
        if memory is None:
            return [self._deny(lease, f"this node has no device {message.device!r}", now)]
        if message.nbytes < 0 or message.nbytes > memory.limits.most_bytes:
            return [self._deny(lease, words.never_fits(lease, memory.limits), now)]
        self._leases[message.device].append(lease)
        return self._serve(message.device, now)

    def _repeat(self, lease: Lease, now: float) -> list[Action]:
        """The same question again: the same answer."""
        if lease.state in ALIVE:
            return [self._granted(lease)]
        lease.obstacle = ""
        return self._serve(lease.device, now)

    def _serve(self, device: str, now: float) -> list[Action]:
        """Grant what fits, first come first, and tell the others what they wait for."""
        self._age(device, now)
        actions: list[Action] = []
        elder: Obstacle | None = None
        for lease in [one for one in self._leases[device] if one.state is LeaseState.REQUESTED]:
            obstacle = elder or self.obstacle(lease, now)
            if obstacle is None:
                actions.append(self._grant(lease, now))
                continue
            actions += self._wait(lease, obstacle, now)
            if lease.state is LeaseState.REQUESTED and self._holds_back(lease):
                elder = elder or Obstacle("elder", f"waiting behind {words.name(lease)}, which has waited longer")
        return actions + self._wish(device, now)

    def _wish(self, device: str, now: float) -> list[Action]:
        """Tell the scheduler what is lacking, on figures that are true."""
        memory, leases = self._devices[device], self._leases[device]
        if not memory.current(leases):
            return []
        return [*self.wants.look(device, leases, memory.room(leases), now)]

    def obstacle(self, lease: Lease, now: float) -> Obstacle | None:
        """What keeps this request from being granted now; None: nothing."""
        memory, leases = self._devices[lease.device], self._leases[lease.device]
        loading = [one for one in leases if one.state is LeaseState.GRANTED]
        if loading:
            return Obstacle("turn", f"waiting for {words.name(loading[0])} to load on {lease.device}")
        models = {one.kind_of_model for one in leases if one.state in ON_DEVICE and not one.external}
        if not lease.external and lease.kind_of_model not in models and len(models) >= memory.limits.max_models:
            return Obstacle("models", f"{len(models)} models are on {lease.device} (devices.max_models)")
        if memory.age(now, lease.since) > self._waits.unreadable_s:
            return Obstacle("unreadable", f"the memory of {lease.device} cannot be read")
        if not memory.current(leases):
            return Obstacle("reading", f"reading the memory of {lease.device}")
        if lease.nbytes > memory.room(leases):
            return Obstacle("room", words.too_little(lease, memory, leases))
        return None

    def _grant(self, lease: Lease, now: float) -> Action:
        lease.number, self._next_number = self._next_number, self._next_number + 1
        move(lease, LeaseState.GRANTED, now)
        reading = self._devices[lease.device].reading
        lease.free_bytes = reading.free_bytes if reading else -1
        self._counts["granted"] += 1
        if lease.external or lease.grows:  # it takes its bytes when it pleases: nobody waits for it to have loaded
            move(lease, LeaseState.HELD, now)
        return self._granted(lease)

    def _granted(self, lease: Lease) -> Action:
        return Send(lease.peer, Granted(lease.id, lease.number, lease.nbytes, lease.free_bytes))

    def _wait(self, lease: Lease, obstacle: Obstacle, now: float) -> list[Action]:
        if lease.impatient:
            lease.patience_s -= now - lease.looked_at
        lease.looked_at = now
        if lease.patience_s <= 0 and obstacle.kind not in ("turn", "reading"):
            self._leases[lease.device].remove(lease)
            return [self._deny(lease, lease.reason, now)]
        if obstacle.kind == "reading":  # milliseconds: not worth telling
            return []
        told, lease.obstacle, lease.reason = lease.obstacle, obstacle.kind, obstacle.text
        return [] if told == obstacle.kind else [Send(lease.peer, LeaseWait(obstacle.text, lease.id))]

    def _holds_back(self, lease: Lease) -> bool:
        return (
            not lease.external
            and lease.obstacle == "room"
            and lease.patience_s <= (1 - PASSING_SHARE) * self._waits.lease_wait_s
        )

    def _deny(self, lease: Lease, reason: str, now: float) -> Action:
        move(lease, LeaseState.DENIED, now)
        self._counts["denied"] += 1
        return Send(lease.peer, Denied(reason, "no_vram", lease.id))

    # ------------------------------------------------------------ holding and letting go

    def _settled(self, peer: str, message: Settled, now: float) -> list[Action]:
        actions: list[Action] = []
        for lease in self._of(peer, message.lease):
            if lease.state is not LeaseState.GRANTED:
                continue
            if not message.ok:
                actions += self._let_go([lease], now)
                continue
            lease.measured_bytes, lease.settled_at = message.measured_bytes, now
            self._load_times_ms[lease.model or lease.peer.partition("@")[0]] = message.load_ms
            move(lease, LeaseState.HELD, now)
            actions += [Sample(lease.device), *self._serve(lease.device, now)]
        return actions

    def _let_go(self, leases: list[Lease], now: float) -> list[Action]:
        """End the part of these leases that is alive, all of them before anybody else is served."""
        touched: dict[str, None] = {}
        for lease in leases:
            if lease.state is LeaseState.REQUESTED:
                move(lease, LeaseState.RELEASED, now)
                self._leases[lease.device].remove(lease)
            elif lease.state in ALIVE:
                move(lease, LeaseState.DRAINING, now)
            else:
                continue
            touched[lease.device] = None
        return [action for device in touched for action in (Sample(device), *self._serve(device, now))]

    def _bury(self, role: str, incarnation: int, now: float) -> list[Action]:
        self._gone[role] = max(incarnation, self._gone.get(role, incarnation))
        return self._let_go([lease for lease in self._all() if self._is_gone(lease.peer)], now)

    def _read(self, reading: Reading, now: float) -> list[Action]:
        memory = self._devices.get(reading.device)
        if memory is None:
            return []
        memory.take(reading, self._leases[reading.device])
        return self._serve(reading.device, now)

    def _age(self, device: str, now: float) -> None:
        """End what has drained; call what has not in time a deficit."""
        memory = self._devices[device]
        for lease in [one for one in self._leases[device] if one.state in ON_DEVICE - ALIVE]:
            read_since = memory.reading is not None and memory.reading.taken_at > lease.since
            if read_since and (lease.shown_back or memory.limits.returns_at_once):
                move(lease, LeaseState.RELEASED, now)
                self._leases[device].remove(lease)
                memory.forget(lease, self._leases[device])
                self.wants.again(device)
            elif lease.state is LeaseState.DRAINING and now - lease.since >= self._waits.settle_s:
                move(lease, LeaseState.DEFICIT, now)
                self._counts["deficits"] += 1

    # ------------------------------------------------------------ beyond this life

    def keep(self) -> Kept:
        """What the next arbiter must know, and no more: the book as it is now."""
        devices = []
        for name, memory in self._devices.items():
            leases = tuple(replace(lease) for lease in self._leases[name] if lease.state in ON_DEVICE)
            devices.append(KeptDevice(name, memory.reading, memory.foreign_bytes, memory.missing_bytes, leases))
        return Kept(self._next_number, dict(self._gone), dict(self._load_times_ms), tuple(devices))

    def restore(self, kept: Kept) -> None:
        """Go on from what an earlier arbiter knew; this book must be empty, and the leases are its own from here on."""
        # A request that waited comes again as a new one, and its patience starts anew: nobody kept how much was left.
        self._next_number = kept.next_number
        self._gone.update(kept.gone)
        self._load_times_ms.update(kept.load_times_ms)
        for device in kept.devices:
            if device.name in self._devices:
                self._devices[device.name].remember(device.reading, device.foreign_bytes, device.missing_bytes)
                self._leases[device.name] += device.leases

    # ------------------------------------------------------------ looking

    def _all(self) -> Iterator[Lease]:
        for leases in self._leases.values():
            yield from leases

    def _of(self, peer: str, number: int) -> list[Lease]:
        """The lease of that number, if it is this peer's."""
        found = [lease for lease in self._all() if lease.number == number and lease.peer == peer and number]
        if not found:
            self._counts["late"] += 1
        return found

    def _is_gone(self, peer: str) -> bool:
        role, _, incarnation = peer.rpartition("#")
        return int(incarnation) <= self._gone.get(role, -1)

    def snapshot(self, now: float) -> dict[str, Any]:
        """The arbiter's report: devices, leases, who waits for what. Sizes in bytes, times in ms."""
        held = [lease for lease in self._all() if lease.state in ON_DEVICE]
        waiting = [lease for lease in self._all() if lease.state is LeaseState.REQUESTED]
        return {
            "devices": {name: self._device_row(name, now) for name in self._devices},
            "leases": [words.lease_row(lease, overdue=self.wants.is_overdue(lease, now)) for lease in held],
            "waiting": [
                {"id": one.id, "worker": one.peer, "device": one.device, "nbytes": one.nbytes, "reason": one.reason}
                for one in waiting
            ],
            "load_times_ms": dict(self._load_times_ms),
            "counts": dict(self._counts),
        }

    def _device_row(self, name: str, now: float) -> dict[str, Any]:
        memory, leases = self._devices[name], self._leases[name]
        reading = memory.reading
        present = [lease for lease in leases if lease.state in ON_DEVICE]
        return {
            "total_bytes": memory.limits.total_bytes,
            "free_bytes": reading.free_bytes if reading else 0,
            "grantable_bytes": max(0, memory.room(leases)),
            "held_bytes": sum(lease.held_bytes for lease in present),
            "promised_bytes": sum(lease.promised_bytes for lease in present),
            "foreign_bytes": memory.foreign_bytes,
            "deficit_bytes": sum(one.held_bytes for one in present if one.state is LeaseState.DEFICIT),
            "snapshot_age_ms": round((now - reading.taken_at) * 1000, 1) if reading else -1,
        }

    def check(self) -> None:
        """Invariants: the book adds up, one load at a time per device, nothing finished is kept, nobody dead holds."""
        for name, leases in self._leases.items():
            self._devices[name].check(leases)
            assert sum(lease.state is LeaseState.GRANTED for lease in leases) <= 1, f"two loads at once on {name}"
            for lease in leases:
                assert lease.device == name
                assert lease.state not in (LeaseState.RELEASED, LeaseState.DENIED), "a finished lease is kept"
                assert lease.state not in ALIVE or not self._is_gone(lease.peer), "a dead worker holds a lease"
        numbers = [lease.number for lease in self._all() if lease.state in ON_DEVICE]
        assert len(numbers) == len(set(numbers)), "two leases with one number"
