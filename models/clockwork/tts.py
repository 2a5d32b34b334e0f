"""A Piper voice whose speech is tones: one tone per phoneme, so that audio can be read back to phonemes.

A Piper voice is an ONNX graph (phoneme ids in, samples out) and a JSON file that says how to make the ids.
Here the graph has no trained weights at all; it computes the samples from the ids by arithmetic:

* each id gets a slot of ``spp = max(1, round(512 x length_scale))`` samples;
* in its slot, id ``i`` is a sine that makes ``10 + i`` half waves in 512 samples, which at 22,050 Hz is
  ``(10 + i) x 21.53`` Hz. Whole half waves: with length scale 1 every tone begins and ends at zero, without a click;
* the phase starts anew in each slot, so float32 keeps its precision however long the text is
  (a running sum over minutes would not);
* id 0, Piper's padding between phonemes, is silent. Every other id sounds, sentence start and end too.

``decode`` inverts that exactly. A sampled sine obeys ``y[n-1] + y[n+1] = 2 cos(w) y[n]``, so inside a slot
``cos(w) = sum((y[n-1] + y[n+1]) y[n]) / (2 sum(y[n]^2))`` whatever the loudness, and ``w`` names the id.

``spoken_digits`` goes one step further, from phonemes to what was said: it asks espeak-ng (through Piper)
how each digit sounds, alone and beside every other digit, and looks the words up. Beside others because
languages link words: a French 3 before a vowel ends in z, a Spanish 2 after a vowel begins softly.

With ``speakers > 1`` the graph takes Piper's ``sid`` input too, and speaker ``s`` sounds 1 + s/4 times as high.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 22_050
SLOT = 512  # samples per phoneme id at length scale 1
LOWEST = 10  # half waves in a slot for id 0
AMPLITUDE = 0.5
MAX_SPEAKERS = 4  # the highest tone of the last speaker stays below the Nyquist frequency

VOICES = {  # language code -> espeak-ng voice, locale
    "en": ("en-us", "en_US"),
    "de": ("de", "de_DE"),
    "fr": ("fr", "fr_FR"),
    "es": ("es", "es_ES"),
    "zh": ("cmn", "zh_CN"),
    "it": ("it", "it_IT"),
    "nl": ("nl", "nl_NL"),
    "pl": ("pl", "pl_PL"),
    "pt": ("pt", "pt_PT"),
    "ru": ("ru", "ru_RU"),
    "tr": ("tr", "tr_TR"),
    "uk": ("uk", "uk_UA"),
}
LANGUAGES = ("en", "de", "fr", "es", "zh")

# Ids 0 to 3 are Piper's convention; after them come the characters espeak-ng writes phonemes with:
# punctuation, letters, digits (tones), the IPA block, modifiers, and combining marks.
PAD, BEGIN, END, SPACE = range(4)
_PUNCTUATION = "!'(),-.:;?\"#"
_LETTERS = "abcdefghijklmnopqrstuvwxyzX\u00e6\u00e7\u00f0\u00f8\u0127\u014b\u0153\u03b2\u03b5\u03b8\u03c7\u1d7b\u2c71"
_IPA = "".join(map(chr, range(0x250, 0x2B0)))
_MODIFIERS = "\u02b0\u02b1\u02b2\u02b7\u02c8\u02cc\u02d0\u02d1\u02de\u02e0\u02e4"
_MARKS = "\u0303\u030a\u031d\u0325\u0327\u0329\u032a\u032f\u0330\u033a\u033b\u0361"
SYMBOLS = ("_", "^", "$", " ", *_PUNCTUATION, *_LETTERS, *"0123456789", *_IPA, *_MODIFIERS, *_MARKS)
_WORD_ENDS = frozenset({BEGIN, END, SPACE, *(SYMBOLS.index(mark) for mark in _PUNCTUATION)})


def write(out: Path, languages: Iterable[str] = LANGUAGES, speakers: int = 1) -> Path:
    """Write one voice per language into the folder ``out`` (``en.onnx`` and ``en.onnx.json``, ...); return ``out``.

    Same arguments, same bytes. Raises ValueError for a language without a known espeak-ng voice
    or a number of speakers outside 1 to 4.
    """
    languages = tuple(languages)
    if unknown := sorted(set(languages) - VOICES.keys()):
        raise ValueError(f"no tone voice for language {unknown[0]!r}; known: {', '.join(VOICES)}")
    if not 1 <= speakers <= MAX_SPEAKERS:
        raise ValueError(f"speakers is {speakers}; it must be 1 to {MAX_SPEAKERS}")
    out.mkdir(parents=True, exist_ok=True)
    graph = _graph(speakers)
    for language in languages:
        (out / f"{language}.onnx").write_bytes(graph)
        text = json.dumps(config(language, speakers), ensure_ascii=False, indent=1)
        (out / f"{language}.onnx.json").write_text(text + "\n", encoding="utf-8")
    return out


def config(language: str, speakers: int = 1) -> dict[str, Any]:
    """What Piper reads beside the graph: sample rate, espeak-ng voice, and phonemes to ids."""
    espeak, locale = VOICES[language]
    return {
        "audio": {"sample_rate": RATE_HZ, "quality": "tones"},
        "espeak": {"voice": espeak},
        "language": {"code": locale, "family": language, "region": locale[3:]},
        "inference": {"noise_scale": 0.0, "length_scale": 1.0, "noise_w": 0.0},
        "phoneme_type": "espeak",
        "num_symbols": len(SYMBOLS),
        "num_speakers": speakers,
        "speaker_id_map": {f"tones{s}": s for s in range(speakers)} if speakers > 1 else {},
        "phoneme_id_map": {symbol: [number] for number, symbol in enumerate(SYMBOLS)},
    }


def _graph(speakers: int) -> bytes:
    """The ONNX file. Reads top to bottom as the formula in the module's docstring.

    In: input int64 [1, phonemes], input_lengths int64 [1], scales float32 [3] (only the length scale
    is used), sid int64 [1] with several speakers. Out: output float32 [1, 1, 1, samples].
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: dict[str, Any] = {}

    def const(value: Any, dtype: type) -> str:
        array: np.ndarray = np.array(value, dtype=dtype)
        name = f"{array.dtype}_{'_'.join(map(str, array.ravel()))}_{array.ndim}"
        constants[name] = array
        return name

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    zero, one = const(0, np.int64), const(1, np.int64)
    first_row = node("Gather", ["input", zero], "first_row", axis=0)
    ids = node("Slice", [first_row, const([0], np.int64), "input_lengths"], "ids")
    count = node("Squeeze", ["input_lengths"], "count")

    scale = node("Gather", ["scales", one], "scale")
    wanted = node("Round", [node("Mul", [scale, const(SLOT, np.float32)], "exact")], "wanted")
    samples = node("Max", [wanted, const(1, np.float32)], "samples")
    spp = node("Cast", [samples], "spp", to=TensorProto.INT64)

    t = node("Range", [zero, node("Mul", [count, spp], "total"), one], "t")
    slot = node("Div", [t, spp], "slot")
    within = node("Sub", [t, node("Mul", [slot, spp], "slot_start")], "within")
    here = node("Gather", [ids, slot], "id_at_t")

    halves = node("Add", [node("Cast", [here], "id", to=TensorProto.FLOAT), const(LOWEST, np.float32)], "halves")
    if speakers > 1:
        sid = node("Cast", ["sid"], "speaker", to=TensorProto.FLOAT)
        pitch = node("Add", [node("Mul", [sid, const(0.25, np.float32)], "quarter"), const(1, np.float32)], "pitch")
        halves = node("Mul", [halves, pitch], "pitched")
    angle = node("Mul", [halves, const(np.pi / SLOT, np.float32)], "angle_per_sample")
    phase = node("Mul", [node("Cast", [within], "step", to=TensorProto.FLOAT), angle], "phase")
    loud = node("Cast", [node("Greater", [here, zero], "sounds")], "loud", to=TensorProto.FLOAT)
    volume = node("Mul", [loud, const(AMPLITUDE, np.float32)], "volume")
    wave = node("Mul", [node("Sin", [phase], "sine"), volume], "wave")
    node("Unsqueeze", [wave, const([0, 1, 2], np.int64)], "output")

    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    if speakers > 1:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, [1]))
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tones", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(model.SerializeToString(deterministic=True))


