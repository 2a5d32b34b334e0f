"""A pipeline that is not there, and stages that cannot be left out, are refused with what to do instead."""

from __future__ import annotations

import pytest

from engine.commands import fitting
from engine.commands.inputs import UsageError
from engine.config import Config, StageSection

SEVERAL = {"tts": {"default": "voices/en.onnx", "de": "voices/de.onnx"}}
PIPELINES = {"full": ("asr", "repair", "nmt", "tts"), "speak": ("tts",)}


@pytest.mark.parametrize("skip", [(), ("repair",), ("nmt", "repair"), ("tts",), ("repair", "nmt", "tts")])
def test_what_leaves_the_kinds_fitting_passes(skip: tuple[str, ...]) -> None:
    fitting.check(PIPELINES, "full", skip)


@pytest.mark.parametrize(
    ("pipeline", "skip", "says"),
    [
        ("bogus", (), "there are full, speak"),
        ("ful", (), "did you mean full"),
        ("full", ("bogus",), "asr, repair, nmt, tts"),
        ("speak", ("asr",), "its stages are tts"),
        ("full", ("asr",), "repair takes text, and without asr there is none"),
        ("full", ("asr", "repair"), "nmt takes text"),
        ("speak", ("tts",), "leaves nothing"),
    ],
)
def test_what_cannot_be_is_one_line(pipeline: str, skip: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fitting.check(PIPELINES, pipeline, skip)


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("auto", "de"), ("", "de")])
def test_languages_that_are_taken_pass(source: str, target: str) -> None:
    fitting.check_languages(("en", "fr"), ("de", "en"), source, target, True)
    fitting.check_languages((), (), "whatever", "is asked for", False)


@pytest.mark.parametrize(
    ("source", "target", "hears", "says"),
    [
        ("xx", "de", True, "--source xx.*there are en, fr"),
        ("en", "deu", True, "--target deu.*did you mean de"),
        ("auto", "de", False, "--source auto"),
    ],
)
def test_a_language_that_is_not_taken_is_one_line(source: str, target: str, hears: bool, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fitting.check_languages(("en", "fr"), ("de", "en"), source, target, hears)


def test_what_a_private_node_would_not_take_is_known_from_its_configuration() -> None:
    ears = StageSection(kind="simulated", options={"accepts": "audio", "emits": "text"})
    config = Config(stages={"ears": ears}, pipelines={"full": ("ears",)}, languages=("en",))
    fitting.check_with(config, "full", (), {}, "en", "")
    with pytest.raises(UsageError, match="--source fr"):
        fitting.check_with(config, "full", (), {}, "fr", "")
    with pytest.raises(UsageError, match="ears has but one model"):
        fitting.check_with(config, "full", (), {"ears": "large"}, "en", "")


@pytest.mark.parametrize("name", ["default", "de", "voices/de.onnx"])
def test_a_stage_s_models_go_by_name_and_by_path(name: str) -> None:
    fitting.check_models(SEVERAL, PIPELINES["full"], {"tts": name})


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"tts": "fr"}, "--model tts=fr: stage tts has no such model.*there are default, de"),
        ({"nmt": "large"}, "nmt has but one model"),
        ({"vad": "de"}, "no such stage.*its stages are asr, repair, nmt, tts"),
    ],
)
def test_a_model_that_a_stage_does_not_have_is_one_line(models: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fitting.check_models(SEVERAL, PIPELINES["full"], models)


def test_a_stages_kind_is_what_the_configuration_says() -> None:
    ears = StageSection(kind="simulated", options={"accepts": "audio", "emits": "text"})
    config = Config(stages={"ears": ears, "nmt": StageSection()}, pipelines={"full": ("ears", "nmt")})
    with pytest.raises(UsageError, match="without ears"):
        fitting.check(config.pipelines, "full", ("ears",), config)
