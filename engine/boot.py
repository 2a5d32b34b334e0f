"""What a process is told at its birth: msgpack in a memfd it inherits. Plain data, no behaviour.

The supervisor works all of this out once from the configuration and the devices (``engine.supervisor.plan``), so that
scheduler, gateway, arbiter and workers read no files, no environment and no hardware to know what they are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import DeadlinesSection
from ipc.messages import Orders


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A map inside a boot record."""


class _Body(_Plan, tag=True, frozen=True, kw_only=True):
    """A role's own part of a boot record."""


class RingGrant(_Plan, frozen=True):
    """An inherited ring: producers get it writable, everybody else read-only."""

    name: str  # the producer's role: "gateway", "tts@cpu/0"
    fd: int
    blocks: int
    writable: bool


class VariantPlan(_Plan, frozen=True):
    """One way to load a stage's model, and what it takes on a worker's device, as far as is known."""

    name: str
    model: str
    compute_type: str
    estimate_bytes: int
    options: dict[str, Any] = {}


class WorkerPlan(_Plan, frozen=True):
    """One worker to be: ``role`` is ``stage@device/n``."""

    role: str
    stage: str
    device: str  # "cpu", "cuda:0", ... as the node names it
    ring_blocks: int = 0  # 0: emits no arrays
    estimate_bytes: int = 0  # what its model takes on its device, as far as is known
    standby: bool = False  # loads only while none of the stage's workers before it can
    extra: bool = False  # loads only while work piles up and there is room; nobody counts on it
    smaller: tuple[VariantPlan, ...] = ()  # what it may load instead: variants 1, 2, ...
    variant: int = 0  # the one to begin with
    best: int = 0  # the one to come to when other programs leave it room: better ones would crowd the device
    rests: bool = False  # loads when its stage has work, and is not waited for at the start


class StagePlan(_Plan, frozen=True):
    """A stage as the scheduler and the gateway see it, or one of its further models (``engine.choices``)."""

    name: str
    kind: str
    accepts: str  # audio | text
    emits: str  # audio | text | same
    output_base: int = 0
    output_per_byte: float = 0.0
    output_per_char: int = 0
    max_chars: int = 4000
    max_batch: int = 1
    min_batch: int = 1
    start_batch: int = 0  # what adapting begins with; 0: max_batch
    max_delay_ms: float = 0.0
    length_ratio: float = 2.0  # utterances of one run differ in length by this factor at most
    timeout_base_s: float = 20.0
    timeout_per_audio: float = 2.0
    model: str = ""
    keep_alive_s: float = -1.0  # its models leave when they have been idle for so long; below 0: never for that
    pinned: bool = False  # its models never leave
    optional: bool = False  # the node goes on without it: its utterances skip it with the reason
    skip_above: float = 0.0  # surer transcripts than this skip it; 0: none
    absent: str = ""  # why the stage cannot run at all ("not installed"); its utterances skip it
    workers: tuple[WorkerPlan, ...] = ()
    translates: bool = False
    languages: tuple[str, ...] | None = None  # that its model knows; None: any, or its files do not say
    targets: tuple[str, ...] | None = None  # that it translates into; None: the same


class DevicePlan(_Plan, frozen=True):
    """A device as the arbiter sees it."""

    name: str  # "cpu", "cuda:0"
    uuid: str = ""  # GPU or MIG UUID
    memory_source: str = "host"  # nvml | mig | unified | declared | host: see ``engine.devices``
    total_bytes: int = 0
    ceiling_bytes: int = 0  # 0: none
    ceiling_by: str = "devices.max_bytes"  # the setting that says so
    reserve_bytes: int = 0
    safety_margin: float = 0.1
    max_models: int = 5
    ceiling_is_own: bool = False  # the ceiling bounds what this node takes, not what is used in all
    ecc_errors: int = 0  # uncorrectable ones of its driver's life before this node
    book: str = ""  # the device whose memory it shares, in whose book its leases stand; "": its own


class SchedulerBoot(_Body, frozen=True):
    stages: tuple[StagePlan, ...]
    pipelines: dict[str, tuple[str, ...]]
    mode: str
    mode_reason: str
    send_ahead: int
    max_retries: int
    capacity_factor: int
    ring_users: dict[str, tuple[str, ...]] = {}  # ring -> the roles that map it, its producer too
    orders: Orders = Orders()  # what operators have ordered so far
    books: dict[str, str] = {}  # device -> the one whose memory it shares
    placement: str = "earliest"  # see ``engine.policies``
    adaptive: bool = True  # see ``engine.scheduler.adapting``


class GatewayBoot(_Body, frozen=True):
    stages: tuple[StagePlan, ...]
    pipelines: dict[str, tuple[str, ...]]
    sources: dict[str, tuple[str, ...]]  # pipeline -> languages; empty: not checked
    targets: dict[str, tuple[str, ...]]
    endpoints: tuple[str, ...]  # client endpoints to bind
    max_utterance_s: float
    max_text_chars: int
    window: int
    max_sessions: int
    outbox_session_bytes: int
    outbox_node_bytes: int


class ArbiterBoot(_Body, frozen=True):
    devices: tuple[DevicePlan, ...]
    drained: tuple[str, ...] = ()  # devices that operators keep empty
    workers: tuple[str, ...] = ()  # the roles that may ask, besides programs outside the node


class WorkerBoot(_Body, frozen=True):
    stage: str
    kind: str
    model: str
    compute_type: str
    device: str  # the node's name of it
    library_device: str  # "cpu" or "cuda": what the library is told
    threads: int
    max_batch: int
    estimate_bytes: int
    options: dict[str, Any] = {}
    smaller: tuple[VariantPlan, ...] = ()  # variants 1, 2, ...: the scheduler says which to load
    warm_up_runs: int = 3
    priority: str = "normal"  # high | normal | low: of its requests for memory, among those that wait


class Boot(_Plan, frozen=True):
    """Everything a child is told. ``endpoints``: role -> address of its ROUTER."""

    role: str
    incarnation: int
    node: str  # the node's id, for log lines
    parent_pid: int
    death_fd: int  # read end of a pipe whose write end only the supervisor holds
    endpoints: dict[str, str]
    rings: tuple[RingGrant, ...]
    deadlines: DeadlinesSection
    log_level: str = "info"
    journal_fd: int = -1  # the arbiter's memory beyond its death; -1: no business of this role
    hooks: dict[str, str] = {}  # a test's hooks, by name; empty in production, and said loudly when not
    body: SchedulerBoot | GatewayBoot | ArbiterBoot | WorkerBoot | None = None
