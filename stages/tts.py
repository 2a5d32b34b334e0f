"""Speech from text: Piper voices on ONNX Runtime.

A voice is two files, ``NAME.onnx`` and ``NAME.onnx.json``; the model of this stage is one such voice or a folder
of them, one or more per language. The language is the session's target (its source, when nothing translates).

``piper`` turns text into phoneme ids (espeak-ng inside) and runs the graph, sentence by sentence; the ONNX
session is ours, because the thread count, the memory limit and the provider have to be: onnxruntime falls back
to the CPU in silence when CUDA does not work, so after opening we look at what we got.

Memory follows the length of what is made at once: some 25 MB a second for a voice of medium quality, gigabytes for a
long text without a full stop. So a sentence of more than ``LONGEST_SENTENCE`` phonemes is made in parts, divided
between words.

Speech has no upper bound that follows from its text, but the slot it is written to is taken before the stage
runs. ``declaration.output`` is that size: 1 MiB (24 s at 22,050 Hz) for what is short, where one digit may be a
long word, plus 16 KiB a character: 0.37 s each, slow Mandarin; letters come at ten to fifteen a second and
need a quarter. The longest text, 2,500 characters, then takes 40 MiB of the ring, and two minutes of fast speech
have 2,400. A result that is longer ends in ``output_too_long``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from stages.base import (
    Declaration,
    Item,
    Longest,
    Memory,
    ModelFacts,
    Output,
    OutputSize,
    Stage,
    StageConfig,
    StageError,
)
from stages.voices import VoiceFiles, find_voices

NO_CUDA = (
    "onnxruntime came up on the CPU although device = 'cuda': install onnxruntime-gpu with the CUDA libraries it wants "
    "(make env GPU=1; run_node.py doctor shows what is in force), or set device = 'cpu'"
)
MIB = 1 << 20
LONGEST_SENTENCE = 400  # phonemes
PHONEMES_A_S = 14
# Memory while one sample is made, by a voice's quality: nine numbers for each of the last 32 channels. Measured for
# "medium"; "high" has more layers before them and is a guess.
SAMPLE_BYTES = {"x_low": 1152, "low": 1152, "medium": 1152, "high": 2304}
SIZE = OutputSize(base=MIB, per_char=16 * 1024)

# espeak-ng reads full-width punctuation as words or not at all; the space ends the sentence.
PUNCTUATION = str.maketrans(
    {
        "\uff0c": ", ",  # comma
        "\u3001": ", ",  # enumeration comma
        "\u3002": ". ",  # full stop
        "\uff0e": ". ",
        "\uff01": "! ",
        "\uff1f": "? ",
        "\uff1b": "; ",
        "\uff1a": ": ",
        "\uff08": " (",
        "\uff09": ") ",
        "\u2026": "... ",
        "\u300c": ' "',
        "\u300d": '" ',
        "\u300e": ' "',
        "\u300f": '" ',
        "\u3000": " ",
    }
)
OOM_SIGNS = ("out of memory", "failed to allocate memory", "bad_alloc", "cublas_status_alloc_failed")
# Text of these alone is not speech, though espeak-ng would name some of them.
SILENT = " .,;:!?()\"'-\u00a1\u00bf\u2013\u2014"

_OPTIONS: dict[str, tuple[type, float, float]] = {
    "length_scale": (float, 0.5, 2.0),
    "noise_scale": (float, 0.0, 2.0),
    "noise_w": (float, 0.0, 2.0),
    "speaker": (int, 0, 10_000),
    "gpu_mem_limit_mib": (int, 16, 1 << 20),
}


class TtsStage(Stage):
    """``tts``: text in, int16 speech out, at the voice's own rate, its sentences one after another.

    Options: ``length_scale`` (slower above 1), ``noise_scale``, ``noise_w`` (defaults: the voice's own),
    ``speaker`` (number, for voices with several), ``gpu_mem_limit_mib`` (cap of ONNX Runtime's arena).
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="tts",
        accepts="text",
        emits="audio",
        requires=("piper", "onnxruntime"),
        output=SIZE,
        max_chars=2500,
        install_hint="pip install piper-tts onnxruntime",
    )

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._voices: dict[str, Any] = {}  # by locale and by language -> piper voice
        self._synthesis: Any = None

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if name not in _OPTIONS:
                raise ValueError(f"stage tts has no option {name!r}; it has: {', '.join(_OPTIONS)}")
            kind, low, high = _OPTIONS[name]
            if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
                raise ValueError(f"tts option {name} is {value!r}; it must be a number from {low} to {high}")
            if not low <= value <= high:
                nearest = min(max(value, low), high)
                raise ValueError(f"tts option {name} is {value}; the nearest valid value is {nearest}")

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        """Languages of the voices and the size of their graphs. Raises StageError("bad_model")."""
        voices = find_voices(model)
        for voice in voices:
            _check_speaker(voice, options.get("speaker"))
        return ModelFacts(
            weights_bytes=sum(voice.onnx.stat().st_size for voice in voices),
            languages=frozenset(voice.language for voice in voices),
        )

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        """Of the longest sentence: items run one by one. None for voices whose quality is none of Piper's."""
        voices = find_voices(config.model)
        each = [_sentence_bytes(voice, config.options, longest) for voice in voices]
        if not all(each):
            return None
        return Memory(sum(voice.onnx.stat().st_size for voice in voices), max(each))

    def load(self) -> None:
        """Open every voice. Raises StageError("bad_model") or ("oom")."""
        files = find_voices(self.config.model)
        options = self.config.options
        for voice in files:
            _check_speaker(voice, options.get("speaker"))
        import piper

        self._synthesis = piper.SynthesisConfig(
            speaker_id=options.get("speaker"),
            length_scale=options.get("length_scale"),
            noise_scale=options.get("noise_scale"),
            noise_w_scale=options.get("noise_w"),
        )
        for voice in files:
            try:
                opened = self._open(voice)
                opened.phonemize("a")  # espeak-ng's voice is looked up by name only now
            except StageError:
                raise
            except Exception as error:
                raise _library_error("bad_model", f"cannot open the voice {voice.onnx}", error) from error
            self._voices.setdefault(voice.locale, opened)
            self._voices.setdefault(voice.language, opened)

    def warm_up(self) -> None:
        for voice in {id(voice): voice for voice in self._voices.values()}.values():
            for _ in range(self.config.warm_up_runs):
                for _chunk in voice.synthesize("1 2 3.", self._synthesis):
                    pass

    def run(self, items: Sequence[Item]) -> list[Output | StageError]:
        results: list[Output | StageError] = []
        for item in items:
            try:
                results.append(self._speak(item))
            except StageError as error:
                results.append(error)
            except Exception as error:
                results.append(_library_error("failed", "tts", error))
        return results

    def close(self) -> None:
        self._voices.clear()

    def _open(self, files: VoiceFiles) -> Any:
        """A piper voice around an ONNX session of our own."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to its makers when it is imported
        import onnxruntime
        import piper

        cuda = self.config.device == "cuda"
        if cuda and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise StageError("bad_model", NO_CUDA)
        onnxruntime.set_default_logger_severity(3)  # errors: it warns at each session of what is no fault
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.config.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # every text has its own length: plans for each would only be kept
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        providers = [_cuda_provider(self.config.options)] if cuda else ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(files.onnx), sess_options=options, providers=providers)
        if cuda and "CUDAExecutionProvider" not in session.get_providers():
            raise StageError("bad_model", NO_CUDA)
        voice = piper.PiperVoice(session=session, config=piper.PiperConfig.from_dict(dict(files.config)))
        whole = voice.phonemize
        voice.phonemize = lambda text: [part for sentence in whole(text) for part in divide(sentence)]
        return voice

    def _voice_for(self, item: Item) -> Any:
        wanted = item.target or item.source
        if wanted in ("", "auto") and len({id(voice) for voice in self._voices.values()}) == 1:
            return next(iter(self._voices.values()))
        locale = wanted.replace("_", "-").lower()
        voice = self._voices.get(locale) or self._voices.get(locale.split("-")[0])
        if voice is None:
            known = ", ".join(sorted({name.split("-")[0] for name in self._voices}))
            raise StageError("bad_language", f"no voice speaks {wanted!r}; there are voices for: {known}")
        return voice

    def _speak(self, item: Item) -> Output:
        voice = self._voice_for(item)
        text = speakable(item.text or "")
        room = SIZE.bound(0, len(item.text or ""))
        pieces: list[np.ndarray] = []
        if text:
            for samples in self._sentences(voice, text):
                pieces.append(to_int16(samples))
                if (size := sum(piece.nbytes for piece in pieces)) > room:
                    raise StageError("output_too_long", f"the speech has {size} bytes or more, room is for {room}")
        if not pieces:
            return Output(state="skipped", reason="nothing to say")
        return Output(audio=np.concatenate(pieces), sample_rate=voice.config.sample_rate)

    def _sentences(self, voice: Any, text: str) -> Iterator[np.ndarray]:
        """Float samples of each sentence, between -1 and 1 where they are numbers."""
        try:
            # Piper divides a sentence by its peak: what is not a number stays so, and is found afterwards.
            with np.errstate(invalid="ignore", divide="ignore"):
                for chunk in voice.synthesize(text, self._synthesis):
                    yield chunk.audio_float_array
        except ValueError as error:
            if "zero-size array" not in str(error):  # the peak of no samples
                raise
            yield np.zeros(0, np.float32)


def speakable(text: str) -> str:
    """``text`` as the phonemizer should get it: ASCII punctuation, no control characters, no phoneme brackets.

    Piper and espeak-ng take ``[[...]]`` as phonemes; what a speaker says is text. Returns "" when nothing is left.
    Raises StageError("bad_text") for text that is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StageError("bad_text", "the text is not valid Unicode (a lone surrogate)") from None
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.translate(PUNCTUATION))
    while "[[" in text or "]]" in text:
        text = text.replace("[[", "[ [").replace("]]", "] ]")
    return text.strip() if text.strip(SILENT) else ""


