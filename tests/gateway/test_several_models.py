"""Which model a session gets: the one it names, else the first that knows its languages."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from engine.boot import StagePlan
from engine.gateway.catalog import Catalog
from engine.gateway.validate import Refused
from ipc.messages import Open, Restored, Session
from tests.gateway.stand import Stand, boot


def stage(name: str, languages: tuple[str, ...] | None = None, **fields: Any) -> StagePlan:
    known = {"accepts": "text", "emits": "text", "model": f"files/{name}"}
    return StagePlan(**{"name": name, "kind": "simulated", "languages": languages, **known, **fields})


STAGES = (
    stage("asr", ("de", "en", "fr"), accepts="audio"),
    stage("asr.en", ("en",), accepts="audio"),
    stage("nmt", ("en", "fr"), translates=True),
    stage("nmt.de", ("de", "en"), translates=True),
    stage("tts", ("de",), emits="audio"),
    stage("tts.anna", ("de",), emits="audio"),
    stage("tts.fr", ("fr",), emits="audio"),
    stage("tts.gone", ("it",), emits="audio", absent="not installed: piper"),
)
SPEAKS = {
    "stages": STAGES,
    "sources": {"full": ("de", "en", "fr"), "text": ("de", "en", "fr")},
    "targets": {"full": ("de", "fr"), "text": ("de", "fr"), "speak": ("de", "fr", "it")},
}


def models(source: str = "en", target: str = "de", pipeline: str = "full", **chosen: str) -> tuple[str, ...]:
    message = Open("t", pipeline, source, target, models=chosen)
    catalog = Catalog(boot(**SPEAKS))
    catalog.check(message)
    return catalog.models_of(message)


def refusal(*args: Any, **chosen: str) -> Refused:
    with pytest.raises(Refused) as caught:
        models(*args, **chosen)
    return caught.value


def test_without_a_choice_it_is_the_first_that_knows_the_languages() -> None:
    assert models("en", "de") == ("asr", "nmt.de", "tts"), "the translation must know both"
    assert models("en", "fr") == ("asr", "nmt", "tts.fr"), "several voices serve several targets"


def test_a_model_is_named_or_given_as_its_path_or_default() -> None:
    assert models("en", "de", asr="en", tts="anna") == ("asr.en", "nmt.de", "tts.anna")
    assert models("en", "de", tts="files/tts.anna") == ("asr", "nmt.de", "tts.anna")
    assert models("en", "de", asr="default", tts="files/tts") == ("asr", "nmt.de", "tts")


def test_a_language_that_is_to_be_heard_out_fits_every_model() -> None:
    assert models("auto", "fr")[0] == "asr"


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    found = refusal("en", "de", tts="otto")
    assert (found.code, found.accepted) == ("bad_model", ("default", "anna", "fr", "gone"))
    assert "stage tts has no model 'otto'" in found.text


def test_a_model_that_does_not_know_the_language_is_refused_with_those_it_knows() -> None:
    found = refusal("en", "de", tts="fr")
    assert (found.code, found.accepted) == ("bad_language", ("fr",))
    found = refusal("fr", "de")
    assert found.code == "bad_language" and "nmt" in found.text, "no one model translates from French to German"


def test_one_that_cannot_run_comes_last() -> None:
    absent = (replace(STAGES[4], absent="no such file"), *STAGES[5:])
    catalog = Catalog(boot(stages=absent, pipelines={"speak": ("tts",)}, sources={}, targets={}))
    assert catalog.models_of(Open("t", "speak", "", "de")) == ("tts.anna",)
    assert catalog.models_of(Open("t", "speak", "de", "", {"tts": "default"})) == ("tts",), "its utterances skip it"


def test_models_of_one_direction_serve_the_sessions_that_go_their_way() -> None:
    there = stage("nmt", ("en",), targets=("de",), translates=True)
    back = stage("nmt.back", ("de",), targets=("en",), translates=True)
    spoken = {"pipelines": {"text": ("nmt",)}, "sources": {"text": ("de", "en")}, "targets": {"text": ("de", "en")}}
    both = Catalog(boot(stages=(there, back), **spoken))
    assert both.models_of(Open("t", "text", "en", "de")) == ("nmt",)
    assert both.models_of(Open("t", "text", "de", "en")) == ("nmt.back",)
    for catalog in (both, Catalog(boot(stages=(there,), **spoken))):
        with pytest.raises(Refused, match="knows 'en' and 'en'"):
            catalog.check(Open("t", "text", "en", "en"))


def test_the_choices_are_told_in_welcome() -> None:
    limits = Catalog(boot(**SPEAKS)).limits()
    assert limits.models == {"asr": "files/asr", "nmt": "files/nmt", "tts": "files/tts"}
    assert limits.choices["nmt"] == {"default": "files/nmt", "de": "files/nmt.de"}
    assert Catalog(boot()).limits().choices == {}, "a stage with one model offers no choice"


def test_the_scheduler_is_told_the_models_and_a_new_gateway_finds_its_pipeline_again() -> None:
    stand = Stand(**SPEAKS)
    stand.open(target="fr", models={"asr": "en"})
    told = next(message for message in stand.posted if isinstance(message, Session))
    assert told.pipeline == ("asr.en", "nmt", "tts.fr")
    after = Stand(**SPEAKS, incarnation=8, handed_over=None)
    after.feed(told)
    after.feed(Restored())
    (session,) = after.core.books.sessions
    assert session.opened.pipeline == "full" and session.opened.models == {"asr": "en"}
    assert after.core.books.catalog.models_of(session.opened) == told.pipeline