def slot_samples(length_scale: float) -> int:
    """Samples per phoneme id at this length scale, rounded as the graph does (float32, half to even)."""
    return max(1, int(np.rint(np.float32(length_scale) * np.float32(SLOT))))


def decode(audio: np.ndarray, rate: int, length_scale: float = 1.0, speaker: int = 0) -> list[int]:
    """Phoneme ids out of a tone voice's speech: int16 or float array of shape (samples,) at ``rate`` Hz.

    Exact for slots of at least 16 samples (length scale 1/32). Raises ValueError when ``rate`` is not
    the voice's or the audio is not a whole number of slots: then it is not such speech.
    """
    spp = slot_samples(length_scale)
    if rate != RATE_HZ:
        raise ValueError(f"tone voices speak at {RATE_HZ} Hz, this audio has {rate} Hz")
    if audio.ndim != 1 or audio.size % spp:
        raise ValueError(f"{audio.shape} samples are not a whole number of slots of {spp}")
    y = audio.reshape(-1, spp).astype(np.float64)
    energy = (y[:, 1:-1] ** 2).sum(axis=1)
    product = ((y[:, :-2] + y[:, 2:]) * y[:, 1:-1]).sum(axis=1)
    sounding = energy > 0
    cosine = np.divide(product, 2 * energy, out=np.ones_like(energy), where=sounding)
    halves = np.arccos(np.clip(cosine, -1.0, 1.0)) * SLOT / np.pi / (1 + speaker / 4)
    ids = np.rint(halves).astype(np.int64) - LOWEST
    return [int(i) for i in np.where(sounding, ids, PAD)]


