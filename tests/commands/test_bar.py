"""Where standard error is a file, a long run says something now and then, and a short one nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import bar

MEANWHILE = Path(__file__).parents[2] / "scripts/meanwhile.sh"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_line_every_ten_seconds_and_no_control_characters(
    clock: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with bar.bar(total=8, desc="requests", unit="request", mininterval=0.0, miniters=1) as shown:
        for _ in range(8):
            clock[0] += 5.0
            shown.update()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("%")[1].split("[")[0].strip(" |") for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert all(line.startswith("requests") and "\r" not in line for line in lines)


def test_what_ends_sooner_says_nothing(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    for _ in bar.bar(range(3), "rounds", mininterval=0.0):
        clock[0] += 3.0
    with bar.bar(total=1, desc="hidden", shown=False) as shown:
        clock[0] += 60.0
        shown.update()
    assert capfd.readouterr().err == ""


def test_a_silent_command_of_the_set_up_is_said_to_run_and_its_exit_code_kept() -> None:
    argv = ["bash", str(MEANWHILE), "installing", "bash", "-c", "sleep 0.5; exit 7"]
    env = {**os.environ, "EVERY_S": "0.1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert done.stdout.startswith("   still installing: ")
