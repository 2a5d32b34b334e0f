"""Conversion to what goes on the wire: lengths, ranges, silence, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine import audio

RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 1_000, 15_999])
SHAPES = st.one_of(
    st.integers(1, 4_000).map(lambda n: (n,)), st.tuples(st.integers(1, 2_000), st.integers(1, 8))
)  # fmt: skip
NUMBERS = {"float16": 16, "float32": 32, "float64": 64}


def samples_of(dtype: str) -> st.SearchStrategy[np.ndarray]:
    if dtype in NUMBERS:
        elements = st.floats(-1, 1, width=NUMBERS[dtype])  # type: ignore[arg-type]
        return hnp.arrays(dtype, SHAPES, elements=elements)
    return hnp.arrays(dtype, SHAPES)


@settings(max_examples=150)
@given(st.sampled_from(audio.FORMATS).flatmap(samples_of), RATES)
def test_length_and_range_for_every_format_rate_and_shape(samples: np.ndarray, rate: int) -> None:
    s16 = np.frombuffer(audio.to_wire(samples, rate, "s16le"), "<i2")
    f32 = np.frombuffer(audio.to_wire(samples, rate, "f32le"), "<f4")
    assert len(s16) == len(f32) == max(1, round(len(samples) * 16_000 / rate + 1e-9))
    assert np.isfinite(f32).all()
    assert np.abs(f32).max() <= (1.0 if rate == audio.RATE else 4.0)  # a filter overshoots
    np.testing.assert_allclose(s16 / 32768, np.clip(f32, -1, 32767 / 32768), atol=0.51 / 32768)


@settings(max_examples=60)
@given(st.sampled_from(audio.FORMATS), RATES, SHAPES)
def test_silence_stays_silence(dtype: str, rate: int, shape: tuple[int, ...]) -> None:
    rest = 128 if dtype == "uint8" else 0
    assert not any(audio.to_wire(np.full(shape, rest, dtype), rate))


@given(hnp.arrays("int16", st.integers(1, 1_000)))
def test_int16_at_16_khz_goes_through_bit_by_bit(samples: np.ndarray) -> None:
    assert audio.to_wire(samples, 16_000).tobytes() == samples.tobytes()
    as_float = np.frombuffer(audio.to_wire(samples, 16_000, "f32le"), "<f4")
    assert audio.to_wire(as_float, 16_000).tobytes() == samples.tobytes()
    assert audio.to_wire(samples.astype(">i2"), 16_000).tobytes() == samples.tobytes()
    assert audio.to_wire(np.stack([samples] * 2, axis=1), 16_000).tobytes() == samples.tobytes()


def test_a_tone_keeps_its_pitch_and_level_through_44100_stereo() -> None:
    t = np.arange(44_100) / 44_100
    tone = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    wave = np.frombuffer(audio.to_wire(np.stack([tone, tone], axis=1), 44_100, "f32le"), "<f4")
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.argmax(spectrum) == 440
    assert np.abs(wave[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_channels_are_averaged() -> None:
    left, right = np.array([0.5, -0.5], np.float32), np.array([0.25, 0.5], np.float32)
    wave = np.frombuffer(audio.to_wire(np.stack([left, right], axis=1), 16_000, "f32le"), "<f4")
    np.testing.assert_allclose(wave, [0.375, 0.0])


def test_too_loud_floats_are_cut_at_full_scale() -> None:
    assert np.frombuffer(audio.to_wire(np.array([2.0, -3.0]), 16_000), "<i2").tolist() == [32767, -32768]


@pytest.mark.parametrize(
    ("samples", "rate", "code", "says"),
    [
        (np.zeros(0), 16_000, "empty_audio", "no samples"),
        (np.zeros((5, 0)), 16_000, "empty_audio", "no samples"),
        (np.array([0.0, 0.0, np.nan]), 16_000, "bad_audio", "sample 2 "),
        (np.array([[0.0, 0.0], [0.0, np.inf]]), 16_000, "bad_audio", "sample 1 "),
        (np.array([1e300]), 16_000, "bad_audio", "sample 0 "),
        (np.zeros(3, complex), 16_000, "bad_audio_format", "complex128"),
        (np.zeros(3, np.int64), 16_000, "bad_audio_format", "int64"),
        (np.zeros((2, 16_000), np.int16), 16_000, "bad_audio_format", "transpose"),
        (np.zeros((2, 2, 2), np.int16), 16_000, "bad_audio_format", "shape"),
        (b"\0\0", 16_000, "bad_audio_format", "frombuffer"),
        (np.zeros(3, np.int16), 0, "bad_audio_format", "rate"),
        (np.zeros(3, np.int16), 44_100.5, "bad_audio_format", "rate"),
    ],
)
def test_what_cannot_be_sent_says_why(samples: object, rate: int, code: str, says: str) -> None:
    with pytest.raises(audio.BadAudio, match=says) as caught:
        audio.to_wire(samples, rate)
    assert caught.value.code == code and "\n" not in caught.value.text


def test_without_soxr_only_other_rates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert audio.to_wire(np.ones(4, np.int16), 16_000).any()
    with pytest.raises(audio.BadAudio, match="pip install soxr"):
        audio.to_wire(np.ones(4, np.int16), 48_000)
