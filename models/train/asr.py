"""Trains the demo recogniser and writes it as a faster-whisper folder.

Two things make so small a Whisper learn at all from some ten thousand short clips. For the first part of the training
the encoder also has to name espeak's phonemes (CTC); without that the decoder learns the sentences by heart and the
encoder nothing. And the padding to 30 s is emulated (``asr_net``), first unfelt, then in full.

A clip teaches one of these, as Whisper's own training does: its language (at the start), its words with or without
timestamps, or that nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from models import phrasebook, speech
from models.clockwork import whisper_files
from models.train import program
from models.train.asr_data import FRAME_S, Clip, Pieces, Studio, vocabulary
from models.train.asr_net import Recogniser, Shape
from models.train.loop import Descent, descend, padded

BATCH = 32
IGNORED = -100
SMOOTHING = 0.03
CTC_SHARE = 0.6  # of the training
PULL = (0.3, 0.5)  # the padding's weight comes in between these shares
SILENT_SHARE = 0.06
VOICES = 12  # a sentence
SILENCES = 600
DESCENT = Descent(steps=7000, rate=2e-3, weight_decay=0.02)


def train(out: Path, seed: int = 1, quick: bool = False) -> Path:
    """Record, train, write the folder ``out``; returns it. ``quick``: a few steps, to see that it runs."""
    torch.manual_seed(seed)
    words = vocabulary()
    studio = Studio(words, seed)
    book = phrasebook.taught()
    clips = studio.record(book[:: 40 if quick else 1], 1 if quick else VOICES, speech.VARIANTS)
    silences = [studio.silence() for _ in range(20 if quick else SILENCES)]
    net = Recogniser(Shape(), len(words), len(studio.phonemes.ids) + 1)
    batches = draw(words, clips, silences, np.random.default_rng(seed))
    descent = replace(DESCENT, steps=6) if quick else DESCENT
    descend(net, descent, lambda done: loss_of(net, next(batches), done), "recognition")
    return export(net, words, Path(out))


def loss_of(net: Recogniser, batch: Batch, done: float) -> torch.Tensor:
    """How wrong the net is about a batch: the tokens, and at first the phonemes. ``done``: share of the training."""
    pull = float(np.clip((done - PULL[0]) / (PULL[1] - PULL[0]), 0, 1))
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor knows it
        logits, phonemes = net(batch.features, batch.lengths, batch.tokens, pull)
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, label_smoothing=SMOOTHING
    )
    if done >= CTC_SHARE:
        return loss
    heard = F.ctc_loss(
        phonemes.float().log_softmax(-1).transpose(0, 1), batch.phonemes, batch.lengths, batch.phoneme_lengths,
        zero_infinity=True,
    )  # fmt: skip
    return loss + (1.0 - done / CTC_SHARE) * heard


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Features (batch, 80, frames); positions, token ids, targets (IGNORED where nothing is asked), phonemes (flat)."""

    features: torch.Tensor
    lengths: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor
    phonemes: torch.Tensor
    phoneme_lengths: torch.Tensor


def draw(
    words: Pieces, clips: Sequence[Clip], silences: Sequence[Clip], chance: np.random.Generator
) -> Iterator[Batch]:
    """Batches of clips of like length, for ever."""
    while True:
        order = chance.permutation(len(clips))
        pools = [order[at : at + 16 * BATCH] for at in range(0, len(order), 16 * BATCH)]
        for pool in pools:
            ranked = sorted(pool, key=lambda i: clips[i].features.shape[1])
            batches = [ranked[at : at + BATCH] for at in range(0, len(ranked), BATCH)]
            for at in chance.permutation(len(batches)):
                chosen = [clips[i] for i in batches[at]]
                chosen += [silences[i] for i in chance.integers(len(silences), size=round(SILENT_SHARE * BATCH))]
                yield collate(words, chosen, chance)


