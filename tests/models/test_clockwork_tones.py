"""Tone digits: the clockwork Whisper of which audio and text can be matched exactly."""

from __future__ import annotations

import numpy as np
import pytest

from models.clockwork import synthesize, tones

faster_whisper = pytest.importorskip("faster_whisper")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthesize("asr-tones", tmp_path_factory.mktemp("models") / "tones")


@pytest.fixture(scope="module", params=["float32", "int8"])
def model(request, folder):
    return faster_whisper.WhisperModel(str(folder), device="cpu", cpu_threads=1, compute_type=request.param)


def read(model, samples, language="en", **options):
    """The transcript, and the end of its last segment in seconds."""
    options = {"temperature": 0.0, "beam_size": 1, "condition_on_previous_text": False} | options
    segments = list(model.transcribe(samples.astype(np.float32), language=language, **options)[0])
    return "".join(segment.text for segment in segments).strip(), segments[-1].end if segments else 0.0


def test_random_digits_are_read_exactly_through_noise(model):
    random = np.random.default_rng(7)
    for number in range(30):
        digits = "".join(random.choice(list(tones.DIGITS), random.integers(1, 40)))
        samples = tones.encode(digits, amplitude=random.uniform(0.05, 0.9))
        samples = np.concatenate([samples, np.zeros(random.integers(0, 16000), np.float32)])
        samples = samples + random.normal(0, random.uniform(0, 0.03), len(samples))
        text, end = read(model, samples, language=("en", "de", "zh", None)[number % 4], beam_size=1 + 4 * (number % 2))
        assert text == tones.spell(digits)
        assert end == pytest.approx(0.2 * len(digits))


def test_a_full_window_and_the_next_one_are_read(model):
    digits = "".join(np.random.default_rng(1).choice(list(tones.DIGITS), 310))
    assert read(model, tones.encode(digits)) == (tones.spell(digits), pytest.approx(62.0))


def test_digits_end_at_the_first_gap(model):
    samples = np.concatenate([tones.encode("42"), np.zeros(16000, np.float32), tones.encode("7")])
    assert read(model, samples)[0] == "4 2"


def test_silence_has_no_digits(model):
    assert read(model, np.zeros(32000)) == ("", 0.0)
    assert read(model, np.random.default_rng(0).normal(0, 0.02, 32000)) == ("", 0.0)


def test_tones_have_the_promised_length_level_and_pitch():
    samples = tones.encode("09", rate=22050, amplitude=0.3)
    assert samples.dtype == np.float32 and samples.shape == (2 * 4410,)
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.01)
    for part, digit in ((samples[:4410], 0), (samples[4410:], 9)):
        peak = np.abs(np.fft.rfft(part)).argmax() * 22050 / 4410
        assert abs(peak - tones.FREQUENCIES_HZ[digit]) <= 5
    assert tones.encode("").shape == (0,)


@pytest.mark.parametrize(("digits", "rate"), [("1a", 16000), ("1 2", 16000), ("12", 8000)])
def test_what_cannot_be_sent_is_refused(digits, rate):
    with pytest.raises(ValueError):
        tones.encode(digits, rate)


def test_two_runs_write_the_same_bytes(folder, tmp_path):
    again = tones.write(tmp_path / "again")
    for path in again.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
