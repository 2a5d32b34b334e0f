"""The demo models through a whole node: clips word for word, voices the recogniser understands, no repair."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine import embedded, media
from engine.commands import demo
from engine.config import Config
from engine.node import Node
from models import phrasebook, scores
from tests.node.rehearsal import kill, process_of

for library in ("faster_whisper", "ctranslate2", "sentencepiece", "piper", "soxr"):
    if importlib.util.find_spec(library) is None:  # not imported: together in one process they can crash it
        pytest.skip(f"{library} is not installed", allow_module_level=True)


def with_repair_alone() -> Config:
    """The embedded node, and a pipeline that only mends."""
    made = embedded.config()
    return msgspec.structs.replace(made, pipelines={**made.pipelines, "mend": ("repair",)})


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with Node(with_repair_alone()) as node, node.client() as client:
        yield client


def outcomes(client: Any, inputs: list[Any], **fields: Any) -> list[Any]:
    with client.session(**fields) as session:
        for one in inputs:
            session.submit(one)
        return list(session.outcomes(timeout_s=60.0))


@pytest.mark.parametrize("speaker", ["anna", "bruno", "chen"])
def test_each_speaker_s_clips_are_understood_and_translated_word_for_word(client: Any, speaker: str) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    clips = [clip for clip in demo.clips() if clip.speaker == speaker]
    sounds = [media.read(clip.path, 10.0).samples for clip in clips]
    done = outcomes(client, sounds, source=clips[0].source, target=clips[0].target)
    assert [o.transcript for o in done] == [clip.text for clip in clips]
    assert [(o.repaired, o.translation) for o in done] == [(clip.text, clip.translation) for clip in clips]
    assert all(o.ok and o.audio is not None and len(o.audio) > 4000 for o in done)


@pytest.mark.parametrize("language", phrasebook.LANGUAGES)
def test_damaged_sentences_are_restored_and_whole_ones_left_alone(client: Any, language: str) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    chance = random.Random(7)
    texts = [sentence.texts[language] for sentence in phrasebook.sentences() if sentence.held_out][::4]
    damaged = [phrasebook.damage(text, language, chance) for text in texts]
    assert sum(a != b for a, b in zip(texts, damaged, strict=True)) > len(texts) / 2
    mended = outcomes(client, damaged, pipeline="mend", source=language)
    assert all(o.stages[0]["state"] == "completed" and not o.degraded for o in mended)
    assert sum(o.repaired == text for o, text in zip(mended, texts, strict=True)) >= 0.9 * len(texts)
    whole = outcomes(client, texts, pipeline="mend", source=language)
    assert sum(o.repaired == text for o, text in zip(whole, texts, strict=True)) >= 0.95 * len(texts)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(phrasebook.LANGUAGES, 2)))
def test_every_direction_is_translated_word_for_word(client: Any, source: str, target: str) -> None:
    held_out = [sentence.texts for sentence in phrasebook.sentences() if sentence.held_out][::6]
    done = outcomes(client, [t[source] for t in held_out], pipeline="translate-text", source=source, target=target)
    right = sum(o.translation == texts[target] for o, texts in zip(done, held_out, strict=True))
    assert right >= len(held_out) - 1, [o.translation for o in done]


def test_the_language_is_found_out(client: Any) -> None:
    clips = demo.clips()
    sounds = [media.read(clip.path, 10.0).samples for clip in clips]
    heard = outcomes(client, sounds, pipeline="transcribe", source="auto")
    assert [o.language for o in heard] == [clip.source for clip in clips]


def test_nothing_is_heard_in_silence_and_noise(client: Any) -> None:
    noise = (np.random.default_rng(1).normal(0, 0.02, 32_000) * 32767).astype(np.int16)
    heard = outcomes(client, [np.zeros(16_000, np.int16), noise], pipeline="transcribe", source="en")
    assert [o.transcript for o in heard] == ["", ""]


@pytest.mark.parametrize("language", phrasebook.LANGUAGES)
def test_what_a_voice_says_is_understood_by_the_recogniser(client: Any, language: str) -> None:
    held_out = [sentence for sentence in phrasebook.sentences() if sentence.held_out]
    texts = [sentence.texts[language] for sentence in held_out[::12]]
    spoken = outcomes(client, texts, pipeline="speak", source=language)
    with client.session(pipeline="transcribe", source=language) as session:
        for one in spoken:
            session.submit(one.audio, sample_rate=one.sample_rate)
        heard = list(session.outcomes(timeout_s=60.0))
    pairs = list(zip(texts, [o.transcript or "" for o in heard], strict=True))
    assert scores.error_rate(pairs, language) <= 0.20, pairs


def test_deaths_of_any_process_do_not_show_in_what_is_heard_and_said() -> None:
    clips = demo.clips() * 3
    victims = ["scheduler", "asr@cpu/0", "gateway", "nmt@cpu/0"]
    with Node(embedded.config()) as node, node.client() as client:
        heard = {}
        for speaker in ("anna", "bruno", "chen"):
            mine = [clip for clip in clips if clip.speaker == speaker]
            with client.session(source=mine[0].source, target=mine[0].target) as session:
                for number, clip in enumerate(mine):
                    session.submit(media.read(clip.path, 10.0).samples)
                    if victims and number % 6 == 3:
                        kill(process_of(node, victims.pop(0))["pid"])
                heard[speaker] = [(o.index, o.translation) for o in session.outcomes(timeout_s=60.0)]
        assert len(node.stats()["deaths"]) == 4 - len(victims) >= 4
    for speaker, found in heard.items():
        mine = [clip.translation for clip in clips if clip.speaker == speaker]
        assert found == list(enumerate(mine)), speaker


def test_without_repair_the_clips_go_through_all_the_same(tmp_path: Path) -> None:
    config = embedded.config()
    missing = msgspec.structs.replace(config.stages["repair"], model=str(tmp_path / "none.gguf"))
    config = msgspec.structs.replace(config, stages={**config.stages, "repair": missing})
    with Node(config) as node, node.client() as client:
        for speaker in ("anna", "bruno", "chen"):
            clips = [clip for clip in demo.clips() if clip.speaker == speaker]
            sounds = [media.read(clip.path, 10.0).samples for clip in clips]
            done = outcomes(client, sounds, source=clips[0].source, target=clips[0].target)
            assert [(o.transcript, o.translation) for o in done] == [(clip.text, clip.translation) for clip in clips]
            assert {s["state"] for o in done for s in o.stages if s["stage"] == "repair"} == {"skipped"}
