"""The node's way from its first process to its last. Pure: events and ``now`` in, actions out.

::

    starting ──Serving──► serving ──drain──► draining ──Drained and Flushed, or too late──► stopping ──all dead──► ended
        └──────────────── failure, stop asked before anything was served ──────────────────────▲

* **starting**: everything is spawned at once; each newcomer learns who else is up; the scheduler says ``Ready``, the
  gateway is told to ``Serve``, and its ``Serving`` makes the node ready.
* **serving**: whoever dies comes back while the restart budget lasts, and is introduced anew. A worker whose budget is
  spent stays away, and the rest serves on; without scheduler, gateway or arbiter the node ends, in order and with one
  line. On a device that is lost (*quarantined*) no worker lives any more; on one whose programs share a context server
  (MPS) a fault of one worker is a fault of all.
* **draining**: no new work; what runs may end within ``drain_s``, what ended may be fetched for ``flush_s`` more. The
  line that says so waits for the scheduler's count of what is in flight, ``COUNT_S`` at most.
* **stopping**: ``Stop`` to workers, scheduler, gateway, arbiter in that order, ``stop_s`` each, then SIGKILL. A second
  request to stop, or the host's death, skips the order: SIGKILL to all.
"""

from __future__ import annotations

import enum
import signal
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from engine.config import DeadlinesSection
from engine.exits import CONFIGURATION, FAILED, INTERRUPTED, OK, PARKED
from engine.supervisor.events import (
    Announce,
    End,
    Event,
    Exited,
    Heard,
    HostGone,
    NotSpawned,
    Say,
    Spawned,
    StopAsked,
    Tick,
    Warn,
)
from engine.supervisor.orders import Orders
from engine.supervisor.roster import LIVING, Post, Record, Roster, State, Unkillable
from ipc.errors import DragomanError, IllegalMove
from ipc.messages import (
    Alive,
    Condemn,
    Drain,
    Drained,
    Excused,
    Failing,
    Flushed,
    Gone,
    Preload,
    Quarantine,
    Ready,
    Report,
    Serve,
    Serving,
    Stop,
    Up,
)  # fmt: skip

KEPT_DEATHS = 100  # for the statistics
MEND_LOST = "reset it (nvidia-smi --gpu-reset), then start the node again"
COUNT_S = 0.2  # how long a draining node waits for the scheduler's count of what is in flight


