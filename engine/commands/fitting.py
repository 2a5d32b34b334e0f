"""Whether a pipeline, the stages to be left out of it and the languages go together, told before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import stages
from engine import choices
from engine.commands.inputs import UsageError
from engine.config import Config
from engine.config_rules import nearest
from stages.base import Declaration

DETECTED = ("", "auto")  # where a pipeline hears, its first stage may find the language out
Pipelines = Mapping[str, Sequence[str]]


def check(pipelines: Pipelines, pipeline: str, skip: Sequence[str], config: Config | None = None) -> None:
    """Raise UsageError unless there is such a pipeline and it still does something without the stages in ``skip``.

    ``config``: the node's, where it is known; else a stage's kind is taken from its name.
    """
    if pipeline not in pipelines:
        mend = f"{nearest(pipeline, pipelines)}there are {', '.join(pipelines)}"
        raise UsageError(f"there is no pipeline {pipeline!r}", mend)
    members = pipelines[pipeline]
    for name in skip:
        if name not in members:
            mend = f"{nearest(name, members)}its stages are {', '.join(members)}"
            raise UsageError(f"--skip {name}: pipeline {pipeline} has no such stage", mend)
    if members and set(skip) >= set(members):
        raise UsageError(f"--skip leaves nothing of pipeline {pipeline}", "leave one stage in")
    _check_kinds(members, skip, config)


def check_languages(sources: Sequence[str], targets: Sequence[str], source: str, target: str, hears: bool) -> None:
    """Raise UsageError for a language that a pipeline does not take; it takes these (none: whatever is asked for).

    ``hears``: it begins with sound, in which a language can be found out.
    """
    for option, wanted, known in (("--source", source, sources), ("--target", target, targets)):
        detected = hears and option == "--source" and wanted in DETECTED
        if known and wanted not in known and not detected:
            mend = f"{nearest(wanted, known)}there are {', '.join(sorted(known))}"
            raise UsageError(f"{option} {wanted}: this pipeline does not take that language", mend)


def check_models(several: Mapping[str, Mapping[str, str]], members: Sequence[str], models: Mapping[str, str]) -> None:
    """Raise UsageError for a model that a stage does not have. ``several``: stage that has several -> name -> model."""
    for stage, name in models.items():
        option, known = f"--model {stage}={name}", several.get(stage, {})
        if stage not in members:
            raise UsageError(f"{option}: the pipeline has no such stage", f"its stages are {', '.join(members)}")
        if not known:
            raise UsageError(f"{option}: stage {stage} has but one model", "leave the option out")
        if name not in known and name not in known.values():
            raise UsageError(f"{option}: stage {stage} has no such model", f"there are {', '.join(known)}")


def check_with(
    config: Config, pipeline: str, skip: Sequence[str], models: Mapping[str, str], source: str, target: str
) -> None:
    """All of it for a node that would run with this configuration. Raises UsageError, ConfigError or DragomanError."""
    from engine.supervisor import plan, survey

    check(config.pipelines, pipeline, skip, config)
    check_models(choices.choices(config), config.pipelines[pipeline], models)
    surveys = survey.survey(config)
    hears = surveys[config.pipelines[pipeline][0]].declaration.accepts == "audio"
    check_languages(*plan.languages(config, pipeline, surveys), source, target, hears)


def _check_kinds(members: Sequence[str], skip: Sequence[str], config: Config | None) -> None:
    """A stage that turns sound into text, or back, cannot be missing between others."""
    flowing = ""
    left_out = ""  # the stage whose work would be missing
    for name in members:
        declared = _declared(name, config)
        if declared is None:
            return
        flowing = flowing or declared.accepts
        if name in skip:
            if declared.emits not in ("same", declared.accepts):
                left_out = name
            continue
        if declared.accepts != flowing:
            text = f"--skip {left_out}: {name} takes {declared.accepts}, and without {left_out} there is none"
            raise UsageError(text, f"skip {name} too, or choose another --pipeline")
        flowing = flowing if declared.emits == "same" else declared.emits


def _declared(name: str, config: Config | None) -> Declaration | None:
    section = config.stages.get(name) if config else None
    kind = (section.kind if section else "") or name
    if kind not in stages.kinds():
        return None
    return stages.find(kind).declare(section.options if section else {})
