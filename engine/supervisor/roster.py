"""Who lives: each role's process, what state it is in, when it was last heard, how often it was restarted. Pure.

::

    waiting ──spawned──► starting ──first word──► up
       ▲                    │  │                  │  │
       │                    │  └────condemn───────┤  └─────ask to stop──► stopping
       │                    ▼                     ▼                          │
       │                 killed ◄──abort_s── condemned                       │
       │                    │ exit                │ exit                     │ exit, or stop_s ──► killed
        └──restart── gone ◄──┴─────────────────────┴──────────────────────────┘           killed ──stuck_s──► stuck
                      └──give up──► spent ──an operator's restart──► waiting              stuck ──exit──► gone

A **condemned** process gets SIGABRT (it writes its stacks to the log) and, ``abort_s`` later, SIGKILL. Only the pidfd
says that a process is dead; then the restart budget decides between ``waiting`` and ``spent``. A process that had made
progress comes back at once, one that died before that waits, twice as long each time. A worker that does not even end
on SIGKILL, because a driver holds it in the kernel, is **stuck**: it runs no more, so the node goes on as after its
death, but what it has of its device is not back until it has ended after all.

**Silence.** A worker is busy with its model for as long as a run takes, so its silence is only reported (the scheduler
knows what it is doing); any other process that says nothing for ``silent_s`` is condemned. When this process itself has
been asleep (its own tick comes late) the others' time limits are moved by as much: a paused node wakes up in peace.
"""

from __future__ import annotations

import enum
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.config import DeadlinesSection
from engine.exits import BOOT_FAILED, UNCAUGHT
from ipc.errors import IllegalMove
from ipc.messages import Silent

FRUITFUL_PHASES = ("loaded", "running", "serving")  # a process whose heartbeat said so has made progress


class State(enum.Enum):
    """Where a role's process stands."""

    WAITING = "waiting"  # none yet, or the next one is due later
    STARTING = "starting"  # spawned, has not spoken
    UP = "up"
    CONDEMNED = "condemned"  # SIGABRT sent
    STOPPING = "stopping"  # asked to leave
    KILLED = "killed"  # SIGKILL sent
    STUCK = "stuck"  # ... long ago
    GONE = "gone"  # confirmed dead
    SPENT = "spent"  # dead, and none will follow unless an operator says so


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.STARTING, State.GONE, State.SPENT}),
    State.STARTING: frozenset({State.UP, State.CONDEMNED, State.KILLED, State.GONE}),
    State.UP: frozenset({State.CONDEMNED, State.STOPPING, State.KILLED, State.GONE}),
    State.CONDEMNED: frozenset({State.KILLED, State.GONE}),
    State.STOPPING: frozenset({State.KILLED, State.GONE}),
    State.KILLED: frozenset({State.GONE, State.STUCK}),
    State.STUCK: frozenset({State.GONE}),
    State.GONE: frozenset({State.WAITING, State.SPENT}),
    State.SPENT: frozenset({State.WAITING}),
}
LIVING = frozenset({State.STARTING, State.UP, State.CONDEMNED, State.STOPPING, State.KILLED, State.STUCK})
HEARING = frozenset({State.UP, State.CONDEMNED, State.STOPPING})  # has spoken and may be written to


# ---------------------------------------------------------------- actions


@dataclass(frozen=True)
class Spawn:
    """Start this incarnation of a role."""

    role: str
    incarnation: int


@dataclass(frozen=True)
class Signal:
    """Send a signal to a process, by its pidfd."""

    role: str
    number: signal.Signals


@dataclass(frozen=True)
class Post:
    """Send a message to a process."""

    role: str
    incarnation: int
    message: Any


@dataclass(frozen=True)
class Unkillable:
    """A worker has not ended on SIGKILL."""

    role: str


Action = Spawn | Signal | Post | Unkillable


