"""What the voices learn from: espeak-ng's speech of a text, the symbols Piper makes of it, and how long each lasts.

The teacher says a sentence and tells when each of its phonemes starts; Piper's phonemizer, which the node uses, tells
the symbols of the same sentence. Both sequences are aligned by edit distance, so every symbol gets a duration.

Beside the phrase book (without what it holds out) the network sees babble: nonsense words, and Chinese characters by
chance, so that it meets all sounds of its languages.
"""

from __future__ import annotations

import functools
import random
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from models import espeak, phrasebook, speech
from models.clockwork.tts import BEGIN, END, SYMBOLS, VOICES
from models.train.tts_vocoder import HOP, RATE_HZ, pulses
from stages.tts import speakable

LANGUAGES = phrasebook.LANGUAGES
TEACHERS = {  # pitch and range are espeak-ng's numbers, speed is words a minute
    "en": espeak.Voice("en-us", "", 150),
    "de": espeak.Voice("de", "f2", 150),
    "es": espeak.Voice("es", "m3", 150),
    "zh": espeak.Voice("cmn", "f2", 150),
}
LEAD_S, TAIL_S = 0.03, 0.15  # silence before and after each sentence
BABBLE = 200  # nonsense sentences a language
SILENT = frozenset(" _^$!'(),.:;?\"#")


def lasts(symbol: str) -> bool:
    """Whether a symbol can take time: stress, tones and what only colours its neighbour do not."""
    if symbol in "ːˑ" or symbol in SILENT - {"_"}:
        return True
    return unicodedata.category(symbol) in ("Ll", "Lu", "Lo") and symbol not in "_'\"#"


LASTING = np.array([lasts(symbol) for symbol in SYMBOLS], np.float32)  # (symbols,), 0 or 1
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)}


# ---------------------------------------------------------------- when the teacher says what


def say(text: str, voice: espeak.Voice) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """The teacher's speech, float32 (samples,) at 16 kHz, and (start in frames, IPA) of what it says."""
    spoken = espeak.say(text, voice)
    marks = [(start * RATE_HZ / HOP, name) for start, name in spoken.marks]
    return speech.resample(spoken.samples, spoken.rate_hz), marks


