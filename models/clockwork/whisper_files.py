"""The files of a faster-whisper folder, for a vocabulary of our own.

``model.bin`` and ``config.json`` come from CTranslate2's spec; ``vocabulary.json`` and ``tokenizer.json`` are
made here. Their order is OpenAI's, and the library counts on it::

    256 bytes, merges, "" | <|endoftext|> | <|startoftranscript|> <|en|> ... <|translate|> <|transcribe|>
    <|startoflm|> <|startofprev|> <|nospeech|> <|notimestamps|> <|0.00|> ... <|30.00|>

All below ``<|endoftext|>`` is text, all from ``<|0.00|>`` on is time, and the empty token is what makes
CTranslate2 call a model multilingual.

The tokenizer is byte-level BPE. Each word has its merges from the left (``G t``, ``Gt h``, ``Gth e``), so that it
is one token, and since only prefixes of words ever merge, the merges cannot get in each other's way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

TIMESTAMPS = 1501  # 0.00 to 30.00 s in steps of 0.02 s
POSITIONS = 1500  # encoder positions of 0.02 s; the library always pads to 30 s
TEXT_POSITIONS = 448  # decoder positions, as in every Whisper
MELS = 80


class Vocabulary:
    """Tokens of a Whisper that can say ``words``, each of which becomes one token with a space before it."""

    def __init__(self, words: Sequence[str], languages: Sequence[str]) -> None:
        self.words = tuple(words)
        self.languages = tuple(languages)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """BPE merges in rank order."""
        found: dict[tuple[str, str], None] = {}
        for word in self.words:
            letters = self.spell(word)
            for cut in range(1, len(letters)):
                found[letters[:cut], letters[cut]] = None
        return list(found)

    @cached_property
    def text_tokens(self) -> list[str]:
        """Everything below ``<|endoftext|>``."""
        return [*byte_letters(), *(left + right for left, right in self.merges), ""]

    @cached_property
    def special_tokens(self) -> list[str]:
        """``<|endoftext|>`` and everything above."""
        names = ["endoftext", "startoftranscript", *self.languages, "translate", "transcribe"]
        names += ["startoflm", "startofprev", "nospeech", "notimestamps"]
        names += [f"{0.02 * step:.2f}" for step in range(TIMESTAMPS)]
        return [f"<|{name}|>" for name in names]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token to id."""
        return {token: number for number, token in enumerate(self.text_tokens + self.special_tokens)}

    def __len__(self) -> int:
        return len(self.text_tokens) + len(self.special_tokens)

    def spell(self, word: str) -> str:
        """The word with its space, in the letters that stand for bytes."""
        letters = byte_letters()
        return "".join(letters[byte] for byte in f" {word}".encode())

    def word(self, word: str) -> int:
        """Id of a word."""
        return self.ids[self.spell(word)]

    def special(self, name: str) -> int:
        """Id of ``<|name|>``."""
        return self.ids[f"<|{name}|>"]

    def time(self, step: int) -> int:
        """Id of the timestamp ``step`` x 0.02 s."""
        return self.special("0.00") + step

    def tokenizer(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.ids[token], "content": token, **flags} for token in self.special_tokens],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": self.ids,
                "merges": [f"{left} {right}" for left, right in self.merges],
            },
        }


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: itself where it prints, else the next free one from U+0100."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def save(
    spec: Any,
    vocabulary: Vocabulary,
    out: Path,
    alignment_heads: list[tuple[int, int]],
    quantization: str | None = None,
) -> Path:
    """Write the folder ``out`` (made if missing). ``spec``: a filled WhisperSpec. ``quantization``: "int8" or none."""
    spec.register_vocabulary(vocabulary.text_tokens + vocabulary.special_tokens)
    spec.validate()
    spec.optimize(quantization=quantization)
    return save_frozen(spec, vocabulary, out, alignment_heads)


def save_frozen(spec: Any, vocabulary: Vocabulary, out: Path, alignment_heads: list[tuple[int, int]]) -> Path:
    """The same for a spec that has its vocabulary and is validated and quantised already."""
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = [vocabulary.special(language) for language in vocabulary.languages]
    spec.config.alignment_heads = [list(pair) for pair in alignment_heads]
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))
    text = json.dumps(vocabulary.tokenizer(), ensure_ascii=False, indent=None)
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    return out
