"""Models of real size: the size is the published one's, the format is right, and mistakes are told before a byte is
written. What its library makes of one is tested beside that library (``test_shape_*.py``)."""

from __future__ import annotations

import json
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import run_node
from models import shapes
from models.shapes import filling

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_a_shape_is_as_large_as_the_published_model(name: str) -> None:
    plan = shapes.plan(name)
    assert plan.weights_bytes == pytest.approx(shapes.SHAPES[name].published_bytes, rel=0.03)
    assert plan.weights_bytes <= plan.nbytes <= 1.01 * plan.weights_bytes


def test_filling_repeats_its_unit_to_the_byte() -> None:
    for nbytes in (0, 1, 6, 7, 8, 50, 1001):
        wanted = (b"pattern" * (nbytes // 7 + 1))[:nbytes]
        assert bytes(filling.fill(nbytes, b"pattern")) == wanted
    assert not any(part == bytes(len(part)) for part in (filling.block("float16"), filling.block("int8")))


def test_merges_make_tokens_that_all_differ() -> None:
    merges = filling.merges("abc", 20)
    assert len({left + right for left, right in merges}) == 20
    known = {"a", "b", "c"}
    for left, right in merges:
        assert left in known and right in known
        known.add(left + right)


def synthesize(*argv: str) -> int:
    return run_node.main(["models", "synthesize", *argv])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("asr", "--shape", "whisper-smal"), "did you mean whisper-small?"),
        (("asr", "--shape", "zzz"), "asr has whisper-large-v3, whisper-small"),
        (("asr", "--shape", "piper-medium"), "models synthesize tts --shape piper-medium"),
        (("asr-tones", "--shape", "whisper-small"), "models synthesize asr --shape whisper-small"),
    ],
)
def test_a_wrong_shape_is_one_line_with_the_right_one(
    argv: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(*argv, "--out", str(tmp_path / "model")) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    assert synthesize("tts", "--shape", "piper-medium", "--out", str(tmp_path)) == 2
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 12345, 12345))
    assert synthesize("asr", "--shape", "whisper-large-v3", "--out", str(tmp_path / "a" / "b")) == 1
    err = capsys.readouterr().err
    assert str(shapes.plan("whisper-large-v3").nbytes) in err and "12345" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_half_a_model_is_not_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.shapes.qwen._data", full)
    assert synthesize("repair", "--shape", "qwen2.5-3b", "--out", str(tmp_path / "model")) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("there", [False, True])
def test_half_a_clockwork_model_is_not_left_behind_either(
    there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "model", resource.getrlimit(resource.RLIMIT_FSIZE)
    if there:
        out.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # as on a full disk
    try:
        assert synthesize("nmt", "--out", str(out)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"cannot write to {out}: File too large" in capsys.readouterr().err
    assert (list(out.iterdir()) == []) if there else not out.exists()


def test_json_is_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert synthesize("tts", "--shape", "piper-medium", "--out", str(out), "--json") == 0
    said, err = capsys.readouterr()
    made = json.loads(said)
    assert made["path"] == str(out) and made["shape"] == "piper-medium"
    assert made["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert err == ""
