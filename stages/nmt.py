"""Text translation: M2M100 models on CTranslate2, pieces by SentencePiece.

The model is a CTranslate2 folder with its SentencePiece model beside it. M2M100 is told languages by tokens: the
source text starts with ``__en__``, the translation is forced to start with ``__de__``. The library takes a token it
does not know for ``<unk>`` and translates into nothing in particular, so languages are checked against the model's
vocabulary here.

A batch is one call of the library. It cuts sources at 1,024 pieces in silence; a longer text is therefore divided at
the ends of its sentences into chunks of at most 900 pieces, which ride in the same call, and put together again with
the blanks that stood between them. The library takes as many of them at once as the batch may have items. A single
sentence above that ends in ``bad_text``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stages import ctranslate2_file
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

GET_ONE = "docs/models.md says where to get one (a stand-in: run_node.py models synthesize nmt --out DIR)"
LANGUAGE_TOKEN = re.compile(r"__([a-z]{2,3})__")
END = "</s>"
LONGEST_SOURCE = 900  # pieces in one chunk
LONGEST_TARGET = 1023  # the decoder's positions, less the one that starts it
TOKEN_BYTES = 600  # host memory for a token's text, in the library's vocabulary and SentencePiece's
SENTENCE = re.compile(r".+?(?:[.!?\u2026]+(?=\s)|[\u3002\uff01\uff1f]+|\Z)\s*", re.DOTALL)
_OPTIONS = {"beam_size": (1, 20)}


@dataclass(frozen=True)
class Chunk:
    """A part of one item's text: its pieces, and the blanks between it and the next part."""

    pieces: list[str]
    gap: str


@dataclass(frozen=True)
class Request:
    """One item, ready for the library: language codes as the model knows them, and its text in chunks."""

    source: str
    target: str
    chunks: list[Chunk]


