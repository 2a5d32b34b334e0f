"""Where standard error is a file, a long run says something now and then, and a short one nothing."""

from __future__ import annotations

import pytest

from engine import bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr("engine.bar.time.monotonic", lambda: now[0])
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
