"""The voices' network: symbols to durations, symbols and places to frames.

    symbols -> dilated convolutions -> duration of each symbol
                        |
                  repeated by duration, with the place inside the symbol
                        |
           dilated convolutions, one frame of 5 ms each -> pitch, 48 gains of harmonics, 24 gains of noise

One network learns all languages; the language (which is also the voice) is a vector added to every symbol.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.clockwork.tts import PAD, SYMBOLS
from models.train.tts_data import LANGUAGES
from models.train.tts_vocoder import HARMONIC_BANDS, NOISE_BANDS

LOWEST_GAIN, HIGHEST_GAIN = -14.0, 3.0  # natural logarithms
PITCH_SPREAD = 0.25  # of the natural logarithm of the pitch around the voice's mean

CHANNELS = 128
SYMBOL_KERNEL, SYMBOL_DILATIONS = 5, (1, 2, 4, 8)
FRAME_KERNEL, FRAME_DILATIONS = 3, (1, 2, 4, 8)
PLACES = 3  # features of the place inside a symbol


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
