"""Scores: how far a text is from what was said, and the pitch of a voice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

PITCH_HZ = (60.0, 400.0)
_FRAME_S, _HOP_S = 0.04, 0.01


def spoken_words(text: str, language: str) -> list[str]:
    """What counts as words: without marks and case; the characters of Chinese."""
    plain = unicodedata.normalize("NFKC", text).lower()
    if language == "zh":
        return [character for character in plain if character.isalnum()]
    return re.findall(r"[\w']+", plain)


def word_errors(said: str, heard: str, language: str) -> tuple[int, int]:
    """(insertions, deletions and substitutions; words said): their quotient is the error rate, of Chinese by character.

    The edit distance of Levenshtein (1966), by words.
    """
    wanted, found = spoken_words(said, language), spoken_words(heard, language)
    row = list(range(len(found) + 1))
    for i, word in enumerate(wanted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1], len(wanted)


def error_rate(pairs: Iterable[tuple[str, str]], language: str) -> float:
    """Word error rate over (said, heard) pairs."""
    errors = [word_errors(said, heard, language) for said, heard in pairs]
    return sum(wrong for wrong, _ in errors) / max(1, sum(words for _, words in errors))


def share(hits: Iterable[bool]) -> float:
    """The share of what is true; NaN of nothing."""
    found = list(hits)
    return sum(found) / len(found) if found else float("nan")


def pitch(samples: np.ndarray, rate_hz: int) -> float:
    """Median pitch in Hz of the voiced parts of float32 or int16 samples (n,), by autocorrelation; NaN of none."""
    wave = samples.astype(np.float64) / (32768 if samples.dtype == np.int16 else 1)
    size, hop = int(_FRAME_S * rate_hz), int(_HOP_S * rate_hz)
    low, high = int(rate_hz / PITCH_HZ[1]), int(rate_hz / PITCH_HZ[0])
    found = []
    for at in range(0, len(wave) - size, hop):
        frame = wave[at : at + size] - wave[at : at + size].mean()
        power = float(frame @ frame)
        if power < 1e-4 * size:
            continue
        spectrum = np.fft.rfft(frame, 2 * size)
        likeness = np.fft.irfft(spectrum * spectrum.conj())[:high] / power
        best = low + int(likeness[low:].argmax())
        if likeness[best] > 0.5:
            found.append(rate_hz / best)
    return float(np.median(found)) if found else float("nan")
