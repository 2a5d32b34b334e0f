"""Test speech: every voice exists, nothing is out of range, disturbing keeps what was said recognisable as sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")

from models import espeak, phrasebook, speech


@pytest.mark.parametrize("language", phrasebook.LANGUAGES)
def test_each_language_is_spoken_in_every_variant(language: str) -> None:
    for name in speech.ESPEAK_NAMES[language]:
        for variant in (*speech.VARIANTS, *speech.HELD_OUT):
            sound = speech.speak("1", espeak.Voice(name, variant))
            assert sound.dtype == np.float32 and 0.05 < len(sound) / speech.RATE_HZ < 3 and np.abs(sound).max() <= 1


def test_mandarin_is_not_read_as_english() -> None:
    voice = espeak.Voice("cmn")
    assert len(speech.speak("银行在哪里？", voice)) < 2.5 * speech.RATE_HZ  # earlier versions spell it out


def test_held_out_voices_are_not_trained_on() -> None:
    assert not set(speech.HELD_OUT) & set(speech.VARIANTS)


def test_an_unknown_voice_says_so() -> None:
    with pytest.raises(ValueError, match="no voice 'nolanguage'"):
        speech.speak("eins", espeak.Voice("nolanguage"))


def test_every_variant_is_one() -> None:
    import espeakng_loader

    there = {path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()}
    assert {*speech.VARIANTS, *speech.HELD_OUT} - {""} <= there  # espeak-ng takes an unknown one in silence


def test_the_same_seed_gives_the_same_sound() -> None:
    sound = speech.speak("eins zwei drei", espeak.Voice("de"))
    first, again = (speech.disturb(sound, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again) and np.isfinite(first).all() and np.abs(first).max() <= 1.0