class Phase(enum.Enum):
    """Where the node stands."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.SERVING, Phase.STOPPING}),
    Phase.SERVING: frozenset({Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


@dataclass(frozen=True)
class Order:
    """An operator's order that was taken: the workers it is about, and what is to be done.

    ``lost``: why nothing begins on the device it is about, and what mends that; "": no such thing.
    """

    roles: list[str]
    actions: list[Any]
    lost: str = ""


class Lifecycle:
    """The supervisor's core.

    may_fail: workers whose stage the node can do without. orders: of operators. shared: devices whose programs share a
    context server (MPS).
    """

    def __init__(
        self,
        roster: Roster,
        endpoints: dict[str, str],
        deadlines: DeadlinesSection,
        may_fail: Collection[str] = (),
        orders: Orders | None = None,
        shared: Collection[str] = (),
    ) -> None:
        self.roster = roster
        self.orders = orders or Orders((), {}, ())
        self.phase = Phase.STARTING
        self.mode = self.mode_reason = ""
        self.endpoints: tuple[str, ...] = ()
        self.reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self.deaths: deque[dict[str, Any]] = deque(maxlen=KEPT_DEATHS)
        self._addresses = endpoints
        self._limits = deadlines
        self.quarantined: dict[str, str] = {}  # device -> why
        self._may_fail = frozenset(may_fail)
        self._shared = frozenset(shared)
        self._code, self._line = OK, ""
        self._drained = self._flushed = False
        self._workers_ready = self._serve_told = False
        self._drain_due = 0.0
        self._count_due: float | None = None  # the number in flight is said when the scheduler has told it, or then
        self._at_once = False  # everything was killed on purpose
        self._unborn: set[str] = set()  # who was killed on purpose at the stop, having said nothing yet
        self._killed_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Any]:
        """What is to be done about an event."""
        match event:
            case Tick():
                actions = self._tick(now)
            case Spawned(role, pid, start_time):
                self.roster.spawned(role, pid, start_time)
                actions = []
            case NotSpawned(role, reason):
                actions = self._died(role, 0, f"could not be started: {reason}", now)
            case Heard(role, incarnation, message):
                actions = self._heard(role, incarnation, message, now)
            case Exited(role, code, words):
                actions = self._died(role, code, self._reason(role, code, words), now)
            case StopAsked(at_once):
                actions = self._stop_asked(at_once, now)
            case HostGone():
                self._fail("")
                actions = self._stop_at_once(now)
        return actions + self._advance(now)

    def next_due(self, now: float) -> float:
        """When the next ``Tick`` is due."""
        due = self.roster.next_due(now)
        if self._count_due is not None:
            due = min(due, self._count_due)
        return min(due, self._drain_due) if self.phase is Phase.DRAINING else due

    @property
    def in_flight(self) -> int:
        """Utterances accepted and not ended, by the scheduler's newest report."""
        _, report = self.reports.get("scheduler", (0.0, {}))
        return int(report.get("active", 0)) + int(report.get("queued", 0))

    @property
    def is_counting(self) -> bool:
        """Draining has begun, and ``in_flight`` is still what the scheduler said before."""
        return self._count_due is not None

    def check(self) -> None:
        """Raise AssertionError if phase and processes contradict each other."""
        self.roster.check()
        self.orders.check()
        living = [r.role for r in self.roster.living()]
        assert self.phase is not Phase.ENDED or not living or self._killed_at is not None, f"ended with {living}"
        for r in self.roster:
            assert r.device not in self.quarantined or r.state is not State.WAITING, (
                f"{r.role} is to live on a lost device"
            )

    def snapshot(self) -> dict[str, Any]:
        return {"phase": self.phase.value, "mode": self.mode, "mode_reason": self.mode_reason}

    # ------------------------------------------------------------ starting and serving

    def _tick(self, now: float) -> list[Any]:
        actions: list[Any] = []
        for action in self.roster.tick(now):
            actions += self._stuck(self.roster[action.role]) if isinstance(action, Unkillable) else [action]
        return actions

    def _heard(self, role: str, incarnation: int, message: Any, now: float) -> list[Any]:
        if not self.roster.is_current(role, incarnation):
            return []
        phase = message.phase if isinstance(message, Alive) else ""
        actions = self._introduce(role, now) if self.roster.heard(role, incarnation, now, phase) else []
        if self.orders.heard(self.roster[role]):
            actions += self._post("scheduler", self.orders.standing())
        match message:
            case Report(snapshot):
                self.reports[role] = (now, snapshot)
                if role == "scheduler":
                    actions += self._say_count()
            case Ready(mode, reason) if self.phase is Phase.STARTING:
                self.mode, self.mode_reason = mode, reason
                self._workers_ready = True
            case Serving(endpoints):
                self.roster["gateway"].phase = "serving"
                if self.phase is Phase.STARTING:  # one that came back opens its door in silence
                    self._move(Phase.SERVING)
                    self.endpoints = endpoints
                    actions.append(Announce(endpoints, self.mode, self.mode_reason))
            case Failing(reason, configuration):
                self._fail(reason, CONFIGURATION if configuration else FAILED)
            case Condemn(worker, condemned, reason) if self.roster.can_condemn(worker, condemned):
                actions.append(Warn(f"{worker} is condemned: {reason}"))
                actions.append(self.roster.condemn(worker, reason, now))
            case Excused(worker, died):
                self.roster.excuse(worker, died)
            case Quarantine(device, reason):
                actions += self._quarantine(device, reason, now)
            case Drained() if self.phase is Phase.DRAINING:
                self._drained = True  # for now: the gateway may not have read that the node stops, and admit more
            case Flushed():
                self._flushed = True
        return actions + self._open_door()

    def _open_door(self) -> list[Any]:
        """``Serve``, once the workers are ready and the gateway is there to hear it, whichever comes last."""
        if not self._workers_ready or self._serve_told or self.phase in (Phase.STOPPING, Phase.ENDED):
            return []
        told = self._post("gateway", Serve())
        self._serve_told = bool(told)
        return told

    def _introduce(self, role: str, now: float) -> list[Any]:
        """One ``Up`` per living role to the newcomer, and the newcomer to all of them; then what it has missed."""
        others = [r for r in self.roster.hearing() if r.role != role]
        new = self.roster[role]
        news = [Post(role, new.incarnation, message) for message in (*map(self._up, others), *self._missed(role, now))]
        return news + [Post(r.role, r.incarnation, self._up(new)) for r in others]

    def _missed(self, role: str, now: float) -> list[Any]:
        """What was said before this life of a role, and still holds: who is dead, that the node serves, or drains."""
        workers = [r for r in self.roster if r.is_worker]
        missed: list[Any] = []
        if role == "arbiter":  # it may remember leases of any life
            missed += [Gone(r.role, r.incarnation - (r.state in LIVING)) for r in workers if r.incarnation]
            missed += [_stuck_news(r) for r in workers if r.state is State.STUCK]
            missed.append(self.orders.standing())  # it was born with them; some may have come since
        if role == "scheduler":
            dead = [r for r in workers if r.incarnation and r.state not in LIVING]
            missed += [Gone(r.role, r.incarnation, r.reason, r.state is State.SPENT) for r in dead]
            missed.append(self.orders.standing())  # it was born with them; some may have come since
            missed += [_stuck_news(r) for r in workers if r.state is State.STUCK]
            if self.phase in (Phase.SERVING, Phase.DRAINING):
                missed.append(Serve())
        if role in ("scheduler", "gateway") and self.phase is Phase.DRAINING:
            left_s = self._drain_due - self._flush_limit - now
            missed.append(Drain(max(0, round(left_s * 1000))))
        return missed

    def _up(self, record: Record) -> Up:
        return Up(record.role, record.incarnation, self._addresses.get(record.role, ""))

    def _post(self, role: str, message: Any) -> list[Any]:
        return [Post(r.role, r.incarnation, message) for r in self.roster.hearing() if r.role == role]

    # ------------------------------------------------------------ operators

    def order(self, verb: str, target: str, now: float, *, value: Any = None, usual: Any = None) -> Order:
        """What an operator orders. Raises DragomanError when it cannot be done, and then changes nothing.

        ``value``, ``usual``: of ``set``, what the knob ``target`` shall be and what it is without operators.
        """
        if self.phase is not Phase.SERVING:
            raise DragomanError(f"the node is {self.phase.value}", "orders are taken while it serves")
        workers = [record for record in self.roster if record.stage == target]
        if verb == "load" and workers and all(record.device in self.quarantined for record in workers):
            raise DragomanError(f"{workers[0].role} cannot load: {self._why_lost(workers[0])}", MEND_LOST)
        roles = self.orders.obey(verb, target, self.roster, value, usual)
        told = [*self._post("scheduler", self.orders.standing()), *self._post("arbiter", self.orders.standing())]
        if verb == "restart":
            roles = self._revive(roles, now)
        if verb == "load":
            told += self._post("scheduler", Preload(target))
        if verb == "resume" and target in self.quarantined:
            return Order([], told, f"{self.quarantined[target]}; {MEND_LOST}")
        return Order(roles, told)

    def _revive(self, roles: list[str], now: float) -> list[str]:
        """Give those that were given up another life, where their device is there; those that (will) have one."""
        spent = [role for role in roles if self.roster[role].state is State.SPENT]
        lost = [role for role in spent if self.roster[role].device in self.quarantined]
        if lost == roles:
            raise DragomanError(f"{lost[0]} cannot start: {self._why_lost(self.roster[lost[0]])}", MEND_LOST)
        for role in set(spent) - set(lost):
            self.roster.revive(role, now)
        return [role for role in roles if role not in lost]

    def way_back(self, stage: str) -> str:
        """What brings those workers of a stage back that were given up."""
        spent = [record for record in self.roster if record.stage == stage and record.state is State.SPENT]
        if spent and all(record.device in self.quarantined for record in spent):
            return MEND_LOST
        return f"run_node.py ctl restart {stage} tries again"

    def _why_lost(self, record: Record) -> str:
        return f"{record.device} is quarantined: {self.quarantined[record.device]}"

    # ------------------------------------------------------------ deaths

    def _reason(self, role: str, code: int, words: str) -> str:
        record = self.roster[role]
        if record.reason:
            return record.reason
        if code < 0:
            return f"killed by signal {-code} ({signal.strsignal(-code)})"
        return f"exit code {code}: {words}" if words else f"exit code {code}"

    def _died(self, role: str, code: int, reason: str, now: float) -> list[Any]:
        was_stuck = self.roster[role].state is State.STUCK
        asked = self.roster.exited(role, code)
        self.reports.pop(role, None)
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            as_told = (asked and code == OK) or code == PARKED or role in self._unborn
            return [] if self._at_once or as_told else [Warn(f"{role} ended: {reason}")]
        record = self.roster[role]
        lost = record.device in self.quarantined
        reason = self._why_lost(record) if lost else reason
        if code == PARKED and record.is_worker and not lost:
            self.roster.renew(role, now)
            news = Gone(role, record.incarnation, "parked", parked=True)
            return self._post("scheduler", news) + self._post("arbiter", news)
        if was_stuck:
            return self._freed(record, lost, now)
        self.deaths.append({"role": role, "incarnation": record.incarnation, "reason": reason, "seen_s": now})
        if record.blameless and not lost:
            self.roster.renew(role, now)
            record.reason = reason
            news = Gone(role, record.incarnation, reason)
            return [Warn(f"{role} ended: {reason}"), *self._post("scheduler", news), *self._post("arbiter", news)]
        final = lost or not self.roster.can_restart(role, now)
        if final and not lost and self.phase is Phase.STARTING and role not in self._may_fail:
            self._fail(f"{role} cannot start: {reason}")
            return []
        if final and not record.is_worker:
            self._fail(f"{role} died ({reason}); {self.roster.why_spent(role)}: the node ends with it")
            return []
        if role == "gateway":
            self._serve_told = self._flushed = self._drained = False
        if final and not lost:
            reason += f"; {self.roster.why_spent(role)}"
        record.reason = reason
        news = Gone(role, record.incarnation, reason, final)
        actions: list[Any] = [Warn(self._after_death(record, reason, final, now))]
        actions += self._post("scheduler", news) + self._post("arbiter", news)
        return actions + self._share_fault(record, now)

    def _share_fault(self, record: Record, now: float) -> list[Any]:
        """What broke one client of a context server has broken all of them, whether they know it yet or not."""
        if record.device not in self._shared:
            return []
        actions: list[Any] = []
        for other in self.roster:
            if other.device == record.device and other.state in (State.STARTING, State.UP):
                other.blameless = True
                why = f"{record.role} died, and all workers on {record.device} share one context server (MPS)"
                actions.append(self.roster.kill(other.role, now, why))
        return actions

    # ------------------------------------------------------------ what holds a device

    def _quarantine(self, device: str, reason: str, now: float) -> list[Any]:
        """No worker lives on this device from here on."""
        if device in self.quarantined:
            return []
        self.quarantined[device] = reason
        actions: list[Any] = [
            Warn(f"{device} is quarantined: {reason}; nothing runs there until the node is started again")
        ]
        for record in [r for r in self.roster if r.device == device]:
            if record.state in (State.STARTING, State.UP):
                actions.append(self.roster.kill(record.role, now, self._why_lost(record)))
            elif record.state is State.WAITING and record.incarnation:
                self.roster.give_up(record.role)
                record.reason = self._why_lost(record)
                actions += self._post("scheduler", Gone(record.role, record.incarnation, record.reason, final=True))
        return actions

    def _stuck(self, record: Record) -> list[Any]:
        """The node goes on without this worker; its memory is not back."""
        record.reason = f"it cannot be killed, a driver holds it ({record.reason or 'killed'})"
        news = _stuck_news(record)
        actions: list[Any] = [Warn(f"{record.role} (pid {record.pid}): {record.reason}; its memory counts as lost")]
        return actions + self._post("scheduler", news) + self._post("arbiter", news)

    def _freed(self, record: Record, lost: bool, now: float) -> list[Any]:
        """A worker that could not be killed has ended after all; the scheduler has buried it long ago."""
        if lost or not self.roster.can_restart(record.role, now):
            self.roster.give_up(record.role)
        else:
            self.roster.restart(record.role, now)
        news = Gone(record.role, record.incarnation, "it has ended after all")
        return [Warn(f"{record.role} has ended after all"), *self._post("arbiter", news)]

    def _after_death(self, record: Record, reason: str, final: bool, now: float) -> str:
        """Plan the next life, or none; returns the line for the log."""
        text = f"{record.role} (life {record.incarnation}) died: {reason}; "
        if final:
            self.orders.forget(record.role)
            self.roster.give_up(record.role)
            return text + f"it stays away: {self.way_back(record.stage)}"
        wait = self.roster.restart(record.role, now)
        return text + (f"starting it again in {wait:.1f} s" if wait else "starting it again")

    # ------------------------------------------------------------ stopping

    @property
    def _flush_limit(self) -> float:
        return self._limits.flush_s + self._limits.heartbeat_s

    def _stop_asked(self, at_once: bool, now: float) -> list[Any]:
        if at_once or self.phase in (Phase.DRAINING, Phase.STOPPING):
            self._code = self._code or (OK if at_once else INTERRUPTED)
            return self._stop_at_once(now)
        if self.phase is Phase.STARTING:
            self._move(Phase.STOPPING)
            return [Say("stopping")]
        if self.phase is Phase.ENDED:
            return []
        self._move(Phase.DRAINING)
        self._drain_due = now + self._limits.drain_s + self._flush_limit
        self._count_due = now + COUNT_S
        drain = Drain(round(self._limits.drain_s * 1000))
        return [*self._post("gateway", drain), *self._post("scheduler", drain)]

    def _say_count(self) -> list[Any]:
        """How many utterances the node still waits for, once."""
        if self._count_due is None:
            return []
        self._count_due = None
        return [Say(f"draining: {self.in_flight} in flight; a second signal stops at once")]

    def _fail(self, line: str, code: int = FAILED) -> None:
        """The node ends, with this line. The first failure is the one that is told."""
        if self._code == OK:
            self._code, self._line = code, line
        if self.phase not in (Phase.STOPPING, Phase.ENDED):
            self._move(Phase.STOPPING)

    def _stop_at_once(self, now: float) -> list[Any]:
        if self.phase not in (Phase.STOPPING, Phase.ENDED):
            self._move(Phase.STOPPING)
        self._at_once = True
        self._count_due = None  # nobody waits for anything now
        self._cancel_spawns()
        doomed = (State.KILLED, State.STUCK)
        return [self.roster.kill(r.role, now) for r in self.roster.living() if r.state not in doomed]

    def _advance(self, now: float) -> list[Any]:
        """Take the next step of the ladder when the present one is done."""
        if self.phase is Phase.DRAINING and (now >= self._drain_due or (self._drained and self._flushed)):
            self._move(Phase.STOPPING)
        is_late = self._count_due is not None and now >= self._count_due
        said = self._say_count() if is_late or self.phase is not Phase.DRAINING else []
        return said + (self._stop(now) if self.phase is Phase.STOPPING else [])

    def _stop(self, now: float) -> list[Any]:
        """The next processes' turn to end, or the end."""
        self._cancel_spawns()
        for step in self._steps():
            living = [r for r in step if r.state in LIVING and not self._is_beyond(r, now)]
            if living:
                return [action for record in living for action in self._ask(record, now)]
        self._move(Phase.ENDED)
        return [End(self._code, self._line)]

    def _steps(self) -> list[list[Record]]:
        """The processes in the order they are stopped."""
        workers = [r for r in self.roster if r.is_worker]
        rest = {r.role: r for r in self.roster if not r.is_worker}
        ordered = [rest.pop(role) for role in ("scheduler", "gateway", "arbiter") if role in rest]
        return [workers, *([r] for r in ordered), list(rest.values())]

    def _ask(self, record: Record, now: float) -> list[Any]:
        if record.state is State.UP:
            self.roster.ask_to_stop(record.role, now)
            return [Post(record.role, record.incarnation, Stop())]
        if record.state is State.STARTING:  # it has not spoken, so nothing can be said to it
            self._unborn.add(record.role)
            return [self.roster.kill(record.role, now)]
        return []

    def _is_beyond(self, record: Record, now: float) -> bool:
        """A process that even SIGKILL does not end (a driver holds it): nobody can do more, so nobody waits."""
        if record.state is State.STUCK or (record.state is State.KILLED and now >= record.due):
            self._killed_at = now
            return True
        return False

    def _cancel_spawns(self) -> None:
        for record in self.roster:
            if record.state is State.WAITING:
                self.roster.give_up(record.role)

    def _move(self, phase: Phase) -> None:
        if phase not in MOVES[self.phase]:
            raise IllegalMove(f"node: {self.phase.value} -> {phase.value}")
        self.phase = phase


def _stuck_news(record: Record) -> Gone:
    return Gone(record.role, record.incarnation, record.reason, final=True, stuck=True)
