"""Where each model goes, and whether all of them stay there: the plan before anything is loaded. Pure.

From what each device can give and what each stage's model will need, four verdicts:

* **all resident**: every model has its place and keeps it;
* **all resident when quantised**: so have all, when some stages load a smaller variant of their model;
* **by turns**: models leave for one another and come back, which adds so many seconds of loading to a round;
* **fits nowhere**: a stage that the node cannot do without fits no device it may use, even if that were empty.

"Resident" is promised by the arbiter's own formula (``engine.limits``) in its worst case: all leases granted, no byte
of them on the device yet, so that the margin, a share of what is free, is at its largest. Whatever order the models
come in, and whichever is loaded again after a death, nobody waits. Where only a favourable order would do, the verdict
is *by turns*.

A stage is wanted on certain devices, on all of them, or on any of some: then it gets one for certain, and more where
there is room left. What other programs hold counts as taken; a model that fits beside them not now, but would without
them, waits for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from engine.limits import Limits

LOAD_BYTES_PER_S = 500e6  # a guess from docs/vram.md, where nothing was measured here yet
SAFETY_MARGIN = Limits("", 0).safety_margin  # nobody is told to keep less than that
MOST_TRIES = 10_000  # of a place for a model (some tenths of a second); then it is taken for granted that there is none


class Verdict(Enum):
    RESIDENT = "all resident"
    QUANTISED = "all resident when quantised"
    TURNS = "by turns"
    NOWHERE = "fits nowhere"


@dataclass(frozen=True)
class Room:
    """A device, and what its driver shows as free at the time of planning (bytes)."""

    limits: Limits
    kind: str  # cpu | cuda
    free_bytes: int
    book: str = ""  # the device whose memory it shares ("": it has its own)

    @property
    def name(self) -> str:
        return self.limits.name

    @property
    def memory(self) -> str:
        """Where its bytes are counted."""
        return self.book or self.name

    def left(self, nbytes: int) -> int:
        """What can still be granted when so much is; negative: so much cannot be."""
        foreign = max(0, self.limits.total_bytes - self.free_bytes)
        return self.limits.grantable(self.free_bytes, nbytes, nbytes, foreign)


@dataclass(frozen=True)
class Variant:
    """One way to load a stage's model. ``needs``: kind of device -> bytes."""

    name: str
    needs: Mapping[str, int]
    load_s: float = 0.0


@dataclass(frozen=True)
class Wish:
    """A stage to be placed. ``variants``: best first. ``everywhere``: on all of ``devices``, else on any of them.

    ``spare``: a device that serves where none of these can ever hold it ("": there is none).
    """

    stage: str
    variants: tuple[Variant, ...]
    devices: tuple[str, ...]
    everywhere: bool = False
    instances: int = 1  # on each device
    spare: str = ""
    pinned: bool = False
    dispensable: bool = False  # the node can do without it
    on_spare: bool = False  # ``devices`` is the spare one


@dataclass(frozen=True)
class Place:
    """One stage on one device. ``nbytes``: of all its instances there."""

    stage: str
    device: str
    variant: int
    name: str  # of the variant
    nbytes: int
    load_s: float = 0.0
    pinned: bool = False
    spare: bool = False  # it has no room on the devices it is wanted on


@dataclass(frozen=True)
class Lack:
    """A stage that has no room: what it needs, and the most there is (now, or ever)."""

    stage: str
    devices: tuple[str, ...]
    needs_bytes: int
    there_bytes: int
    beside: tuple[str, ...] = ()  # stages whose models are there and never leave
    full: int = 0  # ... and are as many as there may be
    bound: str = ""  # the setting without which there would be enough


@dataclass(frozen=True)
class Placement:
    """The plan. ``added_s``: loading in one round of turns. ``waits``: for other programs' memory."""

    verdict: Verdict
    places: tuple[Place, ...] = ()
    left_bytes: Mapping[str, int] = field(default_factory=dict)  # device -> bytes, when all its models are there
    crowded: tuple[str, ...] = ()  # devices (whose memory it is) where models take turns
    single: tuple[str, ...] = ()  # ... and where no two of them can be at once
    added_s: float = 0.0
    nowhere: tuple[Lack, ...] = ()
    waits: tuple[Lack, ...] = ()
    never: tuple[Lack, ...] = ()  # one a device that a stage is wanted on and that can never hold it, others can
    best: Mapping[str, int] = field(default_factory=dict)  # stage -> its variant if no other program held memory
    rooms: tuple[Room, ...] = ()  # what it was made for

    def devices_of(self, stage: str, *, spare: bool = True) -> tuple[str, ...]:
        """Where a stage is; ``spare`` False: only devices that it is wanted on."""
        places = [place for place in self.places if place.stage == stage]
        return tuple(place.device for place in places if spare or not place.spare)

    def variant_of(self, stage: str) -> int:
        """Number of the variant to begin with."""
        return next((place.variant for place in self.places if place.stage == stage), 0)