@dataclass
class Record:
    """One role: its present process, and its history."""

    role: str
    state: State = State.WAITING
    incarnation: int = 0
    pid: int = 0
    start_time: int = 0  # clock ticks since boot, as the kernel counts (with the pid: unique)
    phase: str = ""
    heard: float = 0.0
    silence_told: float = 0.0
    due: float = 0.0  # when the present state's limit passes: spawn, first word, SIGKILL
    killed_at: float = 0.0
    blameless: bool = False  # it is ended for another's fault: its next life is not charged
    fruitful: bool = False
    spoke: bool = False
    fruitless: int = 0  # deaths without progress since the last progress
    restarts: deque[float] = field(default_factory=deque)
    reason: str = ""  # why it was condemned or killed, or died
    code: int = 0  # how the last one ended

    @property
    def is_worker(self) -> bool:
        return "@" in self.role

    @property
    def stage(self) -> str:
        """The stage of a worker."""
        return self.role.partition("@")[0]

    @property
    def device(self) -> str:
        """The device that a worker lives on ("asr@cuda:0/1": "cuda:0")."""
        return self.role.partition("@")[2].rpartition("/")[0]

    @property
    def boot_failed(self) -> bool:
        """Whether the process that just died could not start at all, and the next one could not either.

        An exception before the first word says so too; of a role that has lived before, only the second one in a row.
        """
        again = self.incarnation == 1 or self.fruitless > 1
        return self.code == BOOT_FAILED or (self.code == UNCAUGHT and not self.spoke and again)

    def move(self, state: State) -> None:
        """Raises IllegalMove and changes nothing if the table has no such move."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"{self.role}#{self.incarnation}: {self.state.value} -> {state.value}")
        self.state = state


class Roster:
    """All processes of the node, in the order they are started."""

    def __init__(self, roles: Sequence[str], deadlines: DeadlinesSection, restart_budget: int) -> None:
        self._records = {role: Record(role) for role in roles}
        self._limits = deadlines
        self._restart_budget = restart_budget
        self._ticked: float | None = None

    def __getitem__(self, role: str) -> Record:
        return self._records[role]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    # ------------------------------------------------------------ a process's way, in its order

    def tick(self, now: float) -> list[Action]:
        """Carry out what is due: spawns, first words that did not come, silences, final signals."""
        self._forgive_own_pause(now)
        return [action for record in self for action in self._due(record, now)]

    def spawned(self, role: str, pid: int, start_time: int) -> None:
        """The process runs."""
        record = self._records[role]
        record.pid, record.start_time = pid, start_time

    def heard(self, role: str, incarnation: int, now: float, phase: str = "") -> bool:
        """A frame came. Returns whether it was this incarnation's first."""
        record = self._records[role]
        record.heard = record.silence_told = max(record.heard, now)
        record.phase = phase or record.phase
        if phase.startswith(FRUITFUL_PHASES):
            record.fruitful = True
            record.fruitless = 0
        if record.state is not State.STARTING:
            return False
        record.move(State.UP)
        record.spoke = True
        return True

    def is_current(self, role: str, incarnation: int) -> bool:
        """Whether this is the life of the role that is there now."""
        record = self._records.get(role)
        return record is not None and record.incarnation == incarnation and record.state in LIVING

    def can_condemn(self, role: str, incarnation: int) -> bool:
        return self.is_current(role, incarnation) and self._records[role].state in (State.STARTING, State.UP)

    def condemn(self, role: str, reason: str, now: float) -> Action:
        """SIGABRT now, SIGKILL ``abort_s`` later."""
        record = self._records[role]
        record.move(State.CONDEMNED)
        record.reason = reason
        record.due = now + self._limits.abort_s
        return Signal(role, signal.SIGABRT)

    def ask_to_stop(self, role: str, now: float) -> None:
        """It has been sent ``Stop``; SIGKILL follows ``stop_s`` later."""
        record = self._records[role]
        record.move(State.STOPPING)
        record.due = now + self._limits.stop_s

    def kill(self, role: str, now: float, reason: str = "") -> Action:
        """SIGKILL now. ``reason``: of one that has done nothing wrong itself, so that its stacks would say nothing."""
        record = self._records[role]
        record.move(State.KILLED)
        record.reason = reason or record.reason
        record.killed_at, record.due = now, now + self._limits.stop_s
        return Signal(role, signal.SIGKILL)

    def exited(self, role: str, code: int) -> bool:
        """It is dead. ``code``: exit status, or minus the signal's number. Returns whether it was asked to leave."""
        record = self._records[role]
        asked = record.state is State.STOPPING
        record.move(State.GONE)
        record.code = code
        if not record.fruitful:
            record.fruitless += 1
        return asked

    def can_restart(self, role: str, now: float) -> bool:
        """Whether the budget allows another life. One that could not boot at all has none."""
        record = self._records[role]
        while record.restarts and record.restarts[0] <= now - self._limits.restart_window_s:
            record.restarts.popleft()
        return not record.boot_failed and len(record.restarts) < self._restart_budget

    def why_spent(self, role: str) -> str:
        """Why ``can_restart`` says no, in words."""
        if self._records[role].boot_failed:
            return "it cannot start again"
        window_s = self._limits.restart_window_s
        return f"its restart budget is spent ({self._restart_budget} within {window_s:g} s: node.restart_budget)"

    def excuse(self, role: str, incarnation: int) -> None:
        """The death of this life was an utterance's doing: the restart that followed is not charged."""
        record = self._records.get(role)
        if record is not None and record.restarts and record.incarnation in (incarnation, incarnation + 1):
            record.restarts.pop()

    def restart(self, role: str, now: float) -> float:
        """Plan the next life; returns in how many seconds. Charged to the budget."""
        record = self._records[role]
        wait = 0.0
        if not record.fruitful:
            wait = min(self._limits.backoff_max_s, self._limits.backoff_first_s * 2 ** (record.fruitless - 1))
        record.move(State.WAITING)
        record.restarts.append(now)
        record.due = now + wait
        return wait

    def renew(self, role: str, now: float) -> None:
        """The next life follows at once and is not charged: the last one left because it was told to."""
        record = self._records[role]
        record.move(State.WAITING)
        record.fruitless, record.due = 0, now

    def revive(self, role: str, now: float) -> None:
        """A role that was given up gets another life at once, and its whole budget."""
        record = self._records[role]
        record.move(State.WAITING)
        record.restarts.clear()
        record.fruitless, record.due = 0, now

    def give_up(self, role: str) -> None:
        """No other life will follow."""
        self._records[role].move(State.SPENT)

    # ------------------------------------------------------------ questions

    def living(self) -> list[Record]:
        """Records with a process that is not confirmed dead."""
        return [record for record in self if record.state in LIVING]

    def hearing(self) -> list[Record]:
        """Records whose process may be written to."""
        return [record for record in self if record.state in HEARING]

    def next_due(self, now: float) -> float:
        """When ``tick`` has something to do next; at most one heartbeat away, so that a late tick is noticed."""
        times = [now + self._limits.heartbeat_s]
        for record in self:
            if record.state in (State.WAITING, State.STARTING, State.CONDEMNED, State.STOPPING):
                times.append(record.due)
            elif record.state is State.KILLED and record.is_worker:
                times.append(record.killed_at + self._limits.stuck_s)
            elif record.state is State.UP:
                times.append(record.silence_told + self._limits.silent_s)
        return min(times)

    def snapshot(self, now: float) -> list[dict[str, Any]]:
        """For ``stats``: the processes that live."""
        return [
            {
                "role": r.role,
                "incarnation": r.incarnation,
                "pid": r.pid,
                "start_time": r.start_time,
                "state": r.state.value,
                "phase": r.phase,
                "restarts": len(r.restarts),
                "age_ms": round((now - r.heard) * 1000),
            }
            for r in self.living()
        ]

    def check(self) -> None:
        """Raise AssertionError if the records contradict themselves."""
        for r in self:
            assert r.state is State.WAITING or r.incarnation > 0, f"{r.role} lives without an incarnation"
            assert len(r.restarts) <= self._restart_budget, f"{r.role} was restarted over its budget"
            assert r.spoke or r.state not in (State.UP, State.STOPPING), f"{r.role} is up and has not spoken"

    # ------------------------------------------------------------ inside

    def _forgive_own_pause(self, now: float) -> None:
        if self._ticked is not None:
            pause = now - self._ticked
            if pause > 2 * self._limits.heartbeat_s:
                for record in self:
                    record.heard = min(now, record.heard + pause)
                    record.silence_told = min(now, record.silence_told + pause)
                    if record.state is State.STARTING:
                        record.due += pause
        self._ticked = now

    def _due(self, record: Record, now: float) -> Iterator[Action]:
        limits = self._limits
        match record.state:
            case State.WAITING if record.due <= now:
                yield self._spawn(record, now)
            case State.STARTING if record.due <= now:
                yield self.condemn(record.role, f"said nothing within {limits.boot_s:g} s of its start", now)
            case State.UP if now - record.silence_told >= limits.silent_s:
                yield from self._silence(record, now)
            case State.CONDEMNED | State.STOPPING if record.due <= now:
                yield self.kill(record.role, now)
            case State.KILLED if record.is_worker and record.killed_at + limits.stuck_s <= now:
                record.move(State.STUCK)
                yield Unkillable(record.role)

    def _silence(self, record: Record, now: float) -> Iterator[Action]:
        record.silence_told = now
        if not record.is_worker:
            yield self.condemn(record.role, f"ended for being silent for {now - record.heard:.1f} s", now)
            return
        scheduler = self._records.get("scheduler")
        if scheduler is not None and scheduler.state in HEARING:
            yield Post("scheduler", scheduler.incarnation, Silent(record.role, record.incarnation, record.phase, now))

    def _spawn(self, record: Record, now: float) -> Action:
        record.move(State.STARTING)
        record.incarnation += 1
        record.pid = record.start_time = record.code = 0
        record.phase = record.reason = ""
        record.fruitful = record.spoke = record.blameless = False
        record.heard = record.silence_told = now
        record.due = now + self._limits.boot_s
        return Spawn(record.role, record.incarnation)