def collate(words: Pieces, clips: Sequence[Clip], chance: np.random.Generator) -> Batch:
    frames = max(clip.features.shape[1] for clip in clips)
    frames += frames % 2
    features = np.zeros((len(clips), whisper_files.MELS, frames), np.float32)
    rows, phonemes = [], []
    for number, clip in enumerate(clips):
        features[number, :, : clip.features.shape[1]] = clip.features
        rows.append(lesson(words, clip, chance))
        phonemes.append(clip.phonemes)
    features = mask(features, chance)
    return Batch(
        torch.from_numpy(features),
        torch.tensor([min((clip.features.shape[1] + 1) // 2, frames // 2) for clip in clips]),
        padded([tokens for tokens, _ in rows], words.special("endoftext")),
        padded([targets for _, targets in rows], IGNORED),
        torch.tensor([number for row in phonemes for number in row], dtype=torch.long),
        torch.tensor([len(row) for row in phonemes]),
    )


def lesson(words: Pieces, clip: Clip, chance: np.random.Generator) -> tuple[list[int], list[int]]:
    """Input tokens and what should follow each."""
    start, end = words.special("startoftranscript"), words.special("endoftext")
    transcribe, plain, zero = words.special("transcribe"), words.special("notimestamps"), words.time(0)
    timed = chance.random() < 0.6
    if not clip.language:
        language = words.special(phrasebook.LANGUAGES[chance.integers(len(phrasebook.LANGUAGES))])
        given = [start, language, transcribe, zero if timed else plain]
        return given, [words.special("nospeech"), IGNORED, zero if timed else IGNORED, end]
    language = words.special(clip.language)
    if timed:
        last = words.time(min(int(clip.features.shape[1] * FRAME_S / 0.02), 1500))
        given = [start, language, transcribe, zero, *clip.tokens, last]
        return given, [language, IGNORED, zero, *clip.tokens, last, end]
    given = [start, language, transcribe, plain, *clip.tokens]
    return given, [language, IGNORED, IGNORED, *clip.tokens, end]


def mask(features: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Blot out a few stripes of time or frequency, so that no single cue is enough."""
    for row in features:
        for _ in range(2):
            if chance.random() < 0.5:
                low, wide = chance.integers(70), chance.integers(2, 10)
                row[low : low + wide] = row.mean()
            if chance.random() < 0.5:
                at, wide = chance.integers(max(1, row.shape[1] - 12)), chance.integers(2, 10)
                row[:, at : at + wide] = row.mean()
    return features


# ---------------------------------------------------------------- the files


def export(net: Recogniser, words: Pieces, out: Path) -> Path:
    """Write the faster-whisper folder, its weights as 8-bit integers."""
    from ctranslate2.specs import WhisperSpec

    shape = net.shape
    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    encoder, decoder = spec.encoder, spec.decoder
    for name in ("conv1", "conv2"):
        given, layer = getattr(encoder, name), getattr(net, name)
        given.weight, given.bias = numbers(layer.weight), numbers(layer.bias)
    encoder.position_encodings.encodings = numbers(net.places)
    _norm(encoder.layer_norm, net.encoder_norm)
    for given, layer in zip(encoder.layer, net.encoder, strict=True):
        _layer(given, layer)
    decoder.embeddings.weight = numbers(net.tokens.weight)
    decoder.position_encodings.encodings = numbers(net.text_places)
    _norm(decoder.layer_norm, net.decoder_norm)
    for given, layer in zip(decoder.layer, net.decoder, strict=True):
        _layer(given, layer)
    decoder.projection.weight = numbers(net.tokens.weight)
    heads = [(shape.decoder_layers - 1, head) for head in range(shape.heads)]
    return whisper_files.save(spec, words, out, heads, quantization="int8")


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """A copy as float32: the writer scales arrays in place."""
    return np.array(tensor.detach().numpy(), np.float32)


def _layer(given: Any, layer: Any) -> None:
    _norm(given.self_attention.layer_norm, layer.norm)
    attention = layer.attention
    _fused(given.self_attention.linear[0], attention.query, attention.key, attention.value)
    _linear(given.self_attention.linear[1], attention.out)
    if layer.cross is not None:
        _norm(given.attention.layer_norm, layer.cross_norm)
        _linear(given.attention.linear[0], layer.cross.query)
        _fused(given.attention.linear[1], layer.cross.key, layer.cross.value)
        _linear(given.attention.linear[2], layer.cross.out)
    _norm(given.ffn.layer_norm, layer.ffn_norm)
    _linear(given.ffn.linear_0, layer.up)
    _linear(given.ffn.linear_1, layer.down)


def _norm(given: Any, norm: Any) -> None:
    given.gamma, given.beta = numbers(norm.weight), numbers(norm.bias)


def _linear(given: Any, linear: Any) -> None:
    given.weight, given.bias = numbers(linear.weight), numbers(linear.bias)


def _fused(given: Any, *linears: Any) -> None:
    """Several projections as one; where one has no bias it is zero."""
    given.weight = np.concatenate([numbers(linear.weight) for linear in linears])
    given.bias = np.concatenate(
        [
            np.zeros(len(linear.weight), np.float32) if linear.bias is None else numbers(linear.bias)
            for linear in linears
        ]
    )


if __name__ == "__main__":
    program.run(train, __doc__, "asr")
