"""Who holds how much of which device: requests in, grants and refusals out. Pure.

A worker asks before it makes its first call into a driver. A request is granted when its device's room (``room``)
covers it, nobody else is loading there (one load at a time, so that what appears in memory is known to be the
loader's), and the device does not yet hold ``max_models`` models. Otherwise it waits:

* in a ``line``, by priority and age; it is told why, in words, and again when the reason changes (``outlook``);
* smaller requests behind it may pass it, until half of its patience is gone (of a program's: all but the last half of
  ``lease_wait_s``): then it holds back those behind it;
* its patience (``lease_wait_s``) runs only while memory is what it lacks, not while somebody else's load is under way,
  unless that one has passed it;
* one that would do with several devices leaves its line for whichever of them has room first (``lines``, where also
  those stand aside who wait for a device that operators keep empty);
* when that is spent it *expires*, with the bytes it needs and the bytes there are. What would not fit on the empty
  device is denied at once.

A lease ends with its holder's death, a failed load, or ``Release``. A holder that cannot be killed keeps its bytes, and
so do all on a device that is lost (``DeviceLost``): its leases are *lost*, and none is granted there again. Nothing is
granted upon a reading older than ``unreadable_s``. Frames of the dead that arrive late are dropped: the book remembers
each worker's newest life known to be gone. Of programs outside, which would be more and more, it remembers none: their
names tell the shell whether they live (``holders``), and it keeps such frames away.

The book outlives its arbiter: ``keep`` gives what the next one must know, ``restore`` takes it back. Workers then say
again what was not answered and their last words about their leases, and the supervisor who is dead: the book may hear
all of it twice. A load that was under way keeps its turn until its holder, or its holder's death, ends it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from engine.arbiter import words
from engine.arbiter.events import Action, Alarm, DeviceLost, Event, FromWorker, Sample, Send, Tick, Waits
from engine.arbiter.kept import Kept, KeptDevice
from engine.arbiter.lease import (
    ALIVE,
    EXTERNAL,
    LEAVING,
    ON_DEVICE,
    Lease,
    LeaseState,
    move,
    shown_back,
    shrink,
)
from engine.arbiter.line import PRIORITIES, Line
from engine.arbiter.lines import Lines
from engine.arbiter.outlook import Outlook, look
from engine.arbiter.overuse import Overuse
from engine.arbiter.room import DOUBT_S, DeviceMemory, Reading
from engine.arbiter.wants import Wants, Wish
from engine.limits import Limits
from ipc.messages import Denied, Gone, Granted, LeaseRequest, LeaseWait, Orders, Quarantine, Release, Settled
from ipc.peers import split_peer

TOLD = 16  # of those who wait are told each change of what they wait for; who stands further back, that it does
NAMED = 3  # of the programs that have not left in time, in a refusal
SHOWN = 100  # of those who wait in a report
OVER, OVER_S = 64, 10.0  # so many leases are reported for so long after their end, so that none is over unseen
DRAINED = "drained"  # the obstacle of who stands aside

# The book must fit its journal, half of the supervisor's JOURNAL_BYTES, and so what programs can fill it with.
NAME_BYTES = 200  # of a model's or a program's name
PEER_BYTES = 100  # of what a program calls itself by
MOST_LEASES = 1000  # beyond which programs get no more; the node's own are bounded by its workers


class Leases:
    """The book of all devices. ``books``: devices that have none of their own -> the one in whose book they stand."""

    def __init__(self, limits: Iterable[Limits], waits: Waits, books: Mapping[str, str] | None = None) -> None:
        self._waits = waits
        self._devices = {one.name: DeviceMemory(one) for one in limits}
        self._present: dict[str, list[Lease]] = {name: [] for name in self._devices}  # granted, and not over; by age
        self._lines = Lines(self._devices, books or {}, waits.lease_wait_s)  # those who wait
        self._over: deque[Lease] = deque(maxlen=OVER)  # the last that have ended, oldest first
        self._by_role: dict[str, list[Lease]] = {}  # all of both
        self._next_number = 1
        self._gone: dict[str, int] = {}  # worker's role -> newest incarnation known to be dead
        self._lost: dict[str, str] = {}  # quarantined device -> why
        self._load_times_ms: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._overuse = Overuse()
        self.wants = Wants(waits.grace_s)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what is to be done about it, in order."""
        match event:
            case FromWorker(peer, LeaseRequest() as message):
                return self._request(peer, message, now)
            case FromWorker(peer, Settled() as message):
                return self._settled(peer, message, now)
            case FromWorker(peer, Release(lease=0)):
                return self._let_go([one for one in self._by_role.get(_role(peer), ()) if one.peer == peer], now)
            case FromWorker(peer, Release(lease=number, keep_bytes=nbytes)) if nbytes > 0:
                return self._shrink(peer, number, nbytes, now)
            case FromWorker(peer, Release(lease=number)):
                return self._let_go(self._of(peer, number), now)
            case Gone(role=role, incarnation=incarnation, stuck=stuck):
                return self._bury(role, incarnation, stuck, now)
            case DeviceLost():
                return self._lose(event, now)
            case Reading():
                return self._read(event, now)
            case Orders(drained=drained):
                return self._drain(drained, now)
            case Tick():
                while self._over and now >= self._over[0].since + OVER_S:
                    self._over.popleft()
                return [action for device in self._devices for action in self._serve(device, now)]
        raise TypeError(f"not an event: {event!r}")

    def due_in(self, now: float) -> float | None:
        """Seconds until time alone changes something here; None: never."""
        dues = [due for line in self._lines.all() if (due := line.due_in(now)) is not None]
        for lease in self._all_present():
            if lease.state is LeaseState.DRAINING:
                if (due := lease.since + self._waits.settle_s - now) > 0:  # from then on it is a matter of readings
                    dues.append(due)
            elif (due := self.wants.due_in(lease, now)) is not None:
                dues.append(due)
        return max(0.0, min(dues)) if dues else None

    # ------------------------------------------------------------ asking

    def _request(self, peer: str, message: LeaseRequest, now: float) -> list[Action]:
        if self._is_gone(peer):
            self._counts["late"] += 1
            return []
        known = [one for one in self._by_role.get(_role(peer), ()) if one.peer == peer and one.id == message.id]
        for lease in known:
            if lease.state in ALIVE or lease.state is LeaseState.REQUESTED:
                return self._repeat(lease, now)
        among = tuple(one for one in dict.fromkeys(message.among) if self._lines.book(one) in self._devices)
        name = message.device or self._best(among, message.nbytes, now)
        device = self._lines.book(name)
        memory = self._devices.get(device)
        lease = Lease(
            peer, message.id, device, message.nbytes, _cut(words.printable(message.model)), LeaseState.REQUESTED, now,
            variant=message.variant, priority=message.priority, preemptible=message.preemptible,
            grows=message.grows and not peer.startswith(EXTERNAL),  # a program has no model that is loaded
            pid=message.pid,
            base_bytes=max(0, message.base_bytes),
            home=name if name != device else "",
        )  # fmt: skip
        if memory is None:
            return [self._deny(lease, f"this node has no device {_cut(name)!r}", now)]
        if name in self._lost:
            return [self._deny(lease, words.quarantined(name, self._lost[name]), now)]
        if message.wait_s is not None and not 0 <= message.wait_s < math.inf:
            return [self._deny(lease, f"{message.wait_s} is no time to wait", now)]
        if lease.external and sum(map(len, self._by_role.values())) >= MOST_LEASES:
            return [self._deny(lease, f"{MOST_LEASES} leases are asked for or held, the most this node keeps", now)]
        if lease.external and len(peer.encode()) > PEER_BYTES:
            return [self._deny(lease, f"its name has more than {PEER_BYTES} bytes", now)]
        if message.priority not in PRIORITIES:
            return [self._deny(lease, f"no priority {message.priority[:64]!r}, only {', '.join(PRIORITIES)}", now)]
        if message.nbytes < 0 or message.nbytes > memory.limits.most_bytes:
            return [self._deny(lease, words.never_fits(lease, memory.limits), now)]
        lease.nbytes = min(memory.limits.most_bytes, self._overuse.asks(lease))
        self._by_role.setdefault(_role(peer), []).append(lease)
        self._lines.add(lease, now, message.wait_s, () if message.device else among)
        return self._serve(device, now, lease)

    def _best(self, names: Sequence[str], nbytes: int, now: float) -> str:
        """Of these devices the one with most room: of those that grant so much at once, or else of those that ever may.

        One that is lost only where all are, one that is drained where no other would do; "" when this node has none.
        """

        def worth(name: str) -> tuple[bool, bool, bool, bool, bool, int]:
            device = self._lines.book(name)
            memory, present, line = self._devices[device], self._present[device], self._lines.in_front_of(device)
            outlook = look(memory, present, line, self._waits.unreadable_s, now)
            ever = name not in self._lost, nbytes <= memory.limits.most_bytes
            used = name not in self._lines.drained
            return *ever, used, outlook.takes(nbytes), outlook.readable, memory.room(present)

        return max(names, key=worth, default="")

    def _repeat(self, lease: Lease, now: float) -> list[Action]:
        """The same question again: the same answer."""
        if lease.state in ALIVE:
            return [self._granted(lease)]
        lease.obstacle = ""
        return self._serve(lease.device, now, lease)

    def _serve(self, device: str, now: float, asking: Lease | None = None) -> list[Action]:
        """Grant what may be granted, end what has waited too long, and tell the others, ``asking`` at once, why."""
        self._age(device, now)
        line, actions, left = self._lines.in_front_of(device), [], []
        while True:
            outlook = self._outlook(device, now)
            if lease := outlook.next(line):
                actions.append(self._grant(lease, now))
            elif expired := self._expired(outlook, line, now):
                reason = self._reason(expired, outlook, now)
                actions.append(self._expire(expired, reason and reason + self._stayed(device, now), now))
            elif found := self._from_elsewhere(device, outlook):
                left.append(found[0].device)
                self._lines.move(*found, now)  # and it is next
            else:
                break
        actions += self._hold_aside(device, now)
        actions += self._tell(line, outlook, asking)
        actions += self._wish(device, outlook, now)
        return actions + [action for other in left for action in self._serve(other, now)]

    def _from_elsewhere(self, device: str, outlook: Outlook) -> tuple[Lease, str] | None:
        """A request that waits for another device and that this one has room for, and its name for this one."""
        if not outlook.takes(0):
            return None
        found = self._lines.for_room(device, outlook.room, lambda name: name not in self._lost)
        return None if found is None or outlook.lacks_place(found[0]) else found

    def _outlook(self, device: str, now: float) -> Outlook:
        line = self._lines.in_front_of(device)
        outlook = look(self._devices[device], self._present[device], line, self._waits.unreadable_s, now)
        if outlook.loader is not None:  # nobody's patience runs out over somebody else's load
            line.stop(now, outlook.loader)
        else:
            line.run(now)
        return outlook

    def _grant(self, lease: Lease, now: float) -> Action:
        self._lines.remove(lease)
        self._present[lease.device].append(lease)
        lease.number, self._next_number = self._next_number, self._next_number + 1
        move(lease, LeaseState.GRANTED, now)
        lease.granted_at = now
        reading = self._devices[lease.device].reading
        lease.free_bytes = reading.free_bytes if reading else -1
        self._counts["granted"] += 1
        if lease.external or lease.grows:  # it takes its bytes when it pleases: nobody waits for it to have loaded
            move(lease, LeaseState.HELD, now)
        return self._granted(lease)

    def _granted(self, lease: Lease) -> Action:
        device = lease.home or lease.device
        return Send(lease.peer, Granted(lease.id, lease.number, lease.nbytes, lease.free_bytes, device))

    @staticmethod
    def _expired(outlook: Outlook, line: Line, now: float) -> Lease | None:
        known = outlook.closed is None or outlook.closed.kind == "unreadable"  # why it cannot be served
        return next(iter(line.spent(now)), None) if known else None

    def _expire(self, lease: Lease, reason: str, now: float) -> Action:
        assert reason, "what can be served has been"
        self._forget(lease)
        move(lease, LeaseState.EXPIRED, now)
        self._counts["expired"] += 1
        return Send(lease.peer, Denied(reason, "no_vram", lease.id))

    def _deny(self, lease: Lease, reason: str, now: float) -> Action:
        move(lease, LeaseState.DENIED, now)
        self._counts["denied"] += 1
        return Send(lease.peer, Denied(reason, "no_vram", lease.id))

    # ------------------------------------------------------------ what operators keep empty

    def _drain(self, drained: Collection[str], now: float) -> list[Action]:
        """These devices are drained now, and no others: who asks for one of them stands aside, and nobody else."""
        if not self._lines.drain(drained, now, lambda one: self._best(self._lines.others(one), one.nbytes, now)):
            return []
        return [action for device in self._devices for action in self._serve(device, now)]

    def _hold_aside(self, device: str, now: float) -> list[Action]:
        """End what has stood aside too long, and tell the others of it."""
        actions: list[Action] = []
        for name, line in self._lines.aside_of(device):
            actions += [self._expire(lease, words.drained(name), now) for lease in line.spent(now)]
            for lease in [one for one in line if one.obstacle != DRAINED]:
                lease.obstacle = DRAINED
                actions.append(Send(lease.peer, LeaseWait(words.drained(name), lease.id)))
        return actions

    # ------------------------------------------------------------ telling

    def _tell(self, line: Line, outlook: Outlook, asking: Lease | None) -> list[Action]:
        """What the first in the line wait for, where that is another kind of thing than they were told."""
        closed = outlook.closed.kind if outlook.closed else ""
        if closed == "reading":  # that takes milliseconds
            return []
        told: list[Action] = []
        for lease in islice(line, TOLD):
            if lease.obstacle != (kind := closed or outlook.kind(lease)):
                lease.obstacle = kind
                reason = outlook.reason(lease)
                if names := self._lines.others(lease):
                    reason += f"; the first to have room will do, of {', '.join(names)}"
                told.append(Send(lease.peer, LeaseWait(reason, lease.id)))
        if asking is not None and asking.state is LeaseState.REQUESTED and not asking.obstacle:
            asking.obstacle = "line"
            told.append(Send(asking.peer, LeaseWait(f"more than {TOLD} requests wait before it", asking.id)))
        return told

    def _reason(self, lease: Lease, outlook: Outlook, now: float, taken: str = "") -> str:
        """Why it waits, and in few words why it does not go to the other devices that would do.

        ``taken``: who has what it lacks.
        """
        why = [outlook.reason(lease)] + ([taken] if taken and outlook.kind(lease) in ("room", "models") else [])
        names = [name for name in self._lines.others(lease) if not lease.is_on(name)]
        return "; ".join([*why, *(f"{one}: {self._briefly(one, lease.nbytes, now)}" for one in names)])

    def _stayed(self, device: str, now: float) -> str:
        """Which programs there were asked to leave and have not in time, in words; "": none."""
        asked = self.wants.leaving(self._present[device])
        names = [words.leaving(one, overdue=True) for one in asked if self.wants.is_overdue(one, now)]
        return f"; asked to leave and still there: {', '.join(names[:NAMED])}" if names else ""

    def _briefly(self, name: str, nbytes: int, now: float) -> str:
        if name in self._lost:
            return "lost"
        if name in self._lines.drained:
            return DRAINED
        device = self._lines.book(name)
        line = self._lines.in_front_of(device)
        outlook = look(self._devices[device], self._present[device], line, self._waits.unreadable_s, now)
        return outlook.briefly(nbytes)

    def _wish(self, device: str, outlook: Outlook, now: float) -> list[Action]:
        """Have room made, on figures that are true, for the first in line whom that helps."""
        wishes = () if outlook.closed else self._wishes(device, outlook)
        return [*self.wants.look(device, wishes, self._present[device], outlook.room, now)]

    def _wishes(self, device: str, outlook: Outlook) -> Iterator[Wish]:
        """Of those who wait, in order, as far as they may be served: the first, and the node's own first.

        So that programs, which nobody may be able to help, do not keep the scheduler from making room for those.
        """
        line = self._lines.in_front_of(device)
        for lease in dict.fromkeys((*islice(line, TOLD), *line.own(TOLD))):
            yield Wish(lease.peer, lease.nbytes, outlook.lacks_place(lease))
            if lease is outlook.elder:
                return  # nobody passes it

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
                self._forget(lease)
                move(lease, LeaseState.RELEASED, now)
            elif lease.state in ALIVE or (lease.state is LeaseState.LOST and not self._is_lost(lease)):
                move(lease, LeaseState.DRAINING, now)
            else:
                continue
            touched[lease.device] = None
        return [action for device in touched for action in (Sample(device), *self._serve(device, now))]

    def _shrink(self, peer: str, number: int, nbytes: int, now: float) -> list[Action]:
        """Let a holder keep so much of all its leases, or what it was seen to have if that is more."""
        if not any(lease.state is LeaseState.HELD for lease in self._of(peer, number)):
            return []
        its = [lease for lease in self._by_role[_role(peer)] if lease.peer == peer]
        held = [lease for lease in its if lease.state in ALIVE]
        ended = shrink(held, nbytes) + [lease for lease in its if lease.state is LeaseState.REQUESTED]
        return [*self._let_go(ended, now), *self._serve(held[0].device, now)]

    def _bury(self, role: str, incarnation: int, stuck: bool, now: float) -> list[Action]:
        if not role.startswith(EXTERNAL):
            self._gone[role] = max(incarnation, self._gone.get(role, incarnation))
        dead = [lease for lease in self._by_role.get(role, ()) if split_peer(lease.peer)[1] <= incarnation]
        if stuck:
            held = [lease for lease in dead if lease.state in ALIVE]
            for lease in held:
                move(lease, LeaseState.LOST, now)
                self.wants.again(lease)
            dead = [lease for lease in dead if lease.state is LeaseState.REQUESTED]
            return self._let_go(dead, now) + [one for lease in held for one in self._serve(lease.device, now)]
        return self._let_go(dead, now)

    def _lose(self, event: DeviceLost, now: float) -> list[Action]:
        """Quarantine a device: what lies there is lost, and who waits for it waits in vain."""
        book = self._lines.book(event.device)
        if event.device in self._lost or book not in self._devices:
            return []
        self._lost[event.device] = event.reason
        actions: list[Action] = [Alarm(Quarantine(event.device, event.reason))]
        moved: list[Lease] = []
        present = [one for one in self._present[book] if one.is_on(event.device)]
        for lease in (*self._lines.waiting_for(event.device), *present):
            if lease.state is not LeaseState.REQUESTED:
                if lease.state is not LeaseState.LOST:
                    move(lease, LeaseState.LOST, now)
                    self.wants.again(lease)
            elif (other := self._best(self._lines.others(lease), lease.nbytes, now)) and other not in self._lost:
                self._lines.move(lease, other, now)
                moved.append(lease)
            else:
                self._forget(lease)
                actions.append(self._deny(lease, words.quarantined(event.device, event.reason), now))
        actions += [action for lease in moved for action in self._serve(lease.device, now, lease)]
        return actions + self._serve(book, now)

    def alarms(self) -> list[Quarantine]:
        """Every quarantined device, for a supervisor that may not have heard of it."""
        return [Quarantine(device, reason) for device, reason in self._lost.items()]

    def _read(self, reading: Reading, now: float) -> list[Action]:
        memory = self._devices.get(reading.device)
        if memory is None:
            return []
        present = self._present[reading.device]
        memory.take(reading, present)
        return [*self._overuse.look(present), *self._serve(reading.device, now)]

    def _age(self, device: str, now: float) -> None:
        """End what has drained; call what has not in time a deficit."""
        memory = self._devices[device]
        leaving: dict[str, list[Lease]] = {}
        for lease in self._present[device]:
            if lease.state in LEAVING:
                leaving.setdefault(lease.peer, []).append(lease)
        # What of one holder lies in which of its leases is a guess; so all of them are back, or none.
        back = {peer for peer, leases in leaving.items() if memory.limits.returns_at_once or shown_back(leases)}
        for lease in [one for leases in leaving.values() for one in leases]:
            read_since = memory.reading is not None and memory.reading.taken_at > lease.since
            if read_since and lease.peer in back:
                self._forget(lease)
                move(lease, LeaseState.RELEASED, now)
                memory.forget(lease, self._present[device])
                self.wants.again(lease)
            elif read_since and lease.state is LeaseState.DRAINING and now - lease.since >= self._waits.settle_s:
                move(lease, LeaseState.DEFICIT, now)
                self.wants.again(lease)
            elif read_since and lease.state is LeaseState.DEFICIT and now - lease.since >= DOUBT_S:
                self._forget(lease)
                memory.disown(lease, self._present[device])
                move(lease, LeaseState.RELEASED, now)
                self._counts["deficits"] += 1

    def _forget(self, lease: Lease) -> None:
        """It is over, or never began."""
        if lease.state is LeaseState.REQUESTED:
            self._lines.remove(lease)
        else:
            self._present[lease.device].remove(lease)
            self._over.append(lease)
        namesakes = self._by_role[_role(lease.peer)]
        namesakes.remove(lease)
        if not namesakes:
            del self._by_role[_role(lease.peer)]

    # ------------------------------------------------------------ beyond this life

    def keep(self) -> Kept:
        """What the next arbiter must know, and no more: the book as it is now."""
        devices = []
        for name, memory in self._devices.items():
            leases = tuple(replace(lease) for lease in self._present[name])
            figures = memory.reading, memory.foreign_bytes, memory.missing_bytes
            devices.append(KeptDevice(name, *figures, leases, memory.lists_us))
        over = tuple(replace(lease) for lease in self._over)
        times = dict(self._load_times_ms)
        return Kept(self._next_number, dict(self._gone), times, tuple(devices), dict(self._lost), over)

    def restore(self, kept: Kept) -> None:
        """Go on from what an earlier arbiter knew; this book must be empty, and the leases are its own from here on."""
        # A request that waited comes again as a new one, and its patience starts anew: nobody kept how much was left.
        self._next_number = kept.next_number
        self._gone.update(kept.gone)
        self._load_times_ms.update(kept.load_times_ms)
        self._lost.update(kept.lost)
        self._over.extend(kept.over)
        for device in kept.devices:
            if device.name in self._devices:
                self._devices[device.name].remember(
                    device.reading, device.foreign_bytes, device.missing_bytes, device.lists_us, device.leases
                )
                self._present[device.name] += device.leases
                for lease in device.leases:
                    self._by_role.setdefault(_role(lease.peer), []).append(lease)

    # ------------------------------------------------------------ looking

    def books(self) -> Iterator[tuple[DeviceMemory, list[Lease]]]:
        """Each device's memory and the leases on it, to look at."""
        for name, memory in self._devices.items():
            yield memory, self._present[name]

    def rooms(self) -> dict[str, int]:
        """Device -> bytes that may be granted and nobody waits for; without the devices of which that is not known."""
        known = {name: memory for name, memory in self._devices.items() if memory.current(self._present[name])}
        return {
            name: 0
            if self._lines.in_front_of(name) or name in self._lost or name in self._lines.drained
            else max(0, memory.room(self._present[name]))
            for name, memory in known.items()
        }

    def knows(self, peer: str) -> bool:
        """Whether this holder has a lease, or waits for one."""
        return any(one.peer == peer and one.state not in LEAVING for one in self._by_role.get(_role(peer), ()))

    def _all_present(self) -> Iterator[Lease]:
        for leases in self._present.values():
            yield from leases

    def _of(self, peer: str, number: int) -> list[Lease]:
        """The lease of that number, if it is this peer's."""
        leases = self._by_role.get(_role(peer), ())
        found = [lease for lease in leases if lease.number == number and lease.peer == peer and number]
        if not found:
            self._counts["late"] += 1
        return found

    def _is_gone(self, peer: str) -> bool:
        role, incarnation = split_peer(peer)
        return incarnation <= self._gone.get(role, -1)

    def _is_lost(self, lease: Lease) -> bool:
        return (lease.home or lease.device) in self._lost

    def snapshot(self, now: float) -> dict[str, Any]:
        """The arbiter's report: devices, leases, who waits for what. Sizes in bytes, times in ms."""
        return {
            "devices": {name: self._device_row(name, now) for name in self._devices},
            "leases": [words.lease_row(one, overdue=self.wants.is_overdue(one, now)) for one in self._all_present()],
            "over": [words.lease_row(one, overdue=False) for one in self._over],
            "last_lease": self._next_number - 1,
            "waiting": self._explained(now),
            "waiting_total": len(self._lines),
            "load_times_ms": dict(self._load_times_ms),
            "counts": dict(self._counts),
            "quarantined": dict(self._lost),
            "drained": sorted(self._lines.drained),
        }

    def _explained(self, now: float) -> list[dict[str, Any]]:
        """The first who wait, of each line. What is the same for all of a line is looked up once, however many wait."""
        told = []
        for line in self._lines.all():
            if shown := list(islice(line, SHOWN)):
                device = shown[0].device
                memory, present = self._devices[device], self._present[device]
                outlook = look(memory, present, line, self._waits.unreadable_s, now)
                taken = words.taken(present, memory.foreign_bytes)
                told += [self._explain(lease, line, outlook, taken, now) for lease in shown]
        return told

    def _explain(self, lease: Lease, line: Line, outlook: Outlook, taken: str, now: float) -> dict[str, Any]:
        """Why this request waits, in words and numbers; bytes and seconds. ``taken``: who has the memory."""
        name = lease.home or lease.device
        aside = {"kind": DRAINED, "reason": words.drained(name)} if self._lines.stands_aside(lease) else {}
        return {
            "id": lease.id,
            "worker": lease.peer,
            "device": lease.device,
            "nbytes": lease.nbytes,
            "model": lease.model,
            "priority": lease.priority,
            "ahead": line.position(lease),
            "waited_s": round(now - lease.since, 3),
            "patience_s": round(line.patience(lease, now), 3),
            "leaving": [
                words.leaving(one, overdue=self.wants.is_overdue(one, now))
                for one in self.wants.leaving(self._present[lease.device])
            ],
            **outlook.explain(lease),
            "reason": self._reason(lease, outlook, now, taken),
            **aside,
        }

    def _device_row(self, name: str, now: float) -> dict[str, Any]:
        memory, present = self._devices[name], self._present[name]
        reading = memory.reading
        return {
            "total_bytes": memory.limits.total_bytes,
            "free_bytes": reading.free_bytes if reading else 0,
            "grantable_bytes": max(0, memory.room(present)),
            "held_bytes": sum(lease.held_bytes for lease in present),
            "promised_bytes": memory.promised(present),
            "foreign_bytes": memory.foreign_bytes,
            "deficit_bytes": sum(one.held_bytes for one in present if one.state is LeaseState.DEFICIT),
            "lost_bytes": sum(max(one.nbytes, one.held_bytes) for one in present if one.state is LeaseState.LOST),
            "over_lease_bytes": sum(max(0, one.held_bytes - one.nbytes) for one in present if one.state in ALIVE),
            "snapshot_age_ms": round((now - reading.taken_at) * 1000, 1) if reading else -1,
        }

    def check(self) -> None:
        """Invariants: the book adds up, one load at a time per device, nothing finished is kept, nobody dead holds."""
        for name, leases in self._present.items():
            self._devices[name].check(leases)
            assert sum(lease.state is LeaseState.GRANTED for lease in leases) <= 1, f"two loads at once on {name}"
            for lease in leases:
                assert lease.device == name and lease.state in ON_DEVICE, "a lease that is over, or not begun, is kept"
                assert lease.state not in ALIVE or not self._is_gone(lease.peer), "a dead worker holds a lease"
                assert lease.state is LeaseState.LOST or not self._is_lost(lease), "a lease on a lost device"
        self._lines.check()
        numbers = [lease.number for lease in self._all_present()]
        assert len(numbers) == len(set(numbers)), "two leases with one number"
        known = [lease for leases in self._by_role.values() for lease in leases]
        assert len(known) == len(numbers) + len(self._lines), "a lease nobody finds, or a ghost"


def _role(peer: str) -> str:
    return peer.rpartition("#")[0]


def _cut(name: str) -> str:
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
