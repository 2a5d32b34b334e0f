"""What this node offers, whether an ``Open`` asks for something it has, and which models its session gets.

A session that does not choose gets, of each stage, the first model that knows its languages: before the translation the
source, in it both, after it the target. The stage's own comes first, then the others as configured.

Pure; made once from the boot record. Every refusal names what would have been taken.
"""

from __future__ import annotations

import re

from engine.boot import GatewayBoot, StagePlan
from engine.choices import OWN, model_of, models_in, stage_of
from engine.gateway.ledger import PRIORITIES
from engine.gateway.validate import SAMPLE_RATE, WIRE_DTYPES, Refused
from engine.gateway.wire import MAX_INDEX
from ipc.messages import MAX_CONTROL_BYTES, Limits, Open

MOST_WEIGHT = 100
ON_DEADLINE = ("fail", "skip_repair", "text")
DETECTED = ("", "auto")  # where nothing translates, the stage that hears may find the language out
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]{0,32}")


class Catalog:
    """Pipelines, languages, models and limits of the node."""

    def __init__(self, boot: GatewayBoot) -> None:
        self._boot = boot
        self._stages: dict[str, StagePlan] = {stage.name: stage for stage in boot.stages}

    def limits(self) -> Limits:
        """What ``Welcome`` tells."""
        boot = self._boot
        return Limits(
            boot.max_utterance_s, boot.max_text_chars, boot.window, MAX_CONTROL_BYTES, tuple(WIRE_DTYPES), SAMPLE_RATE,
            boot.pipelines, boot.sources, boot.targets,
            {stage.name: stage.model for stage in boot.stages if not model_of(stage.name)}, self._choices(),
        )  # fmt: skip

    def _choices(self) -> dict[str, dict[str, str]]:
        """Stage with several models -> their names -> the models."""
        every = {stage: self._models(stage) for stage in dict.fromkeys(map(stage_of, self._stages))}
        return {
            stage: {model_of(one.name) or OWN: one.model for one in models}
            for stage, models in every.items()
            if len(models) > 1
        }

    def check(self, message: Open) -> None:
        """Raise Refused unless such a session can be opened."""
        if not _TAG.fullmatch(message.tag):
            raise Refused("bad_session", "tag must be 1 to 64 of A-Z a-z 0-9 _ -")
        pipelines = self._boot.pipelines
        if message.pipeline not in pipelines:
            raise Refused("bad_pipeline", f"no pipeline {message.pipeline[:64]!r}", tuple(pipelines))
        if message.priority not in PRIORITIES:
            raise Refused("bad_priority", f"no priority {message.priority[:64]!r}", PRIORITIES)
        if message.on_deadline not in ON_DEADLINE:
            raise Refused("bad_message", f"no on_deadline {message.on_deadline[:64]!r}", ON_DEADLINE)
        if not 1 <= message.weight <= MOST_WEIGHT:
            raise Refused("bad_message", f"weight {message.weight} is not from 1 to {MOST_WEIGHT}")
        if message.window < 1:
            raise Refused("bad_message", f"window {message.window} is not at least 1")
        if not 0 <= message.first_index <= MAX_INDEX:
            raise Refused("bad_index", f"first_index must be a whole number from 0 to {MAX_INDEX}")
        self._check_languages(message)
        for stage in message.models:
            if stage not in pipelines[message.pipeline]:
                text = f"pipeline {message.pipeline} has no stage {stage[:64]!r}"
                raise Refused("bad_model", text, pipelines[message.pipeline])
        self.models_of(message)

    def name_of(self, stages: tuple[str, ...]) -> str:
        """A pipeline of these stages, or of models of them (two of the same stages are one)."""
        wanted = tuple(map(stage_of, stages))
        return next(name for name, members in self._boot.pipelines.items() if members == wanted)

    def stages_of(self, pipeline: str) -> tuple[str, ...]:
        return self._boot.pipelines[pipeline]

    def models_of(self, message: Open) -> tuple[str, ...]:
        """The stages of its pipeline, each as the model of it that such a session has. Raises Refused."""
        stages = self.stages_of(message.pipeline)
        return tuple(
            self._model(stage, message.models.get(stage, ""), self._spoken(message, stages, number))
            for number, stage in enumerate(stages)
        )

    def _spoken(self, message: Open, stages: tuple[str, ...], number: int) -> tuple[str, str]:
        """The languages that a stage's model must know: what it takes, and what it gives ("": the same)."""
        before = [self._stages[stage].translates for stage in stages[: number + 1]]
        if before[-1]:
            return message.source, message.target
        if any(before):
            return message.target, ""
        if self._stages[stages[number]].emits == "audio":  # nothing translates: who gives a target means this
            return message.target or message.source, ""
        return message.source, ""

    def _model(self, stage: str, asked: str, spoken: tuple[str, str]) -> str:
        """The first of a stage's models that the session may mean and that knows what it speaks."""
        models = self._models(stage)
        meant = [one for one in models if asked in (model_of(one.name) or OWN, one.model)] if asked else models
        if not meant:
            names = tuple(self._choices().get(stage, {})) or (models[0].model,)
            raise Refused("bad_model", f"stage {stage} has no model {asked[:64]!r}", names)
        for one in sorted(meant, key=lambda one: bool(one.absent)):
            if _knows(one, *spoken):
                return one.name
        what = " and ".join(repr(code[:32]) for code in spoken if code)
        known = sorted({code for one in meant for code in (*(one.languages or ()), *(one.targets or ()))})
        which = f"model {asked[:64]} of stage {stage} does not know" if asked else f"no model of stage {stage} knows"
        raise Refused("bad_language", f"{which} {what}", tuple(known))

    def _models(self, stage: str) -> list[StagePlan]:
        return [self._stages[name] for name in models_in(self._stages, stage)]

    def accepts(self, pipeline: str) -> str:
        """Kind of the pipeline's input: audio | text."""
        return self._stages[self.stages_of(pipeline)[0]].accepts

    def max_chars(self, pipeline: str) -> int:
        """Longest text the pipeline takes in."""
        return min(self._boot.max_text_chars, self._stages[self.stages_of(pipeline)[0]].max_chars)

    def _check_languages(self, message: Open) -> None:
        sources = self._boot.sources.get(message.pipeline, ())
        targets = self._boot.targets.get(message.pipeline, ())
        hears = self.accepts(message.pipeline) == "audio"
        if not (hears and message.source in DETECTED):
            self._check_language("source", message.source, sources)
        self._check_language("target", message.target, targets)

    def _check_language(self, which: str, code: str, known: tuple[str, ...]) -> None:
        if (known and code not in known) or not _LANGUAGE.fullmatch(code):
            raise Refused("bad_language", f"no {which} language {code[:32]!r}", tuple(sorted(known)))


def _knows(model: StagePlan, takes: str, gives: str) -> bool:
    targets = model.languages if model.targets is None else model.targets
    pairs = (takes, model.languages), (gives, targets)
    return all(code in DETECTED or known is None or code in known for code, known in pairs)
