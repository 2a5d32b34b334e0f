"""Speech for training and scoring: many voices, and what rooms, microphones and lines do to them."""

from __future__ import annotations

import numpy as np

from models.espeak import Voice, say

RATE_HZ = 16_000  # of everything this module returns
ESPEAK_NAMES = {"en": ("en-us", "en-gb-x-rp"), "de": ("de",), "es": ("es", "es-419"), "zh": ("cmn",)}
# Variants change the formants, the breath and the pitch. Those in HELD_OUT are never trained on, nor is any variant
# that differs from one of them in a few settings only (Nguyen and m8 are near m7, aunty near f4, the klatts and david
# near caleb, Gene near Gene2, Andrea near antonio, the other ivens near iven3).
VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andy", "AnxiousAndy", "Demonic",
    "Denis", "Diogo", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Mr serious", "Reed",
    "RicishayMax", "RicishayMax2", "RicishayMax3", "Storm", "Tweaky", "UniRobot", "adam", "anika", "anikaRobot",
    "announcer", "belinda", "benjamin", "boris", "croak", "ed", "edward", "edward2", "grandma", "grandpa", "gustave",
    "ian", "john", "kaukovalta", "linda", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft7",
    "robosoft8", "sandro", "shelby", "steph", "steph2", "steph3", "travis", "victor", "whisper", "whisperf",
)  # fmt: skip
HELD_OUT = ("m7", "f4", "Annie", "caleb", "Gene2", "antonio", "iven3", "zac")
SIZES = (0.85, 1.45)  # of voices that are made smaller or larger than espeak's


def random_voice(language: str, variants: tuple[str, ...], chance: np.random.Generator, resized: float = 0.0) -> Voice:
    """A voice of one of these variants, at some speed and pitch; with this probability of another size too."""
    names = ESPEAK_NAMES[language]
    return Voice(
        names[chance.integers(len(names))],
        variants[chance.integers(len(variants))],
        int(chance.integers(125, 205)),
        int(chance.integers(25, 75)),
        int(chance.integers(30, 70)),
        float(np.exp(chance.uniform(*np.log(SIZES)))) if chance.random() < resized else 1.0,
    )


def speak(text: str, voice: Voice) -> np.ndarray:
    """The sentence as float32 of shape (samples,) at 16 kHz, in [-1, 1]. Raises ValueError for an unknown voice."""
    spoken = say(text, voice)
    return resample(spoken.samples, spoken.rate_hz)


def resample(samples: np.ndarray, rate_hz: float) -> np.ndarray:
    """At 16 kHz."""
    import soxr

    return np.asarray(soxr.resample(samples, rate_hz, RATE_HZ), np.float32).clip(-1.0, 1.0)


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
