"""The tone voices, through Piper itself: what is said can be read back out of the sound."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from models.clockwork import tts

piper = pytest.importorskip("piper", reason="piper-tts is not installed")

SENTENCES = {
    "en": "The quick brown fox; where? Yes!",
    "de": "Der schnelle braune Fuchs, \u00c4hm: gr\u00fc\u00dfe.",
    "fr": "Le renard brun rapide, d\u00e9j\u00e0 vu.",
    "es": "El zorro marr\u00f3n r\u00e1pido \u00bfd\u00f3nde est\u00e1?",
    "zh": "\u4f60\u597d, \u5feb\u901f\u7684\u68d5\u8272\u72d0\u72f8.",
}


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tts.write(tmp_path_factory.mktemp("tones"))


def say(voice: piper.PiperVoice, text: str, **settings: float) -> np.ndarray:
    chunks = list(voice.synthesize(text, piper.SynthesisConfig(**settings)))
    return np.concatenate([chunk.audio_int16_array for chunk in chunks])


def phoneme_ids(voice: piper.PiperVoice, text: str) -> list[int]:
    return [i for sentence in voice.phonemize(text) for i in voice.phonemes_to_ids(sentence)]


@pytest.mark.parametrize("language", tts.LANGUAGES)
def test_every_phoneme_comes_back_out_of_the_audio(voices: Path, language: str) -> None:
    voice = piper.PiperVoice.load(voices / f"{language}.onnx")
    text = SENTENCES[language]
    assert tts.decode(say(voice, text), tts.RATE_HZ) == phoneme_ids(voice, text)


@pytest.mark.parametrize("language", tts.LANGUAGES)
def test_espeak_writes_no_phoneme_the_voice_lacks(voices: Path, language: str) -> None:
    voice = piper.PiperVoice.load(voices / f"{language}.onnx")
    text = SENTENCES[language] + " 0 1 2 3 4 5 6 7 8 9 314 1999 %"
    said = {phoneme for sentence in voice.phonemize(text) for phoneme in sentence}
    assert said <= set(voice.config.phoneme_id_map)


@pytest.mark.parametrize("length_scale", [0.5, 1.3, 2.0])
def test_length_scale_stretches_the_slots_and_keeps_the_tones(voices: Path, length_scale: float) -> None:
    voice = piper.PiperVoice.load(voices / "en.onnx")
    plain, stretched = say(voice, "hello world"), say(voice, "hello world", length_scale=length_scale)
    assert stretched.size == plain.size // tts.SLOT * round(tts.SLOT * length_scale)
    assert tts.decode(stretched, tts.RATE_HZ, length_scale) == tts.decode(plain, tts.RATE_HZ)


@pytest.mark.parametrize("language", tts.LANGUAGES)
def test_random_digits_are_read_back(voices: Path, language: str) -> None:
    voice = piper.PiperVoice.load(voices / f"{language}.onnx")
    rng = random.Random(7)
    for _ in range(40):
        digits = [rng.choice("0123456789") for _ in range(rng.randint(1, 16))]
        assert tts.spoken_digits(say(voice, " ".join(digits)), tts.RATE_HZ, language) == "".join(digits)


def test_digits_are_read_back_across_sentences_and_commas(voices: Path) -> None:
    voice = piper.PiperVoice.load(voices / "fr.onnx")
    assert tts.spoken_digits(say(voice, "3, 1. 4! 0"), tts.RATE_HZ, "fr") == "3140"


def test_words_that_are_not_digits_do_not_pass_for_digits(voices: Path) -> None:
    voice = piper.PiperVoice.load(voices / "en.onnx")
    assert tts.spoken_digits(say(voice, "3 foxes 4"), tts.RATE_HZ, "en") == "3?4"


def test_three_minutes_of_speech_stay_exact(voices: Path) -> None:
    """Tones late in a long text are as pure as the first: the phase does not run on."""
    voice = piper.PiperVoice.load(voices / "en.onnx")
    ids = [1, *([0, 14, 0, 184] * 2000), 2]
    audio = voice.phoneme_ids_to_audio(ids)
    assert audio.size > 180 * tts.RATE_HZ
    assert tts.decode(audio, tts.RATE_HZ) == ids


def test_each_speaker_has_its_own_pitch(tmp_path: Path) -> None:
    folder = tts.write(tmp_path, languages=["en"], speakers=tts.MAX_SPEAKERS)
    voice = piper.PiperVoice.load(folder / "en.onnx")
    ids = phoneme_ids(voice, "hello")
    for speaker in range(tts.MAX_SPEAKERS):
        audio = say(voice, "hello", speaker_id=speaker)
        assert tts.decode(audio, tts.RATE_HZ, speaker=speaker) == ids
    highest = (tts.LOWEST + len(tts.SYMBOLS)) * (1 + (tts.MAX_SPEAKERS - 1) / 4)
    assert highest < tts.SLOT, "above the Nyquist frequency tones fold back and cannot be told apart"


def test_nothing_to_say_is_no_audio(voices: Path) -> None:
    voice = piper.PiperVoice.load(voices / "en.onnx")
    assert list(voice.synthesize("...")) == []


def test_symbols_are_unambiguous() -> None:
    assert len(set(tts.SYMBOLS)) == len(tts.SYMBOLS)
    assert tts.SYMBOLS[:4] == ("_", "^", "$", " ")


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = tts.write(tmp_path / "a", speakers=2), tts.write(tmp_path / "b", speakers=2)
    files = sorted(path.name for path in a.iterdir())
    assert files == sorted(f"{language}.onnx{end}" for language in tts.LANGUAGES for end in ("", ".json"))
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def test_the_description_has_what_piper_requires(voices: Path) -> None:
    config = json.loads((voices / "de.onnx.json").read_text(encoding="utf-8"))
    assert config["espeak"]["voice"] == "de"
    assert config["language"]["family"] == "de"
    assert config["audio"]["sample_rate"] == tts.RATE_HZ


@pytest.mark.parametrize(("languages", "speakers"), [(["en", "tlh"], 1), (["en"], 0), (["en"], 5)])
def test_what_cannot_be_written_is_refused(tmp_path: Path, languages: list[str], speakers: int) -> None:
    with pytest.raises(ValueError, match=r"tlh|speakers"):
        tts.write(tmp_path / "no", languages=languages, speakers=speakers)


def test_audio_that_is_not_tone_speech_is_refused(voices: Path) -> None:
    with pytest.raises(ValueError, match="22050"):
        tts.decode(np.zeros(512, np.int16), 16_000)
    with pytest.raises(ValueError, match="slots"):
        tts.decode(np.zeros(513, np.int16), tts.RATE_HZ)
    with pytest.raises(ValueError, match="tlh"):
        tts.spoken_digits(np.zeros(512, np.int16), tts.RATE_HZ, "tlh")
