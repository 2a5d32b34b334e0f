"""bench overload on a real node, for a moment: everything is accounted for, and what is not is noticed."""

from __future__ import annotations

import json

import pytest

from bench import overload
from bench.overload import Speaker


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WARM_S", "CAPACITY_S"):
        monkeypatch.setattr(overload, name, 1.0)


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}


def test_under_ten_times_the_load_every_utterance_is_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert overload.main(["--seconds", "3", "--json"]) == 0
    found = figures(capsys)
    assert found["unexplained"] == 0 and found["refused"] > found["ok"] > 10 and found["busy"]
    assert found["taken_in"] == found["ok"] + found["late"]
    assert found["offered"] > 5 * found["capacity"] and found["goodput"] > 0


def test_what_has_no_answer_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard = Speaker._end

    def deaf(self: Speaker, message: dict, now: float) -> None:
        if message["index"] != 3:
            heard(self, message, now)

    monkeypatch.setattr(Speaker, "_end", deaf)
    monkeypatch.setattr(overload, "SETTLES_S", 3.0)
    assert overload.main(["--seconds", "2", "--json"]) == 1
    assert figures(capsys)["unexplained"] > 0
