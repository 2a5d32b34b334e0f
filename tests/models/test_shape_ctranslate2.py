"""A Whisper of real size in CTranslate2's format, loaded and run by the recogniser's own stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import shapes
from stages.asr import AsrStage
from stages.base import StageConfig

pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")

SMALL = shapes.SHAPES["whisper-small"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.plan("whisper-small").write(tmp_path_factory.mktemp("shape") / "small", shapes.silent)


def test_the_file_has_the_length_that_was_planned(folder: Path) -> None:
    written = (folder / "model.bin").stat().st_size
    assert written == shapes.plan("whisper-small").weights_bytes
    assert written == pytest.approx(SMALL.published_bytes, rel=0.03)


def test_the_stage_loads_it_with_its_99_languages_and_it_goes_on_until_it_is_stopped(folder: Path) -> None:
    facts = AsrStage.describe(str(folder), {})
    assert facts.languages is not None and len(facts.languages) == 99
    stage = AsrStage(StageConfig(model=str(folder), threads=2))
    stage.load()
    noise = np.random.Generator(np.random.PCG64(0)).normal(0, 0.1, 16000).astype(np.float32)
    lengths = []
    for limit in (6, 16):
        segments, _ = stage._model.transcribe(noise, language="en", beam_size=1, temperature=0.0, max_new_tokens=limit)
        lengths.append(sum(len(segment.tokens) for segment in segments))
    assert 1 < lengths[0] < lengths[1], "the longest output is what is measured"
    stage.close()


def test_bytes_are_told_as_they_are_written(tmp_path: Path) -> None:
    told: list[int] = []
    plan = shapes.plan("whisper-small")
    plan.write(tmp_path, told.append)
    assert len(told) > 100
    assert sum(told) == pytest.approx(plan.weights_bytes, rel=0.01)
