"""Scores: word errors, and the pitch of a voice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import scores


@pytest.mark.parametrize(
    ("said", "heard", "language", "wrong", "words"),
    [
        ("Where is the bank?", "where is the bank", "en", 0, 4),
        ("Where is the bank?", "where the bank bank", "en", 2, 4),
        ("Where is the bank?", "", "en", 4, 4),
        ("", "hello there", "en", 2, 0),
        ("¿Dónde está el banco?", "Dónde esta el banco.", "es", 1, 4),
        ("银行在哪里？", "银行再哪里。", "zh", 1, 5),
        ("at seven o'clock", "at seven oclock", "en", 1, 3),
    ],
)
def test_word_errors(said: str, heard: str, language: str, wrong: int, words: int) -> None:
    assert scores.word_errors(said, heard, language) == (wrong, words)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_errors_are_a_distance(a: list[str], b: list[str]) -> None:
    there, _ = scores.word_errors(" ".join(a), " ".join(b), "en")
    back, _ = scores.word_errors(" ".join(b), " ".join(a), "en")
    assert there == back and abs(len(a) - len(b)) <= there <= max(len(a), len(b)) and (there == 0) == (a == b)


def test_a_rate_counts_words_not_sentences() -> None:
    assert scores.error_rate([("one two three", "one two three"), ("four", "five")], "en") == 0.25


@pytest.mark.parametrize("hertz", [90.0, 140.0, 220.0])
def test_pitch_of_a_voice_like_sound(hertz: float) -> None:
    t = np.arange(16_000) / 16_000
    voice = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 8))
    assert scores.pitch((0.2 * voice).astype(np.float32), 16_000) == pytest.approx(hertz, rel=0.02)


def test_silence_and_noise_have_no_pitch() -> None:
    assert math.isnan(scores.pitch(np.zeros(16_000, np.int16), 16_000))
    noise = np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32)
    assert math.isnan(scores.pitch(noise, 16_000))