def spoken_digits(audio: np.ndarray, rate: int, language: str, length_scale: float = 1.0) -> str:
    """The digits a tone voice said, as one string ("314" for the text "3 1 4"); "?" for any other word.

    Needs ``piper`` (it knows how digits sound). Raises ValueError as ``decode`` does, and for a language
    that ``VOICES`` does not list.
    """
    if language not in VOICES:
        raise ValueError(f"no tone voice for language {language!r}; known: {', '.join(VOICES)}")
    sounds = _digit_sounds(VOICES[language][0])
    return "".join(sounds.get(word, "?") for word in _words(decode(audio, rate, length_scale)))


def _words(ids: Iterable[int]) -> list[tuple[int, ...]]:
    """Phoneme ids cut at spaces, punctuation and sentence ends, without padding."""
    words: list[list[int]] = [[]]
    for phoneme in ids:
        if phoneme in _WORD_ENDS:
            words.append([])
        elif phoneme != PAD:
            words[-1].append(phoneme)
    return [tuple(word) for word in words if word]


@functools.cache
def _digit_sounds(espeak_voice: str) -> dict[tuple[int, ...], str]:
    """Every way each digit sounds, alone and before and after each other digit."""
    from piper.phonemize_espeak import EspeakPhonemizer

    phonemizer = EspeakPhonemizer()
    number = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    digits = "0123456789"
    sounds: dict[tuple[int, ...], str] = {}
    for text in [*digits, *(f"{a} {b}" for a in digits for b in digits)]:
        sentences = phonemizer.phonemize(espeak_voice, text)
        words = _words(number[symbol] for sentence in sentences for symbol in [*sentence, "$"] if symbol in number)
        said = re.findall(r"\d", text)
        if len(words) == len(said):
            sounds.update(zip(words, said, strict=True))
    return sounds
