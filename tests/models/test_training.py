"""Training runs from end to end and writes files that the libraries load; what is learned is another question."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("espeakng_loader")

from stages import find
from stages.base import StageConfig

MADE = {"asr": "asr", "nmt": "nmt", "repair": "repair.gguf", "tts": "tts"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", MADE)
def test_a_quick_training_writes_a_model_that_loads(stage: str, tmp_path: Path) -> None:
    made = importlib.import_module(f"models.train.{stage}").train(tmp_path / MADE[stage], quick=True)
    facts = find(stage).describe(str(made), {})
    assert facts.weights_bytes > 10_000
    if stage != "repair":  # llama.cpp is not where torch is
        assert facts.languages == {"en", "de", "es", "zh"}
        loaded = find(stage)(StageConfig(str(made), "cpu", "default", 1, 1, {}))
        loaded.load()
        loaded.close()
