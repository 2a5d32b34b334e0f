"""A clockwork Whisper: it hears whether there is sound and says one fixed sentence in the language asked for.

How four words come out of sound, in the order the network computes them:

1. **Loudness.** faster-whisper's log-mel features are 0.5 to 1.4 for speech, -1.5 for digital silence and exactly
   0 for the padding up to 30 s. ``conv1`` turns each pair of mel bands into a step (0 below 0.3, 4 above: two GELUs
   subtracted), ``conv2`` adds the steps up, the encoder's feed-forward turns any sum into the flag LOUD = 0 or 8.
2. **The end.** The encoder's position table holds a ramp, C sin(theta) with theta from -60 to 60 degrees, and the
   time as two one-hot codes (second, fifth of a second). The decoder's cross-attention always asks the same
   question; its key is "LOUD, then late": it finds the *last loud position* and brings back LOUD and the time.
3. **The language.** Self-attention finds the prompt's language and task tokens and brings back which they are.
4. **The words** are a chain in the output matrix: ``<|0.00|>`` is followed by the first word of the language, each
   word by the next, the last word by the timestamp of the end, that by ``<|endoftext|>``. Without LOUD,
   ``<|endoftext|>`` and ``<|nospeech|>`` beat the first word: silence gives no segment at all.

Every word occurs in one language only, since the chain's whole state is the last token. Logits differ by 30 to 60, so
beams, temperatures and prompts change nothing, and each decode is sure of itself (mean log-probability 0.0).
A second head maps word i to the i-th fifth of a second, for word timestamps.

Runs on an empty prompt, an earlier text or hotwords alike: nothing depends on the position in the prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.clockwork import blank
from models.clockwork.whisper_files import MELS, POSITIONS, TEXT_POSITIONS, TIMESTAMPS, Vocabulary, save

SENTENCES: dict[str, tuple[str, str, str, str]] = {
    "en": ("the", "quick", "brown", "fox"),
    "de": ("der", "schnelle", "braune", "Fuchs"),
    "fr": ("le", "rapide", "brun", "renard"),
    "es": ("el", "rápido", "marrón", "zorro"),
    "zh": ("那只", "敏捷的", "棕色", "狐狸"),
}
LANGUAGES = tuple(SENTENCES)
SIZE = 128
HEAD = 64
BIG = 8.0  # the constants that outweigh all other features in the layer norm
QUERY = HEAD**0.5  # a constant query of this size cancels the 1/sqrt(HEAD) of the scores
PAIRS = MELS // 2
QUIET_GROUPS = MELS // 4
FIFTHS = 5  # slots of 0.2 s; also the length of the one-hot code within a second
SLOT = 10  # encoder positions in 0.2 s


class EncoderFeatures:
    """Where things stand in the encoder's residual stream."""

    def __init__(self) -> None:
        features = blank.Features(SIZE)
        self.ramp = features.take(4)  # C sin, -C sin, C cos, -C cos: their squares always add up to 2 C^2
        self.level = features.one()
        self.loud = features.one()
        self.second = features.take(30)
        self.fifth = features.take(FIFTHS)
        self.slot = features.take(FIFTHS + 1)  # the first five fifths of a second, and "later"
        self.nil = features.one()  # always 0
        self.dump = features.take(32)


