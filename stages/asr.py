"""Speech to text: Whisper models on CTranslate2, through faster-whisper.

The model is a faster-whisper folder, or a name that the library resolves itself (a size, a hub id). A folder is
looked at before anything is loaded: without ``tokenizer.json`` the library would ask a hub for one, which on a node
without a network is a long wait and an error that names the wrong thing.

Whisper pads every input to 30 s, so its cost hardly depends on the length. On a GPU the utterances of a run that are no
longer are done at once (``stages.asr_windows``). Longer ones, and all of them on the CPU, which gains nothing by that,
are one call each; there an unknown language costs a second encoder pass. What is decoded does not depend on earlier
utterances (``condition_on_previous_text`` is off): a retry gives the same text.

An empty text is a result: nothing was said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages import ctranslate2_file
from stages.asr_windows import WINDOW_S, Windows
from stages.base import (
    Declaration,
    Item,
    Longest,
    Memory,
    ModelFacts,
    Output,
    Stage,
    StageConfig,
    StageError,
    weights_bytes,
)
from stages.faults import match_language, not_a, some, stage_error
from stages.places import is_path

RATE_HZ = 16000
GET_ONE = "docs/models.md says where to get one (a stand-in: run_node.py models synthesize asr --out DIR)"
FILES = ("model.bin", "config.json", "tokenizer.json")
LANGUAGE_TOKEN = re.compile(r"<\|([a-z]{2,3})\|>")
MULTILINGUAL_TOKENS = 51865  # CTranslate2 before 4.7 told multilingual models by their size, since then by a "" token

WINDOW = 1500  # encoder positions of a window, whatever the input's length
TEXT = 448  # decoder positions
AUDIO_BYTES_A_S = 1_000_000  # spectrum of one second in float32 and complex64, and copies of it
TOKEN_BYTES = 600  # host memory for a token's text, in the library and in the tokenizer

_NUMBERS: dict[str, tuple[type, float, float]] = {"beam_size": (int, 1, 20), "temperature": (float, 0.0, 1.0)}
_OTHERS: dict[str, type] = {"vad_filter": bool, "batched": bool, "initial_prompt": str, "hotwords": str}


class AsrStage(Stage):
    """``asr``: mono 16 kHz speech in (int16 or float32), its transcript out, in the session's source language.

    Source "" or "auto": the model finds the language out and ``Output.language`` names it.

    Options: ``beam_size`` (default 5 on a GPU; on the CPU 1, where each beam costs its share), ``temperature``
    (default 0.0, one decode; above 0 it samples), ``vad_filter`` (default false: drop what a voice detector calls
    silence first; loads ONNX Runtime into this process), ``initial_prompt`` and ``hotwords`` (text that makes names
    and spellings likelier), ``batched`` (utterances of a run at once; default true on a GPU, false on the CPU; with
    ``vad_filter`` never).
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="asr",
        accepts="audio",
        emits="text",
        requires=("faster_whisper",),
        install_hint="pip install faster-whisper",
        compute_types=ctranslate2_file.COMPUTE_TYPES,
    )

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._vad_filter = bool(config.options.get("vad_filter", False))
        self._model: Any = None
        self._windows: Windows | None = None  # for many at once
        self._languages: frozenset[str] = frozenset()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if name in _NUMBERS:
                _check_number(name, value)
            elif name not in _OTHERS:
                raise ValueError(f"stage asr has no option {name!r}; it has: {', '.join([*_NUMBERS, *_OTHERS])}")
            elif not isinstance(value, _OTHERS[name]):
                wanted = "true or false" if _OTHERS[name] is bool else "a text"
                raise ValueError(f"asr option {name} is {value!r}; it must be {wanted}")

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        """Languages and size of a local folder; of a name nothing is known yet. Raises StageError("bad_model")."""
        del options
        if not model:
            raise StageError("bad_model", f"asr has no model: give a faster-whisper folder or name; {GET_ONE}")
        if not is_path(model):
            return ModelFacts()
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise StageError("bad_model", f"there is no folder {model}; {GET_ONE}")
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise StageError("bad_model", f"{model} is no faster-whisper folder: it has no {missing[0]}; {GET_ONE}")
        if ctranslate2_file.maker(folder / "model.bin") != "WhisperSpec":
            raise not_a(folder / "model.bin", f"a Whisper model in CTranslate2's format; {GET_ONE}")
        return ModelFacts(weights_bytes=weights_bytes(str(folder / "model.bin")), languages=read_languages(folder))

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        """Of one window, or of as many as run at once. None for a name or a model of another make."""
        sizes = ctranslate2_file.read(Path(config.model).expanduser() / "model.bin")
        if sizes is None:
            return None
        number = sizes.run_bytes(config.device, config.compute_type)
        scores = 2 * sizes.heads * WINDOW**2 * number
        encoding = scores + WINDOW * (sizes.hidden + 4 * sizes.width) * number
        decoding = sizes.kept_bytes(config.device, config.compute_type) * (WINDOW + TEXT * _beams(config))
        # An utterance of several windows still holds the keys of the window before while the next one is encoded.
        several = longest.audio_s > WINDOW_S
        workspace, vocabulary = encoding + decoding if several else max(encoding, decoding), 0
        if _is_batched(config):
            workspace = max(workspace, config.max_batch * max(encoding, decoding))
        if config.device == "cpu":
            # Loading leaves a copy of the largest matrix behind, or does not; half of it is not far from either.
            leftover = sizes.vocabulary * sizes.width * number // 2
            audio = int(longest.audio_s * AUDIO_BYTES_A_S) if several else 0
            vocabulary = TOKEN_BYTES * sizes.vocabulary
            workspace += max(0, audio - scores) + leftover + vocabulary
        weights = sizes.resident_bytes(config.device, config.compute_type)
        return Memory(weights, workspace, at_load_bytes=vocabulary)

    def load(self) -> None:
        """Open the model. Raises StageError("bad_model") or ("oom")."""
        config = self.config
        self.describe(config.model, config.options)
        from faster_whisper import WhisperModel

        local = is_path(config.model)
        try:
            self._model = WhisperModel(
                str(Path(config.model).expanduser()) if local else config.model,
                device=config.device,
                compute_type=config.compute_type,
                cpu_threads=config.threads,
                num_workers=1,
                local_files_only=local,
            )
            known = self._model.hf_tokenizer.token_to_id
            self._languages = frozenset(
                code for code in self._model.supported_languages if code == "en" or known(f"<|{code}|>") is not None
            )
        except Exception as error:
            raise stage_error("bad_model", f"cannot load the asr model {config.model}", error) from error
        if _is_batched(config):
            self._windows = Windows(
                self._model, beam_size=_beams(config), temperature=self._temperature,
                initial_prompt=config.options.get("initial_prompt"), hotwords=config.options.get("hotwords"),
            )  # fmt: skip

    def warm_up(self) -> None:
        """Runs over a second of noise; with a voice filter, which would take the noise away, and for as many at once as
        may come, as many more."""
        noise = np.random.Generator(np.random.PCG64(0)).normal(0, 0.1, RATE_HZ).astype(np.float32)
        language = "en" if "en" in self._languages else min(self._languages)
        try:
            for vad_filter in {False, self._vad_filter}:
                for _ in range(self.config.warm_up_runs):
                    self._transcribe(noise, language, vad_filter)
            if self._windows is not None:
                for _ in range(self.config.warm_up_runs):
                    self._windows.transcribe([noise] * self.config.max_batch, [language] * self.config.max_batch)
        except Exception as error:
            raise stage_error("bad_model", f"the asr model {self.config.model} does not run", error) from error

    def run(self, items: Sequence[Item]) -> list[Output | StageError]:
        """At once what is of one window, one by one what is not; all one by one if the library fails.

        Raises StageError("oom") where all at once was too much: fewer may not be.
        """
        outputs: list[Output | StageError | None] = [None] * len(items)
        if self._windows is not None:
            try:
                self._run_windows(self._windows, items, outputs)
            except Exception as error:  # which of them it was shows when each runs alone
                cause = stage_error("failed", "asr", error)
                if cause.code == "oom" and len(items) > 1:
                    raise cause from error
        return [output or self._run_one(item) for item, output in zip(items, outputs, strict=True)]

    def close(self) -> None:
        self._model = self._windows = None

    def _run_windows(self, windows: Windows, items: Sequence[Item], outputs: list[Output | StageError | None]) -> None:
        """Fill in what can be said of items at once."""
        audios: dict[int, np.ndarray] = {}
        languages: list[str | None] = []
        for number, item in enumerate(items):
            try:
                audio, language = samples_of(item), self._language_of(item)
            except StageError as error:
                outputs[number] = error
                continue
            if 0 < len(audio) <= WINDOW_S * RATE_HZ:
                audios[number] = audio
                languages.append(language)
        if audios:
            for number, heard in zip(audios, windows.transcribe([*audios.values()], languages), strict=True):
                if heard is not None and heard.text:
                    outputs[number] = Output(text=heard.text, confidence=heard.sureness, language=heard.language)
                elif heard is not None:  # the language of silence is a guess
                    outputs[number] = Output(text="", language=self._language_of(items[number]) or "")

    def _run_one(self, item: Item) -> Output | StageError:
        try:
            return self._transcribe(samples_of(item), self._language_of(item), self._vad_filter)
        except StageError as error:
            return error
        except Exception as error:
            return stage_error("failed", "asr", error)

    @property
    def _temperature(self) -> float:
        return float(self.config.options.get("temperature", 0.0))

    def _language_of(self, item: Item) -> str | None:
        """The model's code for the session's source; None to have it found out."""
        if item.source in ("", "auto"):
            return None
        language = match_language(item.source, self._languages)
        if language is None:
            known = some(self._languages)
            raise StageError("bad_language", f"the asr model does not know {item.source!r}; it knows {known}")
        return language

    def _transcribe(self, samples: np.ndarray, language: str | None, vad_filter: bool) -> Output:
        options = self.config.options
        segments, info = self._model.transcribe(
            samples,
            language=language,
            beam_size=_beams(self.config),
            temperature=self._temperature,
            vad_filter=vad_filter,
            initial_prompt=options.get("initial_prompt") or None,
            hotwords=options.get("hotwords") or None,
            condition_on_previous_text=False,
        )
        found = list(segments)
        text = "".join(segment.text for segment in found).strip()
        if not text:
            return Output(text="", language=language or "")  # the language of silence is a guess
        return Output(text=text, confidence=confidence(found), language=info.language)


