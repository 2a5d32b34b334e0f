"""Text translation: M2M100, NLLB and Marian models on CTranslate2.

The model is a CTranslate2 folder with what cuts its pieces beside it (``stages.nmt_files``). M2M100 and NLLB are told
languages by tokens: the source text starts with ``__en__`` or ``eng_Latn``, the translation is forced to start with
``__de__`` or ``deu_Latn``. The library takes a token it does not know for ``<unk>`` and translates into nothing in
particular, so languages are checked against the model's vocabulary here. A Marian model translates in one direction
and is told nothing.

A batch is one call of the library. It cuts sources at 1,024 pieces in silence; a longer text is therefore divided at
the ends of its sentences into chunks of at most 900 pieces (400 where the model has 512 positions), which ride in the
same call, and put together again with the blanks that stood between them. The library takes as many of them at once as
the batch may have items. A single sentence above that ends in ``bad_text``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stages import ctranslate2_file, nmt_files
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

END = "</s>"
POSITIONS = 1024  # of models that do not say, and the most that the library takes of a source
LONGEST_SOURCE = 900  # pieces in one chunk
SPARE = 112  # positions that a chunk leaves
TOKEN_BYTES = 600  # host memory for a token's text, in the library's vocabulary and SentencePiece's
SENTENCE = re.compile(r".+?(?:[.!?\u2026]+(?=\s)|[\u3002\uff01\uff1f]+|\Z)\s*", re.DOTALL)
LANGUAGE = re.compile(r"[a-z]{2,3}")
OPTIONS = ("beam_size", "source", "target")
BEAMS = 1, 20


@dataclass(frozen=True)
class Chunk:
    """A part of one item's text: its pieces, and the blanks between it and the next part."""

    pieces: list[str]
    gap: str


@dataclass(frozen=True)
class Request:
    """One item, ready for the library: what stands before its source and its translation, and its text in chunks."""

    source: list[str]
    target: list[str]
    chunks: list[Chunk]


