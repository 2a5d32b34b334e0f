"""Sound files: any codec in, mono 16 kHz int16 out; and WAV files written.

Reading goes through PyAV (FFmpeg), so whatever FFmpeg knows is taken: wav, flac, mp3, aiff, ogg, the sound of a video.
FFmpeg mixes the channels and resamples. A file that is too long is left as soon as that is known, so that three hours
of sound by mistake cost nothing; a broken one says so instead of giving silence.

Writing is the standard library's ``wave``: mono, 16 bit.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipc.errors import DragomanError

RATE_HZ = 16_000
LONGEST_S = 600.0  # no node takes more in one utterance


class MediaError(DragomanError):
    """A file that cannot become an utterance. ``code`` is one of the protocol's: what a node would have answered."""

    def __init__(self, code: str, text: str, mend: str = "") -> None:
        super().__init__(text, mend)
        self.code = code


class TooLong(MediaError):
    """More sound than one utterance may have."""

    def __init__(self, name: str, seconds: float, max_s: float) -> None:
        text = f"{name} lasts {seconds:.1f} s, one utterance may last {max_s:g} s"
        raises = max_s < seconds <= LONGEST_S
        mend = f"cut it, or raise node.max_utterance_s (up to {LONGEST_S:g})" if raises else "cut it"
        super().__init__("audio_too_long", text, mend)
        self.seconds = seconds


@dataclass(frozen=True)
class Sound:
    """``samples``: int16, shape (n,), mono, 16 kHz."""

    samples: np.ndarray

    @property
    def duration_s(self) -> float:
        return len(self.samples) / RATE_HZ


def read(path: Path, max_s: float) -> Sound:
    """The sound of a file. Raises MediaError (bad_audio, empty_audio), TooLong over ``max_s`` seconds."""
    import av

    try:
        with av.open(str(path)) as container:
            return _read(container, path.name, max_s)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError("bad_audio", f"{path.name} cannot be read as sound: {reason}") from error


def write_wav(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    """Write a mono 16-bit WAV file; float samples of -1 to 1 are rounded."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(to_int16(samples).astype("<i2", copy=False).tobytes())


def to_int16(samples: np.ndarray) -> np.ndarray:
    """The same samples as int16; floats outside -1 to 1 are clipped."""
    if samples.dtype == np.int16:
        return samples
    return np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)


def _read(container: Any, name: str, max_s: float) -> Sound:
    if not container.streams.audio:
        raise MediaError("bad_audio", f"{name} has no sound in it")
    # A header may lie about the length, so it alone refuses only what is far too long (and is not decoded then).
    if container.duration and container.duration / 1e6 > 2 * max_s:
        raise TooLong(name, container.duration / 1e6, max_s)
    parts: list[np.ndarray] = []
    count = 0
    for part in _pieces(container):
        parts.append(part)
        count += len(part)
        if count > max_s * RATE_HZ:
            raise TooLong(name, max(count / RATE_HZ, (container.duration or 0) / 1e6), max_s)
    if not count:
        raise MediaError("empty_audio", f"{name} holds no samples")
    return Sound(np.concatenate(parts))


def _pieces(container: Any) -> Iterator[np.ndarray]:
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    for frame in container.decode(audio=0):
        frame.pts = None  # a broken time stamp must not stop the resampler
        for out in resampler.resample(frame):
            yield out.to_ndarray().reshape(-1)
    for out in resampler.resample(None):
        yield out.to_ndarray().reshape(-1)
