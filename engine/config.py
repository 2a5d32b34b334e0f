"""The node's configuration: frozen, typed, parsed once.

Every field has its meaning and unit beside it; durations end in ``_s`` or ``_ms``, sizes in ``_bytes``. The types are
the one source: the sample file, the environment names and the reference page are made from them.
Reading files and the environment is ``engine.config_file``'s job; this file only says what there is.
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file; unknown fields are errors."""


class NodeSection(_Section, frozen=True):
    """[node]: the node as a whole."""

    mode: str = "pipelined"  # stages work at the same time on different utterances, or on one at a time (serial)
    profile: str = "balanced"  # how much the node takes on, for fields that nobody sets: see Profiles
    endpoints: tuple[str, ...] = ()  # more addresses for clients; loopback tcp:// is open to all users of the machine
    max_utterance_s: float = 120.0  # longest audio of one utterance, up to 600
    max_text_chars: int = 4000  # longest text of one utterance
    window: int = 64  # most utterances of one session between acknowledged and submitted
    max_sessions: int = 1024  # most sessions open at once
    ring_budget_bytes: int = (
        0  # shared memory for all rings; 0: min(256 MiB, 5 % of memory), or what longest arrays need
    )
    outbox_session_bytes: int = 64 * 2**20  # results kept for one session
    outbox_node_bytes: int = 256 * 2**20  # results kept for all sessions
    capacity_factor: int = 10  # utterances taken in per unit of the bottleneck's concurrency
    placement: str = "earliest"  # who gets the next batch: earliest | least_queue | round_robin | a package's own
    adaptive: bool = (
        True  # batches from min_batch to max_batch, and what is sent ahead, follow what runs have shown; false: as set
    )
    send_ahead: int = 1  # full batches sent beyond the one that runs; to one of several workers only if runs are short
    restart_budget: int = 5  # restarts of one process within deadlines.restart_window_s
    max_retries: int = 3  # tries after reported failures, before an utterance ends as error(failed); by profile
    log_level: str = "info"  # least important lines that are written


class DeadlinesSection(_Section, frozen=True):
    """[deadlines]: every wait of the node by name, in seconds, each at least 0.01."""

    heartbeat_s: float = 0.5  # how often a process says it is alive
    silent_s: float = 3.0  # a process silent for so long is suspected
    boot_s: float = 60.0  # from start to the first word of a process
    load_timeout_s: float = 300.0  # loading a model
    lease_wait_s: float = 60.0  # waiting for memory on a device
    budget_base_s: float = 30.0  # an utterance's default deadline: base
    budget_per_audio: float = 0.5  # ... plus this much per second of audio
    budget_max_s: float = 300.0  # ... at most this; by profile
    gap_s: float = 10.0  # how long a missing index may hold up later ones
    retry_delay_s: float = 10.0  # d: reported failures wait d/2, d, 2d; out of memory d, 3d, 9d; by profile
    oom_hold_s: float = 15.0  # a device that ran out of memory twice begins nothing new for so long
    oom_window_s: float = 30.0  # ... when the second time came within this of the first
    drain_s: float = 20.0  # finishing work in flight when the node stops
    flush_s: float = 2.0  # last acknowledgements when the node stops
    stop_s: float = 2.0  # one process's orderly exit before it is killed
    abort_s: float = 1.0  # from SIGABRT (stack dump) to SIGKILL of a condemned process
    driver_s: float = 20.0  # a driver, or a GPU of its, that does not answer for so long at the start is left out
    gpu_wait_s: float = 30.0  # waiting at the start for a GPU that another node uses
    stuck_s: float = 10.0  # from SIGKILL until a worker that a driver holds counts as lost, with its memory
    detach_s: float = 60.0  # a client gone for so long: its work is cancelled
    keep_s: float = 300.0  # ... and its outcomes are kept this much longer
    ride_s: float = 0.005  # how long a message waits for one it can ride with
    reserve_after_s: float = 1.0  # a request for ring memory may reserve a stretch after so long
    share_interval_s: float = 0.1  # least time between two Share messages to one session
    retry_after_s: float = 0.25  # first retry_after told with Busy while the rate is unknown
    unreadable_s: float = 2.0  # nothing is granted upon a reading of a device's memory older than this
    age_s: float = 30.0  # a session that has waited at a stage for so long goes one priority up for its next utterance
    turn_s: float = 10.0  # how long models at work may keep out another that has no room on their device
    promote_s: float = 30.0  # how long there must be room for a better variant or device before it is taken
    grace_s: float = 10.0  # a program that was asked to give up its lease is overdue after so long
    settle_s: float = 5.0  # memory of a gone holder that the driver has not shown back is a deficit after so long
    restart_window_s: float = 60.0  # restarts are counted over this time
    backoff_first_s: float = 0.1  # first wait before restarting a process that died before any progress
    backoff_max_s: float = 30.0  # longest such wait


