"""A model is known again wherever it lies, and another one is told apart by sizes, names, heads and ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.fingerprint import EDGE, fingerprint


def a_model(folder: Path, head: bytes = b"head", size: int = 3 * EDGE) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_bytes(head.ljust(size, b"\0"))
    return folder


def test_a_copy_elsewhere_is_the_same_model_and_a_change_that_matters_makes_another(tmp_path: Path) -> None:
    model = a_model(tmp_path / "a")
    first = fingerprint(str(model))
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint(str(tmp_path / "copy")) == first
    others = [a_model(tmp_path / "b", head=b"other"), a_model(tmp_path / "c", size=3 * EDGE + 1)]
    (model / "more.json").write_text("{}")
    assert len({first, *map(fingerprint, map(str, [*others, model]))}) == 4


def test_a_file_is_known_by_its_bytes_and_its_end_counts(tmp_path: Path) -> None:
    one, renamed, other = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf"))
    one.write_bytes(b"\0" * 3 * EDGE)
    shutil.copy(one, renamed)
    other.write_bytes(b"\0" * (3 * EDGE - 1) + b"x")
    assert fingerprint(str(one)) == fingerprint(str(renamed)) != fingerprint(str(other))


def test_a_name_counts_as_a_name_and_small_files_are_read_whole(tmp_path: Path) -> None:
    assert fingerprint("small") != fingerprint("large") and fingerprint("") == fingerprint("")
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abd")
    assert fingerprint(str(tmp_path / "a")) != fingerprint(str(tmp_path / "b"))