class NmtStage(Stage):
    """``nmt``: text in the session's source language in, text in its target language out.

    Option: ``beam_size`` (default 2). The same language on both sides: the text is passed on, ``skipped``.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="nmt",
        accepts="text",
        emits="text",
        requires=("ctranslate2", "sentencepiece"),
        max_chars=4000,
        install_hint="pip install ctranslate2 sentencepiece",
        translates=True,
    )

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._translator: Any = None
        self._pieces: Any = None
        self._languages: frozenset[str] = frozenset()

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if name not in _OPTIONS:
                raise ValueError(f"stage nmt has no option {name!r}; it has: {', '.join(_OPTIONS)}")
            low, high = _OPTIONS[name]
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"nmt option {name} is {value!r}; it must be a whole number from {low} to {high}")
            if not low <= value <= high:
                nearest = min(max(value, low), high)
                raise ValueError(f"nmt option {name} is {value}; the nearest valid value is {nearest}")

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        """Languages and size. Raises StageError("bad_model") when a file is missing or it is not an M2M100 model."""
        del options
        folder = Path(model).expanduser()
        if not model or not (folder / "model.bin").is_file():
            raise StageError("bad_model", f"no nmt model at {model!r}: a CTranslate2 folder is needed; {GET_ONE}")
        if ctranslate2_file.maker(folder / "model.bin") != "TransformerSpec":
            raise not_a(folder / "model.bin", f"a translation model in CTranslate2's format; {GET_ONE}")
        find_sentencepiece(folder)
        return ModelFacts(weights_bytes=weights_bytes(str(folder / "model.bin")), languages=read_languages(folder))

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        """Of the most chunks that run at once, each as long as a chunk can be."""
        sizes = ctranslate2_file.read(Path(config.model).expanduser() / "model.bin")
        if sizes is None:
            return None
        chars = min(longest.chars, cls.declaration.max_chars)
        chunk = min(chars, LONGEST_SOURCE)
        chunks = config.max_batch
        beams = int(config.options.get("beam_size", 2))
        number = sizes.run_bytes(config.device, config.compute_type)
        kept = sizes.kept_bytes(config.device, config.compute_type)
        encoding = chunks * chunk * (2 * sizes.heads * chunk + sizes.hidden + 4 * sizes.width) * number
        # What has been said is kept for each hypothesis, and put in a new order (a copy) after each token.
        texts = chunks * beams * min(LONGEST_TARGET, 3 * chunk + 16)
        decoding = chunks * chunk * kept + 2 * texts * kept
        decoding += 3 * chunks * beams * sizes.vocabulary * number
        host = TOKEN_BYTES * sizes.vocabulary if config.device == "cpu" else 0
        weights = sizes.resident_bytes(config.device, config.compute_type)
        return Memory(weights, max(encoding, decoding) + host, at_load_bytes=host)

    def load(self) -> None:
        """Open the model. Raises StageError("bad_model") or ("oom")."""
        config = self.config
        self._languages = self.describe(config.model, config.options).languages or frozenset()
        folder = Path(config.model).expanduser()
        import ctranslate2
        import sentencepiece

        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(find_sentencepiece(folder)))
            self._translator = ctranslate2.Translator(
                str(folder),
                device=config.device,
                compute_type=config.compute_type,
                inter_threads=1,
                intra_threads=config.threads,
            )
        except Exception as error:
            raise stage_error("bad_model", f"cannot load the nmt model {config.model}", error) from error

    def warm_up(self) -> None:
        """Runs of one short sentence between the first two languages."""
        source, target = sorted(self._languages)[:2]
        try:
            for _ in range(self.config.warm_up_runs):
                self._translate([Request(source, target, list(self._divide("1, 2, 3.")))])
        except Exception as error:
            raise stage_error("bad_model", f"the nmt model {self.config.model} does not run", error) from error

    def run(self, items: Sequence[Item]) -> list[Output | StageError]:
        """One call of the library for the whole batch; if that fails, one for each item.

        Raises StageError("oom") where the whole batch was too much: a smaller one may not be.
        """
        results: list[Request | Output | StageError] = [self._prepare(item) for item in items]
        requests = [entry for entry in results if isinstance(entry, Request)]
        try:
            outputs = iter(self._translate(requests))
        except Exception as error:  # which of them it was shows when each runs alone
            cause = stage_error("failed", "nmt", error)
            if cause.code == "oom" and len(requests) > 1:
                raise cause from error
            outputs = map(self._translate_alone, requests)
        return [next(outputs) if isinstance(entry, Request) else entry for entry in results]

    def close(self) -> None:
        self._translator = None
        self._pieces = None

    def _prepare(self, item: Item) -> Request | Output | StageError:
        """What to ask the library for, or the result where there is nothing to ask."""
        text = item.text or ""
        try:
            text.encode()
            if not text.strip():
                return Output(text="")
            source, target = self._language(item.source, "source"), self._language(item.target, "target")
            if source == target:
                return Output(text=text, state="skipped", reason="source and target are the same language")
            return Request(source, target, list(self._divide(text)))
        except StageError as error:
            return error
        except UnicodeEncodeError:
            return StageError("bad_text", "the text is not valid Unicode (a lone surrogate)")

    def _language(self, wanted: str, side: str) -> str:
        language = match_language(wanted, self._languages)
        if language is None:
            known = some(self._languages)
            raise StageError("bad_language", f"the nmt model does not know {side} {wanted!r}; it knows {known}")
        return language

    def _divide(self, text: str) -> Iterator[Chunk]:
        """``text`` in chunks that the model takes whole. Raises StageError("bad_text")."""
        for part in divide(text, lambda piece: len(self._encode(piece)), LONGEST_SOURCE):
            body = part.rstrip() or part
            yield Chunk(self._encode(body), part[len(body) :])

    def _encode(self, text: str) -> list[str]:
        pieces: list[str] = self._pieces.encode(text, out_type=str)
        return pieces

    def _translate(self, requests: Sequence[Request]) -> list[Output | StageError]:
        """One library call for all chunks of all requests."""
        sources = [[f"__{r.source}__", *chunk.pieces, END] for r in requests for chunk in r.chunks]
        if not sources:
            return []
        limit = min(LONGEST_TARGET, 3 * max(map(len, sources)) + 16)
        results = self._translator.translate_batch(
            sources,
            target_prefix=[[f"__{r.target}__"] for r in requests for _ in r.chunks],
            max_batch_size=self.config.max_batch,  # chunks at once: memory must not follow the length of one text
            beam_size=self.config.options.get("beam_size", 2),
            max_decoding_length=limit,
            return_end_token=True,
        )
        hypotheses = iter([result.hypotheses[0][1:] for result in results])  # without the language token
        return [self._assemble(request, [next(hypotheses) for _ in request.chunks], limit) for request in requests]

    def _translate_alone(self, request: Request) -> Output | StageError:
        try:
            return self._translate([request])[0]
        except Exception as error:
            return stage_error("failed", "nmt", error)

    def _assemble(self, request: Request, hypotheses: list[list[str]], limit: int) -> Output:
        ended = all(hypothesis[-1:] == [END] for hypothesis in hypotheses)
        texts = [
            self._pieces.decode_pieces([piece for piece in hypothesis if piece != END]) + chunk.gap
            for hypothesis, chunk in zip(hypotheses, request.chunks, strict=True)
        ]
        text = "".join(texts)
        if not text.strip():
            return Output(text="", degraded="the nmt model gave no translation")
        return Output(text=text, degraded="" if ended else f"the translation did not end within {limit} pieces")


def divide(text: str, size: Callable[[str], int], limit: int) -> list[str]:
    """``text`` in parts of whole sentences of which ``size`` is at most ``limit``; joined, they are the text again.

    Raises StageError("bad_text") when one sentence alone is larger.
    """
    if size(text) <= limit:
        return [text]
    parts: list[str] = []
    room = 0
    for sentence in SENTENCE.findall(text):
        length = size(sentence)
        if length > limit:
            raise StageError("bad_text", f"a sentence has {length} pieces, the model takes {limit}: send shorter ones")
        if parts and length <= room:
            parts[-1] += sentence
            room -= length
        else:
            parts.append(sentence)
            room = limit - length
    return parts


def find_sentencepiece(folder: Path) -> Path:
    """The SentencePiece model in ``folder``. Raises StageError("bad_model") when there is none, or no telling which."""
    for name in ("sentencepiece.bpe.model", "spm.model", "sentencepiece.model"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.model"))
    if len(found) != 1:
        count = len(found)
        raise StageError("bad_model", f"{folder} has {count} SentencePiece models (*.model), not one; {GET_ONE}")
    return found[0]


def read_languages(folder: Path) -> frozenset[str]:
    """Codes of the languages with a token in both vocabularies. Raises StageError("bad_model") when there are none."""
    tokens = _vocabulary(folder, "shared")
    if tokens is None:
        tokens = (_vocabulary(folder, "source") or set()) & (_vocabulary(folder, "target") or set())
    found = frozenset(match[1] for match in map(LANGUAGE_TOKEN.fullmatch, tokens) if match)
    if len(found) < 2:
        raise StageError("bad_model", f"{folder} is no M2M100 model: its vocabulary has no language tokens; {GET_ONE}")
    return found


def _vocabulary(folder: Path, name: str) -> set[str] | None:
    """The tokens of ``NAME_vocabulary.json`` or ``.txt``, None when there is neither."""
    listed, lines = folder / f"{name}_vocabulary.json", folder / f"{name}_vocabulary.txt"
    try:
        if listed.is_file():
            return set(json.loads(listed.read_text(encoding="utf-8")))
        return set(lines.read_text(encoding="utf-8").split("\n")) if lines.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise StageError("bad_model", f"cannot read the {name} vocabulary in {folder}: {error}; {GET_ONE}") from error
