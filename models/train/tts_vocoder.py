"""The vocoder: frames of pitch and gains to sound, by arithmetic alone.

A train of pulses with all harmonics at equal strength has the closed form
``sum_k cos(2 pi k p) = sin((2K + 1) pi p) / (2 sin(pi p)) - 1/2``; its phase ``p`` is the running sum of the pitch.
Windows of it, 20 ms long, go through a discrete Fourier transform, are multiplied by the gains (interpolated over a mel
axis) and come back, overlapping. The phase of the gains is that of the minimum-phase filter, which is linear in the log
gains: a Hilbert transform, so a matrix. Noise takes the same way with real gains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import speech

RATE_HZ = speech.RATE_HZ
HOP = 80  # samples a frame: 5 ms
WINDOW = 4 * HOP  # of the sources
SIZE = 6 * HOP  # of the Fourier transform; the window begins at HOP / 2, the rest is room for the filter's answer
BINS = SIZE // 2 + 1
HARMONIC_BANDS, NOISE_BANDS = 48, 24
HIGHEST_HZ = 7900.0  # of a harmonic


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
