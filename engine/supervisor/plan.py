"""From a configuration and the machine's devices to what every process is told at its birth.

``make`` decides all of it once: which stages can run and why not, which workers there are and on which device, how
large each ring is, who may read whose ring, which languages a pipeline takes. ``Plan.boot`` then writes a role's boot
record. Stage modules are import-light, so nothing here loads a model library.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from engine import policies
from engine.boot import (
    ArbiterBoot,
    Boot,
    GatewayBoot,
    RingGrant,
    SchedulerBoot,
    StagePlan,
    VariantPlan,
    WorkerBoot,
    WorkerPlan,
)  # fmt: skip
from engine.choices import field_of, model_of, models_in, spread
from engine.config import Config, StageSection
from engine.config_rules import ENDPOINT
from engine.corrections import History
from engine.devices import Device, HostMemory
from engine.limits import start_value
from engine.placement import Placement
from engine.placement_words import lacking
from engine.supervisor import placing
from engine.supervisor.needs import Need, Needs, needs_of
from engine.supervisor.rings import GATEWAY, readers, sizes
from engine.supervisor.survey import Survey
from ipc.errors import ConfigError, DragomanError
from ipc.ring import segment_bytes

TEXT_TO_TEXT = (("text", "text"), ("text", "same"))  # what a stage takes and gives
CORES = ("arbiter", "scheduler", GATEWAY)
Homes = Sequence[tuple[Device, int]]


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before anything starts."""

    config: Config
    scheduler: SchedulerBoot
    gateway: GatewayBoot
    arbiter: ArbiterBoot
    workers: dict[str, WorkerBoot]  # role -> body
    uuids: dict[str, str]  # role -> UUID of the one device it may see ("" on the CPU)
    rings: dict[str, int]  # producer's role -> blocks
    readers: dict[str, tuple[str, ...]]  # role -> rings it may read
    placement: Placement
    may_fail: frozenset[str] = field(default_factory=frozenset)  # workers the node can do without
    needs: dict[str, tuple[Need, ...]] = field(default_factory=dict)  # role -> what each variant of its model needs

    @property
    def roles(self) -> tuple[str, ...]:
        """All processes, in the order they are started."""
        return (*CORES, *self.workers)

    @property
    def ring_bytes(self) -> int:
        """Shared memory of all rings."""
        return sum(segment_bytes(blocks) for blocks in self.rings.values())

    def threads(self, role: str) -> int:
        return self.workers[role].threads if role in self.workers else 1

    def boot(
        self,
        role: str,
        incarnation: int,
        *,
        node: str,
        parent_pid: int,
        death_fd: int,
        endpoints: Mapping[str, str],
        descriptors: Mapping[str, tuple[int, int]],
        hooks: Mapping[str, str],
        journal_fd: int = -1,
    ) -> Boot:
        """The boot record of one life of a role. ``descriptors``: ring -> (writable, read-only)."""
        own = [RingGrant(role, descriptors[role][0], self.rings[role], True)] if role in self.rings else []
        read = [RingGrant(n, descriptors[n][1], self.rings[n], False) for n in self.readers.get(role, ())]
        return Boot(
            role=role,
            incarnation=incarnation,
            node=node,
            parent_pid=parent_pid,
            death_fd=death_fd,
            endpoints=dict(endpoints),
            rings=(*own, *read),
            journal_fd=journal_fd,
            deadlines=self.config.deadlines,
            log_level=self.config.node.log_level,
            hooks=dict(hooks),
            body=self._body(role),
        )

    def _body(self, role: str) -> SchedulerBoot | GatewayBoot | ArbiterBoot | WorkerBoot:
        match role:
            case "scheduler":
                return self.scheduler
            case "gateway":
                return self.gateway
            case "arbiter":
                return self.arbiter
            case _:
                return self.workers[role]


