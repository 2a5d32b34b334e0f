"""Form, size and finiteness of what a client submits, before anything native sees it.

Model runtimes crash, hang or poison their state on input nobody checked (no samples, NaN, half a sample), so the
gateway refuses it by name. One pass over the samples for finiteness (float only), one for the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from ipc.messages import Submit
from ipc.ring import digest

SAMPLE_RATE = 16_000  # Hz, the only one on the wire
WIRE_DTYPES: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
NUMPY_NAMES = {"s16le": "int16", "f32le": "float32"}
AUDIO_FORMATS = tuple(f"{name} mono {SAMPLE_RATE} Hz" for name in WIRE_DTYPES)
LONGEST_ITEMSIZE = 4
MAX_BUDGET_MS = 24 * 3600 * 1000


class Refused(Exception):
    """The submission is not taken: a code of ``REJECTED_CODES``, one line, and what would have been taken."""

    def __init__(self, code: str, text: str, accepted: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.accepted = accepted


@dataclass(frozen=True, slots=True)
class Taken:
    """What a good submission is: ``dtype`` as numpy names it ("text" for a text), bytes, duration and digest."""

    dtype: str
    nbytes: int
    samples: int
    audio_s: float
    digest: tuple[int, int, int]


def audio(message: Submit, payload: bytes | None, max_utterance_s: float) -> Taken:
    """Check the samples of a ``Submit``. Raises Refused."""
    if message.text is not None:
        raise Refused("bad_text", "this session's pipeline takes audio, and a text was sent", AUDIO_FORMATS)
    kind = WIRE_DTYPES.get(message.dtype)
    if kind is None:
        raise Refused("bad_audio_format", f"dtype {message.dtype[:32]!r} is not known", AUDIO_FORMATS)
    if message.sample_rate != SAMPLE_RATE:
        raise Refused("bad_audio_format", f"{message.sample_rate} Hz; resample to {SAMPLE_RATE} Hz", AUDIO_FORMATS)
    nbytes = len(payload) if payload is not None else 0
    if message.nbytes != nbytes:
        raise Refused("bad_audio_format", f"{message.nbytes} bytes announced, {nbytes} came", AUDIO_FORMATS)
    if payload is None or not nbytes:
        raise Refused("empty_audio", "no samples; send at least one, or Skip the index")
    if nbytes % kind.itemsize:
        raise Refused("bad_audio_format", f"{nbytes} bytes are not whole {message.dtype} samples", AUDIO_FORMATS)
    samples = nbytes // kind.itemsize
    audio_s = samples / SAMPLE_RATE
    if audio_s > max_utterance_s:
        raise Refused("audio_too_long", f"{audio_s:.1f} s; one utterance may have {max_utterance_s:g} s")
    if kind.kind == "f":
        _check_finite(np.frombuffer(payload, dtype=kind))
    return Taken(NUMPY_NAMES[message.dtype], nbytes, samples, audio_s, digest(payload))


def text(message: Submit, payload: bytes | None, max_chars: int) -> Taken:
    """Check the text of a ``Submit``. Raises Refused."""
    if message.text is None or payload is not None or message.nbytes or message.dtype:
        raise Refused("bad_text", "this session's pipeline takes a text, and audio or nothing was sent", ("text",))
    if len(message.text) > max_chars:
        raise Refused("text_too_long", f"{len(message.text)} characters; one utterance may have {max_chars}")
    try:
        raw = message.text.encode()
    except UnicodeEncodeError as error:  # lone surrogates
        raise Refused("bad_text", f"not a text: {error.reason} at character {error.start}") from error
    return Taken("text", len(raw), 0, 0.0, digest(raw))


def budget_ms(asked: int | None, audio_s: float, base_s: float, per_audio: float, max_s: float) -> int:
    """An utterance's deadline in ms from now: what the client asked, else the node's formula. Raises Refused."""
    if asked is None:
        return int(1000 * min(base_s + per_audio * audio_s, max_s))
    if not 1 <= asked <= MAX_BUDGET_MS:
        raise Refused("bad_message", f"budget_ms {asked} is not between 1 and {MAX_BUDGET_MS}")
    return asked


def _check_finite(samples: np.ndarray) -> None:
    if not (isfinite(np.maximum.reduce(samples)) and isfinite(np.minimum.reduce(samples))):  # a NaN is both
        where = int(np.isfinite(samples).argmin())
        raise Refused("bad_audio", f"sample {where} is {samples[where]}; every sample must be a finite number")
