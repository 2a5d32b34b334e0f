"""Every message of the node, one tagged union per direction. No behaviour here.

Messages are msgpack maps with a ``type`` field. Two kinds of link carry them:

* the **client protocol** (version 1): frame 1 is a list of messages (at most 64 KiB); at most one ``Submit`` or
  ``Outcome`` in it carries audio, and its raw samples are frame 2. ``docs/protocol.md`` is the contract.
* **internal links**: one frame, ``Frame``: the sender's incarnation, the epoch (0 where the link does not check it),
  and a list of messages.

Marked *(not sent yet)*: the message has its place and its shape, and nothing sends it in this release.
"""

from __future__ import annotations

from typing import Union

import msgspec

PROTOCOL_VERSION = 1
MAX_CONTROL_BYTES = 64 * 1024  # frame 1 on the client protocol


class _Wire(msgspec.Struct, tag_field="type", tag=True, frozen=True, omit_defaults=True):
    """A message: a map with ``type``; fields at their default are left out."""


class _Strict(msgspec.Struct, tag_field="type", tag=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A message from outside: a field nobody knows is an error, not a surprise."""


class _Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """A map inside a message."""


# ---------------------------------------------------------------- shared parts


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies. ``generation`` is the number its blocks are marked with (``ipc.ring``)."""

    ring: str  # name of the ring: its producer's role
    offset: int  # bytes from the start of the ring's first block
    nbytes: int
    dtype: str  # "int16" or "float32"
    shape: tuple[int, ...]
    sample_rate: int  # Hz
    generation: int


class StageRecord(_Part, frozen=True):
    """One attempt of one utterance at one stage. Times are the node's CLOCK_MONOTONIC in ns; 0: did not happen."""

    stage: str
    state: str  # pending loading processing retrying completed failed skipped
    attempt: int = 0
    worker: str = ""
    device: str = ""
    reason: str = ""
    queued_ns: int = 0
    begun_ns: int = 0
    ended_ns: int = 0
    model: str = ""  # which of the stage's models, by its name in the configuration; "": its own


class Limits(_Part, frozen=True):
    """What a node takes; told in ``Welcome``."""

    max_utterance_s: float
    max_text_chars: int
    max_window: int
    max_control_bytes: int
    dtypes: tuple[str, ...]  # sample formats on the wire
    sample_rate: int
    pipelines: dict[str, tuple[str, ...]]
    sources: dict[str, tuple[str, ...]]  # pipeline -> source languages it takes; empty: not checked
    targets: dict[str, tuple[str, ...]]
    models: dict[str, str] = {}  # stage -> its own model
    choices: dict[str, dict[str, str]] = {}  # stage with several -> name -> model: what ``Open.models`` may name too


# ---------------------------------------------------------------- client -> node


class Hello(_Strict, frozen=True):
    version: int
    client: str = ""


class Open(_Strict, frozen=True):
    """Begin a session. ``tag`` (1-64 of A-Z a-z 0-9 _ -) comes back in ``Opened`` or ``Rejected``.

    ``models``: stage -> one of its models, by name ("default": its own) or as ``Limits`` tells it.
    """

    tag: str
    pipeline: str = "full"
    source: str = ""
    target: str = ""
    models: dict[str, str] = {}
    priority: str = "normal"
    window: int = 64
    first_index: int = 0
    partials: bool = False
    on_deadline: str = "fail"
    weight: int = 1


class Submit(_Strict, frozen=True):
    """One utterance: ``nbytes`` of mono samples in frame 2 (``dtype`` s16le or f32le), or ``text``."""

    session: str
    index: int
    dtype: str = ""
    nbytes: int = 0
    sample_rate: int = 16000  # Hz
    text: str | None = None
    budget_ms: int | None = None  # None: the node's formula, min(30 s + 0.5 x audio, 300 s)
    skip: tuple[str, ...] = ()  # stages to skip for this utterance


class Skip(_Strict, frozen=True):
    """The client will not send this index: it ends as skipped(gap)."""

    session: str
    index: int


class Ack(_Strict, frozen=True):
    """Every outcome up to and including ``through`` is in the client's hands."""

    session: str
    through: int


class Cancel(_Strict, frozen=True):
    session: str
    index: int


class Close(_Strict, frozen=True):
    session: str
    mode: str = "drain"  # drain | abort


class Ping(_Strict, frozen=True):
    pass


class Resume(_Strict, frozen=True):
    """Take a session over on this connection; acknowledges through ``last_received`` (first_index - 1: nothing)."""

    token: str
    last_received: int


ClientMessage = Union[Hello, Open, Submit, Skip, Ack, Cancel, Close, Ping, Resume]


# ---------------------------------------------------------------- node -> client


class Welcome(_Wire, frozen=True):
    version: int
    incarnation: int
    limits: Limits


class Opened(_Wire, frozen=True):
    tag: str
    session: str
    token: str
    next_index: int  # the lowest index the node has not accepted
    share: int  # how many utterances the client may keep unended
    window: int


class Accepted(_Wire, frozen=True):
    session: str
    index: int


class Share(_Wire, frozen=True):
    session: str
    n: int


class Busy(_Wire, frozen=True):
    """Not taken, and not lost: send again from ``resend_from`` after ``retry_after_ms``, or ``Skip`` it."""

    session: str
    index: int
    reason: str  # capacity | memory | held_back | shutting_down
    depth: int  # accepted and unended utterances, node-wide
    retry_after_ms: int
    resend_from: int
    position: int = 0  # in the line for a place, or for memory, from 1; 0: it waits in none


class Rejected(_Wire, frozen=True):
    """Never accepted. Names what it answers: an utterance (session, index), a session, or an ``Open`` (tag)."""

    code: str
    text: str
    session: str = ""
    index: int | None = None
    tag: str = ""
    accepted: tuple[str, ...] = ()  # what would have been taken
    window: tuple[int, int] | None = None  # lowest and highest index taken now


class Gap(_Wire, frozen=True):
    """Index ``index`` is missing and holds up later ones; it becomes skipped(gap) in ``after_ms``."""

    session: str
    index: int
    after_ms: int


class Status(_Wire, frozen=True):
    """A stage's transition, for sessions opened with ``partials``."""

    session: str
    index: int
    stage: str
    state: str
    attempt: int = 0
    reason: str = ""
    progress: float | None = None


class Partial(_Wire, frozen=True):
    """A text before the outcome, for sessions opened with ``partials``."""

    session: str
    index: int
    stage: str
    text: str


class Outcome(_Wire, frozen=True):
    """The one end of an accepted utterance. Audio, if any, is frame 2: ``nbytes`` of ``dtype`` at ``sample_rate``."""

    session: str
    index: int
    outcome: str  # ok | error | skipped
    code: str = ""  # of an error or a skip
    error: str = ""
    texts: dict[str, str] = {}  # stage -> the text it made
    language: str = ""  # the source language that was heard
    degraded: str = ""
    recovered: bool = False
    dtype: str = ""
    nbytes: int = 0
    sample_rate: int = 0
    stages: tuple[StageRecord, ...] = ()


class Closed(_Wire, frozen=True):
    session: str
    reason: str


class Pong(_Wire, frozen=True):
    incarnation: int


class UnknownSession(_Wire, frozen=True):
    """Names what was sent: a session id, or the token of a ``Resume``."""

    session: str


NodeMessage = Union[
    Welcome, Opened, Accepted, Share, Busy, Rejected, Gap, Status, Partial, Outcome, Closed, Pong, UnknownSession
]


# ---------------------------------------------------------------- gateway -> scheduler


class Session(_Wire, frozen=True):
    """A session is open: what the scheduler must know to run its utterances, and a new gateway to take it up.

    ``pipeline``: its stages in order, each as the model of it that the session has (``engine.choices``).
    ``first_index``: the lowest index that is not acknowledged.
    """

    id: str
    owner: str  # authenticated key, or "local"
    pipeline: tuple[str, ...]
    source: str = ""
    target: str = ""
    models: dict[str, str] = {}
    priority: str = "normal"
    weight: int = 1  # its share of a stage, against others of its priority
    on_deadline: str = "fail"  # what is given up for a deadline: see ``engine.scheduler.haste``
    partials: bool = False
    window: int = 64
    token: str = ""
    first_index: int = 0


class Admit(_Wire, frozen=True):
    """An utterance that the gateway has taken. ``waiting``: not to be begun before this comes again without it."""

    session: str
    index: int
    budget_ms: int
    ref: Ref | None = None
    text: str | None = None
    digest: tuple[int, int, int] = (0, 0, 0)  # byte length, sums of even and odd words
    skip: tuple[str, ...] = ()
    audio_s: float = 0.0  # duration, for time-outs; 0 for text
    queued_ns: int = 0
    waiting: bool = False


class CancelJob(_Wire, frozen=True):
    session: str
    index: int


class Copied(_Wire, frozen=True):
    """Result slots the gateway has copied out; names the tickets that wrote them."""

    tickets: tuple[int, ...]


class Acked(_Wire, frozen=True):
    session: str
    through: int


class Over(_Wire, frozen=True):
    """The sessions that are over their byte budget now (the whole set, each time it changes)."""

    sessions: tuple[str, ...]


class Ended(_Wire, frozen=True):
    """An index that has ended: at the gateway (gap, Skip), or before the receiver's time.

    ``admit``: what it was made from; None when it never came.
    """

    outcome: Outcome
    admit: Admit | None = None


class Remade(_Wire, frozen=True):
    """To a new gateway or a new epoch: this had ended, but its samples are lost and are made once more.

    ``outcome``: its end, with the texts that the last stage needs. The receiver counts it as not ended.
    """

    outcome: Outcome
    admit: Admit


class Held(_Wire, frozen=True):
    """To a new gateway or a new epoch: an input slot that is not free yet (``ref`` says where it lies)."""

    session: str
    index: int
    ref: Ref


class SessionEnded(_Wire, frozen=True):
    id: str


class Spare(_Wire, frozen=True):
    """Somebody has waited long for ring memory: inputs kept only as a precaution are given up."""


# ---------------------------------------------------------------- scheduler -> gateway


class Capacity(_Wire, frozen=True):
    """How many utterances the node takes in, and how fast it ends them (per second; 0: not measured yet)."""

    n: int
    rate: float = 0.0


class JobAccepted(_Wire, frozen=True):
    session: str
    index: int


class JobOutcome(_Wire, frozen=True):
    """The end of a job. ``ref``: the result's array; its slot is given back when ``Copied(ticket)`` comes."""

    outcome: Outcome
    ref: Ref | None = None
    ticket: int = 0


class Free(_Wire, frozen=True):
    """Input slots nobody needs any more: (session, index)."""

    jobs: tuple[tuple[str, int], ...]


class Progress(_Wire, frozen=True):
    """Status or partial text of a job, for sessions that asked."""

    message: Union[Status, Partial]


class Restored(_Wire, frozen=True):
    """All sessions and jobs have been handed over, to a new gateway or to a new epoch."""


class Here(_Wire, frozen=True):
    """I am here: the first word of a worker or the gateway to each epoch. Who says it uses no slot and runs nothing.

    ``state`` of a worker: empty | waiting (for its lease) | loaded; of a gateway: empty (to be told everything it
    should know) | whole (it tells, up to ``Restored``).
    """

    state: str = "empty"
    reason: str = ""  # what it waits for
    variant: int = 0  # of its model, which it waits for or has


# ---------------------------------------------------------------- scheduler -> worker


class Load(_Wire, frozen=True):
    """Load the model, or a smaller variant of it (1, 2, ...: as planned). ``wait_s``: see ``LeaseRequest``.

    ``raised``: how many times its estimate is to be leased, since that much was not enough before.
    """

    model: str
    variant: int = 0
    wait_s: float | None = None
    raised: float = 1.0


class RunItem(_Part, frozen=True):
    """One utterance at one stage. The ticket is also the generation of its output slot."""

    ticket: int
    session: str
    index: int
    attempt: int
    source: str = ""
    target: str = ""
    text: str | None = None
    input: Ref | None = None
    slot_offset: int = -1  # -1: no slot granted
    slot_nbytes: int = 0


class Run(_Wire, frozen=True):
    """``overtakes``: it goes before the one sent last, unless that has begun."""

    items: tuple[RunItem, ...]
    overtakes: bool = False


class Grow(_Wire, frozen=True):
    """A model needs more than it has leased: to be asked for, while it works on. ``wait_s``: how long at most.

    ``nbytes`` 0: no more, its runs fit; what it has leased beyond its estimate is given back.
    """

    nbytes: int
    wait_s: float


class Park(_Wire, frozen=True):
    """Leave on purpose: the process ends, which alone gives all of a device's memory back, and another one follows."""


# ---------------------------------------------------------------- worker -> scheduler


class LeaseWait(_Wire, frozen=True):
    reason: str
    id: int = 0


class Loading(_Wire, frozen=True):
    model: str = ""
    variant: int = 0


class Loaded(_Wire, frozen=True):
    model: str
    variant: int = 0
    max_batch: int = 1
    load_ms: float = 0.0
    device: str = ""
    degraded: str = ""


class Denied(_Wire, frozen=True):
    """No lease, or the load failed: ``code`` no_vram | bad_model | oom. ``phase`` of a failure: load | warm_up."""

    reason: str
    code: str = "no_vram"
    id: int = 0
    phase: str = ""


class RunResult(_Part, frozen=True):
    """What became of one ticket. Failed items carry ``code`` and ``error``."""

    ticket: int
    state: str  # completed | skipped | failed
    code: str = ""
    error: str = ""
    retry: bool = False
    text: str | None = None
    ref: Ref | None = None
    same: bool = False  # the output is the input
    reason: str = ""
    degraded: str = ""
    confidence: float | None = None
    language: str = ""
    begun_ns: int = 0
    ended_ns: int = 0


class Done(_Wire, frozen=True):
    """``fits``: the batch ran out of memory as a whole, and was run in batches of so many items; 0: it did not."""

    results: tuple[RunResult, ...]
    fits: int = 0


# ---------------------------------------------------------------- worker <-> arbiter


class LeaseRequest(_Wire, frozen=True):
    """A standing lease on ``device``: context + weights + workspace. Repeated to each new arbiter until answered.

    ``wait_s``: how long it waits for room; None: as the node is configured. ``preemptible``: its holder, a program
    outside the node, may be asked to ``Leave``. ``priority``: high | normal | low, among those that wait. ``grows``:
    besides the lease it has, for a model that is loaded. ``pid``: of the holder, to be found in a driver's list of
    processes; 0: not said. ``among``: where ``device`` is "", devices of which the arbiter chooses one. ``base_bytes``:
    what that process has on the device already, and asks for more than.
    """

    id: int
    worker: str
    device: str
    nbytes: int
    model: str = ""
    wait_s: float | None = None
    preemptible: bool = False
    priority: str = "normal"
    variant: int = 0  # of the model, for whoever measures it
    grows: bool = False
    pid: int = 0
    among: tuple[str, ...] = ()
    base_bytes: int = 0


class Granted(_Wire, frozen=True):
    """``free_bytes``: what was free on ``device`` by its last reading, for words; -1: not said."""

    id: int
    lease: int
    nbytes: int
    free_bytes: int = -1
    device: str = ""


class Settled(_Wire, frozen=True):
    """The load is over: the lease's loading turn ends. ``measured_bytes`` -1: not measured. ``ok`` False: it failed."""

    lease: int
    measured_bytes: int = -1
    ok: bool = True
    load_ms: float = 0.0


class Release(_Wire, frozen=True):
    """``lease`` 0: whatever this holder has asked for, whether it has been answered or not.

    ``keep_bytes``: so much it keeps, or what it was seen to have if that is more, of this lease and of all that it has
    asked for besides; 0: nothing of this lease.
    """

    lease: int
    keep_bytes: int = 0


class Inquire(_Wire, frozen=True):
    """To a worker that holds this lease: another has loaded beside it, and did it run meanwhile? It says ``Used``."""

    lease: int


class Used(_Wire, frozen=True):
    """What a holder says of itself. ``peak_bytes``: the most it has had (-1: it cannot tell). ``ran_at``: when its last
    run ended (CLOCK_MONOTONIC, s; 0: it has not run)."""

    lease: int
    peak_bytes: int = -1
    ran_at: float = 0.0


class Leave(_Wire, frozen=True):
    """To a holder outside the node: somebody needs its memory; after ``grace_s`` it is shown as overdue."""

    lease: int
    grace_s: float


# ---------------------------------------------------------------- arbiter <-> scheduler


class Vacate(_Wire, frozen=True):
    """Room is wanted on a device: ``nbytes`` more than there is, for the worker ``by``; 0: nothing is wanted any more.

    It replaces what was said of that device before. ``again``: since then a lease of a worker there has ended, and all
    the memory that it gives back is in these figures.
    """

    device: str
    nbytes: int
    by: str = ""
    again: bool = False


class Room(_Wire, frozen=True):
    """What may be granted on a device and nobody waits for. Said again when it has changed by much."""

    device: str
    nbytes: int


# ---------------------------------------------------------------- all -> supervisor


class Alive(_Wire, frozen=True):
    phase: str = ""


class Measured(_Wire, frozen=True):
    """The arbiter has seen what a worker's model takes. ``phase`` load | run (the most since).

    ``exact``: it was read of its process alone, and not of the whole device. ``note``: what else may be in it ("":
    nothing that was seen). (``engine.corrections``)
    """

    worker: str  # its role
    phase: str
    nbytes: int
    granted: int
    exact: bool = False
    note: str = ""
    variant: int = 0  # of its model


class Report(_Wire, frozen=True):
    """A process's statistics, a map of plain values, at 1 Hz."""

    snapshot: dict


class Ready(_Wire, frozen=True):
    mode: str
    mode_reason: str


class Failing(_Wire, frozen=True):
    """The scheduler cannot get ready: a stage cannot boot. One line for the user.

    ``configuration``: the line begins with the field that is wrong.
    """

    reason: str
    configuration: bool = False


class Condemn(_Wire, frozen=True):
    worker: str
    incarnation: int
    reason: str


class Excused(_Wire, frozen=True):
    """This worker's death is an utterance's doing: it is not charged to the worker's restart budget."""

    worker: str
    incarnation: int


class Quarantine(_Wire, frozen=True):
    """A device computes no more, or wrongly: nothing may run there until the node is started again."""

    device: str
    reason: str


class Drained(_Wire, frozen=True):
    pass


class Serving(_Wire, frozen=True):
    endpoints: tuple[str, ...]


class Flushed(_Wire, frozen=True):
    pass


# ---------------------------------------------------------------- supervisor -> all


class Up(_Wire, frozen=True):
    role: str
    incarnation: int
    endpoint: str = ""


class Gone(_Wire, frozen=True):
    """A process is dead (confirmed by its pidfd). ``final``: its restart budget is spent, none will follow.

    ``parked``: it left because it was told to. ``stuck``: it cannot be killed, a driver holds it in the kernel. It runs
    no more, but its device's memory is not back; when it has really ended that is said by another ``Gone``.
    """

    role: str
    incarnation: int
    reason: str = ""
    final: bool = False
    parked: bool = False
    stuck: bool = False


class Serve(_Wire, frozen=True):
    pass


class Drain(_Wire, frozen=True):
    budget_ms: int


class Stop(_Wire, frozen=True):
    pass


class Errand(_Part, frozen=True):
    """Lives of a worker up to ``incarnation`` are to leave, each after the batches it has.

    ``back``: the next life loads at once (a restart), else when its stage has work (an unload).
    """

    role: str
    incarnation: int
    back: bool


class Orders(_Wire, frozen=True):
    """What operators have ordered and still holds: all of it, whenever it changes, and to each new receiver.

    To the scheduler, and to the arbiter, for which only what is drained matters.

    ``drained``: devices where nothing new begins. ``knobs``: dotted field of the configuration -> its value now.
    """

    drained: tuple[str, ...] = ()
    errands: tuple[Errand, ...] = ()
    knobs: dict[str, Union[bool, int, float]] = {}


class Preload(_Wire, frozen=True):
    """This stage's models are wanted now, as if there were work for them."""

    stage: str


class Silent(_Wire, frozen=True):
    """A worker's heartbeat is missed; ``phase`` is what its last one said, ``told_at`` the monotonic clock (0: now)."""

    worker: str
    incarnation: int
    phase: str = ""
    told_at: float = 0.0


# ---------------------------------------------------------------- operators <-> supervisor


class Ask(_Strict, frozen=True):
    """An operator's question or order, answered by one ``Answer``.

    ``verb``: stats | health | log | drain (the node) without ``args``; restart | drain | resume | load | unload | pin |
    unpin | set with ``{"target": ...}``.
    """

    verb: str
    args: dict[str, str] = {}


class Answer(_Wire, frozen=True):
    ok: bool
    data: dict = {}
    error: str = ""


# ---------------------------------------------------------------- unions per receiver

SupervisorSends = Union[Up, Gone, Serve, Drain, Stop, Silent, Orders, Preload]
ToSupervisor = Union[Alive, Report, Ready, Failing, Condemn, Excused, Quarantine, Drained, Serving, Flushed, Measured]
ToScheduler = Union[
    Session, Admit, CancelJob, Copied, Acked, Over, Ended, SessionEnded, Remade, Held, Restored, Spare,
    Here, LeaseWait, Loading, Loaded, Denied, Done, Vacate, Room,
]  # fmt: skip
ToGateway = Union[Capacity, JobAccepted, JobOutcome, Free, Progress, Session, Admit, Ended, Remade, Held, Restored]
ToWorker = Union[Load, Run, Grow, Park]
ToArbiter = Union[LeaseRequest, Settled, Release, Used]
ArbiterToWorker = Union[Granted, LeaseWait, Denied, Leave, Inquire]


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Head of every internal frame; ``messages`` are decoded by the receiver's union."""

    incarnation: int
    epoch: int
    messages: list


def frame_decoder(union: object) -> msgspec.msgpack.Decoder:
    """Decoder of an internal frame: (incarnation, epoch, [messages of this union])."""
    return msgspec.msgpack.Decoder(tuple[int, int, list[union]])  # type: ignore[valid-type]


def list_decoder(union: object) -> msgspec.msgpack.Decoder:
    """Decoder of a client frame: [messages of this union]."""
    return msgspec.msgpack.Decoder(list[union])  # type: ignore[valid-type]


encode = msgspec.msgpack.Encoder().encode
