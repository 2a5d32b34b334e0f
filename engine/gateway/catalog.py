"""What this node offers, and whether an ``Open`` asks for something it has.

Pure; made once from the boot record. Every refusal names what would have been taken.
"""

from __future__ import annotations

import re

from engine.boot import GatewayBoot, StagePlan
from engine.gateway.validate import SAMPLE_RATE, WIRE_DTYPES, Refused
from engine.gateway.wire import MAX_INDEX
from ipc.messages import MAX_CONTROL_BYTES, Limits, Open

PRIORITIES = ("high", "normal", "low")
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
            boot.pipelines, boot.sources, boot.targets, {stage.name: stage.model for stage in boot.stages},
        )  # fmt: skip

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
        self._check_models(message)

    def name_of(self, stages: tuple[str, ...]) -> str:
        """A pipeline of these stages (two of the same stages are one)."""
        return next(name for name, members in self._boot.pipelines.items() if members == stages)

    def stages_of(self, pipeline: str) -> tuple[str, ...]:
        return self._boot.pipelines[pipeline]

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

    def _check_models(self, message: Open) -> None:
        stages = self.stages_of(message.pipeline)
        for stage, model in message.models.items():
            if stage not in stages:
                raise Refused("bad_model", f"pipeline {message.pipeline} has no stage {stage[:64]!r}", stages)
            if model not in ("", self._stages[stage].model):
                raise Refused("bad_model", f"stage {stage} has no model {model[:64]!r}", (self._stages[stage].model,))
