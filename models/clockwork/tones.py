"""A clockwork Whisper that reads digits sent as tones: which audio gave which text can be checked exactly.

``encode("314")`` makes three tones of 0.2 s; the model reads them back as ``"3 1 4"``. Digits stand apart by
spaces, so that a translator copies them one by one and a voice speaks them one by one.

How it reads:

1. Digit d has the centre frequency of mel band 12 + 6 d. ``conv1`` turns that band into a step (0 below, 4 above a
   threshold: two GELUs subtracted), ``conv2`` brings it to a feature "tone d" of 0 or 1.
2. Encoder position t (0.02 s) and decoder position p carry codes of the same kind, 32 pairs cos(w n), sin(w n): the
   encoder for the slot n = t // 10, the decoder for n = p - 3, since the prompt has three tokens. Two equal codes
   match with 32, unequal ones with much less, so cross-attention of step n averages slot n: ten positions, which
   also takes away noise.
3. The output matrix turns "tone d" into digit d. Where no tone is heard, the digits end: the end timestamp of 0.2 n
   s comes from the decoder's own position code, then ``<|endoftext|>``.

The attention must know where the digits start in the prompt: no earlier text, initial prompt or hotwords, and no
voice filter (it takes tones for noise).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.clockwork import blank, codes
from models.clockwork.whisper_files import MELS, POSITIONS, TEXT_POSITIONS, Vocabulary, save

FREQUENCIES_HZ = (484, 708, 931, 1173, 1476, 1859, 2341, 2947, 3711, 4673)
TONE_S = 0.2
LANGUAGES = ("en", "de", "fr", "es", "zh")
DIGITS = "0123456789"
SIZE = 128
HEAD = codes.WIDTH
SLOT = 10  # encoder positions in one tone
SLOTS = POSITIONS // SLOT
PROMPT = 3  # <|startoftranscript|>, language, task
ECHO = 2.0  # amplitude of the position codes: their squares add up to 128, beside which a tone is nothing


class EncoderFeatures:
    """Where things stand in the encoder's residual stream."""

    def __init__(self) -> None:
        features = blank.Features(SIZE)
        self.code = features.take(HEAD)
        self.tone = features.take(len(DIGITS))
        self.nil = features.take(32)  # always 0: rows made to sum to zero through them are blind to the norm's mean


class DecoderFeatures:
    """Where things stand in the decoder's residual stream."""

    def __init__(self) -> None:
        features = blank.Features(SIZE)
        self.code = features.take(HEAD)
        self.tone = features.take(len(DIGITS))
        self.start = features.one()  # the last token is <|startoftranscript|>
        self.task = features.one()  # ... a task
        self.time = features.one()  # ... a timestamp other than 0.00
        self.full = features.one()  # all slots of the window have been read
        self.nil = features.take(32)


def encode(digits: str, rate: int = 16000, amplitude: float = 0.4) -> np.ndarray:
    """The tones for ``digits``: float32 of shape (0.2 x rate x len(digits),), each faded in and out over 5 ms.

    Raises ValueError for anything but digits, or a rate too low for the highest tone.
    """
    if set(digits) - set(DIGITS):
        raise ValueError(f"only the digits 0 to 9 have a tone, got {digits!r}")
    if rate <= 2 * FREQUENCIES_HZ[-1]:
        raise ValueError(f"{rate} Hz cannot carry {FREQUENCIES_HZ[-1]} Hz: use at least 16000")
    time = np.arange(round(TONE_S * rate)) / rate
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.005)
    tones = [amplitude * fade * np.sin(2 * np.pi * FREQUENCIES_HZ[int(digit)] * time) for digit in digits]
    return np.concatenate([np.zeros(0), *tones]).astype(np.float32)


def spell(digits: str) -> str:
    """The transcript of ``encode(digits)``: the digits with spaces between them."""
    return " ".join(digits)


def write(out: Path) -> Path:
    """Write the faster-whisper folder ``out`` (4 MB) and return it. Languages: ``LANGUAGES``, all alike."""
    from ctranslate2.specs import WhisperSpec

    vocabulary = Vocabulary(DIGITS, LANGUAGES)
    encoder, decoder = EncoderFeatures(), DecoderFeatures()
    spec = WhisperSpec(1, 2, 1, 2)
    _fill_encoder(spec.encoder, encoder)
    _fill_decoder(spec.decoder, encoder, decoder, vocabulary)
    _fill_projection(spec.decoder.projection, decoder, vocabulary)
    return save(spec, vocabulary, Path(out), alignment_heads=[(0, 0)])


