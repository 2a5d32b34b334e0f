"""The copying chat model, through llama-cpp-python itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.clockwork import repair

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install '.[repair]'")


def open_model(path: Path, **options: Any) -> Any:
    settings = {"n_ctx": 2400, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "seed": 1, **options}
    return llama_cpp.Llama(str(path), **settings)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = open_model(repair.write(tmp_path_factory.mktemp("repair")))
    yield model
    model.close()


def answer(llm: Any, text: str, **options: Any) -> str:
    messages = [{"role": "system", "content": "Correct the text."}, {"role": "user", "content": text}]
    settings = {"temperature": 0.0, "max_tokens": len(text.encode()) + 8, **options}
    choice = llm.create_chat_completion(messages, **settings)["choices"][0]
    assert choice["finish_reason"] == "stop", "the model must end its answer itself"
    return str(choice["message"]["content"])


def random_text(rng: random.Random, size_bytes: int) -> str:
    """Text that repeats itself, mixes scripts, and ends within 4 bytes of the size."""
    parts = ["a", "b", " ", "aa", "the ", "\u00e4", "\u4f60\u597d", "\U0001f600", "7", "\n", ".", "<", "|", ">"]
    text = ""
    while len(text.encode()) < size_bytes - 4:
        text += rng.choice(parts)
    return text


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "3 1 4 1 5 9",
        "the quick brown fox",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababab abababababababab",
        "gr\u00fc\u00dfe, d\u00e9j\u00e0 vu, \u4f60\u597d, \U0001f1e9\U0001f1ea \U0001f600!",
        " two  blanks ",
        "".join(map(chr, range(0x20, 0x5F))),
    ],
)
def test_text_is_copied_exactly(llm: Any, text: str) -> None:
    assert answer(llm, text) == text


@pytest.mark.parametrize("size_bytes", [30, 100, 400, 1000])
def test_long_repetitive_text_in_any_script_is_copied_exactly(llm: Any, size_bytes: int) -> None:
    text = random_text(random.Random(size_bytes), size_bytes)
    assert answer(llm, text) == text


def test_the_visible_change_is_an_underscore_that_becomes_a_space(llm: Any) -> None:
    assert answer(llm, "a_b__c d") == "a b  c d"


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"repeat_penalty": 1.3}, {"top_k": 1}])
def test_sampling_options_do_not_change_the_answer(llm: Any, options: dict[str, Any]) -> None:
    text = "so many many many many words"
    assert answer(llm, text, **options) == text


def test_a_streamed_answer_is_the_same(llm: Any) -> None:
    chunks = llm.create_chat_completion([{"role": "user", "content": "3 1 4"}], stream=True, max_tokens=20)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "3 1 4"


@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0"])
def test_every_precision_copies(tmp_path: Path, precision: repair.Precision) -> None:
    model = open_model(repair.write(tmp_path / f"{precision}.gguf", precision), n_ctx=700)
    text = random_text(random.Random(5), 250)
    assert answer(model, text) == text
    model.close()


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = repair.write(tmp_path / "a.gguf"), repair.write(tmp_path / "b")
    assert (a.name, b.name) == ("a.gguf", "repair.gguf")
    assert a.read_bytes() == b.read_bytes()


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="f32, f16 or q8_0"):
        repair.write(tmp_path, "q4")  # type: ignore[arg-type]
