"""``run_node.py translate`` and its siblings as a user runs them: the real command, real models, a real node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine import embedded, media, timeline
from engine.commands import choosing, demo
from engine.config import Config

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT.parent / "shared" / "assets" / "speech"
LIMIT_S = 90
SAID = {"en": "the quick brown fox", "de": "der schnelle braune Fuchs", "fr": "le rapide brun renard"}

for library in ("faster_whisper", "ctranslate2", "sentencepiece", "piper", "onnx"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user of his own: no node runs, the configuration has clockwork models, the cache is empty."""
    base = tmp_path_factory.mktemp("u")
    names = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")
    for name in names:
        (base / name).mkdir(mode=0o700)
    (base / "XDG_CONFIG_HOME" / "dragoman").mkdir()
    written = choosing.as_toml(embedded.clockwork(base / "models"))
    (base / "XDG_CONFIG_HOME" / "dragoman" / "node.toml").write_text(written)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DRAGOMAN_")}
    return {**kept, **{name: str(base / name) for name in names}}


def tune(number: int) -> np.ndarray:
    """Four notes of a pentatonic scale: float32, mono, 16 kHz, about two seconds."""
    scale = 330.0 * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    notes = np.random.default_rng(number).choice(scale, 4)
    length = np.random.default_rng(number).integers(6_000, 10_000)
    t = np.arange(length) / 16_000
    fade = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.02)
    return np.concatenate([0.4 * fade * np.sin(2 * np.pi * note * t) for note in notes]).astype(np.float32)


def command(*argv: object) -> list[str]:
    return [sys.executable, str(ROOT / "run_node.py"), *map(str, argv)]


