"""A job: one accepted utterance on its way through its pipeline, and the states each stage of it goes through.

    pending -> loading -> processing -> completed
       |          |           |-> retrying -> processing ...
       |          |           |-> failed
       +----------+-----------+-> skipped

The moves are one table and one function applies them; anything else is an IllegalMove and changes nothing. A stage may
start only when the one before it has completed or been skipped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from engine.choices import stage_of
from ipc.errors import IllegalMove
from ipc.messages import Admit, Outcome, Ref, Session, StageRecord

CHARS_A_SECOND = 15.0  # of speech, roughly
Key = tuple[str, int]  # session, utterance index


class State(enum.Enum):
    """State of one stage of one job."""

    PENDING = "pending"
    LOADING = "loading"
    PROCESSING = "processing"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"

    __hash__ = object.__hash__  # members are single; Enum's own is a Python call


_ACTIVE_ENDS = frozenset({State.COMPLETED, State.FAILED, State.SKIPPED})
MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.LOADING, State.PROCESSING, State.SKIPPED, State.FAILED}),
    State.LOADING: frozenset({State.PENDING, State.PROCESSING, State.SKIPPED, State.FAILED}),
    State.PROCESSING: _ACTIVE_ENDS | {State.RETRYING, State.PENDING},  # pending: its worker died, run again at once
    State.RETRYING: frozenset({State.PENDING, State.PROCESSING, State.FAILED, State.SKIPPED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.SKIPPED: frozenset(),
}
PASSED = (State.COMPLETED, State.SKIPPED)


@dataclass(slots=True)
class Job:
    """Everything the scheduler knows of one utterance, which ``admit`` brought.

    ``ref`` or ``text`` is the input of the stage ``at``; ``ingress`` is what the client sent. ``deadline`` is in
    seconds of the monotonic clock. ``stages`` are models of stages (``engine.choices``), ``names`` the stages as
    clients know them. ``failures`` counts reported failures at the current stage, ``charges`` deaths of workers while
    this job ran alone.
    """

    session: Session
    admit: Admit
    deadline: float
    ref: Ref | None = None
    text: str | None = None
    states: list[State] = field(default_factory=list)
    at: int = 0
    attempts: int = 0  # at the current stage, counted before dispatch
    failures: int = 0
    oom_failures: int = 0
    starved_on: set[str] = field(default_factory=set)  # devices that had too little memory for it in this try
    charges: int = 0
    suspect: bool = False
    queued_ns: int = 0
    retry_at: float = 0.0
    outcome: Outcome | None = None  # its end
    has_audio: bool = False  # whether samples belong to it
    lost: Outcome | None = None  # how it had ended before its samples were lost: they are made once more
    ticket: int = 0  # outstanding, 0: none
    started: bool = False  # a stage has been dispatched
    waiting: bool = False  # not to be begun before the gateway says so
    ended: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    language: str = ""
    confidence: float | None = None  # mean log-probability of the transcript
    degraded: list[str] = field(default_factory=list)
    records: list[StageRecord] = field(default_factory=list)
    key: Key = field(init=False)
    index: int = field(init=False)
    stages: tuple[str, ...] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    ingress: Ref | None = field(init=False)
    audio_s: float = field(init=False)

    def __post_init__(self) -> None:
        admit = self.admit
        self.index, self.ingress, self.audio_s = admit.index, admit.ref, admit.audio_s
        self.stages = self.session.pipeline
        self.names = tuple(map(stage_of, self.stages))
        self.states = self.states or [State.PENDING] * len(self.stages)
        self.key = self.session.id, self.index

    @property
    def stage(self) -> str:
        """Name of the current stage."""
        return self.stages[self.at]

    @property
    def name(self) -> str:
        """Name of the current stage, as clients know it."""
        return self.names[self.at]

    @property
    def state(self) -> State:
        """State of the current stage."""
        return self.states[self.at]

    @property
    def speech_s(self) -> float:
        """About how much speech it is, in seconds: what it costs its session."""
        return max(0.1, self.audio_s or len(self.admit.text or "") / CHARS_A_SECOND)

    @property
    def at_last(self) -> bool:
        return self.at == len(self.stages) - 1

    @property
    def passed(self) -> bool:
        """Whether every stage has completed or been skipped."""
        return self.at >= len(self.stages)

    def move(self, state: State) -> None:
        """Move the current stage to ``state``. Raises IllegalMove and changes nothing if the table has no such move."""
        before = self.states[self.at]
        if state not in MOVES[before]:
            raise IllegalMove(f"{self.key} {self.stage}: {before.value} -> {state.value}")
        self.states[self.at] = state

    def advance(self) -> None:
        """Go on to the next stage. Raises IllegalMove unless the current one has completed or been skipped."""
        if self.state not in PASSED:
            raise IllegalMove(f"{self.key} {self.stage}: advance while {self.state.value}")
        self.at += 1
        self.attempts = self.failures = self.oom_failures = self.charges = 0
        self.suspect = False
        self.starved_on.clear()

    def record(self, record: StageRecord) -> None:
        self.records.append(record)

    def check(self) -> None:
        """Invariants: stages before ``at`` have passed, those after it have not begun."""
        for position, state in enumerate(self.states):
            if position < self.at:
                assert state in PASSED, f"{self.key}: stage {position} is behind and {state}"
            elif position > self.at:
                assert state is State.PENDING, f"{self.key}: stage {position} is ahead and {state}"
        assert self.passed or not self.ticket or self.state is State.PROCESSING or self.ended, self.key
