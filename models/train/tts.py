"""Demo voices, trained: small Piper voices that learn to speak from espeak-ng.

The teacher says a sentence and tells when each of its phonemes starts; Piper's phonemizer, which the node uses, tells
the symbols of the same sentence. Both sequences are aligned by edit distance, so every symbol gets a duration.

One network learns all languages; the language (which is also the voice) is a vector added to every symbol.

    symbols -> dilated convolutions -> duration of each symbol
                        |
                  repeated by duration, with the place inside the symbol
                        |
           dilated convolutions, one frame of 5 ms each -> pitch, 48 gains of harmonics, 24 gains of noise

A vocoder without weights makes sound of these frames. A train of pulses with all harmonics at equal strength has the
closed form ``sum_k cos(2 pi k p) = sin((2K + 1) pi p) / (2 sin(pi p)) - 1/2``; its phase ``p`` is the running sum of
the pitch. Windows of it, 20 ms long, go through a discrete Fourier transform, are multiplied by the gains (interpolated
over a mel axis) and come back, overlapping. The phase of the gains is that of the minimum-phase filter, which is linear
in the log gains: a Hilbert transform, so a matrix. Noise takes the same way with real gains.

The vocoder is differentiable: the loss compares spectra of what it makes, from the teacher's own pitch and durations,
with the teacher's speech. Pitch and durations have losses of their own. Because the frame network knows only the
*relative* place inside a symbol, a length scale stretches the speech and leaves the pitch alone.

In the exported graph everything is arithmetic: the noise is a hash of the sample's number, so the same text gives the
same samples. Piper's noise scales are accepted and have no effect. Weights are stored as float16.

Beside the phrase book (without what it holds out) the network sees babble: nonsense words, and Chinese characters by
chance, so that it meets all sounds of its languages. What it never met is spoken as the nearest sound, or skipped.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models import phrasebook, speech
from models.clockwork.tts import BEGIN, END, PAD, SYMBOLS, VOICES
from stages.tts import speakable

LANGUAGES = phrasebook.LANGUAGES
TEACHERS = {  # pitch and range are espeak-ng's numbers, speed is words a minute
    "en": speech.Voice("en-us", "", 150, 50, 50),
    "de": speech.Voice("de", "f2", 150, 50, 50),
    "es": speech.Voice("es", "m3", 150, 50, 50),
    "zh": speech.Voice("cmn", "f2", 150, 50, 50),
}
SEX = {"en": "male", "de": "female", "es": "male", "zh": "female"}

RATE_HZ = speech.RATE_HZ
HOP = 80  # samples a frame: 5 ms
WINDOW = 4 * HOP  # of the sources
SIZE = 6 * HOP  # of the Fourier transform; the window begins at HOP / 2, the rest is room for the filter's answer
BINS = SIZE // 2 + 1
HARMONIC_BANDS, NOISE_BANDS = 48, 24
HIGHEST_HZ = 7900.0  # of a harmonic
LOWEST_GAIN, HIGHEST_GAIN = -14.0, 3.0  # natural logarithms
PITCH_SPREAD = 0.25  # of the natural logarithm of the pitch around the voice's mean

CHANNELS = 128
SYMBOL_KERNEL, SYMBOL_DILATIONS = 5, (1, 2, 4, 8)
FRAME_KERNEL, FRAME_DILATIONS = 3, (1, 2, 4, 8)
PLACES = 3  # features of the place inside a symbol

LEAD_S, TAIL_S = 0.03, 0.15  # silence before and after each sentence
BABBLE = 200  # nonsense sentences a language
BATCH, CROP, EDGE = 16, 160, 16  # sentences; frames of each; frames at both ends that only give context
STEPS, PEAK_RATE = 2200, 2e-3

SILENT = frozenset(" _^$!'(),.:;?\"#")
KNOWN = 20  # a symbol met less often than that counts as unknown
# Unknown symbols, each before the one that is spoken instead.
PAIRS = (
    "ɒɔ ɫl ʎl ɭl ʟl ɬl ʀr ʁr ɻɹ ɽɾ ɺɾ ɵə ɘə ɞɜ ɝɜ ɶœ ɨɪ ʉu ɯu ɤə ᵻɪ ɱm ɳn ɴŋ ɲn ʋv ⱱv ɸf βb ʂʃ "
    "ʑʒ ʐʒ ɕʃ ʝj ɟd ɖd ʈt ɢɡ ɣɡ gɡ qk χx ħh ɦh ʍw ɰw ɥj æɛ ʏy øœ ɚə ɐa ʌa ck Xx ʤʒ ʧʃ ˑː 32 45 "
    "!. ;, :, (, ),"
)
NEAREST = {pair[0]: pair[1] for pair in PAIRS.split()}


def lasts(symbol: str) -> bool:
    """Whether a symbol can take time: stress, tones and what only colours its neighbour do not."""
    if symbol in "ːˑ" or symbol in SILENT - {"_"}:
        return True
    return unicodedata.category(symbol) in ("Ll", "Lu", "Lo") and symbol not in "_'\"#"


LASTING = np.array([lasts(symbol) for symbol in SYMBOLS], np.float32)  # (symbols,), 0 or 1
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)}


# ---------------------------------------------------------------- the teacher, and when it says what


class _Event(ctypes.Structure):
    """espeak_EVENT of espeak-ng's speak_lib.h; ``sample`` counts at the library's own rate."""

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


# espeak-ng's numbers: kinds of events, how to synthesise, what to set, how text is written.
_WORD, _PHONEME = 1, 7
_SYNCHRONOUS, _TELL_PHONEMES_IN_IPA = 2, 1 | 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARACTERS, _UTF8 = 1, 1
_CHUNKS: list[np.ndarray] = []
_EVENTS: list[tuple[int, str]] = []  # sample, IPA ("" for a pause, " " where a word begins)
_KEEP: list[Any] = []  # the callback must outlive the library's use of it


@functools.cache
def _library() -> tuple[Any, int]:
    """espeak-ng that also tells its phonemes, and its sample rate."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    path = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, path, _TELL_PHONEMES_IN_IPA)
    if rate <= 0:
        raise RuntimeError("espeak-ng does not start")
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    _KEEP.append(kind(_hear))
    library.espeak_SetSynthCallback(_KEEP[0])
    return library, rate