def matches(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """For each of ``theirs`` the place in ``ours`` that it stands for, by edit distance, or None."""
    score = np.zeros((len(ours) + 1, len(theirs) + 1))
    score[:, 0] = -np.arange(len(ours) + 1)
    score[0] = -np.arange(len(theirs) + 1)
    for i, a in enumerate(ours, 1):
        for j, b in enumerate(theirs, 1):
            pair = 2.0 if a == b else 1.0 if a in SILENT and b in SILENT else -0.5 if lasts(a) == lasts(b) else -2.5
            score[i, j] = max(score[i - 1, j - 1] + pair, score[i - 1, j] - 1, score[i, j - 1] - 1)
    found: list[int | None] = [None] * len(theirs)
    i, j = len(ours), len(theirs)
    while i and j:
        if score[i, j] == score[i - 1, j] - 1:
            i -= 1
        elif score[i, j] == score[i, j - 1] - 1:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


def durations(symbols: Sequence[str], events: Sequence[tuple[float, str]], end: float) -> np.ndarray:
    """Frames each symbol lasts, float (symbols,); together ``end``."""
    letters = [
        (letter, at) for at, (_, name) in enumerate(events) for letter in unicodedata.normalize("NFD", name) or " "
    ]
    found = matches(symbols, [letter for letter, _ in letters])
    owners: list[list[int]] = [[] for _ in events]
    for (_, at), place in zip(letters, found, strict=True):
        if place is not None and lasts(symbols[place]):
            owners[at].append(place)
    made, last = np.zeros(len(symbols)), 0
    starts = [start for start, _ in events]
    for start, stop, own in zip(starts, [*starts[1:], end], owners, strict=True):
        for place in own or [last]:
            made[place] += max(0.0, stop - start) / len(own or [last])
        last = own[-1] if own else last
    return made


# ---------------------------------------------------------------- pitch


def pitch_of(audio: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(pitch in Hz, 1 where there is a voice), both float32 (frames,), by normalised autocorrelation.

    The autocorrelation of a windowed frame is divided by the window's own (Boersma, 1993). Between voiced frames the
    pitch is interpolated.
    """
    size, low, high = 640, 65.0, 400.0
    padded = np.pad(audio, (size // 2 - HOP // 2, size))
    window = np.hanning(size + 1)[:size]
    samples = np.arange(frames)[:, None] * HOP + np.arange(size)
    cut = padded[np.minimum(samples, len(padded) - 1)] * window
    lags = np.arange(int(RATE_HZ / high), int(RATE_HZ / low) + 1)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 2048)) ** 2)[: lags[-1] + 2]
    power = np.fft.irfft(np.abs(np.fft.rfft(cut, 2048, axis=1)) ** 2, axis=1)[:, : lags[-1] + 2]
    likeness = power / (power[:, :1] + 1e-6) / (own / own[0])
    cost = 0.03 * np.log2(lags / lags[0])
    best, strength = _peaks(likeness, lags, np.tile(cost, (frames, 1)))
    loud = power[:, 0] > 1e-4 * power[:, 0].max() + 1e-6
    voiced = (strength > 0.5) & loud
    if not voiced.any():
        return np.full(frames, 120.0, np.float32), np.zeros(frames, np.float32)
    middle = np.median(best[voiced])
    far = np.abs(np.log2(RATE_HZ / lags / middle)) > 0.8
    best, strength = _peaks(likeness, lags, cost + far * 10.0 + np.zeros((frames, 1)))
    voiced = (strength > 0.55) & loud
    at = np.arange(frames)
    pitch = np.interp(at, at[voiced], best[voiced]) if voiced.any() else np.full(frames, middle)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(pitch, 3, mode="edge"), 7)
    return np.median(around, axis=1).astype(np.float32), voiced.astype(np.float32)


def _peaks(likeness: np.ndarray, lags: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pitch in Hz, likeness) of each frame's best lag, refined by a parabola."""
    rows = np.arange(len(likeness))
    lag = lags[np.argmax(likeness[:, lags] - cost, axis=1)]
    before, here, after = (likeness[rows, lag + step] for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(np.abs(bend) > 1e-9, 0.5 * (before - after) / np.where(np.abs(bend) > 1e-9, bend, 1), 0)
    return RATE_HZ / (lag + np.clip(shift, -0.5, 0.5)), here


# ---------------------------------------------------------------- lessons


@dataclass(frozen=True)
class Lesson:
    """One spoken sentence.

    ``ids`` int64 (symbols,); ``starts`` int64 (symbols,), frames; ``lengths`` float32 (symbols,), frames;
    ``audio`` and ``pulses`` float16, (frames x HOP,) and ((frames + 3) x HOP,); ``pitch`` (Hz) and ``voiced`` (0 or 1)
    float32 (frames,).
    ``normal``: spoken at the voice's own speed, so that its durations may be learnt.
    """

    language: int
    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    audio: np.ndarray
    pulses: np.ndarray
    pitch: np.ndarray
    voiced: np.ndarray
    normal: bool


def lesson(text: str, language: str, speed: float = 1.0) -> Lesson | None:
    """The teacher's speech of a text, aligned. None when the text is more or less than one sentence."""
    spoken = _phonemizer().phonemize(VOICES[language][0], speakable(text))
    if len(spoken) != 1:
        return None
    symbols = [symbol for symbol in spoken[0] if symbol in NUMBERS]
    teacher = TEACHERS[language]
    voice = replace(teacher, speed=round(teacher.speed * speed))
    sound, events = say(speakable(text), voice)
    if not events:
        return None
    lead, tail = (round(seconds * RATE_HZ / HOP) for seconds in (LEAD_S, TAIL_S))
    lengths = durations(symbols, events, len(sound) / HOP)
    lengths = np.concatenate([[lead], lengths, [tail]])
    frames = round(lengths.sum())
    audio = np.pad(sound, (lead * HOP, tail * HOP + 2 * HOP))[: frames * HOP]
    pitch, voiced = pitch_of(audio, frames)
    return Lesson(
        LANGUAGES.index(language),
        np.array([BEGIN, *(NUMBERS[symbol] for symbol in symbols), END]),
        np.rint(np.cumsum(lengths) - lengths).astype(np.int64),
        lengths.astype(np.float32),
        audio.astype(np.float16),
        pulses(pitch).astype(np.float16),
        pitch,
        voiced,
        speed == 1.0,
    )


@functools.cache
def _phonemizer() -> Any:
    from piper.phonemize_espeak import EspeakPhonemizer

    return EspeakPhonemizer()


def lessons(seed: int, quick: bool) -> list[Lesson]:
    """All lessons of all languages: the book without what it holds out, and babble; a third at other speeds."""
    chance = random.Random(seed)
    made: list[Lesson | None] = []
    for language in LANGUAGES:
        texts = [sentence.texts[language] for sentence in phrasebook.taught()]
        texts = texts[:: 80 if quick else 1] + [babble(language, chance) for _ in range(1 if quick else BABBLE)]
        for text in tqdm(texts, f"teacher, {language}", unit="sentence", file=sys.stderr):
            speed = 1.0 if chance.random() < 0.65 else chance.uniform(0.75, 1.35)
            made.append(lesson(text, language, speed))
    return [one for one in made if one is not None]


SPELLING = {  # what syllables begin with, their middles, their ends
    "en": ("b c d f g h j k l m n p r s t v w y z th sh ch st pr bl qu", "a e i o u ee oo ea ou ai ow oi ir ar or",
           "_ _ n t s l m r ng ck sh d p x ve ge th"),
    "de": ("b d f g h j k l m n p r s t w z sch st sp pf tr kl qu", "a e i o u ä ö ü ie ei au eu ah oh uh ee",
           "_ _ n t s l m r ng ch ck rt lf ß tz"),
    "es": ("b c d f g j l ll m n ñ p r rr s t v y z ch qu gu tr pl", "a e i o u a e o ie ue ai au io",
           "_ _ _ n s l r d"),
}  # fmt: skip


def babble(language: str, chance: random.Random) -> str:
    """A sentence of nonsense that sounds like the language; now and then with a comma, a question or numbers."""
    if language == "zh":
        rows = [bytes([0xB0 + chance.randrange(39), 0xA1 + chance.randrange(94)]) for _ in range(chance.randint(4, 11))]
        words = [row.decode("gb2312", errors="ignore") for row in rows]
        return "".join(words) + chance.choice("。。？")
    begins, middles, ends = (part.replace("_", "").split(" ") for part in SPELLING[language])
    words = []
    for _ in range(chance.randint(2, 6)):
        syllables = chance.choice((1, 1, 2, 2, 3))
        words.append("".join(map(chance.choice, [begins, middles, ends] * syllables)))
    if chance.random() < 0.3:
        words[chance.randrange(len(words))] = str(chance.randrange(100))
    if chance.random() < 0.3:
        words[0] += ","
    return " ".join(words).capitalize() + chance.choice("..?")