class DeviceSection(_Section, frozen=True):
    """[devices]: which devices the node may use, and how much of them."""

    use: tuple[str, ...] = ("auto",)  # "auto", "cpu", "cuda:0", or a GPU UUID
    max_bytes: dict[str, int] = {}  # device -> used memory (other programs' too) above which nothing is granted
    max_total_bytes: int = 0  # the same of all GPUs together, each its part by its size; 0: no such bound
    reserve_bytes: int = 0  # kept free on every device, where the safety margin keeps less
    safety_margin: float = 0.1  # share of the free memory, up to max_bytes, that is never granted
    max_models: int = 5  # most models resident on one device
    start_factor: float = 1.2  # on the estimate of a model that was never measured on such a device
    share: bool = False  # let other nodes that say so too use the same GPUs, each no more than its max_bytes
    declared_bytes: dict[
        str, int
    ] = {}  # GPU -> its memory, where its driver does not tell it; what is free is not read
    estimates_file: str = ""  # keeps measured memory; "": dragoman/estimates.json in the user's cache; "off": nowhere


class VariantSection(_Section, frozen=True):
    """An entry of ``stages.NAME.variants``. What it leaves out is as the stage says."""

    model: str = ""
    compute_type: str = ""
    estimate_bytes: int = 0  # 0: from its files
    options: dict[str, Any] = {}  # over the stage's own


class ModelSection(_Section, frozen=True):
    """[stages.NAME.models.MODEL]: a further model of a stage, for sessions that choose it or speak what it knows."""

    model: str = ""  # its path or name; empty: the stage's own, in another compute_type or with other options
    compute_type: str = ""  # empty: as the stage says
    estimate_bytes: int = 0  # 0: from its files
    languages: tuple[str, ...] = ()  # that it is for; empty: what its files say
    variants: tuple[VariantSection, ...] = ()  # of this model: those of the stage are not
    devices: tuple[str, ...] = ()  # empty: as the stage says
    keep_alive_s: float | None = None  # as the stage says, unless given
    pinned: bool | None = None  # as the stage says, unless given
    options: dict[str, Any] = {}  # over the stage's own


class StageSection(_Section, frozen=True):
    """[stages.NAME]: one stage. ``kind`` names the code that runs it (default: NAME)."""

    kind: str = ""  # asr | repair | nmt | tts | simulated
    model: str = ""  # its model: a path (from this file's folder), or a name its library fetches ("small")
    compute_type: str = "default"  # number format, in the library's own words
    variants: tuple[VariantSection, ...] = ()  # loaded where there is no room, best first: [{compute_type = "int8"}]
    models: dict[str, ModelSection] = {}  # further ones, by name: what a session's models = {NAME = ...} may choose
    languages: tuple[str, ...] = ()  # that its model is for; empty: what its files say
    devices: tuple[str, ...] = ("auto",)  # where its workers live; "auto": the GPUs that have room, else the CPU
    cpu_fallback: bool = (
        False  # works on the CPU (of devices.use) while its own devices are full; repair on "auto" always may
    )
    instances: int = 1  # workers on each of these devices
    max_instances: int = 0  # ... at most, while work piles up and there is room; 0: as instances
    max_batch: int = 1  # utterances in one run; of asr by profile
    min_batch: int = 1  # ... that node.adaptive never goes below
    max_delay_ms: float = 0.0  # how long a batch may wait to fill
    length_ratio: float = (
        2.0  # utterances of one run differ in length by this factor at most: the longest sets its time
    )
    timeout_base_s: float = 20.0  # a run is hung after base + per_audio x seconds of its audio
    timeout_per_audio: float = 2.0  # ... see timeout_base_s
    warm_up_runs: int = 3  # runs on made-up input before a worker counts as ready
    threads: int = 0  # CPU threads of one worker; 0: cores divided by the workers on the CPU
    estimate_bytes: int = 0  # memory its model needs on a device; 0: from the files
    keep_alive_s: float = -1.0  # a model leaves its device after so long without work; -1: only when others need room
    pinned: bool = False  # its model never leaves its device for another
    skip_above: float = 0.0  # of repair: transcripts with a mean log-probability above it are left as they are; 0: none
    required: bool = True  # false: the node does without it where it cannot load, and a session for a deadline
    options: dict[str, Any] = {}  # the stage's own knobs


class Config(_Section, frozen=True):
    """The whole configuration."""

    node: NodeSection = NodeSection()
    deadlines: DeadlinesSection = DeadlinesSection()
    devices: DeviceSection = DeviceSection()
    stages: dict[str, StageSection] = {}
    pipelines: dict[str, tuple[str, ...]] = {}  # name -> stage names in order
    rings: dict[str, int] = {}  # producer ("gateway" or a stage) -> bytes of its ring, instead of its share
    languages: tuple[str, ...] = ()  # language codes to take; empty: what the models' files say