class NmtStage(Stage):
    """``nmt``: text in the session's source language in, text in its target language out.

    Options: ``beam_size`` (default 2); ``source`` and ``target``, the languages of a Marian model whose folder is not
    named like ``opus-mt-en-de``. The same language on both sides: the text is passed on, ``skipped``.
    """

    declaration: ClassVar[Declaration] = Declaration(
        name="nmt",
        accepts="text",
        emits="text",
        requires=("ctranslate2", "sentencepiece"),
        max_chars=4000,
        install_hint="pip install ctranslate2 sentencepiece",
        translates=True,
        compute_types=ctranslate2_file.COMPUTE_TYPES,
    )

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._translator: Any = None
        self._pieces: nmt_files.Pieces | None = None
        self._files: nmt_files.Files | None = None
        self._longest = LONGEST_SOURCE, POSITIONS - 1

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if name not in OPTIONS:
                raise ValueError(f"stage nmt has no option {name!r}; it has: {', '.join(OPTIONS)}")
            if name != "beam_size" and not (isinstance(value, str) and LANGUAGE.fullmatch(value)):
                raise ValueError(f"nmt option {name} is {value!r}; it must be a language code like en")
        if ("source" in options) != ("target" in options):
            raise ValueError(
                "nmt options source and target go together: a Marian model translates from one to the other"
            )
        (low, high), beams = BEAMS, options.get("beam_size", 2)
        if isinstance(beams, bool) or not isinstance(beams, int):
            raise ValueError(f"nmt option beam_size is {beams!r}; it must be a whole number from {low} to {high}")
        if not low <= beams <= high:
            nearest = min(max(beams, low), high)
            raise ValueError(f"nmt option beam_size is {beams}; the nearest valid value is {nearest}")

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        """Languages and size. Raises StageError("bad_model") when a file is missing or it is of none of these makes."""
        files = _files(model, options)
        return ModelFacts(
            weights_bytes=weights_bytes(str(Path(model).expanduser() / "model.bin")),
            languages=files.sources,
            targets=None if files.targets == files.sources else files.targets,
        )

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        """Of the most chunks that run at once, each as long as a chunk can be."""
        sizes = ctranslate2_file.read(Path(config.model).expanduser() / "model.bin")
        if sizes is None:
            return None
        chars = min(longest.chars, cls.declaration.max_chars)
        longest_source, longest_target = _longest(sizes)
        chunk = min(chars, longest_source)
        chunks = config.max_batch
        beams = int(config.options.get("beam_size", 2))
        number = sizes.run_bytes(config.device, config.compute_type)
        kept = sizes.kept_bytes(config.device, config.compute_type)
        encoding = chunks * chunk * (2 * sizes.heads * chunk + sizes.hidden + 4 * sizes.width) * number
        # What has been said is kept for each hypothesis, and put in a new order (a copy) after each token.
        texts = chunks * beams * min(longest_target, 3 * chunk + 16)
        decoding = chunks * chunk * kept + 2 * texts * kept
        decoding += 3 * chunks * beams * sizes.vocabulary * number
        host = TOKEN_BYTES * sizes.vocabulary if config.device == "cpu" else 0
        weights = sizes.resident_bytes(config.device, config.compute_type)
        return Memory(weights, max(encoding, decoding) + host, at_load_bytes=host)

    def load(self) -> None:
        """Open the model. Raises StageError("bad_model") or ("oom")."""
        config = self.config
        self._files = files = _files(config.model, config.options)
        folder = Path(config.model).expanduser()
        self._longest = _longest(ctranslate2_file.read(folder / "model.bin"))
        import ctranslate2

        try:
            self._pieces = nmt_files.open_pieces(files.cutter, files.joiner)
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
        """Runs of one short sentence between two of its languages."""
        assert self._files is not None
        source, target = min(self._files.sources), max(self._files.targets)
        try:
            for _ in range(self.config.warm_up_runs):
                self._translate([self._request("1, 2, 3.", source, target)])
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
        self._pieces = self._files = None

    def _prepare(self, item: Item) -> Request | Output | StageError:
        """What to ask the library for, or the result where there is nothing to ask."""
        text = item.text or ""
        try:
            text.encode()
            if not text.strip():
                return Output(text="")
            assert self._files is not None
            if is_same(item.source, item.target, self._files.sources | self._files.targets):
                return Output(text=text, state="skipped", reason="source and target are the same language")
            source = _language(item.source, "source", self._files.sources)
            target = _language(item.target, "target", self._files.targets)
            return self._request(text, source, target)
        except StageError as error:
            return error
        except UnicodeEncodeError:
            return StageError("bad_text", "the text is not valid Unicode (a lone surrogate)")

    def _request(self, text: str, source: str, target: str) -> Request:
        assert self._files is not None
        tokens, chunks = self._files.tokens, list(self._divide(text))
        return Request([tokens[source]], [tokens[target]], chunks) if tokens else Request([], [], chunks)

    def _divide(self, text: str) -> Iterator[Chunk]:
        """``text`` in chunks that the model takes whole. Raises StageError("bad_text")."""
        for part in divide(text, lambda piece: len(self._encode(piece)), self._longest[0]):
            body = part.rstrip() or part
            yield Chunk(self._encode(body), part[len(body) :])

    def _encode(self, text: str) -> list[str]:
        assert self._pieces is not None
        return self._pieces.cut(text)

    def _translate(self, requests: Sequence[Request]) -> list[Output | StageError]:
        """One library call for all chunks of all requests."""
        assert self._files is not None
        end = [] if self._files.adds_end else [END]
        sources = [[*r.source, *chunk.pieces, *end] for r in requests for chunk in r.chunks]
        if not sources:
            return []
        limit = min(self._longest[1], 3 * max(map(len, sources)) + 16)
        prefixes = [r.target for r in requests for _ in r.chunks]
        results = self._translator.translate_batch(
            sources,
            target_prefix=prefixes if self._files.tokens else None,
            max_batch_size=self.config.max_batch,  # chunks at once: memory must not follow the length of one text
            beam_size=self.config.options.get("beam_size", 2),
            max_decoding_length=limit,
            return_end_token=True,
        )
        hypotheses = iter(  # without the language token
            [result.hypotheses[0][len(prefix) :] for result, prefix in zip(results, prefixes, strict=True)]
        )
        return [self._assemble(request, [next(hypotheses) for _ in request.chunks], limit) for request in requests]

    def _translate_alone(self, request: Request) -> Output | StageError:
        try:
            return self._translate([request])[0]
        except Exception as error:
            return stage_error("failed", "nmt", error)

    def _assemble(self, request: Request, hypotheses: list[list[str]], limit: int) -> Output:
        assert self._pieces is not None
        ended = all(hypothesis[-1:] == [END] for hypothesis in hypotheses)
        texts = [
            self._pieces.join([piece for piece in hypothesis if piece != END]) + chunk.gap
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


def _files(model: str, options: Mapping[str, Any]) -> nmt_files.Files:
    folder = Path(model).expanduser()
    if not model or not (folder / "model.bin").is_file():
        text = f"no nmt model at {model!r}: a CTranslate2 folder is needed; {nmt_files.GET_ONE}"
        raise StageError("bad_model", text)
    if ctranslate2_file.maker(folder / "model.bin") != "TransformerSpec":
        raise not_a(folder / "model.bin", f"a translation model in CTranslate2's format; {nmt_files.GET_ONE}")
    return nmt_files.read(folder, options)


def _longest(sizes: ctranslate2_file.Sizes | None) -> tuple[int, int]:
    """Pieces of one chunk, and of its translation: the decoder's positions, less the one that starts it."""
    positions = min(POSITIONS, (sizes.positions if sizes else 0) or POSITIONS)
    return min(LONGEST_SOURCE, positions - SPARE), positions - 1


def is_same(source: str, target: str, known: Collection[str]) -> bool:
    """Whether a text is in its target language already."""
    language = match_language(source, known)
    return language is not None and language == match_language(target, known)


def _language(wanted: str, side: str, known: frozenset[str]) -> str:
    language = match_language(wanted, known)
    if language is None:
        raise StageError("bad_language", f"the nmt model does not know {side} {wanted!r}; it knows {some(known)}")
    return language
