"""The workloads: nodes of simulated stages, and what is sent through them.

* **W1** is the seed's profile: asr 30, repair 5, nmt 30, tts 5 (ms here, or a tenth of it). A sleep stands for a GPU.
  320 KB go in, text travels between the stages, 200 KB of int16 come out.
* **W2** does nothing: four stages pass the same 320 KB on, each reading one byte of every page, and the client gets
  them back. What is left is what the node itself costs.

What is measured of stages that are none is nobody else's: these nodes keep no estimates.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from engine.config import Config, DeviceSection, NodeSection, StageSection
from engine.corrections_file import OFF
from stages.simulated import mark_samples

W1_MS = {"asr": 30.0, "repair": 5.0, "nmt": 30.0, "tts": 5.0}
HOPS = ("touch1", "touch2", "touch3", "touch4")
INPUT_SAMPLES = 160_000  # int16: 320 KB
OUTPUT_BYTES = 200_000
HOP_SAMPLES = 80_000  # float32: 320 KB, 5 s


def translation(scale: float = 1.0, mode: str = "pipelined", gil_share: float = 0.0) -> Config:
    """A node for W1: stage times ``W1_MS`` x ``scale``; ``gil_share`` of each is computing in the interpreter."""
    times: dict[str, Any] = {name: {"sleep_ms": ms * scale, "gil_share": gil_share} for name, ms in W1_MS.items()}
    times["asr"] |= {"accepts": "audio", "mark": True}
    times["tts"] |= {"emits": "audio", "mark": True, "output_bytes": OUTPUT_BYTES}
    return _node(times, mode)


def passing() -> Config:
    """A node for W2."""
    return _node({name: {"accepts": "audio", "emits": "same", "touch": True} for name in HOPS})


def _node(options: dict[str, dict[str, Any]], mode: str = "pipelined") -> Config:
    stages = {
        name: StageSection(kind="simulated", devices=("cpu",), threads=1, options=table)
        for name, table in options.items()
    }
    return Config(
        node=NodeSection(mode=mode, log_level="warning"),
        devices=DeviceSection(use=("cpu",), estimates_file=OFF),
        stages=stages,
        pipelines={"full": tuple(stages)},
    )


def unkept(config: Config) -> Config:
    """The same; where all its stages are simulated and it names no file for estimates, a node that keeps none."""
    if config.devices.estimates_file or any(stage.kind != "simulated" for stage in config.stages.values()):
        return config
    return msgspec.structs.replace(config, devices=msgspec.structs.replace(config.devices, estimates_file=OFF))


def marked(count: int, seed: int = 0) -> tuple[list[int], list[np.ndarray]]:
    """``count`` random 64-bit marks, and the int16 utterances (shape (160000,)) that carry them in every sample."""
    rng = np.random.default_rng(seed)
    marks = [int(mark) for mark in rng.integers(1, 2**63, count)]
    return marks, [mark_samples(mark, INPUT_SAMPLES) for mark in marks]


def carries(audio: np.ndarray | None, mark: int) -> bool:
    """Whether a result is whole and carries this mark in every sample."""
    return audio is not None and np.array_equal(audio, mark_samples(mark, OUTPUT_BYTES // 2))


def numbered(count: int) -> list[np.ndarray]:
    """``count`` different float32 utterances of shape (80000,)."""
    return [np.full(HOP_SAMPLES, (number + 1) / (count + 1), dtype=np.float32) for number in range(count)]


def tone(seconds: float = 5.0, hz: float = 440.0) -> np.ndarray:
    """An audible int16 utterance for stages that listen, 16 kHz mono."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    return (8000 * np.sin(2 * np.pi * hz * time)).astype(np.int16)
