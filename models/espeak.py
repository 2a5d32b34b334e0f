"""espeak-ng through its library: speech, when each phoneme of it begins, and the phonemes of a text.

espeak-ng 1.52 or later is needed: earlier ones read Mandarin as English. It comes as the package ``espeakng-loader``
(library and data); it makes data for training and scoring, the node never uses it.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

# Numbers of espeak-ng's speak_lib.h: how to synthesise, what to set, how text is written, kinds of events.
_SYNCHRONOUS, _PHONEME_EVENTS_IN_IPA = 2, 1 | 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARACTERS, _UTF8, _IPA = 1, 1, 2
_WORD, _PHONEME = 1, 7


@dataclass(frozen=True)
class Voice:
    """How a sentence is spoken: espeak's voice, variant, words a minute, pitch and its range (0 to 99).

    ``size`` shifts formants and pitch by that factor and leaves the speed alone: a shorter or longer vocal tract.
    """

    name: str
    variant: str = ""
    speed: int = 165
    pitch: int = 50
    range: int = 50
    size: float = 1.0


@dataclass(frozen=True)
class Spoken:
    """``samples`` float32 (n,) in [-1, 1]; ``marks``: (s, IPA), "" for a pause, " " where a word begins."""

    samples: np.ndarray
    rate_hz: float
    marks: list[tuple[float, str]]


class _Event(ctypes.Structure):
    """espeak_EVENT; ``sample`` counts at the library's own rate."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


class _Library:
    """The loaded library and what it has said since ``clear``. Its state is the process's: there is one."""

    def __init__(self) -> None:
        import espeakng_loader

        self.calls = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate_hz = self.calls.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS_IN_IPA)
        if self.rate_hz <= 0:
            raise RuntimeError("espeak-ng does not start")
        self.calls.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.calls.espeak_ng_SetRandSeed(ctypes.c_long(1))  # its breath is noise that would follow the clock
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._hear)  # kept: it must outlive the library's use of it
        self.calls.espeak_SetSynthCallback(self._callback)
        self.clear()

    def clear(self) -> None:
        self.chunks: list[np.ndarray] = []
        self.marks: list[tuple[float, str]] = []

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while events[at].type:
            event = events[at]
            if event.type in (_WORD, _PHONEME):
                name = event.name.decode(errors="ignore") if event.type == _PHONEME else " "
                self.marks.append((event.sample / self.rate_hz, name))
            at += 1
        return 0


@functools.cache
def _library() -> _Library:
    return _Library()


def say(text: str, voice: Voice) -> Spoken:
    """The text spoken, at the library's own rate (another ``size`` stretches it). Raises ValueError: unknown voice."""
    library = _library()
    _choose(voice)
    library.clear()
    raw = text.encode() + b"\0"
    library.calls.espeak_Synth(raw, len(raw), 0, _CHARACTERS, 0, _UTF8, None, None)
    library.calls.espeak_Synchronize()
    samples = np.concatenate(library.chunks) if library.chunks else np.zeros(0, np.int16)
    marks = [(start / voice.size, name) for start, name in library.marks]
    return Spoken(samples.astype(np.float32) / 32768, library.rate_hz * voice.size, marks)


def phonemes(text: str, voice: Voice) -> str:
    """The text in IPA. Raises ValueError for an unknown voice."""
    _choose(voice)
    rest = ctypes.c_char_p(text.encode())
    said = []
    while rest.value:
        said.append((_library().calls.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA) or b"").decode())
    return " ".join(said)


def _choose(voice: Voice) -> None:
    calls = _library().calls
    name = f"{voice.name}+{voice.variant}" if voice.variant else voice.name
    if calls.espeak_SetVoiceByName(name.encode()):
        raise ValueError(f"espeak-ng has no voice {name!r}")
    for parameter, value in ((_RATE, round(voice.speed / voice.size)), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        calls.espeak_SetParameter(parameter, value, 0)
