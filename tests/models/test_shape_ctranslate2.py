"""A Whisper of real size in CTranslate2's format, loaded and run by the recogniser's own stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import shapes
from stages.asr import AsrStage
from stages.base import Item, Output, StageConfig

pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")

SMALL = shapes.SHAPES["whisper-small"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.plan("whisper-small").write(tmp_path_factory.mktemp("shape") / "small", shapes.silent)


def test_the_file_has_the_length_that_was_planned(folder: Path) -> None:
    written = (folder / "model.bin").stat().st_size
    assert written == shapes.plan("whisper-small").weights_bytes
    assert written == pytest.approx(SMALL.published_bytes, rel=0.03)


def test_the_stage_reads_its_99_languages_and_runs_it_to_the_longest_text(folder: Path) -> None:
    facts = AsrStage.describe(str(folder), {})
    assert facts.languages is not None and len(facts.languages) == 99
    stage = AsrStage(StageConfig(model=str(folder), threads=2))
    stage.load()
    outcome = stage.run([Item("s", 0, 1, source="en", audio=np.zeros(16000, np.float32), sample_rate=16000)])[0]
    stage.close()
    assert isinstance(outcome, Output)
    assert len(outcome.text or "") > 200, "it must not end by itself: the longest output is what is measured"


def test_bytes_are_told_as_they_are_written(tmp_path: Path) -> None:
    told: list[int] = []
    plan = shapes.plan("whisper-small")
    plan.write(tmp_path, told.append)
    assert len(told) > 100
    assert sum(told) == pytest.approx(plan.weights_bytes, rel=0.01)