def run(home: dict[str, str], cwd: Path, *argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*argv), env=home, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def states(row: dict[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in row["stages"]}


def in_order(found: list[dict[str, Any]]) -> bool:
    by_session: dict[str, list[int]] = {}
    for row in found:
        by_session.setdefault(row["session"], []).append(row["utterance_index"])
    return all(indices == list(range(len(indices))) for indices in by_session.values())


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Six sounds, the fourth of them silence."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(6):
        samples = np.zeros(16_000, np.float32) if number == 3 else tune(number)
        media.write_wav(folder / f"{number}.wav", samples, 16_000)
    return folder


def test_sounds_in_three_sessions_come_back_complete_and_in_order(
    home: dict[str, str], tmp_path: Path, clips: Path
) -> None:
    pytest.importorskip("llama_cpp")
    done = run(home, tmp_path, "translate", clips, "--out", "out", "--sessions", 3)
    assert "starting a private node" in done.stderr
    found = rows(tmp_path / "out")
    assert [Path(row["input"]).stem for row in sorted(found, key=lambda row: row["input"])] == list("012345")
    assert {row["session"].partition(".")[0] for row in found} == {"s0", "s1", "s2"}
    assert in_order(found)
    for row in found:
        assert row["outcome"] == "ok"
        if Path(row["input"]).stem == "3":
            assert (row["transcript"], row["audio"]) == ("", None)
            assert states(row) == {"asr": "completed", "repair": "skipped", "nmt": "skipped", "tts": "skipped"}
            continue
        assert set(states(row).values()) == {"completed"}
        assert (row["transcript"], row["repaired"], row["translation"]) == (SAID["en"], SAID["en"], SAID["de"])
        with wave.open(str(tmp_path / "out" / row["audio"])) as file:
            assert (file.getframerate(), file.getnchannels()) == (22_050, 1)
            assert file.getnframes() > 10_000
    chart = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert timeline.overlap_share(chart) > 0
    assert {e["args"]["stage"] for e in chart["traceEvents"] if e["ph"] == "X"} == {"asr", "repair", "nmt", "tts"}


def test_what_was_spoken_can_be_read_back(home: dict[str, str], tmp_path: Path) -> None:
    from models.clockwork import tts

    (tmp_path / "digits.txt").write_text("3 1 4\n2 7 1\n")
    run(home, tmp_path, "translate", "digits.txt", "--out", "out", "--pipeline", "speak", "--source", "en")
    for row, digits in zip(rows(tmp_path / "out"), ("314", "271"), strict=True):
        assert states(row) == {"tts": "completed"}
        with wave.open(str(tmp_path / "out" / row["audio"])) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
            assert tts.spoken_digits(samples, file.getframerate(), "en") == digits


def test_text_is_translated_line_by_line(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("the quick brown fox\n\nhello world, thank you Anna 42!\n")
    run(home, tmp_path, "translate", "lines.txt", "--out", "out", "--target", "de")
    found = rows(tmp_path / "out")
    assert [row["translation"] for row in found] == [SAID["de"], "hallo Welt, thank you Anna 42!"]
    assert [row["input"] for row in found] == ["lines.txt:1", "lines.txt:3"]
    assert [states(row) for row in found] == [{"nmt": "completed"}] * 2


def test_transcribing_stops_after_the_transcript(home: dict[str, str], tmp_path: Path, clips: Path) -> None:
    run(home, tmp_path, "translate", clips / "0.wav", "--out", "out", "--pipeline", "transcribe", "--source", "fr")
    (row,) = rows(tmp_path / "out")
    assert (row["transcript"], row["translation"], row["audio"]) == (SAID["fr"], None, None)
    assert states(row) == {"asr": "completed"}


def test_a_stage_can_be_left_out_and_one_bad_file_fails_alone(
    home: dict[str, str], tmp_path: Path, clips: Path
) -> None:
    (clips / "0.wav").write_bytes(b"no sound")
    done = run(
        home, tmp_path, "translate", clips / "0.wav", clips / "1.wav", "--out", "out", "--skip", "repair", code=1
    )
    bad, good = rows(tmp_path / "out")
    assert (bad["outcome"], bad["code"], bad["utterance_index"]) == ("error", "bad_audio", None)
    assert (good["outcome"], good["utterance_index"], good["translation"]) == ("ok", 0, SAID["de"])
    assert states(good)["repair"] == "skipped"
    assert "0.wav" in done.stderr


def test_a_language_nobody_speaks_is_one_line(home: dict[str, str], tmp_path: Path, clips: Path) -> None:
    done = run(home, tmp_path, "translate", clips, "--out", "out", "--target", "xx", "--quiet", code=2)
    (line,) = done.stderr.splitlines()
    assert "xx" in line
    assert "de" in line
    assert not (tmp_path / "out").exists()


def test_json_is_one_object_and_nothing_else(home: dict[str, str], tmp_path: Path, clips: Path) -> None:
    done = run(home, tmp_path, "translate", clips, "--out", "out", "--json")
    said = json.loads(done.stdout)
    assert said["ok"] is True
    assert said["results"] == rows(tmp_path / "out")
    assert done.stderr == ""


def test_the_demo_shows_every_clip_and_is_honest(home: dict[str, str], tmp_path: Path) -> None:
    done = run(home, tmp_path, "demo", "--out", "shown")
    found = rows(tmp_path / "shown")
    assert len(found) == len(demo.clips()) and in_order(found)
    wanted = {clip.path.name: (clip.text, clip.translation) for clip in demo.clips()}
    made = {Path(row["input"]).name: (row["repaired"] or row["transcript"], row["translation"]) for row in found}
    assert made == wanted
    for shown in (
        "anna (en→es)",
        "Buenos días.",
        "timeline.png",
        "on this machine",
        "closed vocabulary",
        "not for use",
    ):
        assert shown in done.stdout
    assert (tmp_path / "shown" / "timeline.png").stat().st_size > 1000


@pytest.fixture
def serving(home: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A node of this user that serves; drained at the end if it still runs."""
    node = subprocess.Popen(
        command("serve"), env=home, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert node.stdout is not None
    with ended_after(node):
        said = list(iter(node.stdout.readline, "ready\n"))
    assert any("clients at ipc://" in line for line in said), said
    assert any(line.startswith("mode pipelined") for line in said)
    yield node
    node.send_signal(signal.SIGTERM)
    assert node.wait(LIMIT_S) == 0


class ended_after:
    """Kill a process that is not done with something in time, so that reading from it cannot wait for ever."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._timer = threading.Timer(LIMIT_S, process.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def test_the_running_node_is_used_watched_and_left_running(
    home: dict[str, str], tmp_path: Path, clips: Path, serving: subprocess.Popen[str]
) -> None:
    done = run(home, tmp_path, "translate", clips, "--out", "out", "--sessions", 2)
    assert "using the running node at ipc://" in done.stderr
    assert in_order(rows(tmp_path / "out"))
    assert "serving" in run(home, tmp_path, "health").stdout
    stats = json.loads(run(home, tmp_path, "stats", "--json").stdout)
    assert {"mode", "gpu_count", "per_gpu", "max_concurrent", "active", "jobs", "slots", "leases"} <= stats.keys()
    assert "asr@cpu/0" in run(home, tmp_path, "stats").stdout
    assert stats["node"] in run(home, tmp_path, "doctor", "--connect").stdout
    assert serving.poll() is None


def test_a_node_that_was_killed_is_not_taken_for_a_running_one(
    home: dict[str, str], tmp_path: Path, clips: Path
) -> None:
    node = subprocess.Popen(
        command("serve"), env=home, cwd=tmp_path, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert node.stdout is not None
    with ended_after(node):
        for _ in iter(node.stdout.readline, "ready\n"):
            pass
    node.kill()
    node.wait(LIMIT_S)
    done = run(home, tmp_path, "health", code=1)
    assert "no node" in done.stderr
    assert "starting a private node" in run(home, tmp_path, "translate", clips / "0.wav", "--out", "out").stderr


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A configuration whose one stage takes most of a second."""
    stage = {"kind": "simulated", "devices": ["cpu"], "options": {"accepts": "audio", "sleep_ms": 800.0}}
    config = msgspec.convert({"stages": {"asr": stage}, "pipelines": {"full": ["asr"]}}, Config)
    path = tmp_path / "slow.toml"
    path.write_text(choosing.as_toml(config), encoding="utf-8")
    return path


def started(home: dict[str, str], tmp_path: Path, clips: Path, slow: Path) -> subprocess.Popen[str]:
    """A translation whose first utterance has ended and whose others are in flight."""
    argv = command("translate", clips, "--out", "out", "--config", slow)
    running = subprocess.Popen(
        argv, env=home, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    done = threading.Event()
    for _ in range(LIMIT_S * 10):
        file = tmp_path / "out" / "results.jsonl"
        if file.exists() and file.read_text():
            return running
        done.wait(0.1)
    raise AssertionError("no outcome came")


def test_ctrl_c_drains_and_says_how_many_are_in_flight(
    home: dict[str, str], tmp_path: Path, clips: Path, slow: Path
) -> None:
    running = started(home, tmp_path, clips, slow)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    (line,) = [line for line in said.splitlines() if line.startswith("draining")]
    ended = len(rows(tmp_path / "out"))
    assert int(line.split()[1]) in (ended, ended - 1)  # all but the first were in flight
    assert in_order(rows(tmp_path / "out"))


def test_the_second_ctrl_c_stops_at_once_and_leaves_nothing(
    home: dict[str, str], tmp_path: Path, clips: Path, slow: Path
) -> None:
    running = started(home, tmp_path, clips, slow)
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    with ended_after(running):
        for line in iter(running.stderr.readline, ""):
            if line.startswith("draining"):
                break
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    assert len(rows(tmp_path / "out")) < 6
    assert not [p for p in (Path(home["XDG_RUNTIME_DIR"]) / "dragoman").iterdir() if p.is_dir()]


@pytest.mark.skipif(not ASSETS.is_dir(), reason="no test recordings beside this checkout")
def test_real_recordings_in_every_encoding(home: dict[str, str], tmp_path: Path) -> None:
    sounds = [p for f in ("encodings", "faster-whisper", "librispeech") for p in sorted((ASSETS / f).iterdir())]
    run(home, tmp_path, "translate", *sounds, "--out", "out", "--sessions", 3)
    found = rows(tmp_path / "out")
    assert len(found) == len(sounds)
    assert in_order(found)
    assert {row["outcome"] for row in found} == {"ok"}
    assert all(row["transcript"].startswith(SAID["en"]) and row["translation"].startswith(SAID["de"]) for row in found)