def _hear(samples: Any, count: int, events: Any) -> int:
    if samples and count:
        _CHUNKS.append(np.ctypeslib.as_array(samples, (count,)).copy())
    at = 0
    while events[at].type:
        event = events[at]
        if event.type in (_WORD, _PHONEME):
            name = event.name.decode(errors="ignore") if event.type == _PHONEME else " "
            _EVENTS.append((event.sample, name))
        at += 1
    return 0


def say(text: str, voice: speech.Voice) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """The teacher's speech, float32 (samples,) at 16 kHz, and (start in frames, IPA) of what it says."""
    library, rate = _library()
    name = f"{voice.name}+{voice.variant}" if voice.variant else voice.name
    if library.espeak_SetVoiceByName(name.encode()):
        raise ValueError(f"espeak-ng has no voice {name!r}")
    for parameter, value in ((_RATE, voice.speed), (_PITCH, voice.pitch), (_RANGE, voice.range)):
        library.espeak_SetParameter(parameter, value, 0)
    _CHUNKS.clear()
    _EVENTS.clear()
    raw = text.encode() + b"\0"
    library.espeak_Synth(raw, len(raw), 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    spoken = np.concatenate(_CHUNKS).astype(np.float32) / 32768
    frames = [(sample / rate * RATE_HZ / HOP, name) for sample, name in _EVENTS]
    return speech.resample(spoken, rate), frames


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


# ---------------------------------------------------------------- what is learnt from


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
    voice = speech.Voice(teacher.name, teacher.variant, round(teacher.speed * speed), teacher.pitch, teacher.range)
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
    _library()[0].espeak_ng_SetRandSeed(ctypes.c_long(seed))  # its breath is noise; it begins with the time of day
    made: list[Lesson | None] = []
    for language in LANGUAGES:
        texts = [sentence.texts[language] for sentence in phrasebook.sentences() if not sentence.held_out]
        texts = texts[:: 80 if quick else 1] + [babble(language, chance) for _ in range(1 if quick else BABBLE)]
        for text in tqdm(texts, f"teacher, {language}", unit="sentence"):
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


# ---------------------------------------------------------------- the vocoder, as numpy and torch


def pulses(pitch: np.ndarray) -> np.ndarray:
    """Pulses of equal harmonics, float64 ((frames + 3) x HOP,), for a pitch in Hz of shape (frames,)."""
    padded = np.pad(pitch.astype(np.float64), (2, 2), mode="edge")
    weight = np.arange(HOP) / HOP
    each = (padded[:-1, None] * (1 - weight) + padded[1:, None] * weight).ravel()
    phase = np.cumsum(each / RATE_HZ)
    phase -= np.rint(phase)
    odd = 2 * np.floor(HIGHEST_HZ / each) + 1
    below = np.sin(np.pi * phase)
    flat = np.abs(below) < 1e-4
    return np.where(flat, odd, np.sin(odd * np.pi * phase) / np.where(flat, 1.0, below)) / 2 - 0.5


def mel(hz: np.ndarray | float) -> np.ndarray:
    """Hz as mel, of any shape."""
    return 2595 * np.log10(1 + np.asarray(hz) / 700)


def interpolation(bands: int) -> np.ndarray:
    """From gains at ``bands`` places, even on the mel axis, to all bins: float64 (bands, BINS)."""
    places = np.linspace(0, mel(RATE_HZ / 2), bands)
    bins = mel(np.arange(BINS) * RATE_HZ / SIZE)
    return np.stack([np.interp(bins, places, row) for row in np.eye(bands)])


def minimum_phase(log_gains: np.ndarray) -> np.ndarray:
    """Phase in radians of the minimum-phase filters with these log gains; both (rows, BINS). Linear."""
    cepstrum = np.fft.irfft(log_gains, SIZE, axis=1)
    cepstrum[:, 1 : SIZE // 2] *= 2
    cepstrum[:, SIZE // 2 + 1 :] = 0
    return np.fft.rfft(cepstrum, axis=1).imag


def hann(size: int) -> np.ndarray:
    """The periodic Hann window, (size,); copies a quarter of it apart sum to 2."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


class Vocoder(nn.Module):
    """Frames to samples, without weights."""

    def __init__(self) -> None:
        super().__init__()
        spread = interpolation(HARMONIC_BANDS)
        for name, value in (
            ("spread", spread),
            ("turn", minimum_phase(spread)),
            ("spread_noise", interpolation(NOISE_BANDS)),
            ("window", hann(WINDOW)),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    def forward(self, source: Tensor, noise: Tensor, harmonic: Tensor, breath: Tensor) -> Tensor:
        """Sources (batch, (frames + 3) x HOP), log gains (batch, frames, bands): samples (batch, frames x HOP)."""
        gain = harmonic @ self.spread
        voice = self._spectra(source) * torch.polar(torch.exp(gain), harmonic @ self.turn)
        spectra = voice + self._spectra(noise) * torch.exp(breath @ self.spread_noise)
        cut = torch.fft.irfft(spectra, SIZE).transpose(1, 2)
        frames = cut.shape[2]
        size = (1, (frames + 5) * HOP)
        whole = functional.fold(cut, size, (1, SIZE), stride=(1, HOP))
        return whole[:, 0, 0, 2 * HOP : (frames + 2) * HOP] / 2

    def _spectra(self, source: Tensor) -> Tensor:
        cut = source.unfold(1, WINDOW, HOP) * self.window
        return torch.fft.rfft(functional.pad(cut, (HOP // 2, SIZE - WINDOW - HOP // 2)))


# ---------------------------------------------------------------- the network


class Stack(nn.Module):
    """Residual dilated convolutions over (batch, CHANNELS, time); nothing beyond the mask (batch, 1, time) is heard."""

    def __init__(self, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.wide = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=step, padding=step * (kernel // 2)) for step in dilations
        )
        self.narrow = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * mask
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = (x + narrow(functional.relu(wide(x)))) * mask
        return x


class Net(nn.Module):
    """Symbols to durations; symbols and places to frames."""

    def __init__(self, mean_log_pitch: np.ndarray) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(SYMBOLS), CHANNELS)
        self.voices = nn.Embedding(len(LANGUAGES), CHANNELS)
        self.read = Stack(SYMBOL_KERNEL, SYMBOL_DILATIONS)
        self.length = nn.Conv1d(CHANNELS, 1, 1)
        self.place = nn.Linear(PLACES, CHANNELS)
        self.speak = Stack(FRAME_KERNEL, FRAME_DILATIONS)
        self.frame = nn.Conv1d(CHANNELS, 1 + HARMONIC_BANDS + NOISE_BANDS, 1)
        nn.init.constant_(self.length.bias, 3.0)
        with torch.no_grad():
            self.length.weight.mul_(0.1)
            self.frame.weight.mul_(0.3)
            self.frame.bias[1 : 1 + HARMONIC_BANDS] = -6.0
            self.frame.bias[1 + HARMONIC_BANDS :] = -9.0
        self.register_buffer("mean", torch.tensor(mean_log_pitch, dtype=torch.float32))

    def encode(self, ids: Tensor, language: Tensor) -> Tensor:
        """(batch, CHANNELS, symbols) of ids (batch, symbols), PAD at the ends, and languages (batch,)."""
        x = self.symbols(ids) + self.voices(language)[:, None]
        return self.read(x.transpose(1, 2), (ids != PAD).float()[:, None])

    def roots(self, encoded: Tensor) -> Tensor:
        """Square roots of the lengths in frames, (batch, symbols)."""
        return self.length(encoded)[:, 0]

    def decode(self, encoded: Tensor, owner: Tensor, place: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of frames with owner (batch, frames), place (batch, frames, PLACES) and mask (batch, 1, frames):
        pitch (in spreads around the mean), log gains of harmonics and of noise, (batch, frames[, bands])."""
        x = torch.gather(encoded, 2, owner[:, None].expand(-1, CHANNELS, -1)) + self.place(place).transpose(1, 2)
        out = self.frame(self.speak(x, mask)).transpose(1, 2)
        gains = out[..., 1:].clamp(LOWEST_GAIN, HIGHEST_GAIN)
        return out[..., 0], gains[..., :HARMONIC_BANDS], gains[..., HARMONIC_BANDS:]


def places(starts: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Which symbol each frame belongs to, (frames,), and features of its place in it, (frames, PLACES)."""
    at = np.arange(frames)
    owner = np.searchsorted(starts, at, side="right") - 1
    begin, end = starts[owner], np.append(starts[1:], frames)[owner]
    relative = (at + 0.5 - begin) / np.maximum(end - begin, 1)
    angle = np.pi * relative
    return owner, np.stack([relative, np.sin(angle), np.cos(2 * angle)], axis=1).astype(np.float32)


# ---------------------------------------------------------------- learning


@dataclass(frozen=True)
class Batch:
    """Crops of several lessons, as tensors; what lies outside of a sentence is masked."""

    language: Tensor
    ids: Tensor
    lengths: Tensor
    counted: Tensor  # (batch, symbols): durations that count
    owner: Tensor
    place: Tensor
    mask: Tensor
    audio: Tensor
    pulses: Tensor
    pitch: Tensor
    voiced: Tensor


def batch_of(chosen: Sequence[Lesson], chance: np.random.Generator) -> Batch:
    """Random crops of CROP frames of these lessons."""
    widest = max(len(one.ids) for one in chosen)
    rows: list[list[np.ndarray]] = []
    for one in chosen:
        frames = len(one.pitch)
        start = int(chance.integers(-EDGE, max(frames - CROP + EDGE, -EDGE + 1)))
        owner, place = places(one.starts, frames)
        lasting = LASTING[one.ids] * one.normal
        rows.append([
            _fit(one.ids, 0, widest), _fit(one.lengths, 0, widest), _fit(lasting, 0, widest), _fit(owner, start, CROP),
            _fit(place, start, CROP), _fit(np.ones((frames, 1), np.float32), start, CROP).T,
            _fit(one.audio, start * HOP, CROP * HOP).astype(np.float32),
            _fit(one.pulses, start * HOP, (CROP + 3) * HOP).astype(np.float32),
            _fit(one.pitch, start, CROP, 100.0), _fit(one.voiced, start, CROP),
        ])  # fmt: skip
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return Batch(torch.tensor([one.language for one in chosen]), *columns)


def _fit(values: np.ndarray, start: int, count: int, fill: float = 0.0) -> np.ndarray:
    """``count`` rows of values from ``start`` on, filled where there are none."""
    out = np.full((count, *values.shape[1:]), fill, values.dtype)
    low, high = max(start, 0), min(start + count, len(values))
    if high > low:
        out[low - start : high - start] = values[low:high]
    return out


def filters(size: int, bands: int) -> np.ndarray:
    """Triangular mel filters of unit area, (bands, size // 2 + 1)."""
    edges = 700 * (10 ** (np.linspace(mel(0.0), mel(RATE_HZ / 2), bands + 2) / 2595) - 1)
    at = np.arange(size // 2 + 1) * RATE_HZ / size
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    made = np.maximum(0, np.minimum(rise, fall))
    return made / (made.sum(axis=1, keepdims=True) + 1e-9)


class Likeness(nn.Module):
    """How far two sounds are apart: log mel spectra of 25 ms, log spectra of 10 ms and of 64 ms (single harmonics)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.tensor(filters(512, 80), dtype=torch.float32).T)
        for size in (160, 400, 1024):
            self.register_buffer(f"window{size}", torch.tensor(hann(size), dtype=torch.float32))

    def forward(self, made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Of samples (batch, n): (weighted loss, mean distance of the log mel spectra in dB)."""
        near = torch.log(self.mels(made)) - torch.log(self.mels(wanted))
        short = self._log(made, 160, 256, 80) - self._log(wanted, 160, 256, 80)
        long = self._log(made, 1024, 1024, 256) - self._log(wanted, 1024, 1024, 256)
        loss = near.abs().mean() + 0.15 * short.abs().mean() + 0.25 * long.abs().mean()
        return loss, near.abs().mean() * (10 / np.log(10))

    def mels(self, samples: Tensor) -> Tensor:
        """Mel power spectra, (batch, frames of 10 ms, 80)."""
        return self._power(samples, 400, 512, 160).transpose(1, 2) @ self.filters + 1e-5

    def _log(self, samples: Tensor, window: int, size: int, hop: int) -> Tensor:
        return torch.log(self._power(samples, window, size, hop) + 1e-5)

    def _power(self, samples: Tensor, window: int, size: int, hop: int) -> Tensor:
        shape = getattr(self, f"window{window}")
        spectra = torch.stft(samples, size, hop, window, shape, center=False, return_complex=True)
        return spectra.real**2 + spectra.imag**2


def learn(book: Sequence[Lesson], seed: int, steps: int) -> Net:
    """The trained network."""
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    net, vocoder, likeness = Net(mean_log_pitch(book)), Vocoder(), Likeness()
    optimizer = torch.optim.AdamW(net.parameters(), PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.08)
    order = _endless(len(book), chance)
    for step in (bar := tqdm(range(steps), "voices", unit="step")):
        batch = batch_of([book[next(order)] for _ in range(BATCH)], chance)
        loss, told = lose(net, vocoder, likeness, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(told)
    return net.eval()


def mean_log_pitch(book: Sequence[Lesson]) -> np.ndarray:
    """Mean of the natural logarithm of each voice's pitch, (languages,)."""
    means = []
    for language in range(len(LANGUAGES)):
        logs = [np.log(one.pitch[one.voiced > 0]) for one in book if one.language == language]
        means.append(float(np.concatenate(logs).mean()))
    return np.array(means)


def _endless(count: int, chance: np.random.Generator) -> Iterator[int]:
    while True:
        yield from chance.permutation(count)


def lose(net: Net, vocoder: Vocoder, likeness: Likeness, batch: Batch) -> tuple[Tensor, dict[str, str]]:
    """The loss of one batch, and its parts to show."""
    encoded = net.encode(batch.ids, batch.language)
    wanted = torch.sqrt(batch.lengths)
    length = ((net.roots(encoded) - wanted).abs() * batch.counted).sum() / (batch.counted.sum() + 1)
    tone, harmonic, breath = net.decode(encoded, batch.owner, batch.place, batch.mask)
    spreads = (torch.log(batch.pitch) - net.mean[batch.language][:, None]) / PITCH_SPREAD
    weight = batch.mask[:, 0] * (0.05 + batch.voiced)
    pitch = ((tone - spreads).abs() * weight).sum() / weight.sum()
    outside = (1 - batch.mask.transpose(1, 2)) * -30.0  # silence where there is no sentence
    noise = (torch.rand_like(batch.pulses) - 0.5) * 12**0.5
    made = vocoder(batch.pulses, noise, harmonic + outside, breath + outside)
    inside = slice(EDGE * HOP, (CROP - EDGE) * HOP)
    sound, decibels = likeness(made[:, inside], batch.audio[:, inside])
    silent = (1 - batch.voiced) * batch.mask[:, 0]
    hum = (functional.relu(harmonic + 9).mean(2) * silent).mean()  # voiceless frames shall be made of noise
    parts = {"mel_dB": f"{decibels:.2f}", "length": f"{length:.3f}", "pitch": f"{pitch:.3f}"}
    return sound + 0.5 * length + 0.3 * pitch + 0.4 * hum, parts


# ---------------------------------------------------------------- export


class Graph:
    """Writes ONNX nodes one after another; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant; a big one of float32 is stored as float16 and cast when the model is opened."""
        from onnx import TensorProto, numpy_helper

        array = np.asarray(value, dtype)
        name = f"w{len(self.weights)}"
        half = array.dtype == np.float32 and array.size > 64
        self.weights.append(numpy_helper.from_array(array.astype(np.float16) if half else array, name))
        return self.op("Cast", name, to=TensorProto.FLOAT) if half else name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def whole(self, value: Sequence[int] | int) -> str:
        return self.const(value, np.int64)

    def cast(self, x: str, kind: str) -> str:
        from onnx import TensorProto

        return self.op("Cast", x, to=getattr(TensorProto, kind))

    def times(self, x: str, factor: float) -> str:
        return self.op("Mul", x, self.const(factor))

    def plus(self, x: str, term: float) -> str:
        return self.op("Add", x, self.const(term))

    def slice(self, x: str, start: int, stop: int, axis: int = 0) -> str:
        return self.op("Slice", x, *(self.whole([value]) for value in (start, stop, axis)))

    def conv(self, x: str, layer: nn.Conv1d) -> str:
        bias = self.const(_numpy(layer.bias))
        pads = [int(layer.padding[0])] * 2
        return self.op("Conv", x, self.const(_numpy(layer.weight)), bias, dilations=list(layer.dilation), pads=pads)

    def stack(self, x: str, stack: Stack) -> str:
        for wide, narrow in zip(stack.wide, stack.narrow, strict=True):
            x = self.op("Add", x, self.conv(self.op("Relu", self.conv(x, wide)), narrow))
        return x


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def export(net: Net, language: str) -> bytes:
    """One voice as an ONNX file.

    In: input int64 [1, phonemes], input_lengths int64 [1], scales float32 [3] (only the length scale is used).
    Out: output float32 [1, 1, 1, samples].
    """
    from onnx import TensorProto, helper

    graph = Graph()
    encoded, lengths = _graph_symbols(graph, net, LANGUAGES.index(language))
    pitch, gains, frames = _graph_frames(graph, net, encoded, lengths, LANGUAGES.index(language))
    samples = _graph_vocoder(graph, pitch, gains, frames)
    graph.nodes.append(helper.make_node("Unsqueeze", [samples, graph.whole([0, 1, 2])], ["output"]))
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])
    made = helper.make_graph(graph.nodes, f"demo_{language}", inputs, [output], graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))


def _graph_symbols(graph: Graph, net: Net, voice: int) -> tuple[str, str]:
    """(what the network makes of the symbols [1, CHANNELS, symbols], their lengths in frames float [symbols])."""
    row = graph.op("Gather", "input", graph.whole(0), axis=0)
    ids = graph.op("Slice", row, graph.whole([0]), graph.op("Slice", "input_lengths", *map(graph.whole, ([0], [1]))))
    ids = graph.op("Compress", ids, graph.cast(ids, "BOOL"), axis=0)  # without the padding, which is 0
    table = _numpy(net.symbols.weight) + _numpy(net.voices.weight)[voice]
    x = graph.op("Transpose", graph.op("Gather", graph.const(table), ids), perm=[1, 0])
    encoded = graph.stack(graph.op("Unsqueeze", x, graph.whole([0])), net.read)
    roots = graph.op("Squeeze", graph.conv(encoded, net.length), graph.whole([0, 1]))
    roots = graph.op("Relu", roots)
    lengths = graph.op("Mul", graph.op("Mul", roots, roots), graph.op("Gather", graph.const(LASTING), ids))
    return encoded, graph.op("Mul", lengths, graph.op("Gather", "scales", graph.whole(1)))


def _graph_frames(graph: Graph, net: Net, encoded: str, lengths: str, voice: int) -> tuple[str, str, str]:
    """(pitch in Hz [frames], log gains [frames, bands], the number of frames)."""
    ends = graph.op("CumSum", lengths, graph.whole(0))
    starts = graph.cast(graph.op("Round", graph.op("Sub", ends, lengths)), "INT64")
    last = graph.cast(graph.op("Round", graph.slice(ends, -1, 1 << 40)), "INT64")
    last = graph.op("Max", last, graph.whole([1]))
    frames = graph.op("Squeeze", last)
    at = graph.op("Range", graph.whole(0), frames, graph.whole(1))

    bounds = graph.op("Concat", starts, last, axis=0)
    ones = graph.op("Expand", graph.whole([1]), graph.op("Shape", bounds))
    nothing = graph.op("Expand", graph.whole([0]), graph.op("Add", last, graph.whole([1])))
    begun = graph.op("ScatterElements", nothing, bounds, ones, axis=0, reduction="add")
    counted = graph.op("CumSum", graph.slice(begun, 0, -1), graph.whole(0))
    owner = graph.op("Sub", counted, graph.whole(1))
    begin = graph.op("Gather", bounds, owner)
    size = graph.cast(graph.op("Sub", graph.op("Gather", bounds, counted), begin), "FLOAT")
    within = graph.plus(graph.cast(graph.op("Sub", at, begin), "FLOAT"), 0.5)
    relative = graph.op("Div", within, graph.op("Max", size, graph.const(1.0)))
    angle = graph.times(relative, np.pi)
    features = [relative, graph.op("Sin", angle), graph.op("Cos", graph.times(angle, 2.0))]
    place = graph.op("Concat", *(graph.op("Unsqueeze", one, graph.whole([1])) for one in features), axis=1)
    place = graph.op("MatMul", place, graph.const(_numpy(net.place.weight).T))
    place = graph.op("Add", place, graph.const(_numpy(net.place.bias)))
    place = graph.op("Unsqueeze", graph.op("Transpose", place, perm=[1, 0]), graph.whole([0]))
    x = graph.op("Add", graph.op("Gather", encoded, owner, axis=2), place)
    out = graph.conv(graph.stack(x, net.speak), net.frame)
    out = graph.op("Transpose", graph.op("Squeeze", out, graph.whole([0])), perm=[1, 0])
    tone = graph.op("Clip", graph.slice(out, 0, 1, 1), graph.const(-4.0), graph.const(4.0))
    tone = graph.plus(graph.times(tone, PITCH_SPREAD), float(net.mean[voice]))
    gains = graph.op("Clip", graph.slice(out, 1, 1 << 40, 1), graph.const(LOWEST_GAIN), graph.const(HIGHEST_GAIN))
    return graph.op("Squeeze", graph.op("Exp", tone), graph.whole([1])), gains, frames


def _graph_vocoder(graph: Graph, pitch: str, gains: str, frames: str) -> str:
    """Samples [frames x HOP]; the same arithmetic as ``pulses`` and ``Vocoder``."""
    cosine, sine = _graph_waves(graph)
    window = graph.const(hann(WINDOW) / 2)
    harmonic, breath = graph.slice(gains, 0, HARMONIC_BANDS, 1), graph.slice(gains, HARMONIC_BANDS, 1 << 40, 1)
    spread = interpolation(HARMONIC_BANDS)
    strength = graph.op("Exp", graph.op("MatMul", harmonic, graph.const(spread)))
    turn = graph.op("MatMul", harmonic, graph.const(minimum_phase(spread)))
    gain_re, gain_im = (graph.op("Mul", strength, graph.op(kind, turn)) for kind in ("Cos", "Sin"))
    air = graph.op("Exp", graph.op("MatMul", breath, graph.const(interpolation(NOISE_BANDS))))

    source = _graph_windows(graph, _graph_pulses(graph, pitch), window)
    noise = _graph_windows(graph, _graph_noise(graph, frames), window)
    first, last = graph.whole([HOP // 2]), graph.whole([HOP // 2 + WINDOW])
    cosine_in, sine_in = (graph.op("Slice", wave, first, last) for wave in (cosine, sine))
    source_re, source_im = (graph.op("MatMul", source, wave) for wave in (cosine_in, sine_in))  # im: with the sign -1
    noise_re, noise_im = (graph.op("MatMul", noise, wave) for wave in (cosine_in, sine_in))

    def products(kind: str, *pairs: tuple[str, str]) -> str:
        return graph.op(kind, *(graph.op("Mul", *pair) for pair in pairs))

    # (a - ib)(c + id) = (ac + bd) - i(bc - ad)
    real = graph.op("Add", products("Add", (source_re, gain_re), (source_im, gain_im)), graph.op("Mul", noise_re, air))
    imag = graph.op("Add", products("Sub", (source_im, gain_re), (source_re, gain_im)), graph.op("Mul", noise_im, air))
    weight = np.full(BINS, 2.0 / SIZE)
    weight[[0, -1]] = 1.0 / SIZE
    share = graph.const(weight)
    back = (graph.op("Transpose", wave, perm=[1, 0]) for wave in (cosine, sine))
    real, imag = graph.op("Mul", real, share), graph.op("Mul", imag, share)
    cut = graph.op("Add", *(graph.op("MatMul", part, wave) for part, wave in zip((real, imag), back, strict=True)))
    return _graph_overlap(graph, cut)


def _graph_waves(graph: Graph) -> tuple[str, str]:
    """Cosines and sines [SIZE, BINS] of the Fourier transform; computed once, when the model is opened."""
    time = graph.op("Unsqueeze", graph.op("Range", *map(graph.whole, (0, SIZE, 1))), graph.whole([1]))
    bins = graph.op("Unsqueeze", graph.op("Range", *map(graph.whole, (0, BINS, 1))), graph.whole([0]))
    turns = graph.cast(graph.op("Mod", graph.op("Mul", time, bins), graph.whole(SIZE)), "FLOAT")
    angle = graph.times(turns, 2 * np.pi / SIZE)
    return graph.op("Cos", angle), graph.op("Sin", angle)


def _graph_pulses(graph: Graph, pitch: str) -> str:
    """[frames + 3, HOP]: see ``pulses``. The phase is summed in float64, so long texts stay exact."""
    padded = graph.op("Pad", pitch, graph.whole([2, 2]), mode="edge")
    padded = graph.op("Unsqueeze", padded, graph.whole([1]))
    weight = np.arange(HOP, dtype=np.float32)[None] / HOP
    before = graph.op("Mul", graph.slice(padded, 0, -1), graph.const(1 - weight))
    each = graph.op("Add", before, graph.op("Mul", graph.slice(padded, 1, 1 << 40), graph.const(weight)))
    flat = graph.op("Reshape", each, graph.whole([-1]))
    phase = graph.op("CumSum", graph.cast(graph.times(flat, 1 / RATE_HZ), "DOUBLE"), graph.whole(0))
    phase = graph.cast(graph.op("Sub", phase, graph.op("Round", phase)), "FLOAT")
    odd = graph.plus(graph.times(graph.op("Floor", graph.op("Div", graph.const(HIGHEST_HZ), flat)), 2.0), 1.0)
    angle = graph.times(phase, np.pi)
    below = graph.op("Sin", angle)
    tiny = graph.op("Less", graph.op("Abs", below), graph.const(1e-4))
    safe = graph.op("Where", tiny, graph.const(1.0), below)
    ratio = graph.op("Div", graph.op("Sin", graph.op("Mul", odd, angle)), safe)
    made = graph.plus(graph.times(graph.op("Where", tiny, odd, ratio), 0.5), -0.5)
    return graph.op("Reshape", made, graph.whole([-1, HOP]))


def _graph_noise(graph: Graph, frames: str) -> str:
    """[frames + 3, HOP], even noise of unit power: three rounds of a hash of the sample's number."""
    count = graph.op("Mul", graph.op("Add", frames, graph.whole(3)), graph.whole(HOP))
    x = graph.op("Range", graph.whole(1), graph.op("Add", count, graph.whole(1)), graph.whole(1))
    for factor in (506_952_113, 1_664_525, 1_013_904_223):
        x = graph.op("Mod", graph.op("Mul", x, graph.whole(factor)), graph.whole(1 << 32))
        high = graph.op("Div", x, graph.whole(1 << 16))
        x = graph.op("Mul", graph.op("Add", x, high), graph.op("Add", high, graph.whole(1)))
        x = graph.op("Mod", x, graph.whole((1 << 31) - 1))
    made = graph.times(graph.cast(x, "FLOAT"), 12**0.5 / ((1 << 31) - 1))
    return graph.op("Reshape", graph.plus(made, -(12**0.5) / 2), graph.whole([-1, HOP]))


def _graph_windows(graph: Graph, blocks: str, window: str) -> str:
    """[frames, WINDOW] of [frames + 3, HOP]: each window is four neighbouring blocks."""
    cut = [graph.slice(blocks, at, at - 3 if at < 3 else 1 << 40) for at in range(4)]
    return graph.op("Mul", graph.op("Concat", *cut, axis=1), window)


def _graph_overlap(graph: Graph, cut: str) -> str:
    """The sum [frames x HOP] of overlapping [frames, SIZE]: each block of HOP samples moved to its place."""
    parts = []
    for at in range(SIZE // HOP):
        block = graph.slice(cut, at * HOP, (at + 1) * HOP, 1)
        parts.append(graph.op("Pad", block, graph.whole([at, 0, SIZE // HOP - 1 - at, 0])))
    whole = graph.slice(graph.op("Sum", *parts), 2, -3)
    return graph.op("Reshape", whole, graph.whole([-1]))


def describe(language: str, met: Counter[str]) -> dict[str, Any]:
    """What Piper reads beside the graph. ``met``: how often the network met each symbol."""
    espeak, locale = VOICES[language]
    return {
        "audio": {"sample_rate": RATE_HZ, "quality": "demo"},
        "espeak": {"voice": espeak},
        "language": {"code": locale, "family": language, "region": locale[3:]},
        "inference": {"noise_scale": 0.0, "length_scale": 1.0, "noise_w": 0.0},
        "phoneme_type": "espeak",
        "num_symbols": len(SYMBOLS),
        "num_speakers": 1,
        "speaker_id_map": {},
        "phoneme_id_map": {symbol: [stand_in(symbol, met)] for symbol in (*SYMBOLS, *NEAREST)},
        "description": f"Demo voice, {SEX[language]}, trained on espeak-ng's speech of a phrase book; not for use",
    }


def stand_in(symbol: str, met: Counter[str]) -> int:
    """The number of the symbol that is spoken for this one; PAD, which is skipped, when nothing is near."""
    tried: set[str] = set()
    while symbol not in NUMBERS or (met[symbol] < KNOWN and symbol not in "^$"):
        tried.add(symbol)
        symbol = NEAREST.get(symbol, "_")
        if symbol == "_" or symbol in tried:
            return PAD
    return NUMBERS[symbol]


def train(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Train the voices and write them into ``out`` (``en.onnx``, ``en.onnx.json``, ...); return ``out``.

    ``quick``: a few sentences and steps; the voices load and make sounds, but do not speak.
    Same seed, same number of threads and same versions of the packages: same bytes.
    """
    book = lessons(seed, quick)
    net = learn(book, seed, 4 if quick else STEPS)
    met = Counter(SYMBOLS[number] for one in book for number in one.ids)
    out.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        (out / f"{language}.onnx").write_bytes(export(net, language))
        text = json.dumps(describe(language, met), ensure_ascii=False, indent=1)
        (out / f"{language}.onnx.json").write_text(text + "\n", encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo voices.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo" / "tts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(train(chosen.out, chosen.seed, chosen.quick))


if __name__ == "__main__":
    main()
