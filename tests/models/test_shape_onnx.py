"""A Piper voice of medium quality's size, loaded and run by the voices' own stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import shapes
from models.shapes import piper as shape
from stages.base import Item, Output, StageConfig
from stages.tts import TtsStage

pytest.importorskip("piper", reason="piper-tts is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.plan("piper-medium").write(tmp_path_factory.mktemp("shape") / "voice", shapes.silent)


def test_the_voice_is_as_large_as_the_published_one(folder: Path) -> None:
    written = (folder / "en.onnx").stat().st_size
    assert written == pytest.approx(shapes.SHAPES["piper-medium"].published_bytes, rel=0.03)


def test_the_stage_runs_it_and_its_speech_lasts_as_long_as_its_phonemes(folder: Path) -> None:
    stage = TtsStage(StageConfig(model=str(folder), threads=2))
    stage.load()
    voice = stage._voices["en"]
    ids = voice.phonemes_to_ids(voice.phonemize("good morning")[0])
    outcome = stage.run([Item("s", 0, 1, target="en", text="good morning")])[0]
    stage.close()
    assert isinstance(outcome, Output) and outcome.audio is not None
    assert len(outcome.audio) == len(ids) * shape.FRAMES_A_SYMBOL * 256
    assert outcome.audio.any()


@pytest.mark.parametrize("text", ["a", "I.", "one two three four five six seven eight nine ten"])
def test_short_and_long_texts_run(folder: Path, text: str) -> None:
    stage = TtsStage(StageConfig(model=str(folder), threads=2))
    stage.load()
    assert isinstance(stage.run([Item("s", 0, 1, target="en", text=text)])[0], Output)
    stage.close()