def _beams(config: StageConfig) -> int:
    return int(config.options.get("beam_size", 1 if config.device == "cpu" else 5))


def _is_batched(config: StageConfig) -> bool:
    chosen = bool(config.options.get("batched", config.device != "cpu"))
    return chosen and not config.options.get("vad_filter", False)


def samples_of(item: Item) -> np.ndarray:
    """The item's audio as float32 of shape (samples,), -1 to 1. Raises StageError("failed") for what is not 16 kHz."""
    if item.audio is None:
        raise StageError("failed", "asr got no audio")
    if item.sample_rate not in (0, RATE_HZ):
        raise StageError("failed", f"asr takes audio of {RATE_HZ} Hz, got {item.sample_rate} Hz")
    if item.audio.dtype == np.int16:
        return item.audio.astype(np.float32) / np.float32(32768)
    return item.audio.astype(np.float32, copy=False)


def confidence(segments: Sequence[Any]) -> float | None:
    """Mean log-probability of a token, over segments with ``avg_logprob`` and ``tokens``; None without tokens."""
    tokens = sum(len(segment.tokens) for segment in segments)
    if not tokens:
        return None
    return float(sum(segment.avg_logprob * len(segment.tokens) for segment in segments) / tokens)


def read_languages(folder: Path) -> frozenset[str]:
    """Languages of a local model: its language tokens if it is multilingual, else English. StageError("bad_model")."""
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = [token["content"] for token in tokenizer["added_tokens"]]
        found = frozenset(match[1] for match in map(LANGUAGE_TOKEN.fullmatch, tokens) if match)
        return found if _is_multilingual(folder) else frozenset({"en"})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError("bad_model", f"cannot read the tokenizer in {folder}: {error}; {GET_ONE}") from error


def _is_multilingual(folder: Path) -> bool:
    lists = [folder / "vocabulary.json", folder / "vocabulary.txt"]
    path = next((path for path in lists if path.is_file()), None)
    if path is None:
        raise StageError("bad_model", f"{folder} is no faster-whisper folder: it has no vocabulary.json; {GET_ONE}")
    text = path.read_text(encoding="utf-8")
    tokens: list[str] = json.loads(text) if path.suffix == ".json" else text.split("\n")[:-1]
    return "" in tokens or len(tokens) >= MULTILINGUAL_TOKENS


def _check_number(name: str, value: Any) -> None:
    kind, low, high = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"asr option {name} is {value!r}; it must be a number from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"asr option {name} is {value}; the nearest valid value is {min(max(value, low), high)}")
