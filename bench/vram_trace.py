"""What happens to some GPUs: who asks for how much, and what it really takes; from one seed. Pure.

Two kinds of request come: a node's *workers* load a model of a known kind on their device, some of its workspace
following with the first runs, and now and then more than was thought, for which they ask first; *programs* from outside
lease bytes on the device with most room, take some part of them when they please, and some can be asked to leave. More
is wanted than there is, then less, and again. *Outsiders* are programs that nobody has told of leases; they grow and
shrink at will.

A third of the traces are *quiet*: workers only, which have all their bytes when they have loaded. There the sum that a
driver shows says exactly who has what. Some drivers also *list* processes: half of them by our numbers, which says it
too, the others as in a container, by numbers that mean nothing there.

What is asked for follows the truth as estimates do that are corrected by measurement: 1.2 times and some noise for
the first load of a model, then two per cent above the most that was seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from engine.limits import Limits

MIB, GIB = 2**20, 2**30
CARDS_GIB = ((6, 8), (8, 12), (16, 24), (24,), (48, 80))  # in one machine
SHARES = 0.03, 0.05, 0.1, 0.2, 0.3  # of the smallest card: from a voice to a recogniser on 8 GiB
FATES = ("dies waiting", "dies loading", "fails to load", "dies", "unloads", "parks")
FATE_SHARES = (0.03, 0.03, 0.03, 0.08, 0.33, 0.5)
HOLD_S, LOAD_S = 120.0, (0.2, 1.5)  # mean; from, to
LONGEST_S = 1000.0  # that anybody holds a lease: a history ends some time after its last request
PHASE_S, PHASES = 600.0, (1.3, 0.7)  # demand over capacity, by turns
START_FACTOR, HEADROOM = 1.2, 1.02
EXTERNAL_SHARE = 0.25
ROAMING_SHARE = 0.5  # of the programs
GROWING_SHARE, STUCK_SHARE = 0.1, 0.02  # of the workers
STAGES = ("asr", "nmt", "repair", "tts")
WORKSPACE = 0.12  # share of a model that comes with the first runs


@dataclass(frozen=True)
class Model:
    """``true_bytes``: what the largest process of it really takes."""

    stage: str
    name: str
    true_bytes: int
    late_share: float  # of it, after the load


@dataclass(slots=True)
class Request:
    """One question, and the life that would follow a grant."""

    arrives: float  # seconds from the start
    device: str  # "": a program's, the one with most room
    model: Model | None  # None: a program's
    true_bytes: int
    asked_bytes: int  # 0: as estimated
    load_s: float
    hold_s: float
    fate: str
    grows_bytes: int  # it turns out to need so much more, and asks for it
    is_stuck: bool  # a driver holds it in the kernel when it dies, with its memory
    wait_s: float | None
    preemptible: bool
    priority: str
    roams: bool = False  # any device will do, the first to have room; else a program names the one with most


@dataclass
class Trace:
    """``requests()`` come in order of time."""

    seed: int
    count: int
    limits: tuple[Limits, ...] = ()
    models: tuple[Model, ...] = ()
    quiet: bool = False
    outsiders: bool = True
    measured: bool = True  # workers say what they measured after loading
    listing: str = ""  # "": the driver tells sums; "ours": it lists processes; "theirs": ... by other numbers
    outsiders_listed: float = 0.0  # share of outsiders' bytes that it lists
    _chance: random.Random = field(init=False)
    _roaming: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = chance = random.Random(f"trace {self.seed}")
        cards = chance.choice(CARDS_GIB)
        self.limits = self.limits or tuple(self._device(n, chance.choice(cards)) for n in range(chance.randint(1, 8)))
        self.quiet = self.seed % 3 == 0
        self.outsiders = not self.quiet and chance.random() < 0.8
        self.measured = chance.random() < 0.5
        driver = random.Random(f"driver {self.seed}")
        self.listing = driver.choice(("", "", "ours", "ours", "theirs"))
        self.outsiders_listed = driver.choice((0.0, 0.5, 1.0))
        self._roaming = random.Random(f"roaming {self.seed}")
        smallest = min(one.usable_bytes for one in self.limits)
        self.models = tuple(self._model(n, smallest) for n in range(8))

    def _device(self, number: int, gib: int) -> Limits:
        chance, total = self._chance, gib * GIB
        return Limits(
            f"cuda:{number}", total, ceiling_bytes=int(total * 0.85) if chance.random() < 0.3 else 0,
            reserve_bytes=chance.choice((0, 256 * MIB)), safety_margin=chance.choice((0.05, 0.1)),
            max_models=chance.choice((5, 5, 8)),
        )  # fmt: skip

    def _model(self, number: int, smallest: int) -> Model:
        share = self._chance.choice(SHARES)
        late = 0.0 if self.quiet else self._chance.choice((0.0, 0.0, WORKSPACE))
        return Model(STAGES[number % 4], f"m{number}", int(share * smallest * self._chance.uniform(0.8, 1.2)), late)

    def requests(self) -> Iterator[Request]:
        chance = self._chance
        capacity = sum(one.usable_bytes for one in self.limits)
        mean_bytes = sum(one.true_bytes for one in self.models) / len(self.models)
        rate = capacity / (mean_bytes * HOLD_S)
        weights = [one.usable_bytes for one in self.limits]
        time = 0.0
        for _ in range(self.count):
            time += chance.expovariate(rate * PHASES[int(time / PHASE_S) % len(PHASES)])
            if not self.quiet and chance.random() < EXTERNAL_SHARE:
                yield self._program(time)
            else:
                (limits,) = chance.choices(self.limits, weights)
                yield self._worker(time, limits.name)

    def _worker(self, time: float, device: str) -> Request:
        chance = self._chance
        model = chance.choice(self.models)
        (fate,) = chance.choices(FATES, FATE_SHARES)
        more = chance.uniform(0.05, 0.25) if chance.random() < GROWING_SHARE else 0.0
        return Request(
            time, device, model, int(model.true_bytes * chance.uniform(0.98, 1.0)), 0, chance.uniform(*LOAD_S),
            self._hold_s(), fate, int(more * model.true_bytes), chance.random() < STUCK_SHARE, None,
            False, self._priority(),
        )  # fmt: skip

    def _hold_s(self) -> float:
        return min(LONGEST_S, self._chance.expovariate(1 / HOLD_S))

    def _priority(self) -> str:
        (priority,) = self._chance.choices(("high", "normal", "low"), (1, 6, 2))
        return priority

    def _program(self, time: float) -> Request:
        chance = self._chance
        asked = int(chance.choice(self.models).true_bytes * chance.uniform(0.5, 1.5))
        fate = chance.choice(("dies waiting", "dies", "dies", "unloads", "unloads", "unloads"))
        return Request(
            time, "", None, int(asked * chance.uniform(0.85, 1.0)), asked, chance.uniform(*LOAD_S),
            self._hold_s(), fate, 0, False, chance.choice((None, 5.0, 120.0)), chance.random() < 0.4,
            self._priority(), self._roaming.random() < ROAMING_SHARE,
        )  # fmt: skip


class Estimates:
    """What is asked for each model: see the module's docstring."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._seen: dict[str, int] = {}

    def of(self, model: Model) -> int:
        seen = self._seen.get(model.name)
        return (
            int(model.true_bytes * START_FACTOR * self._chance.uniform(0.95, 1.1))
            if seen is None
            else int(seen * HEADROOM)
        )

    def measured(self, model: Model, nbytes: int) -> None:
        self._seen[model.name] = max(nbytes, self._seen.get(model.name, 0))
