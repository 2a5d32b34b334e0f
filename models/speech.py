"""Speech for training and scoring: espeak-ng through its library, in many voices, and what rooms and lines do to it.

espeak-ng 1.52 or later is needed: earlier ones read Mandarin as English. It comes as the package ``espeakng-loader``
(library and data); it is used here only, never by the node.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

RATE_HZ = 16_000  # of everything this module returns
ESPEAK_NAMES = {"en": ("en-us", "en-gb-x-rp"), "de": ("de",), "es": ("es", "es-419"), "zh": ("cmn",)}
# Variants change the formants, the breath and the pitch. Those in HELD_OUT are never trained on.
VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "m8", "f1", "f2", "f3", "f5", "Alex", "Andy", "Denis", "Gene", "Jacky",
    "Lee",
    "Mario", "Michael", "Mike", "Mr serious", "Reed", "RicishayMax", "Tweaky", "anikaRobot", "aunty",
    "belinda", "benjamin", "boris", "david", "ed", "edward", "iven", "iven2", "john", "kaukovalta", "linda", "marcelo",
    "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph2",
    "steph3", "travis", "victor",
)  # fmt: skip
HELD_OUT = ("m7", "f4", "Annie", "caleb", "Gene2", "antonio", "iven3", "zac")
_SYNCHRONOUS, _CHARACTERS, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


@dataclass(frozen=True)
class Voice:
    """How a sentence is spoken: espeak's voice, variant, words a minute, pitch and its range (0 to 99)."""

    name: str
    variant: str = ""
    speed: int = 165
    pitch: int = 50
    range: int = 50


def random_voice(language: str, variants: tuple[str, ...], chance: np.random.Generator) -> Voice:
    """A voice of one of these variants, at some speed and pitch."""
    names = ESPEAK_NAMES[language]
    return Voice(
        names[chance.integers(len(names))],
        variants[chance.integers(len(variants))],
        int(chance.integers(125, 205)),
        int(chance.integers(25, 75)),
        int(chance.integers(30, 70)),
    )


def speak(text: str, voice: Voice) -> np.ndarray:
    """The sentence as float32 of shape (samples,) at 16 kHz, in [-1, 1]. Raises ValueError for an unknown voice."""
    library = _library()
    name = f"{voice.name}+{voice.variant}" if voice.variant else voice.name
    if library.espeak_SetVoiceByName(name.encode()):
        raise ValueError(f"espeak-ng has no voice {name!r}")
    for parameter, value in ((_RATE, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    _CHUNKS.clear()
    raw = text.encode() + b"\0"
    library.espeak_Synth(raw, len(raw), 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    spoken = np.concatenate(_CHUNKS) if _CHUNKS else np.zeros(0, np.int16)
    return resample(spoken.astype(np.float32) / 32768, _rate())


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """At 16 kHz."""
    import soxr

    return np.asarray(soxr.resample(samples, rate_hz, RATE_HZ), np.float32).clip(-1.0, 1.0)


_CHUNKS: list[np.ndarray] = []
_KEEP: list[Any] = []  # the callback must outlive the library's use of it


@functools.cache
def _library() -> Any:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # its noise would follow the clock
    if rate <= 0:
        raise RuntimeError("espeak-ng does not start")
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def heard(samples: Any, count: int, _events: Any) -> int:
        if samples and count:
            _CHUNKS.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    _KEEP.append(kind(heard))
    library.espeak_SetSynthCallback(_KEEP[0])
    _KEEP.append(rate)
    return library


def _rate() -> int:
    _library()
    return int(_KEEP[1])


# ---------------------------------------------------------------- rooms, microphones, lines


def disturb(samples: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The same speech through a room, a microphone or a line: echo, a narrower band, noise, another loudness."""
    out = samples
    if chance.random() < 0.35:
        out = echo(out, chance.uniform(0.05, 0.35), chance)
    if chance.random() < 0.3:
        out = band(out, chance.uniform(60, 300), chance.uniform(3000, 7000))
    if chance.random() < 0.7:
        out = out + noise(len(out), chance) * level(out) * 10 ** (-chance.uniform(8, 35) / 20)
    peak = float(np.abs(out).max(initial=1e-6))
    return np.asarray(out * (10 ** (-chance.uniform(1, 24) / 20) / peak), np.float32)


def level(samples: np.ndarray) -> float:
    """Root mean square of what is not silence."""
    loud = samples[np.abs(samples) > 0.01]
    return float(np.sqrt(np.mean(loud**2))) if len(loud) else 0.1


def noise(count: int, chance: np.random.Generator) -> np.ndarray:
    """Noise of unit level whose spectrum falls, more or less, with frequency."""
    spectrum = np.fft.rfft(chance.standard_normal(count + 16))
    fall = np.maximum(np.arange(len(spectrum)), 1.0) ** -chance.uniform(0, 1.0)
    made = np.fft.irfft(spectrum * fall)[:count]
    return np.asarray(made / (made.std() + 1e-9), np.float32)


def echo(samples: np.ndarray, seconds: float, chance: np.random.Generator) -> np.ndarray:
    """A room whose sound dies within ``seconds``."""
    length = int(seconds * RATE_HZ)
    tail = chance.standard_normal(length) * np.exp(-6.0 * np.arange(length) / length)
    tail[0] = 0.0
    response = np.concatenate([[1.0], chance.uniform(0.2, 0.8) * tail / (np.linalg.norm(tail) + 1e-9)])
    size = 1 << (len(samples) + length).bit_length()
    full = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return np.asarray(full[: len(samples) + length // 2], np.float32)


def band(samples: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Only what lies between two frequencies."""
    spectrum = np.fft.rfft(samples)
    at = np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
    spectrum *= 1 / (1 + (low_hz / np.maximum(at, 1)) ** 4) / (1 + (at / high_hz) ** 8)
    return np.asarray(np.fft.irfft(spectrum, len(samples)), np.float32)
