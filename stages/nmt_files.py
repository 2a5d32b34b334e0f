"""What lies in the folder of a translation model: its make, its languages, and its pieces. Import-light.

Three makes that CTranslate2's converters write are known by their vocabulary:

* **M2M100**: any pair of its languages. The source starts with ``__en__``, the translation with ``__de__``;
* **NLLB**: the same with ``eng_Latn`` and ``deu_Latn`` (``stages.flores``);
* **Marian** (OPUS-MT): one direction, and no token for a language. Its files do not say which it is: the folder's name
  may (``opus-mt-en-de``), else the options ``source`` and ``target`` must.

Pieces are cut by SentencePiece (``sentencepiece.bpe.model``; of Marian ``source.spm`` and ``target.spm``), or by a
``tokenizer.json`` of Hugging Face's ``tokenizers`` where there is none. The library adds the end of the source itself
if ``config.json`` says ``add_source_eos``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages import flores
from stages.base import StageError

GET_ONE = "docs/models.md says where to get one (a stand-in: run_node.py models synthesize nmt --out DIR)"
M2M100_TOKEN = re.compile(r"__([a-z]{2,3})__")
MANY_TARGETS = re.compile(r">>[A-Za-z_]+<<")
OPUS = re.compile(r"opus-mt-(?:[a-z0-9]+-)*?([a-z]{2,3})-([a-z]{2,3})")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Files:
    """A translation model's folder. ``tokens``: language -> the token that says it; none where it has one direction.

    ``cutter`` and ``joiner``: files of what cuts a source into pieces and puts those of a translation together.
    """

    sources: frozenset[str]
    targets: frozenset[str]
    tokens: Mapping[str, str]
    cutter: Path
    joiner: Path
    adds_end: bool


class Pieces(Protocol):
    """Cuts texts into a model's pieces, and joins them again."""

    def cut(self, text: str) -> list[str]: ...

    def join(self, pieces: list[str]) -> str: ...


def read(folder: Path, options: Mapping[str, Any]) -> Files:
    """Raises StageError("bad_model"): what is missing, or what it is instead."""
    vocabulary = _tokens(folder)
    m2m100 = {match[1]: match[0] for match in map(M2M100_TOKEN.fullmatch, vocabulary) if match}
    tokens = m2m100 if len(m2m100) > 1 else flores.codes(vocabulary)
    cutter, joiner = find_pieces(folder)
    if len(tokens) > 1:
        if "source" in options:
            raise StageError("bad_model", f"{folder} translates between any of its languages: no source or target")
        known = frozenset(tokens)
        return Files(known, known, tokens, cutter, joiner, _adds_end(folder))
    source, target = _direction(folder, options)
    if any(map(MANY_TARGETS.fullmatch, vocabulary)):
        raise StageError("bad_model", f"{folder} translates into several languages (>>fra<<): use one for each of them")
    return Files(frozenset({source}), frozenset({target}), {}, cutter, joiner, _adds_end(folder))


def _direction(folder: Path, options: Mapping[str, Any]) -> tuple[str, str]:
    if "source" in options:
        return options["source"], options["target"]
    if named := OPUS.fullmatch(folder.resolve().name.lower()):
        return named[1], named[2]
    text = f"{folder} has no language tokens in its vocabulary: it is no M2M100 or NLLB model; of a Marian model set"
    raise StageError("bad_model", f'{text} options = {{source = "en", target = "de"}}; {GET_ONE}')


def find_pieces(folder: Path) -> tuple[Path, Path]:
    """What cuts, and what joins. Raises StageError("bad_model") when there is nothing, or no telling which."""
    if (folder / "source.spm").is_file() and (folder / "target.spm").is_file():
        return folder / "source.spm", folder / "target.spm"
    for name in ("sentencepiece.bpe.model", "spm.model", "sentencepiece.model"):
        if (folder / name).is_file():
            return folder / name, folder / name
    found = sorted(folder.glob("*.model"))
    if not found and (folder / TOKENIZER).is_file():
        return folder / TOKENIZER, folder / TOKENIZER
    if len(found) != 1:
        text = f"{folder} has {len(found)} SentencePiece models (*.model), not one, and no {TOKENIZER} alone"
        raise StageError("bad_model", f"{text}; {GET_ONE}")
    return found[0], found[0]


def open_pieces(cutter: Path, joiner: Path) -> Pieces:
    """Raises whatever the library does."""
    return _Tokenizer(cutter) if cutter.name == TOKENIZER else _SentencePieces(cutter, joiner)


class _SentencePieces:
    def __init__(self, cutter: Path, joiner: Path) -> None:
        import sentencepiece

        self._cutter = sentencepiece.SentencePieceProcessor(model_file=str(cutter))
        same = cutter == joiner
        self._joiner = self._cutter if same else sentencepiece.SentencePieceProcessor(model_file=str(joiner))

    def cut(self, text: str) -> list[str]:
        pieces: list[str] = self._cutter.encode(text, out_type=str)
        return pieces

    def join(self, pieces: list[str]) -> str:
        text: str = self._joiner.decode_pieces(pieces)
        return text


class _Tokenizer:
    def __init__(self, file: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))

    def cut(self, text: str) -> list[str]:
        pieces: list[str] = self._tokenizer.encode(text, add_special_tokens=False).tokens
        return pieces

    def join(self, pieces: list[str]) -> str:
        numbers = [self._tokenizer.token_to_id(piece) for piece in pieces]
        text: str = self._tokenizer.decode([number for number in numbers if number is not None])
        return text


def _tokens(folder: Path) -> set[str]:
    """Those that both sides know."""
    shared = _vocabulary(folder, "shared")
    if shared is not None:
        return shared
    return (_vocabulary(folder, "source") or set()) & (_vocabulary(folder, "target") or set())


def _vocabulary(folder: Path, name: str) -> set[str] | None:
    """The tokens of ``NAME_vocabulary.json`` or ``.txt``, None when there is neither."""
    listed, lines = folder / f"{name}_vocabulary.json", folder / f"{name}_vocabulary.txt"
    try:
        if listed.is_file():
            return set(json.loads(listed.read_text(encoding="utf-8")))
        return set(lines.read_text(encoding="utf-8").split("\n")) if lines.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise StageError("bad_model", f"cannot read the {name} vocabulary in {folder}: {error}; {GET_ONE}") from error


def _adds_end(folder: Path) -> bool:
    file = folder / "config.json"
    try:
        return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("add_source_eos"))
    except (OSError, ValueError, AttributeError) as error:
        raise StageError("bad_model", f"cannot read {file}: {error}; {GET_ONE}") from error
