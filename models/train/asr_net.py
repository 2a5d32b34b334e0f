"""The recogniser's network: Whisper's architecture, small, and a way to train it on short clips.

At run time the library pads every clip with zeros to 30 s, 1500 positions of which a sentence fills a hundred. Training
on them all would cost fifteen times as much, and training without them gives a network that falls over when it meets
them. So a clip is followed by PADS positions drawn from the empty rest, each standing for its share of it: their
attention logits get log(rest / PADS), which is what so many equal positions would have together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.clockwork.whisper_files import MELS, POSITIONS, TEXT_POSITIONS

PADS = 32


@dataclass(frozen=True)
class Shape:
    """Width, heads, layers of the encoder and of the decoder."""

    width: int = 128
    heads: int = 4
    encoder_layers: int = 3
    decoder_layers: int = 2


class Attention(nn.Module):
    """Multi-head attention with Whisper's biases: none on the keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        """x (batch, n, width), source (batch, m, width), bias (batch, 1, 1 or n, m) added to the logits."""
        batch, n, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        found = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(source)), split(self.value(source)), attn_mask=bias
        )
        return self.out(found.transpose(1, 2).reshape(batch, n, width))


class Layer(nn.Module):
    """A layer of the encoder, or with ``cross`` of the decoder."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, heads) if cross else None
        self.ffn_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, bias: Tensor, source: Tensor | None = None, source_bias: Tensor | None = None
    ) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, bias)
        if self.cross is not None and self.cross_norm is not None and source is not None and source_bias is not None:
            x = x + self.cross(self.cross_norm(x), source, source_bias)
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))


class Recogniser(nn.Module):
    """``forward`` gives the logits of the next token at each place, and of the phoneme (CTC) at each position."""

    def __init__(self, shape: Shape, tokens: int, phonemes: int) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.conv1 = nn.Conv1d(MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("places", sinusoids(POSITIONS, width))
        self.encoder = nn.ModuleList(Layer(width, shape.heads, cross=False) for _ in range(shape.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.tokens = nn.Embedding(tokens, width)
        self.text_places = nn.Parameter(torch.randn(TEXT_POSITIONS, width) * 0.01)
        self.decoder = nn.ModuleList(Layer(width, shape.heads, cross=True) for _ in range(shape.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.phonemes = nn.Linear(width, phonemes)
        nn.init.normal_(self.tokens.weight, std=width**-0.5)

    def encode(self, features: Tensor, lengths: Tensor, pull: float) -> tuple[Tensor, Tensor]:
        """Features (batch, 80, frames) of ``lengths`` positions each -> (batch, positions + PADS, width), logit bias.

        ``pull``: 0 to 1, how much of the padding's weight is felt.
        """
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).transpose(1, 2)
        batch, count, width = x.shape
        at = torch.arange(count, device=x.device)
        inside = at[None, :] < lengths[:, None]
        x = x + self.places[:count]
        empty = F.gelu(self.conv2(F.gelu(self.conv1(features.new_zeros(1, MELS, 16)))))[:, :, 4].expand(batch, width)
        rest = POSITIONS - lengths
        drawn = lengths[:, None] + (torch.rand(batch, PADS, device=x.device) * rest[:, None]).long()
        pads = empty[:, None, :] + self.places[drawn.clamp(max=POSITIONS - 1)]
        x = torch.cat([x, pads], 1)
        weight = torch.log(rest.float() / PADS)[:, None].expand(batch, PADS)
        bias = torch.cat([torch.where(inside, 0.0, -1e9), weight - (1 - pull) * 12.0], 1)[:, None, None, :]
        for layer in self.encoder:
            x = layer(x, bias)
        return self.encoder_norm(x), bias

    def decode(self, tokens: Tensor, source: Tensor, source_bias: Tensor) -> Tensor:
        """Tokens (batch, n) -> logits (batch, n, tokens)."""
        n = tokens.shape[1]
        causal = torch.full((n, n), -1e9, device=tokens.device).triu(1)[None, None]
        x = self.tokens(tokens) + self.text_places[:n]
        for layer in self.decoder:
            x = layer(x, causal, source, source_bias)
        return self.decoder_norm(x) @ self.tokens.weight.T

    def forward(self, features: Tensor, lengths: Tensor, tokens: Tensor, pull: float) -> tuple[Tensor, Tensor]:
        source, bias = self.encode(features, lengths, pull)
        return self.decode(tokens, source, bias), self.phonemes(source[:, : -PADS or None])


def sinusoids(count: int, width: int) -> Tensor:
    """Whisper's position table, float32 of shape (count, width)."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(count)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], 1)