def plan(rooms: Sequence[Room], wishes: Sequence[Wish]) -> Placement:
    """Place all ``wishes``, which are in the order in which an utterance meets them."""
    alone = _plan([replace(room, free_bytes=room.limits.total_bytes) for room in rooms], wishes)
    best = {wish.stage: alone.variant_of(wish.stage) for wish in wishes}
    return replace(_plan(rooms, wishes), best=best, rooms=tuple(rooms), never=tuple(_never(rooms, wishes)))


def measured(placement: Placement, load_s: Mapping[str, float]) -> Placement:
    """The same plan with loads that took so long (stage -> seconds) in place of guesses."""
    places = tuple(replace(one, load_s=load_s.get(one.stage, one.load_s)) for one in placement.places)
    devices = {room.name: room for room in placement.rooms}
    added = sum(_round_s(devices[name], _within(places, name, devices)) for name in placement.crowded)
    return replace(placement, places=places, added_s=added)


def _plan(rooms: Sequence[Room], wishes: Sequence[Wish]) -> Placement:
    devices = {room.name: room for room in rooms}
    settled = [_settled(wish, devices) for wish in wishes]
    nowhere = tuple(_lack(wish, devices, ever=True) for wish, found in zip(wishes, settled, strict=True) if not found)
    needed = {wish.stage for wish in wishes if not wish.dispensable}
    fitting = [wish for wish in settled if wish is not None]
    if any(lack.stage in needed for lack in nowhere):
        return Placement(Verdict.NOWHERE, nowhere=nowhere)
    tries = iter(range(MOST_TRIES))
    for choice in itertools.islice(_choices(fitting), MOST_TRIES):
        if (places := _resident(fitting, choice, devices, tries)) is not None:
            places += _more(fitting, choice, places, devices)
            verdict = Verdict.QUANTISED if any(choice.values()) else Verdict.RESIDENT
            return Placement(verdict, _ordered(places, fitting), _left(places, devices), nowhere=nowhere)
    return _turns(fitting, devices, nowhere, needed)


# ---------------------------------------------------------------- who fits where


def _settled(wish: Wish, devices: Mapping[str, Room]) -> Wish | None:
    """The wish on those of its devices that can ever hold it, else on its spare one; None: it fits nowhere."""
    fits = tuple(name for name in wish.devices if _smallest(wish, devices[name]) <= devices[name].limits.most_bytes)
    if fits:
        return replace(wish, devices=fits)
    spare = devices.get(wish.spare)
    if spare is not None and _smallest(wish, spare) <= spare.limits.most_bytes:
        return replace(wish, devices=(spare.name,), on_spare=True)
    return None


def _never(rooms: Sequence[Room], wishes: Sequence[Wish]) -> Iterator[Lack]:
    """Of stages that are wanted on all of their devices: those that can hold no variant, where others can."""
    devices = {room.name: room for room in rooms}
    for wish in wishes:
        each = [_lack(replace(wish, devices=(name,)), devices, ever=True) for name in wish.devices]
        lacking = [lack for lack in each if lack.there_bytes < lack.needs_bytes]
        if wish.everywhere and len(lacking) < len(each):
            yield from lacking


def _smallest(wish: Wish, room: Room) -> int:
    """Bytes of one instance of the smallest variant."""
    return min(variant.needs[room.kind] for variant in wish.variants)


def _lack(wish: Wish, devices: Mapping[str, Room], *, ever: bool) -> Lack:
    rooms = [devices[name] for name in wish.devices]
    there = max(room.limits.most_bytes if ever else room.left(0) for room in rooms)
    needs = min(_smallest(wish, room) for room in rooms)
    bound = _bound([room.limits for room in rooms], needs) if ever and there < needs else ""
    return Lack(wish.stage, wish.devices, needs, max(0, there), bound=bound)


def _bound(several: Sequence[Limits], needs: int) -> str:
    """The setting without which one of them would have so much; "": none alone."""
    for limits in several:
        without = {
            limits.ceiling_by: replace(limits, ceiling_bytes=0),
            "devices.reserve_bytes": replace(limits, reserve_bytes=0),
            "devices.safety_margin": replace(limits, safety_margin=min(limits.safety_margin, SAFETY_MARGIN)),
        }
        for setting, other in without.items():
            if other.most_bytes >= needs:
                return setting
    return ""


