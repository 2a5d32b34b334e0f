"""The four real runtimes in a node: each in its own worker only, each may be killed, and what was said comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import embedded
from engine.node import Node
from tests.node.rehearsal import assert_in_order, identities, kill, maps, process_of

for library in ("faster_whisper", "ctranslate2", "sentencepiece", "llama_cpp", "piper", "onnx"):
    pytest.importorskip(library)

from models.clockwork import nmt, tones, tts  # noqa: E402  (needs the libraries above)

STAGES = ("asr", "repair", "nmt", "tts")
LIBRARIES = {"libctranslate2": {"asr", "nmt"}, "libllama": {"repair"}, "onnxruntime": {"tts"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def real(models: Path) -> Any:
    """The embedded configuration with one worker a stage, so that a kill leaves none."""
    return embedded.clockwork(models, cores=1)


def sound(seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(16_000 * seconds)) / 16_000)).astype(np.float32)


def test_each_library_is_loaded_by_its_own_workers_only(models: Path) -> None:
    with Node(real(models)) as node:
        pids = {row["role"]: row["pid"] for row in node.stats()["processes"]} | {"supervisor": node.pid}
        mapped = {role: "\n".join(maps(pid)) for role, pid in pids.items()}
    for library, stages in LIBRARIES.items():
        holders = {role.partition("@")[0] for role, text in mapped.items() if library in text}
        assert holders == stages, library


@pytest.mark.parametrize("stage", STAGES)
def test_killing_a_real_worker_while_it_processes_loses_nothing(models: Path, stage: str) -> None:
    with Node(real(models)) as node:
        before = identities(node)
        victim = f"{stage}@cpu/0"
        pid, killed = process_of(node, victim)["pid"], []

        def watch(progress: Any) -> None:
            if progress.stage == stage and progress.index >= 2 and progress.state == "processing" and not killed:
                kill(pid)
                killed.append(progress.index)

        with node.client() as client, client.session(source="en", target="de", on_progress=watch) as session:
            for _ in range(6):
                session.submit(sound())
            outcomes = list(session.outcomes(timeout_s=60))
        after = identities(node)
    assert killed and before[victim] != after[victim]
    assert {r: p for r, p in before.items() if r != victim} == {r: p for r, p in after.items() if r != victim}
    assert_in_order(outcomes)
    assert [(o.outcome, o.translation) for o in outcomes] == [("ok", "der schnelle braune Fuchs")] * 6


def test_digits_go_in_as_tones_and_come_back_out_of_the_speech(models: Path) -> None:
    config = embedded.clockwork(models, cores=2)
    path = models / "tones"
    tones.write(path)
    stages = dict(config.stages)
    stages["asr"] = type(stages["asr"])(kind="asr", model=str(path), instances=2)
    listening = type(config)(
        node=config.node, deadlines=config.deadlines, devices=config.devices, stages=stages, pipelines=config.pipelines
    )
    rng = np.random.default_rng(5)
    spoken = ["".join(map(str, rng.integers(0, 10, rng.integers(3, 9)))) for _ in range(20)]
    with Node(listening) as node, node.client() as client, client.session(source="en", target="de") as session:
        for digits in spoken:
            session.submit(tones.encode(digits))
        outcomes = list(session.outcomes(timeout_s=60))
    assert_in_order(outcomes)
    for digits, outcome in zip(spoken, outcomes, strict=True):
        assert outcome.outcome == "ok", outcome.error
        assert {tones.spell(digits)} == {outcome.transcript, outcome.translation}
        assert tts.spoken_digits(outcome.audio, outcome.sample_rate, "de") == digits


def test_silence_is_ok_and_the_later_stages_are_skipped(models: Path) -> None:
    with Node(real(models)) as node, node.client() as client, client.session(source="en", target="de") as session:
        session.submit(np.zeros(16_000, np.int16))
        (outcome,) = session.outcomes(timeout_s=60)
    assert (outcome.outcome, outcome.transcript) == ("ok", "")
    assert [s["state"] for s in outcome.stages] == ["completed", "skipped", "skipped", "skipped"]


def test_a_source_language_left_open_is_heard_and_used(models: Path) -> None:
    with Node(real(models)) as node, node.client() as client, client.session(source="auto", target="de") as session:
        session.submit(sound())
        (outcome,) = session.outcomes(timeout_s=60)
    assert (outcome.outcome, outcome.language, outcome.translation) == ("ok", "en", "der schnelle braune Fuchs")


def test_models_of_one_direction_each_translate_there_and_back(tmp_path: Path) -> None:
    there = nmt.write_marian(tmp_path / "opus-mt-en-de", target="de")
    back = nmt.write_marian(tmp_path / "opus-mt-de-en", target="en")
    config = {
        "stages": {"nmt": {"model": str(there), "devices": ["cpu"], "models": {"back": {"model": str(back)}}}},
        "pipelines": {"text": ["nmt"]},
    }
    with Node(config) as node, node.client() as client:
        assert client.limits["sources"] == client.limits["targets"] == {"text": ["de", "en"]}
        for source, target, text, said, model in (
            ("en", "de", "the 3 fox", "der 3 Fuchs", ""),
            ("de", "en", "der 3 Fuchs", "the 3 fox", "back"),
        ):
            with client.session(source=source, target=target, pipeline="text") as session:
                session.submit(text)
                (outcome,) = session.outcomes(timeout_s=30)
            assert (outcome.translation, outcome.stages[0]["model"]) == (said, model)
