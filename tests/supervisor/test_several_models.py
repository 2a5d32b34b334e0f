"""Promises about a stage with several models: what each becomes, which load at the start, what its pipeline speaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engine.boot import StagePlan
from engine.config import Config, DeviceSection, ModelSection, StageSection, VariantSection
from engine.devices import Device, HostMemory
from engine.supervisor import plan
from engine.supervisor.survey import survey
from ipc.errors import ConfigError
from stages.base import ModelFacts

GIB = 2**30
CPU = Device("cpu", "", "cpu", 64 * GIB, "host", "CPU")
GPU = Device("cuda:0", "GPU-0", "cuda", 24 * GIB, "nvml", "GPU")
MEMORY = HostMemory(64 * GIB, 32 * GIB)
SPEECH = {"emits": "audio", "output_bytes": 300_000}
LISTEN = StageSection(kind="simulated", options={"accepts": "audio"}, estimate_bytes=GIB)
THINK = StageSection(kind="simulated", options={"translates": True}, estimate_bytes=GIB)


def voice(*languages: str, **fields: Any) -> ModelSection:
    return ModelSection(options={"seed": 1}, languages=languages, estimate_bytes=GIB, **fields)


def speak(models: dict[str, ModelSection], **fields: Any) -> StageSection:
    known = {"kind": "simulated", "options": SPEECH, "estimate_bytes": GIB, "languages": ("de",), "models": models}
    return StageSection(**{**known, **fields})


def make(models: dict[str, ModelSection], *devices: Device, max_models: int = 5, **fields: Any) -> plan.Plan:
    config = Config(
        stages={"listen": LISTEN, "think": THINK, "speak": speak(models, **fields)},
        pipelines={"full": ("listen", "think", "speak")},
        devices=DeviceSection(max_models=max_models),
    )
    return plan.make(config, devices or (CPU,), MEMORY, 8, survey(config), "ipc:///tmp/x/client")


def stages(made: plan.Plan) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in made.scheduler.stages}


def test_each_model_is_a_stage_with_workers_of_its_own_and_pipelines_name_the_stage() -> None:
    made = make({"fr": voice("fr"), "it": voice("it", keep_alive_s=5.0)})
    assert list(stages(made)) == ["listen", "think", "speak", "speak.fr", "speak.it"]
    assert list(made.workers)[2:] == ["speak@cpu/0", "speak.fr@cpu/0", "speak.it@cpu/0"]
    assert made.workers["speak.fr@cpu/0"].options == {**SPEECH, "seed": 1}
    assert stages(made)["speak.it"].keep_alive_s == 5.0
    assert made.gateway.pipelines == made.scheduler.pipelines == {"full": ("listen", "think", "speak")}


def test_a_pipeline_speaks_what_any_of_its_models_speaks() -> None:
    assert make({"fr": voice("fr", "it")}).gateway.targets == {"full": ("de", "fr", "it")}
    assert make({"any": voice()}, languages=()).gateway.targets == {"full": ()}, "one may speak anything"


def test_a_translation_of_one_direction_limits_either_side_by_itself() -> None:
    think = msgspec.structs.replace(THINK, models={"back": voice()})
    config = Config(stages={"think": think}, pipelines={"text": ("think",)})
    found = survey(config)
    for name, takes, gives in (("think", "en", "de"), ("think.back", "fr", "en")):
        facts = ModelFacts(languages=frozenset({takes}), targets=frozenset({gives}))
        found[name] = replace(found[name], facts=facts)
    made = plan.make(config, [CPU], MEMORY, 8, found, "ipc:///tmp/x/client").gateway
    assert (made.sources, made.targets) == ({"text": ("en", "fr")}, {"text": ("de", "en")})


def test_every_model_has_a_ring_of_its_own_that_its_followers_read() -> None:
    pass_on = StageSection(kind="simulated", options={"accepts": "audio", "emits": "same"}, models={"b": voice()})
    config = Config(
        stages={"speak": speak({"fr": voice("fr")}), "pass": pass_on},
        pipelines={"full": ("speak", "pass")},
        rings={"speak": 16 * 2**20},
    )
    made = plan.make(config, [CPU], MEMORY, 8, survey(config), "ipc:///tmp/x/client")
    assert made.rings["speak@cpu/0"] == made.rings["speak.fr@cpu/0"] == 256
    assert made.readers["pass.b@cpu/0"] == ("gateway", "speak@cpu/0", "speak.fr@cpu/0")
    assert set(made.readers["gateway"]) == {"speak@cpu/0", "speak.fr@cpu/0"}


def test_further_models_load_at_the_start_where_all_have_room_together() -> None:
    made = make({"fr": voice("fr")}, GPU, CPU)
    assert made.placement.verdict.value == "all resident"
    assert not any(worker.rests for stage in made.scheduler.stages for worker in stage.workers)


def test_and_rest_until_they_have_work_where_they_have_not_unless_they_are_pinned() -> None:
    made = make({"fr": voice("fr"), "it": voice("it", pinned=True)}, GPU, CPU, max_models=4)
    assert made.placement.verdict.value == "by turns"
    rests = {worker.role: worker.rests for stage in made.scheduler.stages for worker in stage.workers}
    assert rests == {
        "listen@cuda:0/0": False, "think@cuda:0/0": False, "speak@cuda:0/0": False,
        "speak.fr@cuda:0/0": True, "speak.it@cuda:0/0": False,
    }  # fmt: skip


def test_what_is_wrong_with_a_model_is_said_of_its_field() -> None:
    with pytest.raises(ConfigError, match=r"stages\.speak\.models\.fr\.devices names 'cuda:7'"):
        make({"fr": voice("fr", devices=("cuda:7",))})
    config = Config(stages={"nmt": StageSection(models={"x": ModelSection(model="/nowhere")}, required=False)})
    assert "/nowhere" in survey(config)["nmt.x"].absent
    with pytest.raises(ConfigError, match=r"stages\.nmt\.models\.x\.model cannot be used: .*/nowhere"):
        survey(Config(stages={"nmt.x": StageSection(kind="nmt", model="/nowhere")}))


def test_many_models_with_variants_are_planned_at_once() -> None:
    """All combinations of their variants would be too many to look at."""
    smaller = tuple(VariantSection(compute_type=kind, estimate_bytes=GIB) for kind in ("int8_float16", "int8"))
    models = {f"v{n}": voice("fr", variants=smaller) for n in range(30)}
    assert make(models, GPU, CPU).placement.verdict.value == "by turns"