def make(
    config: Config,
    devices: Sequence[Device],
    memory: HostMemory,
    cores: int,
    surveys: Mapping[str, Survey],
    client_endpoint: str,
    history: History | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for ``config`` on ``devices``. ``surveys``: what is known of each stage and model without loading it.
    ``history``: what was measured of their models before. ``left_out``: silent devices, and why they are.

    Raises ConfigError (also when a ring cannot hold one longest slot), or MemoryTooSmall: the machine has no room.
    """
    config = _that_can_run(spread(config), surveys)
    config = placing.bounded(placing.without(config, left_out or {}, devices, surveys), devices)
    for name, section in config.stages.items():
        _check_skipping(name, section, surveys[name])
        _check_fallback(name, section, surveys[name], devices)
    try:
        policies.find(config.node.placement)
    except LookupError as error:
        raise ConfigError(
            f"node.placement: {error}", "name one of them, or install the package that brings it"
        ) from error
    shared = placing.books(devices)
    needs = {
        (name, device.name): needs_of(name, section, surveys[name], device, config.devices, history or History())
        for name, section in config.stages.items()
        for device in devices
    }
    placed = placing.place(config, devices, memory, surveys, needs, shared)
    homes = {name: _homes(config, name, surveys[name], devices, placed) for name in config.stages}
    roles = {name: [role_of(name, device, n) for device, n in pairs] for name, pairs in homes.items()}
    rings = sizes(config, roles, surveys, memory)
    crowded = {device.name for device in devices if shared.get(device.name, device.name) in placed.crowded}
    plans = tuple(
        _stage(config, name, surveys[name], homes[name], rings, placed, needs, crowded) for name in config.stages
    )
    kinds = {device.name: device for device in devices}
    workers = {w.role: _worker(config, w, homes, cores, devices) for p in plans for w in p.workers}
    used = {kinds[worker.device].name: kinds[worker.device].uuid for worker in workers.values()}
    _check_shares(config, used)
    reads = readers(config, roles, surveys, rings)
    mode, reason = mode_of(config.node.mode, devices, placed)
    return Plan(
        config=config,
        scheduler=SchedulerBoot(
            stages=plans,
            pipelines=config.pipelines,
            mode=mode,
            mode_reason=reason,
            placement=config.node.placement,
            adaptive=config.node.adaptive,
            send_ahead=0 if config.node.mode == "serial" else config.node.send_ahead,
            max_retries=config.node.max_retries,
            capacity_factor=config.node.capacity_factor,
            ring_users={ring: (ring, *(role for role, read in reads.items() if ring in read)) for ring in rings},
            books=shared,
        ),
        gateway=_gateway(config, plans, surveys, client_endpoint),
        arbiter=ArbiterBoot(
            tuple(placing.plan_device(config, device, devices, shared) for device in devices), workers=tuple(workers)
        ),
        workers=workers,
        uuids={role: kinds[body.device].uuid for role, body in workers.items()},
        rings=rings,
        readers=reads,
        placement=placed,
        may_fail=frozenset(worker.role for made in plans for worker in made.workers if worker.extra or made.optional),
        needs={role: needs[body.stage, body.device] for role, body in workers.items()},
    )


def _that_can_run(config: Config, surveys: Mapping[str, Survey]) -> Config:
    """The configuration without the pipelines whose every stage is absent. Raises DragomanError when none is left."""
    kept = {
        name: members
        for name, members in config.pipelines.items()
        if any(not surveys[name].absent for member in members for name in models_in(surveys, member))
    }
    if config.pipelines and not kept:
        reasons = "; ".join(f"{name}: {found.absent}" for name, found in surveys.items() if found.absent)
        raise DragomanError(f"no pipeline can run, all their stages are absent ({reasons})", "see: run_node.py doctor")
    return msgspec.structs.replace(config, pipelines=kept)


def mode_of(configured: str, devices: Sequence[Device], placed: Placement) -> tuple[str, str]:
    """How the node runs, and why, in a few words.

    *turns* where no two models can be at once, by the node's own choice: a stage does what waits for it, then its model
    leaves for the next one's. Not *serial*, which would load every model again for each utterance (decision 20).
    """
    where = "" if any(device.kind == "cuda" for device in devices) else ", no GPU: every stage on the CPU"
    where += f", {placed.verdict.value} on {' and '.join(placed.crowded)}" if placed.crowded else ""
    if configured == "serial":
        return configured, f"as configured{where}"
    if placed.single and {place.device for place in placed.places} <= set(placed.single):
        return "turns", f"{' and '.join(placed.single)} cannot hold two stages at once"
    return configured, f"stages overlap{where}"


def _start_batch(placed: Placement, needs: Needs, stage: str, device: str) -> int:
    """Utterances in a run to begin with, by what a whole process of this stage takes of the device."""
    limits = next(room.limits for room in placed.rooms if room.limits.name == device)
    return start_value(limits.usable_bytes, limits.reserve_bytes, needs[stage, device][0].estimate.nbytes)


# ---------------------------------------------------------------- workers


def _homes(config: Config, stage: str, survey: Survey, devices: Sequence[Device], placed: Placement) -> Homes:
    """(device, n) of each worker of a stage: its own, those on standby, extra ones (n from ``instances`` on).

    None if it is absent or fits nowhere.
    """
    chosen = placed.devices_of(stage)
    if survey.absent or not chosen:
        return ()
    section = config.stages[stage]
    own = [device for device in devices if device.name in chosen]
    others = [*placing.named(section, stage, survey, devices), *placing.spares(section, survey, devices)]
    in_vain = not placed.devices_of(stage, spare=False)  # they can never hold it
    spare = [device for device in dict.fromkeys(others) if device not in own and not in_vain]
    wanted = [device for device in own if device.name in placed.devices_of(stage, spare=False)]
    return (
        *((device, n) for device in own for n in range(section.instances)),
        *((device, 0) for device in spare),
        *((device, n) for device in wanted for n in range(section.instances, section.max_instances)),
    )


def _stage(
    config: Config,
    name: str,
    survey: Survey,
    homes: Homes,
    rings: Mapping[str, int],
    placed: Placement,
    needs: Needs,
    crowded: Collection[str],
) -> StagePlan:
    section, declaration = config.stages[name], survey.declaration
    output = declaration.output
    own = placed.devices_of(name, spare=False)
    return StagePlan(
        name=name,
        kind=section.kind or name,
        accepts=declaration.accepts,
        emits=declaration.emits,
        output_base=output.base if output else 0,
        output_per_byte=output.per_byte if output else 0.0,
        output_per_char=output.per_char if output else 0,
        max_chars=declaration.max_chars,
        max_batch=section.max_batch,
        min_batch=section.min_batch,
        start_batch=min([_start_batch(placed, needs, name, device) for device in own], default=0),
        max_delay_ms=section.max_delay_ms,
        length_ratio=section.length_ratio,
        timeout_base_s=section.timeout_base_s,
        timeout_per_audio=section.timeout_per_audio,
        model=section.model,
        keep_alive_s=section.keep_alive_s,
        pinned=section.pinned,
        optional=_dispensable(section, survey),
        skip_above=section.skip_above,
        absent=survey.absent or ("" if homes else _fits_nowhere(name, placed)),
        workers=tuple(
            WorkerPlan(
                role=role_of(name, device, n),
                stage=name,
                device=device.name,
                ring_blocks=rings.get(role_of(name, device, n), 0),
                estimate_bytes=needs[name, device.name][0].estimate.nbytes,
                standby=device.name not in own,
                extra=n >= section.instances,
                smaller=_smaller(survey, needs[name, device.name]),
                variant=placed.variant_of(name),
                best=min(placed.best[name], placed.variant_of(name)),
                rests=bool(model_of(name)) and not section.pinned and device.name in crowded,
            )
            for device, n in homes
        ),
        translates=declaration.translates,
        languages=_listed(survey.facts.languages),
        targets=_listed(survey.facts.targets),
    )


def _smaller(survey: Survey, needs: Sequence[Need]) -> tuple[VariantPlan, ...]:
    return tuple(
        VariantPlan(
            name=one.name,
            model=one.section.model,
            compute_type=one.section.compute_type,
            estimate_bytes=need.estimate.nbytes,
            options=dict(one.section.options),
        )
        for one, need in zip(survey.smaller, needs[1:], strict=True)
    )


def _fits_nowhere(name: str, placed: Placement) -> str:
    return next(lacking(lack) for lack in placed.nowhere if lack.stage == name)


def role_of(stage: str, device: Device, n: int) -> str:
    return f"{stage}@{device.name}/{n}"


def _worker(
    config: Config,
    worker: WorkerPlan,
    homes: Mapping[str, Homes],
    cores: int,
    devices: Sequence[Device],
) -> WorkerBoot:
    section = config.stages[worker.stage]
    kind = next(device.kind for device in devices if device.name == worker.device)
    alike = sum(device.kind == kind for pairs in homes.values() for device, _ in pairs)
    return WorkerBoot(
        stage=worker.stage,
        kind=section.kind or worker.stage,
        model=section.model,
        compute_type=section.compute_type,
        device=worker.device,
        library_device=kind,
        threads=section.threads or max(1, cores // max(1, alike)),
        max_batch=section.max_batch,
        estimate_bytes=worker.estimate_bytes,
        options=section.options,
        smaller=worker.smaller,
        warm_up_runs=section.warm_up_runs,
        priority="low" if worker.extra else "normal",
    )


def _dispensable(section: StageSection, survey: Survey) -> bool:
    return not section.required or survey.declaration.optional


def _check_skipping(name: str, section: StageSection, survey: Survey) -> None:
    declared = survey.declaration
    if section.skip_above and (declared.translates or (declared.accepts, declared.emits) not in TEXT_TO_TEXT):
        text = f"{field_of(name)}.skip_above is for a stage that mends the transcript; this one does not"
        raise ConfigError(text, "set it for repair")
    if section.skip_above and not _dispensable(section, survey):
        text = f"{field_of(name)}.skip_above would skip a stage that no utterance can do without"
        raise ConfigError(text, "set it for repair, or say required = false for this one")


def _check_fallback(name: str, section: StageSection, survey: Survey, devices: Sequence[Device]) -> None:
    """That a stage which is to fall back to the CPU can."""
    if not section.cpu_fallback or survey.absent or placing.spares(section, survey, devices):
        return
    if not survey.declaration.cpu_allowed:
        raise ConfigError(
            f"{field_of(name)}.cpu_fallback is true, and this stage cannot run on the CPU", "set it to false"
        )
    raise ConfigError(f"{field_of(name)}.cpu_fallback is true, and devices.use leaves out the CPU", 'add "cpu" to it')


def _check_shares(config: Config, used: Mapping[str, str]) -> None:
    """That a GPU which others may use too has a bound on what this node takes. ``used``: device -> UUID."""
    section = config.devices
    for name, uuid in used.items():
        if section.share and uuid and not {name, uuid} & section.max_bytes.keys():
            text = (
                f"devices.share lets other nodes use {name} too, and devices.max_bytes does not bound this one's part"
            )
            raise ConfigError(text, f'set devices.max_bytes, for example {{"{name}" = 12_000_000_000}}')


# ---------------------------------------------------------------- the gateway's part


def _gateway(
    config: Config, plans: tuple[StagePlan, ...], surveys: Mapping[str, Survey], client_endpoint: str
) -> GatewayBoot:
    node = config.node
    for complaint in filter(None, map(ENDPOINT.complaint, node.endpoints)):  # a Config made by hand was not checked
        raise ConfigError(f"node.endpoints {complaint}")
    spoken = {name: languages(config, name, surveys) for name in config.pipelines}
    return GatewayBoot(
        stages=plans,
        pipelines=config.pipelines,
        sources={name: pair[0] for name, pair in spoken.items()},
        targets={name: pair[1] for name, pair in spoken.items()},
        endpoints=(client_endpoint, *node.endpoints),
        max_utterance_s=node.max_utterance_s,
        max_text_chars=node.max_text_chars,
        window=node.window,
        max_sessions=node.max_sessions,
        outbox_session_bytes=node.outbox_session_bytes,
        outbox_node_bytes=node.outbox_node_bytes,
    )


def languages(config: Config, pipeline: str, surveys: Mapping[str, Survey]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sources, targets) a pipeline takes; an empty tuple means: not checked.

    A stage before the translation limits the source, one after it the target, the translation both. A stage knows what
    any of its models knows.
    Raises ConfigError when no language is left.
    """
    configured = frozenset(config.languages)
    source = target = configured or None
    translated = False
    for stage in config.pipelines[pipeline]:
        every = [surveys[name].facts for name in models_in(surveys, stage) if not surveys[name].absent]
        known = _union(facts.languages for facts in every)
        if not translated:
            source = _both(source, known)
        if surveys[stage].declaration.translates:
            translated, known = True, _union(facts.targets or facts.languages for facts in every)
        if translated:
            target = _both(target, known)
    if source == frozenset() or (translated and target == frozenset()):
        if configured:
            sources, targets = languages(msgspec.structs.replace(config, languages=()), pipeline, surveys)
            takes, those = ("translates into", targets) if source else ("takes", sources)
            text = f"languages names {', '.join(config.languages)}, and pipeline {pipeline} {takes} none of them"
            raise ConfigError(text, f"it {takes} {', '.join(those)}")
        raise ConfigError(
            f"pipeline {pipeline}: no language is known to all of its models", "choose models that share one"
        )
    return tuple(sorted(source or ())), tuple(sorted(target or ())) if translated else ()


def _union(sets: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """All of these languages; None, which is any, where one of them is or there are none."""
    every = list(sets)
    known = [one for one in every if one is not None]
    return frozenset().union(*known) if known and len(known) == len(every) else None


def _listed(languages: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if languages is None else tuple(sorted(languages))


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return one if other is None else other
    return one & other
