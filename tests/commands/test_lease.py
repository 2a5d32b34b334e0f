"""What is asked for: the device that ``lease --device`` means, the bytes of ``engine.Lease`` and of the example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.commands.inputs import UsageError
from engine.commands.lease import named
from engine.commands.waiting import CLEAR, Waiting, reason_of
from engine.leasing import Lease
from ipc.errors import DragomanError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_lease.py"

DEVICES = {"cpu": {"uuid": ""}, "cuda:0": {"uuid": "GPU-aa-1"}, "cuda:1": {"uuid": "GPU-ab-1"}}


def test_a_device_is_named_as_the_node_does_or_by_its_uuid_or_by_how_that_alone_begins() -> None:
    for given, meant in {
        "cuda:1": "cuda:1", "GPU-aa-1": "cuda:0", "GPU-ab": "cuda:1", "cpu": "cpu",
        "GPU-c": "GPU-c", "": "",
    }.items():  # fmt: skip
        assert named(given, DEVICES) == meant


def test_how_several_uuids_begin_is_told_with_those_it_may_mean() -> None:
    with pytest.raises(UsageError, match=r"'GPU-a' may mean cuda:0 \(GPU-aa-1\), cuda:1 \(GPU-ab-1\)"):
        named("GPU-a", DEVICES)
    assert named("GPU-a", {**DEVICES, "cuda:2": {"uuid": "GPU-a"}}) == "cuda:2"


def test_bytes_may_be_a_float_that_is_whole() -> None:
    lease = Lease(1.5 * 2**30)
    assert (lease.nbytes, type(lease.nbytes)) == (3 * 2**29, int)


@pytest.mark.parametrize("nbytes", [1.5, "6GiB", None, float("nan"), float("inf"), 0, -1.0, 2**70])
def test_what_is_no_number_of_bytes_is_said_at_once_with_what_to_write(nbytes: Any) -> None:
    with pytest.raises(ValueError, match=r"give .*, such as 6 \* 2\*\*30"):
        Lease(nbytes)


def test_who_waits_hears_for_how_long_and_why_and_another_reason_when_there_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = ["3 GiB can be granted"]
    with Waiting(25.0, "run_node.py explain", lambda: now[0]) as waiting:
        waiting.told("3 GiB can be granted")
        waiting.told("3 GiB can be granted")  # by an arbiter that began anew
        waiting.renew()
        now[0] = ""  # it is too far behind to be shown
        waiting.renew()
        now[0] = "4 GiB can be granted"
        waiting.renew()
        waiting.told("waiting for asr@cuda:0/0 to load")
    waiting.renew()
    assert capsys.readouterr().err.splitlines() == [
        "waiting: 3 GiB can be granted",
        "  for 25 s at most, others' loads not counted; run_node.py explain tells more",
        "waited 0 of 25 s: 4 GiB can be granted",
        "waiting for asr@cuda:0/0 to load",
    ]


def test_on_a_terminal_the_reason_is_renewed_in_place_and_gone_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    with Waiting(25.0, "x", lambda: "room " * 20) as waiting:
        waiting.told("room")
        capsys.readouterr()
        waiting.renew()
        waiting.renew()
    drawn = "waited 0 of 25 s: room room room room …"
    assert len(drawn) < 40 and capsys.readouterr().err == CLEAR + drawn + CLEAR + drawn + CLEAR


def test_a_node_that_does_not_answer_for_a_moment_is_no_matter_to_who_waits(capsys: pytest.CaptureFixture[str]) -> None:
    def nobody() -> str:
        raise DragomanError("no node", "start one")

    with Waiting(25.0, "x", nobody) as waiting:
        waiting.renew()
        assert not capsys.readouterr().err


def test_the_reason_is_that_of_the_program_itself() -> None:
    rows = [{"worker": "lease@771/1#5", "reason": "a"}, {"worker": "lease@77/1#5", "reason": "b"}]
    assert reason_of(77, {"arbiter": {"waiting": rows}}) == "b" and reason_of(7, {}) == ""


@pytest.mark.parametrize("arguments", [[], ["1000000000"], ["1GB", "cpu"], ["-1", "cpu"]])
def test_the_example_says_how_it_is_called(arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert ended.stderr.startswith("usage: ")
