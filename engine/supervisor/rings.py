"""How large each ring is, and who may read it. Pure.

The budget (default: 256 MiB or 5 % of the memory, whichever is less) is halved: one half for the gateway's ring, the
other divided evenly among the workers that emit arrays; ``rings.NAME`` overrides one. Each ring must hold one longest
slot, or no such utterance could ever pass. Where nobody has said otherwise it gets that much, whatever the budget;
where somebody has, it is an error at the start, naming the knob, and not a surprise later.

A worker may read the rings its input can lie in: the gateway's, and those of the stages before it in a pipeline. The
gateway reads all, to copy results out. Supervisor, arbiter and scheduler map none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.choices import models_in, stage_of
from engine.config import Config
from engine.devices import HostMemory
from engine.supervisor.survey import Survey
from ipc.errors import ConfigError, MemoryTooSmall
from ipc.ring import BLOCK, blocks_for, segment_bytes

DEFAULT_BUDGET_BYTES = 256 * 2**20
DEFAULT_BUDGET_SHARE = 0.05
GATEWAY = "gateway"
SAMPLE_RATE_HZ = 16_000
WIDEST_SAMPLE_BYTES = 4  # float32 on the wire

Surveys = Mapping[str, Survey]
Roles = Mapping[str, Sequence[str]]  # stage -> the roles of its workers


def sizes(config: Config, roles: Roles, surveys: Surveys, memory: HostMemory) -> dict[str, int]:
    """Blocks of each ring by its producer's role. Raises ConfigError, MemoryTooSmall."""
    budget = config.node.ring_budget_bytes or default_budget(memory.total_bytes)
    emitting = [(stage, role) for stage, names in roles.items() if surveys[stage].declaration.output for role in names]
    share = budget // 2 // max(1, len(emitting))
    rings = {GATEWAY: _blocks(config, GATEWAY, budget // 2, longest_input_bytes(config))}
    for stage, role in emitting:
        rings[role] = _blocks(config, stage, share, longest_output_bytes(config, surveys[stage]))
    total = sum(segment_bytes(blocks) for blocks in rings.values())
    if total > memory.available_bytes:
        raise MemoryTooSmall(
            f"the rings need {_mib(total)} of shared memory and {_mib(memory.available_bytes)} are available",
            "lower node.ring_budget_bytes or node.max_utterance_s",
        )
    return rings


def readers(config: Config, roles: Roles, surveys: Surveys, rings: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The rings each process may read, by role; a role that is not there reads none."""
    may_read = {GATEWAY: tuple(name for name in rings if name != GATEWAY)}
    for stage, names in roles.items():
        if surveys[stage].declaration.accepts == "audio":
            makers = (name for before in _before(config, stage_of(stage)) for name in models_in(roles, before))
            produced = (role for name in makers for role in roles[name] if role in rings)
            may_read |= dict.fromkeys(names, (GATEWAY, *produced))
    return may_read


def default_budget(total_bytes: int) -> int:
    """Bytes of all rings when the configuration does not say; ``total_bytes``: this machine's memory."""
    return min(DEFAULT_BUDGET_BYTES, int(DEFAULT_BUDGET_SHARE * total_bytes))


def longest_input_bytes(config: Config) -> int:
    """The longest utterance a client may send, in its widest form."""
    return int(config.node.max_utterance_s * SAMPLE_RATE_HZ) * WIDEST_SAMPLE_BYTES


def longest_output_bytes(config: Config, survey: Survey) -> int:
    """The longest array a stage may emit."""
    declaration = survey.declaration
    if declaration.output is None:
        return 0
    if declaration.accepts == "audio":
        return declaration.output.bound(longest_input_bytes(config), 0)
    return declaration.output.bound(0, declaration.max_chars)


def _blocks(config: Config, name: str, share_bytes: int, longest_bytes: int) -> int:
    """Blocks of a ring: its share or its override; ConfigError if that is less than one longest slot."""
    given = config.rings.get(stage_of(name))
    blocks = (share_bytes if given is None else given) // BLOCK
    needed = blocks_for(longest_bytes)
    if blocks >= needed:
        return blocks
    if given is None and not config.node.ring_budget_bytes:
        return needed
    knob = f"rings.{stage_of(name)}" if given is not None else "node.ring_budget_bytes"
    shorter = "node.max_utterance_s" if name == GATEWAY else "the longest text or audio the stage takes"
    raise ConfigError(
        f"{knob} gives the ring of {name} {_mib(blocks * BLOCK)}, and its longest array needs {_mib(needed * BLOCK)}",
        f"raise {knob}, set rings.{stage_of(name)} to at least {needed * BLOCK}, or lower {shorter}",
    )


def _before(config: Config, stage: str) -> list[str]:
    """Stages that come before this one in some pipeline."""
    found = (s for stages in config.pipelines.values() if stage in stages for s in stages[: stages.index(stage)])
    return list(dict.fromkeys(found))


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
