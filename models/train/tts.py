"""Trains the demo voices: small Piper voices that learn to speak from espeak-ng.

``tts_data`` has the teacher speak and tells how long each symbol lasts, ``tts_net`` makes frames of symbols,
``tts_vocoder`` makes sound of frames, ``tts_graph`` writes both as ONNX. The vocoder is differentiable: the loss
compares spectra of what it makes, from the teacher's own pitch and durations, with the teacher's speech. Pitch and
durations have losses of their own. Because the frame network knows only the *relative* place inside a symbol, a length
scale stretches the speech and leaves the pitch alone.

What the network never met is spoken as the nearest sound, or skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.clockwork.tts import PAD, SYMBOLS, VOICES
from models.train import program
from models.train.loop import Descent, descend
from models.train.tts_data import LANGUAGES, LASTING, NUMBERS, Lesson, lessons
from models.train.tts_graph import export
from models.train.tts_net import PITCH_SPREAD, Net, places
from models.train.tts_vocoder import HOP, RATE_HZ, Vocoder, hann, mel

SEX = {"en": "male", "de": "female", "es": "male", "zh": "female"}
BATCH, CROP, EDGE = 16, 160, 16  # sentences; frames of each; frames at both ends that only give context
DESCENT = Descent(steps=2200, rate=2e-3, weight_decay=1e-3)

KNOWN = 20  # a symbol met less often than that counts as unknown
# Unknown symbols, each before the one that is spoken instead.
PAIRS = (
    "ɒɔ ɫl ʎl ɭl ʟl ɬl ʀr ʁr ɻɹ ɽɾ ɺɾ ɵə ɘə ɞɜ ɝɜ ɶœ ɨɪ ʉu ɯu ɤə ᵻɪ ɱm ɳn ɴŋ ɲn ʋv ⱱv ɸf βb ʂʃ "
    "ʑʒ ʐʒ ɕʃ ʝj ɟd ɖd ʈt ɢɡ ɣɡ gɡ qk χx ħh ɦh ʍw ɰw ɥj æɛ ʏy øœ ɚə ɐa ʌa ck Xx ʤʒ ʧʃ ˑː 32 45 "
    "!. ;, :, (, ),"
)
NEAREST = {pair[0]: pair[1] for pair in PAIRS.split()}


def train(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Train the voices and write them into ``out`` (``en.onnx``, ``en.onnx.json``, ...); return ``out``.

    ``quick``: a few sentences and steps; the voices load and make sounds, but do not speak.
    """
    book = lessons(seed, quick)
    net = learn(book, seed, replace(DESCENT, steps=4) if quick else DESCENT)
    met = Counter(SYMBOLS[number] for one in book for number in one.ids)
    out.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        (out / f"{language}.onnx").write_bytes(export(net, language))
        text = json.dumps(describe(language, met), ensure_ascii=False, indent=1)
        (out / f"{language}.onnx.json").write_text(text + "\n", encoding="utf-8")
    return out


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

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """The weighted distance of samples (batch, n)."""
        near = torch.log(self.mels(made)) - torch.log(self.mels(wanted))
        short = self._log(made, 160, 256, 80) - self._log(wanted, 160, 256, 80)
        long = self._log(made, 1024, 1024, 256) - self._log(wanted, 1024, 1024, 256)
        return near.abs().mean() + 0.15 * short.abs().mean() + 0.25 * long.abs().mean()

    def mels(self, samples: Tensor) -> Tensor:
        """Mel power spectra, (batch, frames of 10 ms, 80)."""
        return self._power(samples, 400, 512, 160).transpose(1, 2) @ self.filters + 1e-5

    def _log(self, samples: Tensor, window: int, size: int, hop: int) -> Tensor:
        return torch.log(self._power(samples, window, size, hop) + 1e-5)

    def _power(self, samples: Tensor, window: int, size: int, hop: int) -> Tensor:
        shape = getattr(self, f"window{window}")
        spectra = torch.stft(samples, size, hop, window, shape, center=False, return_complex=True)
        return spectra.real**2 + spectra.imag**2


def learn(book: Sequence[Lesson], seed: int, descent: Descent) -> Net:
    """The trained network."""
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    net, vocoder, likeness = Net(mean_log_pitch(book)), Vocoder(), Likeness()
    order = _endless(len(book), chance)

    def loss_of(_: float) -> Tensor:
        return lose(net, vocoder, likeness, batch_of([book[next(order)] for _ in range(BATCH)], chance))

    descend(net, descent, loss_of, "voices")
    return net


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


def lose(net: Net, vocoder: Vocoder, likeness: Likeness, batch: Batch) -> Tensor:
    """The loss of one batch: of sound, durations, pitch, and of a hum where there should be none."""
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
    sound = likeness(made[:, inside], batch.audio[:, inside])
    silent = (1 - batch.voiced) * batch.mask[:, 0]
    hum = (functional.relu(harmonic + 9).mean(2) * silent).mean()  # voiceless frames shall be made of noise
    return sound + 0.5 * length + 0.3 * pitch + 0.4 * hum


# ---------------------------------------------------------------- the words beside the graph


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


if __name__ == "__main__":
    program.run(train, __doc__, "tts")