def _place(wish: Wish, variant: int, room: Room) -> Place:
    chosen = wish.variants[variant]
    nbytes = chosen.needs[room.kind] * wish.instances
    return Place(wish.stage, room.name, variant, chosen.name, nbytes, chosen.load_s, wish.pinned, wish.on_spare)


def _hold(room: Room, places: Sequence[Place]) -> bool:
    """Whether all of these can stay on the device at once."""
    if not places:
        return True
    return len(places) <= room.limits.max_models and room.left(sum(place.nbytes for place in places)) >= 0


def _is_single(room: Room, places: Sequence[Place]) -> bool:
    """Whether no two of these can be on the device at once: the two smallest cannot."""
    return not _hold(room, sorted(places, key=lambda place: place.nbytes)[:2])


# ---------------------------------------------------------------- all at once


def _choices(wishes: Sequence[Wish]) -> Iterator[dict[str, int]]:
    """Stage -> variant, the least degraded combination first."""
    most = [len(wish.variants) - 1 for wish in wishes]
    for steps in range(sum(most) + 1):
        for choice in _sharing(steps, most):
            yield dict(zip((wish.stage for wish in wishes), choice, strict=True))


def _sharing(steps: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All ways to share so many steps among stages that can take so many each."""
    if not most:
        yield ()
        return
    first, *others = most
    for own in range(max(0, steps - sum(others)), min(first, steps) + 1):
        for rest in _sharing(steps - own, others):
            yield own, *rest


def _resident(
    wishes: Sequence[Wish], choice: Mapping[str, int], devices: Mapping[str, Room], tries: Iterator[int]
) -> list[Place] | None:
    """Places where all stay; None: there are none. Those that cannot choose come first, then the largest."""
    placed: dict[str, list[Place]] = {room.memory: [] for room in devices.values()}
    for wish in wishes:
        for room in [devices[name] for name in wish.devices if wish.everywhere]:
            placed[room.memory].append(_place(wish, choice[wish.stage], room))
    if not all(_hold(room, placed[room.memory]) for room in devices.values()):
        return None
    free = [wish for wish in wishes if not wish.everywhere]
    free.sort(key=lambda wish: -max(_place(wish, choice[wish.stage], devices[name]).nbytes for name in wish.devices))
    if not _settle(free, choice, devices, placed, tries):
        return None
    return [place for places in placed.values() for place in places]


def _settle(
    wishes: Sequence[Wish],
    choice: Mapping[str, int],
    devices: Mapping[str, Room],
    placed: dict[str, list[Place]],
    tries: Iterator[int],
) -> bool:
    """Find a place for the first wish such that all the others find one too."""
    if not wishes:
        return True
    wish, *others = wishes
    tried: set[tuple[int, int, str]] = set()  # devices that are alike need only one try
    rooms = [devices[name] for name in wish.devices]
    for room in sorted(rooms, key=lambda room: -_room_left(room, placed[room.memory])):
        here = placed[room.memory]
        kind = _room_left(room, here), room.limits.max_models - len(here), room.kind
        if kind in tried:
            continue
        if next(tries, None) is None:
            return False
        tried.add(kind)
        here.append(_place(wish, choice[wish.stage], room))
        if _hold(room, here) and _settle(others, choice, devices, placed, tries):
            return True
        here.pop()
    return False


def _more(
    wishes: Sequence[Wish], choice: Mapping[str, int], places: Sequence[Place], devices: Mapping[str, Room]
) -> list[Place]:
    """Further places of stages that may be anywhere, where there is room left: the largest model first."""
    placed = {room.memory: _within(places, room.memory, devices) for room in devices.values()}
    further = []
    for wish in sorted(wishes, key=lambda wish: -max(wish.variants[choice[wish.stage]].needs.values())):
        for room in [devices[name] for name in wish.devices if not wish.everywhere]:
            more, here = _place(wish, choice[wish.stage], room), placed[room.memory]
            if wish.stage not in {one.stage for one in here} and _hold(room, [*here, more]):
                here.append(more)
                further.append(more)
    return further


def _within(places: Sequence[Place], memory: str, devices: Mapping[str, Room]) -> list[Place]:
    """Those whose bytes are counted there."""
    return [place for place in places if devices[place.device].memory == memory]


def _room_left(room: Room, places: Sequence[Place]) -> int:
    return room.left(sum(place.nbytes for place in places))


def _left(places: Sequence[Place], devices: Mapping[str, Room]) -> dict[str, int]:
    return {name: _room_left(room, _within(places, room.memory, devices)) for name, room in devices.items()}


def _ordered(places: Sequence[Place], wishes: Sequence[Wish]) -> tuple[Place, ...]:
    stages = [wish.stage for wish in wishes]
    return tuple(sorted(places, key=lambda place: (stages.index(place.stage), place.device)))


# ---------------------------------------------------------------- one after another


def _turns(
    wishes: Sequence[Wish], devices: Mapping[str, Room], nowhere: tuple[Lack, ...], needed: set[str]
) -> Placement:
    """Each stage in the best variant that fits alone, spread as evenly as it goes."""
    placed: dict[str, list[Place]] = {room.memory: [] for room in devices.values()}
    for wish in sorted(wishes, key=lambda wish: (not wish.everywhere, not wish.pinned, -_size(wish))):
        rooms = [devices[name] for name in wish.devices]
        fits = [place for room in rooms if (place := _alone(wish, room, placed[room.memory])) is not None]
        if not fits:  # pinned models leave it no room
            nowhere += (_beside_pinned(wish, devices, placed),)
            continue
        fits.sort(key=lambda place: (place.variant, -_left_with(place, devices, placed)))
        for place in fits if wish.everywhere else fits[:1]:
            placed[devices[place.device].memory].append(place)
    places = _ordered([place for some in placed.values() for place in some], wishes)
    if any(lack.stage in needed for lack in nowhere):
        return Placement(Verdict.NOWHERE, nowhere=nowhere)
    here = {name: _within(places, name, devices) for name in placed}
    crowded = tuple(name for name in placed if not _hold(devices[name], here[name]))
    single = tuple(name for name in crowded if _is_single(devices[name], here[name]))
    added = sum(_round_s(devices[name], here[name]) for name in crowded)
    waits = tuple(
        _lack(wish, devices, ever=False)
        for wish in wishes
        if all(_smallest(wish, devices[name]) > devices[name].left(0) for name in wish.devices)
    )
    return Placement(Verdict.TURNS, places, _left(places, devices), crowded, single, added, nowhere, waits)


def _left_with(place: Place, devices: Mapping[str, Room], placed: Mapping[str, Sequence[Place]]) -> int:
    room = devices[place.device]
    return _room_left(room, [*placed[room.memory], place])


def _size(wish: Wish) -> int:
    return max(wish.variants[0].needs.values())


def _pinned(places: Sequence[Place]) -> list[Place]:
    return [place for place in places if place.pinned]


def _pinned_bytes(places: Sequence[Place]) -> int:
    return sum(place.nbytes for place in _pinned(places))


def _alone(wish: Wish, room: Room, places: Sequence[Place]) -> Place | None:
    """The stage there in the best variant that fits beside models that never leave, and at best beside other programs.

    None: in none.
    """
    if len(_pinned(places)) >= room.limits.max_models:
        return None
    there = room.limits.most_bytes - _pinned_bytes(places)
    now = room.left(_pinned_bytes(places))
    every = [_place(wish, number, room) for number in range(len(wish.variants))]
    for most in (min(now, there), there):
        for place in every:
            if place.nbytes // wish.instances <= most:
                return place
    return None


def _beside_pinned(wish: Wish, devices: Mapping[str, Room], placed: Mapping[str, Sequence[Place]]) -> Lack:
    rooms = [devices[name] for name in wish.devices]
    there = max(room.limits.most_bytes - _pinned_bytes(placed[room.memory]) for room in rooms)
    beside = dict.fromkeys(place.stage for room in rooms for place in _pinned(placed[room.memory]))
    lack = replace(_lack(wish, devices, ever=True), there_bytes=max(0, there), beside=tuple(beside))
    return replace(
        lack, full=min(room.limits.max_models for room in rooms) if lack.there_bytes >= lack.needs_bytes else 0
    )


def _round_s(room: Room, places: Sequence[Place]) -> float:
    """Seconds of loading while what waits goes once through all these stages, in their order, again and again.

    As in ``engine.scheduler.residency``, whoever is needed last leaves first.
    """
    present: list[int] = []
    spent = 0.0
    for step in itertools.islice(_steps(len(places)), 3 * len(places)):
        number = step % len(places)
        if number in present:
            continue
        while not _hold(room, [places[n] for n in (*present, number)]):
            guests = [n for n in present if not places[n].pinned]
            if not guests:  # it waits for other programs
                break
            present.remove(max(guests, key=lambda n: (n - number) % len(places)))
        present.append(number)
        if step >= 2 * len(places):  # the first rounds fill an empty device
            spent += places[number].load_s
    return spent


def _steps(count: int) -> Iterator[int]:
    return itertools.count() if count else iter(())
