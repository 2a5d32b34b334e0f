"""Every knob that the programs before this one had is here, by another name: typed, bounded, set from the environment.

Without a counterpart: ``max_cached_shapes`` and ``overlap_ratio``, which belong to one speech model's CUDA graphs and
vocoder; ``BATCH_SCHEDULE_INTERVAL``, since nothing waits for a tick here (a batch waits ``max_delay_ms``);
``PERFORMANCE_MONITOR_INTERVAL``, since processes report once a second and ``stats`` is asked for; ``priority``, which a
session says of itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from engine import config_file
from engine.config import Config
from ipc.errors import ConfigError

NODE = """
[stages.asr]
kind = "simulated"
options = {accepts = "audio", emits = "text"}
[pipelines]
full = ["asr"]
"""


class Knob(NamedTuple):
    """``theirs``: names there. ``good``: a value, as it stands in the environment, and what that is."""

    theirs: tuple[str, ...]
    field: str
    good: str
    value: Any
    wrong_type: str
    out_of_range: str


KNOBS = [
    Knob(("ASR_MAX_CONCURRENT", "MAX_BATCH_SIZE"), "stages.asr.max_batch", "4", 4, "many", "0"),
    Knob(("MIN_BATCH_SIZE",), "stages.asr.min_batch", "1", 1, "1.5", "0"),
    Knob(("ASR_MAX_RETRIES", "MAX_TASK_RETRIES"), "node.max_retries", "5", 5, "often", "-1"),
    Knob(("ASR_RETRY_DELAY",), "deadlines.retry_delay_s", "15", 15.0, "soon", "0"),
    Knob(("ASR_REQUEST_TIMEOUT",), "deadlines.budget_max_s", "200", 200.0, "long", "0"),
    Knob(("ENABLE_OPTIMIZATION_SYSTEM", "enable_concurrent_tts"), "node.mode", "serial", "serial", "1", "parallel"),
    Knob(("BATCH_SCHEDULE_INTERVAL",), "stages.asr.max_delay_ms", "20", 20.0, "true", "-1"),
    Knob(("MEMORY_CALIBRATION_FACTOR",), "devices.start_factor", "1.5", 1.5, "more", "0.5"),
    Knob(("ENABLE_ADAPTIVE_OPTIMIZATION",), "node.adaptive", "false", False, "perhaps", "2"),
    Knob(("MIN_CONCURRENT_TASKS",), "stages.asr.instances", "2", 2, "two", "0"),
    Knob(("MAX_CONCURRENT_TASKS_LIMIT",), "stages.asr.max_instances", "8", 8, "all", "-1"),
    Knob(("safety_margin",), "devices.safety_margin", "0.2", 0.2, "some", "1.5"),
    Knob(("max_concurrent_models",), "devices.max_models", "3", 3, "3.5", "0"),
    Knob(("num_gpus",), "devices.use", "cpu,cuda:0", ("cpu", "cuda:0"), "2", "gpu0"),
    Knob(("max_queue_size",), "node.capacity_factor", "20", 20, "ten", "0"),
    Knob(("num_warmup",), "stages.asr.warm_up_runs", "1", 1, "once", "-1"),
    Knob(("maxGpuMemoryGB",), "devices.max_bytes", "cuda:0=17179869184", {"cuda:0": 2**34}, "16", "gpu=1"),
]
IDS = [knob.field for knob in KNOBS]


def load(tmp_path: Any, **env: str) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(NODE)
    return config_file.load(path, env)


def variable(field: str) -> str:
    return "DRAGOMAN_" + field.upper().replace(".", "_")


def look_up(config: Config, field: str) -> Any:
    section, *rest = field.split(".")
    found: Any = getattr(config, section)
    for name in rest:
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


@pytest.mark.parametrize("knob", KNOBS, ids=IDS)
def test_it_is_there_and_the_environment_sets_it(knob: Knob, tmp_path: Any) -> None:
    assert look_up(load(tmp_path), knob.field) is not None
    assert look_up(load(tmp_path, **{variable(knob.field): knob.good}), knob.field) == knob.value


@pytest.mark.parametrize("knob", KNOBS, ids=IDS)
def test_a_wrong_type_and_a_value_out_of_range_are_refused_in_one_line_that_names_it(knob: Knob, tmp_path: Any) -> None:
    for value in (knob.wrong_type, knob.out_of_range):
        with pytest.raises(ConfigError) as refused:
            load(tmp_path, **{variable(knob.field): value})
        text = str(refused.value)
        assert variable(knob.field) in text or knob.field in text
        assert "\n" not in text