def divide(phonemes: Sequence[str], limit: int = LONGEST_SENTENCE) -> Iterator[list[str]]:
    """A sentence in parts of at most ``limit`` phonemes, each but the last ending where a word does if one does."""
    rest = list(phonemes)
    while len(rest) > limit:
        end = next((at + 1 for at in range(limit - 1, 0, -1) if rest[at] == " "), limit)
        yield rest[:end]
        rest = rest[end:]
    yield rest


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Float samples in -1 to 1, shape (samples,), as int16. Raises StageError("bad_output") when not finite or none."""
    samples = np.atleast_1d(audio)
    if samples.size == 0:
        raise StageError("bad_output", "the voice returned no samples", retry=True)
    if not np.isfinite(samples).all():
        raise StageError("bad_output", "the voice returned samples that are not finite", retry=True)
    return np.rint(samples * 32767.0).astype(np.int16)


def _sentence_bytes(voice: VoiceFiles, options: Mapping[str, Any], longest: Longest) -> int:
    """Memory for the longest sentence; 0 when the voice is of no known quality."""
    audio, inference = voice.config["audio"], voice.config.get("inference") or {}
    slower = float(options.get("length_scale", inference.get("length_scale", 1.0)))
    phonemes = min(LONGEST_SENTENCE, 2 * longest.chars)
    a_sample = SAMPLE_BYTES.get(str(audio.get("quality")), 0)
    return int(phonemes / PHONEMES_A_S * slower * int(audio["sample_rate"]) * a_sample)


def _check_speaker(voice: VoiceFiles, speaker: int | None) -> None:
    speakers = max(1, int(voice.config["num_speakers"]))
    if speaker is not None and speaker >= speakers:
        raise StageError("bad_model", f"{voice.onnx.name} has {speakers} speaker(s), numbered from 0")


def _cuda_provider(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """CUDA without the arena's doubling, without minutes of convolution search, and capped when asked."""
    settings: dict[str, Any] = {
        "device_id": 0,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if "gpu_mem_limit_mib" in options:
        settings["gpu_mem_limit"] = int(options["gpu_mem_limit_mib"]) * MIB
    return "CUDAExecutionProvider", settings


def _library_error(code: str, what: str, error: Exception) -> StageError:
    line = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, MemoryError) or any(sign in line.lower() for sign in OOM_SIGNS):
        return StageError("oom", f"{what}: {line}", retry=True)
    return StageError(code, f"{what}: {line}", retry=code == "failed")