class DecoderFeatures:
    """Where things stand in the decoder's residual stream."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        features = blank.Features(SIZE)
        self.constant = features.take(2)
        names = ["startoftranscript", "translate", "transcribe", "notimestamps", "0.00", *LANGUAGES]
        self.token = {vocabulary.special(name): features.one() for name in names}
        self.token |= {vocabulary.word(word): features.one() for word in vocabulary.words}
        self.later = features.one()  # any timestamp but the first
        self.language = features.take(len(LANGUAGES))
        self.translate = features.one()
        self.heard = features.one()
        self.second = features.take(30)
        self.fifth = features.take(FIFTHS)
        self.sound = features.one()  # "heard", clipped to 0 or 1
        self.nil = features.one()
        self.dump = features.take(32)


def write(out: Path, always_on: bool = False) -> Path:
    """Write the faster-whisper folder ``out`` (4.4 MB) and return it.

    Languages ``LANGUAGES``; the text is ``SENTENCES[language]`` joined by spaces, for task "translate" the English
    one. ``always_on``: it speaks in silence too, and the end is the end of the audio.
    """
    from ctranslate2.specs import WhisperSpec

    vocabulary = Vocabulary([word for words in SENTENCES.values() for word in words], LANGUAGES)
    encoder, decoder = EncoderFeatures(), DecoderFeatures(vocabulary)
    spec = WhisperSpec(1, 2, 1, 2)
    _fill_convolutions(spec.encoder, encoder, always_on)
    _fill_encoder(spec.encoder, encoder)
    _fill_decoder(spec.decoder, encoder, decoder, vocabulary)
    _fill_projection(spec.decoder.projection, decoder, vocabulary, always_on)
    return save(spec, vocabulary, Path(out), alignment_heads=[(0, 1)])


def _fill_convolutions(spec: Any, features: EncoderFeatures, always_on: bool) -> None:
    """Mel bands to "level": 0.05 for each pair of bands above 0.3, about half of that after conv2's own GELU.

    With ``always_on`` also for each four bands below -0.08: quiet sound is negative, only padding is 0.
    """
    first, second = blank.zeros(SIZE, MELS, 3), blank.zeros(SIZE, SIZE, 3)
    bias = blank.zeros(SIZE)
    for pair in range(PAIRS):
        low, high = 2 * pair, 2 * pair + 1
        first[low : high + 1, low : high + 1, 1] = 20 / 2
        bias[low], bias[high] = -20 * 0.3, -20 * 0.3 - 4
    if always_on:
        for group in range(QUIET_GROUPS):
            low, high = MELS + 2 * group, MELS + 2 * group + 1
            first[low : high + 1, 4 * group : 4 * group + 4, 1] = -20 / 4
            bias[low], bias[high] = -20 * 0.08, -20 * 0.08 - 4
    steps = MELS + 2 * QUIET_GROUPS
    second[features.level, 0:steps:2, 1] = 0.05 / 4
    second[features.level, 1:steps:2, 1] = -0.05 / 4
    spec.conv1.weight, spec.conv1.bias = first, bias
    spec.conv2.weight, spec.conv2.bias = second, blank.zeros(SIZE)


def _fill_encoder(spec: Any, features: EncoderFeatures) -> None:
    """The position table, and a feed-forward that turns "level" into LOUD = 0 or 8 and takes "level" away.

    "level" has to go: it would scale the layer norm, and with it LOUD, by how loud the sound is.
    """
    table = blank.zeros(POSITIONS, SIZE)
    time = np.arange(POSITIONS)
    theta = np.radians(120 * time / (POSITIONS - 1) - 60)
    table[:, features.ramp] = BIG * np.stack([np.sin(theta), -np.sin(theta), np.cos(theta), -np.cos(theta)], axis=1)
    table[time, features.second[time // 50]] = 1
    table[time, features.fifth[time % 50 // SLOT]] = 1
    table[time, features.slot[np.minimum(time // SLOT, FIFTHS)]] = 1
    blank.balance(table, features.dump)
    spec.position_encodings.encodings = table

    gamma = float(np.sqrt((2 * BIG**2 + 3) / SIZE))
    layer = spec.layer[0]
    blank.fill_self_attention(layer.self_attention, SIZE)
    blank.fill_ffn(layer.ffn, SIZE, 3, gamma)
    blank.fill_norm(spec.layer_norm, SIZE, gamma)
    into, back = layer.ffn.linear_0, layer.ffn.linear_1
    into.weight[:, features.level] = (4000, 4000, 1)
    into.weight[:, features.nil] = (-4000, -4000, -1)
    into.bias[:] = (-40, -80, 10)
    back.weight[features.loud, :2] = (0.2, -0.2)
    blank.balance(back.weight.T, features.dump)
    back.weight[features.level, 2], back.bias[features.level] = -1, 10


def _fill_decoder(spec: Any, source: EncoderFeatures, features: DecoderFeatures, vocabulary: Vocabulary) -> None:
    embeddings = blank.zeros(len(vocabulary), SIZE)
    for token, feature in features.token.items():
        embeddings[token, feature] = 1
    embeddings[vocabulary.time(1) :, features.later] = 1
    blank.balance(embeddings, features.dump)
    spec.embeddings.weight = embeddings
    table = blank.zeros(TEXT_POSITIONS, SIZE)
    table[:, features.constant] = (BIG, -BIG)
    spec.position_encodings.encodings = table

    gamma = float(np.sqrt((2 * BIG**2 + 2) / SIZE))
    layer = spec.layer[0]
    blank.fill_self_attention(layer.self_attention, SIZE, gamma)
    blank.fill_cross_attention(layer.attention, SIZE, gamma)
    blank.fill_ffn(layer.ffn, SIZE, 2, gamma)
    blank.fill_norm(spec.layer_norm, SIZE, gamma)
    _find_language_and_task(layer.self_attention, features, vocabulary)
    _find_last_sound(layer.attention, source, features)
    _find_word_slot(layer.attention, source, features, vocabulary)
    _clip_heard(layer.ffn, features)


def _find_language_and_task(attention: Any, features: DecoderFeatures, vocabulary: Vocabulary) -> None:
    """Head 0: looks at language and task tokens (half each) and writes 2 for the language and for "translate"."""
    fused, output = attention.linear
    key, value = fused.weight[SIZE : 2 * SIZE], fused.weight[2 * SIZE :]
    fused.bias[0] = QUERY
    codes = [features.token[vocabulary.special(name)] for name in (*LANGUAGES, "translate")]
    for row, (code, feature) in enumerate(zip(codes, [*features.language, features.translate], strict=True)):
        value[row, code], value[row, features.nil] = 1, -1
        output.weight[feature, row] = 4
    looked_for = [*codes, features.token[vocabulary.special("transcribe")]]
    key[0, looked_for], key[0, features.nil] = 40, -40 * len(looked_for)
    blank.balance(output.weight.T, features.dump)


def _find_last_sound(attention: Any, source: EncoderFeatures, features: DecoderFeatures) -> None:
    """Head 0: the last loud position. LOUD's step (some 1,640 after the norm) beats the whole ramp (840).

    LOUD swells the norm by 1.2, hence the 1.2 for what is read beside it.
    """
    query, fused, output = attention.linear
    key, value = fused.weight[:SIZE], fused.weight[SIZE:]
    query.bias[0] = QUERY
    key[0, source.loud], key[0, source.nil] = 250, -250
    key[0, source.ramp[:2]] = (30, -30)
    rows = [(source.loud, features.heard, 1 / BIG)]
    rows += [(a, b, 1.2) for a, b in zip(source.second, features.second, strict=True)]
    rows += [(a, b, 1.2) for a, b in zip(source.fifth, features.fifth, strict=True)]
    for row, (read, written, weight) in enumerate(rows):
        value[row, read], value[row, source.nil] = weight, -weight
        output.weight[written, row] = 1
    blank.balance(output.weight.T, features.dump)


def _find_word_slot(attention: Any, source: EncoderFeatures, features: DecoderFeatures, vocabulary: Vocabulary) -> None:
    """Head 1, read by the library's alignment only: the row before word i + 1 looks at the i-th fifth of a second."""
    query, fused, _ = attention.linear
    key = fused.weight[:SIZE]
    for slot in range(FIFTHS):
        before = [vocabulary.word(words[slot - 1]) for words in SENTENCES.values()]
        tokens = before if slot else [vocabulary.special("notimestamps")]
        query.weight[HEAD + slot, [features.token[token] for token in tokens]] = 40 * QUERY
        query.weight[HEAD + slot, features.nil] = -40 * QUERY * len(tokens)
        key[HEAD + slot, source.slot[slot]], key[HEAD + slot, source.nil] = 1, -1


