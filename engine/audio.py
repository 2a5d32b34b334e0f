"""From whatever samples somebody has to what goes on the wire: mono, 16,000 Hz, s16le or f32le.

Integers are fractions of their full scale, floats lie in [-1, 1] and are cut there only when they become integers.
Channels are mixed by their mean. Rates are changed by soxr, imported only then. Nothing here waits or sends.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

RATE = 16_000  # Hz, the only rate on the wire
MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 1_000, 768_000
FULL_SCALE = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
FORMATS = ("int16", "float32", "float64", "float16", "int32", "int8", "uint8")
_FORMATS = frozenset(map(np.dtype, FORMATS))
_AS_IT_IS = {("s16le", np.dtype("<i2")), ("f32le", np.dtype("<f4"))}


class BadAudio(ValueError):
    """Samples that cannot be sent; ``code`` is the one the node would reject them with."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def to_wire(samples: Any, sample_rate: int, dtype: str = "s16le") -> np.ndarray:
    """Samples of shape (n,) or (n, channels) at ``sample_rate`` Hz as mono 16 kHz, contiguous, in ``dtype``.

    What already is of that kind is not copied: the caller's own memory comes back. Raises BadAudio: empty_audio (no
    samples), bad_audio (a sample is not finite), bad_audio_format (anything else).
    """
    array = _checked(samples, sample_rate)
    if array.ndim == 1 and sample_rate == RATE and (dtype, array.dtype) in _AS_IT_IS:
        return np.ascontiguousarray(array if dtype == "s16le" else _finite(array))
    wave = resample(mix(to_float(array)), sample_rate)
    return np.ascontiguousarray(to_int16(wave) if dtype == "s16le" else wave, "<i2" if dtype == "s16le" else "<f4")


def _checked(samples: Any, sample_rate: int) -> np.ndarray:
    if isinstance(samples, (bytes, bytearray, memoryview)):
        raise BadAudio("bad_audio_format", "bytes have no sample format; use numpy.frombuffer(data, dtype='<i2')")
    array = np.asarray(samples)
    if array.ndim not in (1, 2):
        raise BadAudio("bad_audio_format", f"samples have shape {array.shape}, not (n,) or (n, channels)")
    if array.size == 0:
        raise BadAudio("empty_audio", "there are no samples")
    if array.dtype not in _FORMATS and array.dtype.newbyteorder("=") not in _FORMATS:
        raise BadAudio("bad_audio_format", f"samples are {array.dtype}, not one of {', '.join(FORMATS)}")
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        raise BadAudio("bad_audio_format", f"shape {array.shape} would be {array.shape[1]} channels; transpose it")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise BadAudio("bad_audio_format", f"sample rate {sample_rate!r} is not a whole number of Hz")
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise BadAudio("bad_audio_format", f"sample rate {sample_rate} Hz is outside {MIN_RATE} to {MAX_RATE}")
    return array


def to_float(array: np.ndarray) -> np.ndarray:
    """The same samples as float32; integers scaled to [-1, 1). Raises BadAudio naming a sample that is not finite."""
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / 128.0
    if array.dtype.name in FULL_SCALE:
        return array.astype(np.float32) / np.float32(FULL_SCALE[array.dtype.name])
    with np.errstate(over="ignore"):
        wave = array.astype(np.float32)
    return _finite(wave)


def _finite(wave: np.ndarray) -> np.ndarray:
    """``wave``. Raises BadAudio naming its first sample that is not finite; a NaN passes through both extremes."""
    if not (isfinite(np.maximum.reduce(wave, axis=None)) and isfinite(np.minimum.reduce(wave, axis=None))):
        first = int(np.argmin(np.isfinite(wave).reshape(len(wave), -1).all(axis=1)))
        raise BadAudio("bad_audio", f"sample {first} is not a finite number")
    return wave


def mix(wave: np.ndarray) -> np.ndarray:
    """Shape (n,) from (n,) or (n, channels): the mean of the channels."""
    if wave.ndim == 1:
        return wave
    return wave.mean(axis=1, dtype=np.float64).astype(np.float32)


def resample(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """float32 (n,) at ``sample_rate`` as float32 (resampled_length(n, sample_rate),) at 16,000 Hz."""
    if sample_rate == RATE:
        return wave
    try:
        import soxr
    except ImportError as error:
        text = f"audio at {sample_rate} Hz needs soxr to become {RATE} Hz; install it: pip install soxr"
        raise BadAudio("bad_audio_format", text) from error
    count = resampled_length(len(wave), sample_rate)
    made = soxr.resample(np.ascontiguousarray(wave), int(sample_rate), RATE)[:count]
    return np.pad(made, (0, count - len(made))) if len(made) < count else made


def resampled_length(count: int, sample_rate: int) -> int:
    """Samples at 16,000 Hz of ``count`` samples at ``sample_rate`` Hz: rounded, at least one."""
    return max(1, (count * RATE + sample_rate // 2) // sample_rate)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """float32 as int16 (little-endian): scaled by 2**15, rounded, cut at full scale."""
    return np.clip(np.rint(wave * np.float32(32768.0)), -32768, 32767).astype("<i2")
