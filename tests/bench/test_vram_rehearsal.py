"""A rehearsal is a real node on the stand-in driver: what its scenario does to it shows in the figures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bench import vram

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

SAMPLE = Path(__file__).parents[2] / "docs/examples/evening.toml"
SNATCHED = """
utterances = 12
gap_s = 0.05
context_gib = 0.1
lag_s = 0.0
[[stages]]
name = "only"
weights_gib = 1.0
run_gib = 0.5
[[outsiders]]
gpu = 0
at_s = 0.0
gib = 4.0
[[outsiders]]
gpu = 0
at_s = 3.0
gib = 0.0
[deadlines]
retry_delay_s = 1.0
oom_hold_s = 0.5
"""


def rehearsed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, float]]:
    """Exit code and metrics."""
    before = dict(os.environ)
    code = vram.main([*arguments, "--json"])
    assert dict(os.environ) == before, "the stand-in driver is for the rehearsal alone"
    return code, {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}


@pytest.mark.timeout(120)
def test_the_sample_scenario_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evening.toml"
    file.write_text(SAMPLE.read_text().replace("utterances = 60", "utterances = 20"))
    code, found = rehearsed(["--gpus", "8GiB,24GiB", "--scenario", str(file)], capsys)
    assert code == 0
    assert (found["utterances"], found["oom"], found["failed"], found["overcommitted"]) == (20, 0, 0, 0)
    assert 0 < found["vram_peak_0"] <= 8 and 0 < found["vram_used"] < 32


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("weights_gib = 50", "fits nowhere: it needs 50.3 GiB on cuda:0, which can give at most 7.2 GiB"),
        ("weights_gib = 1\ndevices = ['cuda:7']", "names 'cuda:7'"),
        ("weights_gib = 1\n[devices]\nnonsense = 1", "devices.nonsense is unknown"),
        ("weights_gib = 1\n[deadlines]\nturn_s = -5", "deadlines.turn_s is -5.0"),
    ],
)
def test_what_the_node_cannot_be_started_with_is_told_in_one_line_with_the_scenario_s_name(
    tmp_path: Path, text: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(f"[[stages]]\nname = 'a'\n{text}\n")
    assert vram.main(["--gpus", "8GiB", "--scenario", str(file)]) == 2
    told = capfd.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith(f"error: {file}: ")
    assert complaint in told.err


@pytest.mark.timeout(120)
def test_memory_that_somebody_snatches_shows_as_oom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is loaded, its workspace not taken yet: no lease can keep others from taking that."""
    file = tmp_path / "snatched.toml"
    file.write_text(SNATCHED)
    code, found = rehearsed(["--gpus", "4GiB", "--scenario", str(file)], capsys)
    assert code == 1
    assert found["oom"] > 0 and found["oom_rate"] > 0
    assert found["failed"] == 0, "they are tried again"