def _gamma() -> float:
    """The standard deviation that codes alone give a stream: the gamma that undoes the norm."""
    return float(np.sqrt(codes.PAIRS * ECHO**2 / SIZE))


def _fill_encoder(spec: Any, features: EncoderFeatures) -> None:
    first, second = blank.zeros(SIZE, MELS, 3), blank.zeros(SIZE, SIZE, 3)
    bias = blank.zeros(SIZE)
    for digit in range(len(DIGITS)):
        low, high = 2 * digit, 2 * digit + 1
        first[low : high + 1, 12 + 6 * digit, 1] = 20
        bias[low], bias[high] = -20 * 0.6, -20 * 0.6 - 4
        second[features.tone[digit], low, 1] = 1.145 / 4  # GELU(1.145) = 1
        second[features.tone[digit], high, 1] = -1.145 / 4
    spec.conv1.weight, spec.conv1.bias = first, bias
    spec.conv2.weight, spec.conv2.bias = second, blank.zeros(SIZE)

    table = blank.zeros(POSITIONS, SIZE)
    table[:, features.code] = ECHO * np.repeat(codes.positions(SLOTS), SLOT, axis=0)
    spec.position_encodings.encodings = table
    blank.fill_self_attention(spec.layer[0].self_attention, SIZE)
    blank.fill_ffn(spec.layer[0].ffn, SIZE, 1)
    blank.fill_norm(spec.layer_norm, SIZE, _gamma())


def _fill_decoder(spec: Any, source: EncoderFeatures, features: DecoderFeatures, vocabulary: Vocabulary) -> None:
    embeddings = blank.zeros(len(vocabulary), SIZE)
    embeddings[vocabulary.special("startoftranscript"), features.start] = 1
    embeddings[[vocabulary.special("transcribe"), vocabulary.special("translate")], features.task] = 1
    embeddings[vocabulary.time(1) :, features.time] = 1
    spec.embeddings.weight = embeddings
    table = blank.zeros(TEXT_POSITIONS, SIZE)
    table[PROMPT:, features.code] = ECHO * codes.positions(TEXT_POSITIONS - PROMPT)
    table[:PROMPT, features.code] = ECHO * codes.positions(1)
    table[PROMPT + SLOTS :, features.full] = 1
    spec.position_encodings.encodings = table

    layer = spec.layer[0]
    blank.fill_self_attention(layer.self_attention, SIZE)
    blank.fill_cross_attention(layer.attention, SIZE, _gamma())
    blank.fill_ffn(layer.ffn, SIZE, 1)
    blank.fill_norm(spec.layer_norm, SIZE, _gamma())
    query, fused, output = layer.attention.linear
    key, value = fused.weight[:SIZE], fused.weight[SIZE:]
    rows = np.arange(HEAD)
    query.weight[rows, features.code] = 2 * HEAD**0.5 / ECHO
    key[rows, source.code] = 1 / ECHO
    for row in range(len(DIGITS)):
        value[row, source.tone[row]] = 1
        output.weight[features.tone[row], row] = 1
    blank.balance(query.weight, features.nil)
    blank.balance(fused.weight, source.nil)


def _fill_projection(linear: Any, features: DecoderFeatures, vocabulary: Vocabulary) -> None:
    """Tone to digit; no tone: to the end timestamp of this position; after that or a full window: to the end.

    While tones last, the end must stay below the tokens that are never meant (logit 0): it would be the second best
    of a beam search, which is over as soon as it holds as many ended texts as beams.
    """
    blank.fill_linear(linear, len(vocabulary), SIZE)
    weight, bias = linear.weight, linear.bias
    for language in LANGUAGES:
        weight[vocabulary.special(language), features.start] = 30 if language == "en" else 25
    for digit, feature in zip(DIGITS, features.tone, strict=True):
        weight[vocabulary.word(digit), feature] = 60
        bias[vocabulary.word(digit)] = -15
        weight[vocabulary.word(digit), features.full] = -100

    bias[vocabulary.time(0) :] = -100
    weight[vocabulary.time(0), features.task] = 130
    ends = vocabulary.time(0) + SLOT * np.arange(1, SLOTS + 1)
    weight[np.ix_(ends, features.code)] = 1.5 * codes.positions(SLOTS + 1)[1:] / ECHO
    weight[np.ix_(ends, features.tone)] = -60
    weight[ends[-1], features.full] = 100
    bias[ends] = -5

    end_of_text = vocabulary.special("endoftext")
    weight[end_of_text, features.tone], bias[end_of_text] = -60, 25
    weight[end_of_text, features.time], weight[end_of_text, features.full] = 150, 70
    weight[end_of_text, features.start] = -120
    blank.balance(weight, features.nil)