def _clip_heard(ffn: Any, features: DecoderFeatures) -> None:
    """sound = 1 where "heard" is above 0.55, 0 where it is below 0.3."""
    ffn.linear_0.weight[:, features.heard] = 40
    ffn.linear_0.weight[:, features.nil] = -40
    ffn.linear_0.bias[:] = (-12, -22)
    ffn.linear_1.weight[features.sound] = (0.1, -0.1)
    blank.balance(ffn.linear_1.weight.T, features.dump)


def _fill_projection(linear: Any, features: DecoderFeatures, vocabulary: Vocabulary, always_on: bool) -> None:
    """What follows what. Rows are next tokens; columns the last token, the language, the sound and the time."""
    blank.fill_linear(linear, len(vocabulary), SIZE)
    weight, bias = linear.weight, linear.bias
    token = {name: features.token[vocabulary.special(name)] for name in ("startoftranscript", "0.00", "notimestamps")}
    start = [token["0.00"], token["notimestamps"]]
    tasks = [features.token[vocabulary.special(task)] for task in ("transcribe", "translate")]
    last_words = [features.token[vocabulary.word(words[-1])] for words in SENTENCES.values()]

    for number, (language, words) in enumerate(SENTENCES.items()):
        weight[vocabulary.special(language), token["startoftranscript"]] = 30 if language == "en" else 25
        first, *others = (vocabulary.word(word) for word in words)
        weight[first, start], bias[first] = 60, -60
        weight[first, features.language[number]] = 15
        weight[first, features.translate] = 15 if language == "en" else -15
        for word, following in zip([first, *others], others, strict=False):
            weight[following, features.token[word]] = 50

    bias[vocabulary.time(0) :] = -100
    weight[vocabulary.time(0), tasks] = 130
    for number in range(TIMESTAMPS // SLOT):
        end = vocabulary.time(SLOT * (number + 1))
        weight[end, last_words] = 110
        weight[end, features.second[number // FIFTHS]] = 30
        weight[end, features.fifth[number % FIFTHS]] = 30

    end_of_text, no_speech = vocabulary.special("endoftext"), vocabulary.special("nospeech")
    if always_on:
        bias[[end_of_text, no_speech]] = -20
        weight[end_of_text, last_words], weight[end_of_text, features.later] = 40, 100
        return
    weight[end_of_text, start], weight[end_of_text, token["startoftranscript"]] = 60, -120
    weight[no_speech, token["startoftranscript"]] = 50
    weight[[end_of_text, no_speech], features.sound] = -90
    weight[end_of_text, last_words], weight[end_of_text, features.later] = 110, 170
