"""What the scheduler knows of each worker: its life, its model, and the batches on board.

    absent -> empty -> loading -> loaded        any -> absent on Gone (a new incarnation follows)
                 ^________|  (denied)           any -> lost   when none will follow

A worker runs its batches in the order they were sent, so the first batch on board is the one that runs, and it began
when it was sent or when the ``Done`` of the one before it arrived, whichever was later. Only a batch that *overtakes*
goes before the one sent last, if that has not begun when it arrives; which of the two runs, their order here may then
have wrong until one of them is done.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field

from engine.boot import StagePlan, WorkerPlan
from engine.scheduler.jobs import Key
from engine.scheduler.queues import Place
from ipc.errors import IllegalMove
from ipc.peers import peer_name


class Life(enum.Enum):
    """Where a worker stands."""

    ABSENT = "absent"  # no process, one is expected
    EMPTY = "empty"  # here, no model
    LOADING = "loading"  # asked to load (waiting for its lease, or loading)
    LOADED = "loaded"
    LOST = "lost"  # none will follow

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call


MOVES: dict[Life, frozenset[Life]] = {
    Life.ABSENT: frozenset({Life.EMPTY, Life.LOADED, Life.LOST}),
    Life.EMPTY: frozenset({Life.LOADING, Life.ABSENT, Life.LOST}),
    Life.LOADING: frozenset({Life.LOADED, Life.EMPTY, Life.ABSENT, Life.LOST}),
    Life.LOADED: frozenset({Life.EMPTY, Life.ABSENT, Life.LOST}),
    Life.LOST: frozenset({Life.EMPTY}),
}


@dataclass(slots=True)
class Batch:
    """Jobs of one ``Run``, by ticket, in its order. ``began`` in seconds, None while an earlier batch runs."""

    jobs: dict[int, Key]
    sent: float
    limit_s: float
    began: float | None = None
    size: int = 0
    alone: bool = False  # of a suspect: nothing is sent behind it
    place: Place | None = None  # that its first job had in the queue
    overtakes: bool = False

    def __post_init__(self) -> None:
        self.size = len(self.jobs)


@dataclass(slots=True)
class Worker:
    """One worker role and its present incarnation, whose name is ``peer``."""

    plan: WorkerPlan
    stage: StagePlan
    incarnation: int = 0
    peer: str = ""
    life: Life = Life.ABSENT
    batches: deque[Batch] = field(default_factory=deque)
    loading_since: float | None = None
    load_again_at: float | None = None
    waiting_for: str = ""  # why it has no lease yet
    condemned: bool = False
    runs: int = 0
    items: int = 0
    failed: int = 0
    busy_s: float = 0.0
    mean_s: float = 0.0  # of its runs, over about 50
    given_at: float = 0.0  # when it was last sent a batch
    load_ms: float = 0.0
    spoke_at: float = 0.0  # when its last message came
    fruitless: int = 0  # lives in a row that ended no utterance well
    leaving: bool = False  # gets no more batches; ends when it has none
    parked: bool = False  # told to leave for the sake of its memory: its next life loads when its stage has work
    yields: bool = False  # parked for another one that is still waiting for that memory: it is not called back yet
    called: bool = False  # it loads after a rest: its turn has come, nothing is wrong with it
    refused: bool = False  # its last load failed: it loads again when ``load_again_at`` says so, or never
    load_ooms: int = 0  # loads in a row that ran out of memory
    raised: float = 1.0  # how many times its estimate it is to lease
    raised_at: float = -math.inf
    fits: int = 0  # the largest batch, after one ran out of memory; 0: as configured
    fits_since: float = 0.0
    ordered: str = ""  # why an operator has it leave: gets no more batches, ends when it has none
    dismissed: bool = False  # it has been told to end, for whatever reason
    loaded_at: float = 0.0
    free_at: float = 0.0  # when its last batch was done
    idle_since: float | None = None
    variant: int = 0  # of its model, which it has or is to load
    modest: bool = False  # it asks for memory only if there is some at once: another worker or variant serves
    returns: bool = False  # it comes back from a rest, though others of its stage serve: if there is room at once
    hopeless: bool = False  # no variant of its model can be loaded, whatever room there is
    room_since: float | None = None  # since when there has been room for it to do better

    def __post_init__(self) -> None:
        self.variant = self.plan.variant
        self.parked = self.plan.rests and not (self.plan.standby or self.plan.extra)
        self.begin(self.incarnation)

    def begin(self, incarnation: int) -> None:
        """Another life of this role."""
        self.incarnation = incarnation
        self.peer = peer_name(self.plan.role, incarnation)
        self.leaving = self.dismissed = self.returns = self.called = False
        self.ordered = ""
        self.fits = 0
        self.idle_since = None

    def move(self, life: Life) -> None:
        """Raises IllegalMove and changes nothing if the table has no such move."""
        if life is not self.life and life not in MOVES[self.life]:
            raise IllegalMove(f"{self.peer}: {self.life.value} -> {life.value}")
        self.life = life

    def takes_work(self, send_ahead: int) -> bool:
        """Whether another batch may be sent."""
        if self.batches and self.batches[-1].alone:
            return False
        return (
            self.life is Life.LOADED
            and not (self.condemned or self.leaving or self.ordered)
            and len(self.batches) <= send_ahead
        )

    def step_down(self) -> bool:
        """Choose the next smaller variant; False: there is none, and it is to begin anew with the planned one."""
        if self.variant < len(self.plan.smaller):
            self.variant += 1
            return True
        self.variant = self.plan.variant
        return False

    def needs(self, variant: int) -> int:
        """Bytes that it would ask for with a variant of its model."""
        estimate = self.plan.smaller[variant - 1].estimate_bytes if variant else self.plan.estimate_bytes
        return round(estimate * self.raised)

    @property
    def degraded(self) -> str:
        """How its results are worse than asked for, or ""."""
        said = [f"with {self.plan.smaller[self.variant - 1].name}"] if self.variant else []
        if self.plan.standby and self.plan.device == "cpu":
            said.append("on the cpu, its own device has no room")
        return " ".join(said)

    @property
    def may_serve(self) -> bool:
        """Whether its stage may count on it: it has its model, will have, or has given it away only for a while."""
        if self.refused or self.plan.extra:
            return False
        return self.life in (Life.ABSENT, Life.LOADING, Life.LOADED) or (self.parked and self.life is Life.EMPTY)

    def ran_out(self, fits: int, now: float) -> None:
        """A run found too little memory; batches of ``fits`` (0: not even one) had enough."""
        self.fits, self.fits_since = max(1, fits), now

    def has_fitted(self, window_s: float, now: float) -> bool:
        """Whether whole batches have had enough memory for so long, since it last asked for more."""
        self.batch_limit(window_s, now)
        return not self.fits and now >= max(self.raised_at, self.loaded_at) + window_s

    def batch_limit(self, window_s: float, now: float) -> int:
        """Items that a batch may have now: as configured, or less after a shortage, twice as many each ``window_s``."""
        while self.fits and now >= self.fits_since + window_s:
            self.fits, self.fits_since = self.fits * 2, self.fits_since + window_s
            if self.fits >= self.stage.max_batch:
                self.fits = 0
        return min(self.fits or self.stage.max_batch, self.stage.max_batch)

    def send(self, batch: Batch) -> None:
        """Put a batch on board."""
        self.given_at = batch.sent
        if not self.batches:
            batch.began = batch.sent
        if batch.overtakes:
            last = self.batches.pop()
            batch.limit_s = max(batch.limit_s, last.limit_s)  # it may be that one which runs in this one's place
            self.batches += batch, last
        else:
            self.batches.append(batch)

    def done(self, ticket: int, now: float) -> tuple[Key, Batch] | None:
        """Take a ticket off board; None if it is not there. The next batch begins when one is complete."""
        for batch in self.batches:
            if ticket in batch.jobs:
                key = batch.jobs.pop(ticket)
                if not batch.jobs:
                    self.batches.remove(batch)
                    self.free_at = now
                    if self.batches and self.batches[0].began is None:
                        self.batches[0].began = now
                return key, batch
        return None

    def hung_at(self) -> float | None:
        """When the running batch or the load is over its limit, or None."""
        if self.condemned or not self.batches or self.batches[0].began is None:
            return None
        return self.batches[0].began + self.batches[0].limit_s

    def free_in_s(self, now: float) -> float:
        """Seconds until what is on board should have run."""
        if not self.batches:
            return 0.0
        left = self.mean_s - (now - (self.batches[0].began or now))
        return max(0.0, left) + self.mean_s * (len(self.batches) - 1)

    def load_of(self) -> tuple[bool, int, bool, int]:
        """For choosing: on standby, batches on board, an extra one, utterances run so far."""
        return self.plan.standby, len(self.batches), self.plan.extra, self.items
