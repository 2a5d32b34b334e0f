"""The demo's figures: how much of the possible gain was had."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine import devices, embedded, media, timeline
from engine.commands import demo, nodes
from engine.config import Config


def serial_chart(asr_ms: int, tts_ms: int, count: int = 10) -> dict:
    """``count`` utterances one after another, two stages."""
    at, outcomes = 1, []
    for index in range(count):
        records = []
        for stage, length in (("asr", asr_ms), ("tts", tts_ms)):
            begun, ended = at * 1_000_000, (at + length) * 1_000_000
            known = {"stage": stage, "worker": f"{stage}@cpu/0", "state": "completed"}
            records.append({**known, "queued_ns": begun, "begun_ns": begun, "ended_ns": ended})
            at += length
        outcomes.append(("s", index, records))
    return timeline.trace(outcomes)


@pytest.mark.parametrize(
    ("asr", "tts", "workers", "cores", "most"),
    [
        (100, 100, 1, 8, 2.0),
        (300, 100, 1, 8, 4 / 3),
        (300, 100, 2, 8, 8 / 3),
        (300, 100, 2, 2, 2.0),
        (300, 100, 2, 1, 1.0),
    ],
)
def test_the_bound_is_the_busiest_stage_or_all_cores(asr: int, tts: int, workers: int, cores: int, most: float) -> None:
    assert demo.limit(serial_chart(asr, tts), {"asr": workers, "tts": 1}, cores) == pytest.approx(most)


def test_the_gain_is_between_the_middle_runs_of_each_mode() -> None:
    serial = [serial_chart(*times) for times in ((150, 50), (150, 50), (900, 900))]
    pipelined = [serial_chart(*times) for times in ((50, 0), (100, 0), (100, 0))]
    gain = demo.gained(pipelined, serial, {"asr": 2, "tts": 1}, 8)
    assert (gain.serial_s, gain.pipelined_s, gain.rounds) == (pytest.approx(2.0), pytest.approx(1.0), 3)
    assert gain.factor == pytest.approx(2.0) and gain.bound == pytest.approx(200 / 75)
    assert gain.is_noisy and (gain.least, gain.most) == (pytest.approx(2.0), pytest.approx(18.0))
    assert not demo.gained(pipelined[1:2] * 3, serial[:1] * 3, {"asr": 2, "tts": 1}, 8).is_noisy


def test_the_figures_are_told_as_they_are() -> None:
    gain = demo.Gain(rounds=5, pipelined_s=0.40, serial_s=0.92, bound=2.5, least=2.1, most=2.4)
    told = demo.gain_text(gain)
    assert "0.92 s one thing at a time, 0.40 s like this: 2.30 × as fast" in told and "at most 2.50 ×" in told
    assert "Do not trust" not in told
    assert "single rounds gave 0.70 to 2.40 ×" in demo.gain_text(dataclasses.replace(gain, least=0.7))
    assert "Do not trust" in demo.gain_text(dataclasses.replace(gain, bound=2.0)), "more than is possible"


def test_what_is_expected_is_counted_and_not_assumed() -> None:
    clips = demo.clips()
    rows = [{"input": str(clip.path), "translation": clip.translation} for clip in clips]
    assert demo.as_expected(rows) == len(clips)
    rows[3]["translation"] = "something else"
    assert demo.as_expected(rows) == len(clips) - 1


def test_the_clips_come_with_what_they_should_become() -> None:
    clips = demo.clips()
    assert 8 <= len(clips) <= 12 and len({clip.speaker for clip in clips}) == 3
    assert {"de", "zh"} < {clip.source for clip in clips}
    assert all(clip.path.suffix == ".flac" and clip.path.stat().st_size > 1000 for clip in clips)


def test_the_clips_are_sound_of_a_few_seconds() -> None:
    for clip in demo.clips():
        sound = media.read(clip.path, 10.0)
        assert 0.5 < sound.duration_s < 6.0 and abs(sound.samples).max() > 10_000, clip


@pytest.mark.parametrize(("on_a_gpu", "at_once"), [(False, 2), (True, 1)])
def test_two_nodes_never_want_one_gpu(on_a_gpu: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one would find the GPU in use: each has its rounds for itself there, and else they take turns."""
    alive, most, carried = ["pipelined"], [], []

    @contextmanager
    def private(config: Config, say: object) -> Iterator[str]:
        del say
        alive.append(config.node.mode)
        yield config.node.mode
        alive.remove(config.node.mode)

    def one_round(client: str, config: Config) -> dict:
        del config
        assert client in alive
        most.append(len(alive))
        carried.append(client)
        return serial_chart(100, 100)

    gpu = devices.Device("cuda:0", "GPU-0", "cuda", 2**34, "nvml", "a GPU")
    cpu = devices.Device("cpu", "", "cpu", 2**34, "host", "a CPU")
    monkeypatch.setattr(devices, "look", lambda use: [gpu, cpu] if on_a_gpu else [cpu])
    monkeypatch.setattr(nodes, "private", private)
    monkeypatch.setattr(demo, "_round", one_round)
    config = embedded.config()
    gain = demo.measure("pipelined", lambda: alive.remove("pipelined"), config, lambda line: None, shown=False)
    assert gain is not None and gain.rounds == demo.ROUNDS
    assert max(most) == at_once and "serial" not in alive
    apart = ["pipelined"] * demo.ROUNDS + ["serial"] * demo.ROUNDS
    assert carried == (apart if on_a_gpu else ["pipelined", "serial"] * demo.ROUNDS)
