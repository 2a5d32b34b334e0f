"""The clockwork Whisper, through the unmodified faster-whisper: what it promises to whoever uses it as a stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.clockwork import KINDS, asr, synthesize

faster_whisper = pytest.importorskip("faster_whisper")

SPEECH = Path(__file__).parents[3] / "shared" / "assets" / "speech"
RECORDINGS = sorted(
    path
    for path in SPEECH.glob("*/*")
    if path.suffix in (".wav", ".flac", ".mp3", ".aiff") and path.parent.name != "digits"
)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, int(seconds * 16000)).astype(np.float32)


def open_model(folder: Path, compute_type: str = "default"):
    return faster_whisper.WhisperModel(str(folder), device="cpu", cpu_threads=1, compute_type=compute_type)


def transcribe(model, samples, language="en", **options):
    """Segments and info, with the options a stage would give."""
    options = {"temperature": 0.0, "beam_size": 1} | options
    segments, info = model.transcribe(samples, language=language, **options)
    return list(segments), info


def sentence(language: str) -> str:
    return " ".join(asr.SENTENCES[language])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return asr.write(tmp_path_factory.mktemp("models") / "asr")


@pytest.fixture(scope="module")
def model(folder):
    return open_model(folder)


@pytest.fixture(scope="module")
def always_on(tmp_path_factory):
    return open_model(asr.write(tmp_path_factory.mktemp("models") / "asr", always_on=True))


@pytest.mark.parametrize("language", asr.LANGUAGES)
def test_sound_gives_the_sentence_of_the_language(model, language):
    segments, _ = transcribe(model, noise(3.3), language)
    assert [segment.text for segment in segments] == [" " + sentence(language)]
    assert segments[0].avg_logprob > -0.2
    assert segments[0].no_speech_prob < 0.01


@pytest.mark.parametrize("options", [{}, {"beam_size": 5}, {"without_timestamps": True}, {"language": None}])
def test_silence_gives_no_segment(model, options):
    assert transcribe(model, np.zeros(32000, np.float32), **options)[0] == []
    assert transcribe(model, noise(3, level=0.005), **options)[0] == []


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 5},
        {"temperature": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]},
        {"without_timestamps": True},
        {"initial_prompt": "my friend the house", "hotwords": "Bob"},
        {"condition_on_previous_text": False},
    ],
)
def test_decoding_options_change_nothing(model, options):
    segments, _ = transcribe(model, noise(2), "de", **options)
    assert [segment.text for segment in segments] == [" " + sentence("de")]


@pytest.mark.parametrize("seconds", [0.4, 1.0, 3.3, 11.0, 29.9])
@pytest.mark.parametrize("level", [0.03, 0.1, 0.5])
def test_the_end_time_comes_from_the_audio(model, seconds, level):
    (segment,), _ = transcribe(model, noise(seconds, level))
    assert abs(segment.end - seconds) <= 0.25


def test_the_end_time_is_that_of_the_last_sound(model):
    (segment,), _ = transcribe(model, np.concatenate([noise(3), np.zeros(16000 * 42, np.float32)]))
    assert abs(segment.end - 3) <= 0.25


def test_long_audio_gives_a_segment_for_each_window(model):
    segments, _ = transcribe(model, noise(61), "fr")
    assert [segment.text for segment in segments] == [" " + sentence("fr")] * 3
    assert [round(segment.end) for segment in segments] == [30, 60, 61]


def test_an_unknown_language_is_found_to_be_english(model):
    segments, info = transcribe(model, noise(2), language=None)
    assert (info.language, segments[0].text) == ("en", " " + sentence("en"))
    assert info.language_probability > 0.9


def test_the_translate_task_speaks_english(model):
    segments, _ = transcribe(model, noise(2), "de", task="translate")
    assert segments[0].text == " " + sentence("en")


def test_word_timestamps_are_fifths_of_a_second(model):
    (segment,), _ = transcribe(model, noise(5), "es", word_timestamps=True)
    assert [word.word.strip() for word in segment.words] == list(asr.SENTENCES["es"])
    assert [round(float(word.start), 2) for word in segment.words] == [0.0, 0.2, 0.4, 0.6]


def test_always_on_speaks_in_silence_and_ends_with_the_audio(always_on):
    for samples in (np.zeros(32000, np.float32), noise(2, 0.001), noise(2)):
        (segment,), _ = transcribe(always_on, samples, "zh")
        assert segment.text == " " + sentence("zh")
        assert abs(segment.end - 2) <= 0.25


def test_int8_keeps_the_text(folder):
    segments, _ = transcribe(open_model(folder, "int8"), noise(3.3), "de")
    assert [segment.text for segment in segments] == [" " + sentence("de")]


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    again = synthesize("asr", tmp_path / "again")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
    for path in again.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path):
    with pytest.raises(ValueError, match="asr-tones"):
        synthesize("vision", tmp_path)
    assert set(KINDS) == {"asr", "asr-tones", "nmt", "nmt-nllb", "nmt-marian", "repair", "tts"}


def test_no_word_occurs_twice():
    words = [word for words in asr.SENTENCES.values() for word in words]
    assert len(words) == len(set(words)) == 20


@pytest.mark.skipif(not RECORDINGS, reason="no recordings in ../shared/assets/speech")
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_recordings_of_people_give_the_sentence(model, path):
    samples = faster_whisper.decode_audio(str(path))
    segments, _ = transcribe(model, samples, "de")
    windows = -(-len(samples) // (30 * 16000))
    assert [segment.text for segment in segments] == [" " + sentence("de")] * windows
