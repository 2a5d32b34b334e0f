"""What a stage says of its model's memory comes from the files alone, and grows with what it depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import embedded
from stages import ctranslate2_file, find, gguf_file
from stages.base import Longest, Memory, StageConfig
from stages.tts import LONGEST_SENTENCE, divide

DEMO = embedded.DEMO
LONGEST = Longest()
MODELS = {"asr": DEMO / "asr", "nmt": DEMO / "nmt", "repair": DEMO / "repair.gguf"}


def memory(kind: str, longest: Longest = LONGEST, **config: object) -> Memory:
    found = find(kind).memory(StageConfig(model=str(MODELS[kind]), **config), longest)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_ctranslate2_file_tells_its_sizes() -> None:
    sizes = ctranslate2_file.read(DEMO / "nmt" / "model.bin")
    assert sizes is not None
    assert (sizes.layers, sizes.width, sizes.heads) == ((2, 2), 128, 4)
    assert sizes.int8s > sizes.floats, "the demo model is an 8-bit one"
    assert sizes.resident_bytes("cpu", "default") == sizes.int8s + 4 * sizes.floats
    assert sizes.resident_bytes("cpu", "float32") == 4 * (sizes.int8s + sizes.floats)
    assert sizes.resident_bytes("cuda", "float16") == 2 * (sizes.int8s + sizes.floats)


def test_a_gguf_file_tells_its_sizes() -> None:
    sizes = gguf_file.read(DEMO / "repair.gguf")
    assert sizes is not None
    assert (sizes.layers, sizes.width, sizes.vocabulary) == (4, 128, 1314)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"\x06\0\0\0", b"x" * 10_000, bytes(10_000), b"GGUF\3" + b"\xff" * 99]
)
def test_what_is_no_model_says_nothing_and_ends_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert ctranslate2_file.read(path) is None
    assert gguf_file.read(path) is None
    assert find("asr").memory(StageConfig(model=str(tmp_path)), Longest()) is None
    assert find("nmt").memory(StageConfig(model=str(tmp_path)), Longest()) is None


def test_a_file_cut_off_anywhere_says_nothing(tmp_path: Path) -> None:
    whole = (DEMO / "asr" / "model.bin").read_bytes()
    for length in range(0, 2000, 37):
        (tmp_path / "model.bin").write_bytes(whole[:length])
        assert ctranslate2_file.read(tmp_path / "model.bin") is None


def test_memory_follows_what_it_depends_on() -> None:
    assert memory("nmt", max_batch=2).workspace_bytes > memory("nmt").workspace_bytes
    assert memory("nmt", options={"beam_size": 20}).workspace_bytes > memory("nmt").workspace_bytes
    assert memory("nmt", Longest(chars=500)).workspace_bytes < memory("nmt").workspace_bytes
    assert memory("asr", options={"beam_size": 5}).workspace_bytes > memory("asr").workspace_bytes
    assert memory("asr", max_batch=4) == memory("asr"), "its items run one by one"
    assert memory("asr", Longest(600)).workspace_bytes >= memory("asr", Longest(30)).workspace_bytes
    assert memory("repair", options={"n_ctx": 8192}).workspace_bytes > memory("repair").workspace_bytes
    assert memory("asr", compute_type="float32").weights_bytes > memory("asr").weights_bytes


def test_a_name_that_a_library_resolves_says_nothing() -> None:
    assert find("asr").memory(StageConfig(model="small"), Longest()) is None


def test_long_sentences_are_divided_between_words_and_nothing_is_lost() -> None:
    random = np.random.Generator(np.random.PCG64(1))
    for length in (0, 1, LONGEST_SENTENCE, LONGEST_SENTENCE + 1, 5 * LONGEST_SENTENCE):
        sentence = list(random.choice(list("abcde "), length))
        parts = list(divide(sentence))
        assert [phoneme for part in parts for phoneme in part] == sentence
        assert all(len(part) <= LONGEST_SENTENCE for part in parts)
        assert all(part[-1] == " " for part in parts[:-1])
    assert [len(part) for part in divide(["a"] * 25, limit=10)] == [10, 10, 5]
