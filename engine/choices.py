"""Several models of one stage: how they are named, and what each takes over from its stage. Pure.

Inside the node a further model is a stage of its own, ``tts.thorsten`` beside ``tts``, with a queue, workers, leases
and figures of its own. A pipeline names the stage; the gateway puts the model that a session has in its place, and what
clients are told names the stage again. Names in the configuration have no dot.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.config import Config, ModelSection, StageSection

OWN = "default"  # how a session names the model that a stage has without further ones


def name_of(stage: str, model: str) -> str:
    """What a model of a stage is called inside the node; ``model`` "": the stage's own."""
    return f"{stage}.{model}" if model else stage


def stage_of(name: str) -> str:
    """The stage, as pipelines and clients name it."""
    return name.partition(".")[0]


def model_of(name: str) -> str:
    """Which of its stage's models it is; "": the stage's own."""
    return name.partition(".")[2]


def field_of(name: str) -> str:
    """Where the configuration says it."""
    stage, _, model = name.partition(".")
    return f"stages.{stage}.models.{model}" if model else f"stages.{stage}"


def choices(config: Config) -> dict[str, dict[str, str]]:
    """Stage with several models -> what a session calls them -> the models."""
    return {
        name: {OWN: stage.model} | {model: section.model for model, section in stage.models.items()}
        for name, stage in config.stages.items()
        if stage.models
    }


def models_in(names: Iterable[str], stage: str) -> list[str]:
    """Those of ``names`` that are models of this stage, in their order."""
    return [name for name in names if stage_of(name) == stage]


def spread(config: Config) -> Config:
    """The configuration with a stage for each model, after that of the stage's own; pipelines stay as they are."""
    stages: dict[str, StageSection] = {}
    for name, section in config.stages.items():
        stages[name] = msgspec.structs.replace(section, models={})
        stages |= {name_of(name, model): _section(name, section, one) for model, one in section.models.items()}
    return msgspec.structs.replace(config, stages=stages)


def _section(name: str, stage: StageSection, one: ModelSection) -> StageSection:
    return msgspec.structs.replace(
        stage,
        kind=stage.kind or name,
        model=one.model or stage.model,
        compute_type=one.compute_type or stage.compute_type,
        estimate_bytes=one.estimate_bytes or (0 if one.model else stage.estimate_bytes),
        languages=one.languages or (() if one.model else stage.languages),
        variants=one.variants,
        models={},
        devices=one.devices or stage.devices,
        keep_alive_s=stage.keep_alive_s if one.keep_alive_s is None else one.keep_alive_s,
        pinned=stage.pinned if one.pinned is None else one.pinned,
        options={**stage.options, **one.options},
    )
