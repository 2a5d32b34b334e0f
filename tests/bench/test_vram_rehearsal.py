"""A rehearsal is a real node on the stand-in driver: what its scenario does to it shows in the figures.

So does an arbiter that breaks a promise: one that overlooks something in the room it grants is caught by the driver.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from bench import vram, vram_events, vram_rehearsal
from bench.report import Report
from bench.standin_driver import Driver, Gpu
from bench.vram_events import Events, Kill
from bench.vram_rehearsal import GIB, Rehearsal, Scenario, Stage, add_events, rehearse
from engine.leasing import Lease
from engine.node import Node

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

SAMPLE = Path(__file__).parents[2] / "docs/examples/evening.toml"
BAD_DAY = SAMPLE.with_name("bad_day.toml")
UNLUCKY = """
utterances = 20
gap_s = 0.1
[[stages]]
name = "a"
weights_gib = 1.0
[[events]]
what = "program"
at_s = 0.1
gib = 1.0
takes_gib = 9.0
for_s = 0.0
[[events]]
what = "program"
at_s = 0.1
gib = 50.0
for_s = 0.0
[[events]]
what = "order"
at_s = 0.1
order = "load b"
[[events]]
what = "kill"
at_s = 0.1
process = "arbiter"
while_loading = "a"
[[events]]
what = "lose"
at_s = 60.0
gpu = 0
"""
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


TURNS = """
utterances = 6
gap_s = 0.05
lag_s = 1.0
[[stages]]
name = "a"
weights_gib = 1.0
run_gib = 4.0
[[stages]]
name = "b"
weights_gib = 0.5
estimate_gib = 4.0
[deadlines]
turn_s = 0.5
"""
SLOWLY = TURNS.replace("lag_s = 1.0", "lag_s = 4.0").replace(
    "turn_s = 0.5", "turn_s = 3.0"
)  # seen on a busy machine too
BEYOND = """
utterances = 6
[[stages]]
name = "a"
weights_gib = 5.5
estimate_gib = 2.9
load_ms = 1000
[[stages]]
name = "b"
weights_gib = 0.3
estimate_gib = 3.0
[deadlines]
turn_s = 0.5
unreadable_s = 0.5
"""  # the first takes more than it has leased, and is there for longer than a reading may be old
SECRETIVE = """
from engine.arbiter import main
from engine.arbiter.leases import Leases

snapshot = Leases.snapshot
Leases.snapshot = lambda self, now: {**(report := snapshot(self, now)), "last_lease": report["last_lease"] + 1}
main.main()
"""  # one more grant than it tells of
CEILING = TURNS + "[devices.max_bytes]\n'cuda:0' = 8_589_934_592\n"
FAULTY = """
from engine.arbiter import main
from engine.arbiter.lease import LEAVING
from engine.arbiter.room import DeviceMemory

def room(self, leases):
    if self.reading is None:
        return 0
    free, foreign = self.reading.free_bytes, self.foreign_bytes
    promised, held = self.promised(leases), sum(one.held_bytes for one in leases)
    left = sum(one.held_bytes for one in leases if one.state in LEAVING)
    beyond = sum(max(0, one.held_bytes - one.nbytes) for one in leases)
    unused = self.limits.total_bytes - self.limits.usable_bytes
    FAULT

DeviceMemory.room = room
main.main()
"""
FAULTS = {  # what the arbiter overlooks -> the room it sees
    "what is promised": "return self.limits.grantable(free, 0, held, foreign)",
    "what the dead have left": "return self.limits.grantable(free + left, promised, promised + held - left, foreign)",
    "what is held beyond a lease": (
        "return self.limits.grantable(free + beyond, promised, promised + held - beyond, foreign) if leases"
        " else int(2.95 * 2**30)"  # so that the first of the two comes first
    ),
    "the ceiling": "return self.limits.grantable(free, promised, promised + held, foreign) + unused",
}


REFUSED = """
utterances = 30
gap_s = 0.1

[[stages]]
name = "a"
weights_gib = 3

[[outsiders]]
gpu = 0
at_s = 0.3
gib = 14

[[events]]
what = "kill"
at_s = 0
process = "a@cuda:0/7"

[[events]]
what = "order"
at_s = 0
order = "load b"

[[events]]
what = "program"
at_s = 0
gib = 100
for_s = 1
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
    shorter = SAMPLE.read_text().replace("utterances = 60", "utterances = 20")
    file.write_text(shorter.replace("at_s = 2.0", "at_s = 0.5").replace("at_s = 5.0", "at_s = 1.5"))
    code, found = rehearsed(["--gpus", "8GiB,24GiB", "--scenario", str(file)], capsys)
    assert code == 0
    assert (found["utterances"], found["oom"], found["failed"], found["overcommitted"]) == (20, 0, 0, 0)
    assert found["granted"] >= 4 and found["unjudged"] == 0
    assert 0 < found["vram_peak_0"] <= 8 and 0 < found["vram_used"] < 32


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("weights_gib = 50", "fits nowhere: it needs 50.3 GiB on cuda:0, which can give at most 7.2 GiB"),
        ("weights_gib = 1\ndevices = ['cuda:7']", "names 'cuda:7'"),
        ("weights_gib = 1\n[devices]\nnonsense = 1", "devices.nonsense is unknown"),
        ("weigths_gib = 1", "stages[0].weigths_gib is unknown; did you mean weights_gib?"),
        ("weights_gib = 1\n[[outsiders]]\ngpus = 1", "outsiders[0].gpus is unknown; did you mean gpu?"),
        ("weights_gib = 'x'", "stages[0].weights_gib: Expected `float`, got `str`"),
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
def test_ctrl_c_tells_how_many_utterances_had_their_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play = vram_rehearsal.Rehearsal.run

    def interrupted(rehearsal: vram_rehearsal.Rehearsal, node: Node) -> float:
        play(rehearsal, node)
        raise KeyboardInterrupt

    (tmp_path / "scenario.toml").write_text(SNATCHED.replace("utterances = 12", "utterances = 2"))
    monkeypatch.setattr(vram_rehearsal.Rehearsal, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehearse((8 * GIB,), tmp_path / "scenario.toml")
    assert capsys.readouterr().err.endswith("cut short: 2 utterances had their outcome\n")


@pytest.mark.timeout(120)
def test_memory_that_somebody_snatches_is_shown_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is loaded, its workspace not taken yet: no lease can keep others from taking that."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "snatched.toml"
    file.write_text(SNATCHED)
    code, found = rehearsed(["--gpus", "4GiB", "--scenario", str(file)], capsys)
    assert (code, found["oom"], found["oom_rate"]) == (0, 0, 0)
    assert found["snatched"] > 0
    assert found["failed"] == 0, "they are tried again"
    assert not list(tmp_path.rglob("estimates.json")), "a rehearsal's models are none that the user has"


@pytest.mark.timeout(120)
def test_what_did_not_happen_was_refused_or_got_no_lease_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(REFUSED)
    code = vram.main(["--gpus", "8GiB", "--scenario", str(file), "--json"])
    told = capfd.readouterr()
    found = {row["metric"]: row["value"] for row in json.loads(told.out)["results"]}
    assert (code, found["not_happened"], found["refused_orders"], found["programs_refused"]) == (1, 1, 1, 1)
    assert 'did not happen: {"what":"kill","at_s":0.0,"process":"a@cuda:0/7"' in told.err
    assert "was refused: load b: " in told.err and "a program got no lease: " in told.err
    assert "broken: not_happened is 1, and is to be = 0" in told.err
    assert 0 < found["vram_used_over_packing"] <= 1, "the outsider wants more than is left"


@pytest.mark.timeout(120)
def test_an_outsider_that_never_comes_is_said_and_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenario.toml"
    text = "utterances = 2\n[[stages]]\nname = 'a'\nweights_gib = 1\n[[outsiders]]\ngpu = 0\ngib = 1\n"
    file.write_text(text + "at_s = 500\n")
    assert vram.main(["--gpus", "8GiB", "--scenario", str(file), "--json"]) == 1
    told = capsys.readouterr()
    found = {row["metric"]: row["value"] for row in json.loads(told.out)["results"]}
    assert found["not_happened"] == 1 and "events" not in found
    assert 'did not come: {"gpu":0,"at_s":500.0,"gib":1.0}' in told.err


def grants(tmp_path: Path, gpu_gib: int, scenario: str, modules: dict[str, str] | None = None) -> tuple[int, int]:
    """How many were overcommitted, and above the ceiling."""
    file = tmp_path / "scenario.toml"
    file.write_text(scenario)
    found = {one.metric: one.value for one in rehearse((gpu_gib * GIB,), file, modules).results}
    return int(found["overcommitted"]), int(found["above_ceiling"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("gpu_gib", "scenario"), [(8, TURNS), (8, BEYOND), (16, CEILING)])
def test_a_node_that_goes_by_turns_grants_nothing_that_is_not_there(
    tmp_path: Path, gpu_gib: int, scenario: str
) -> None:
    assert grants(tmp_path, gpu_gib, scenario) == (0, 0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("overlooked", "gpu_gib", "scenario"),
    [
        ("what is promised", 8, TURNS),
        ("what the dead have left", 8, SLOWLY),
        ("what is held beyond a lease", 8, BEYOND),
        ("the ceiling", 16, CEILING),
    ],
)
def test_an_arbiter_that_overlooks_something_is_caught_by_the_driver(
    tmp_path: Path, overlooked: str, gpu_gib: int, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_arbiter.py").write_text(FAULTY.replace("FAULT", FAULTS[overlooked]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    overcommitted, above_ceiling = grants(tmp_path, gpu_gib, scenario, {"arbiter": "faulty_arbiter"})
    assert above_ceiling > 0 and (overcommitted > 0) == (overlooked != "the ceiling")


@pytest.mark.timeout(120)
def test_a_grant_that_is_not_judged_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secretive_arbiter.py").write_text(SECRETIVE)
    (tmp_path / "scenario.toml").write_text("utterances = 2\n[[stages]]\nname = 'a'\nweights_gib = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = rehearse((8 * GIB,), tmp_path / "scenario.toml", {"arbiter": "secretive_arbiter"})
    assert {one.metric: one.value for one in report.results}["unjudged"] == 1 and report.exit_code == 1


@pytest.mark.timeout(120)
def test_a_node_that_everything_befalls_keeps_its_promises_and_grants_again(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vram_rehearsal, "NEXT_GRANT_S", 60.0)  # how fast this machine is, is not asked here
    code = vram.main(["--gpus", "8GiB,8GiB", "--scenario", str(BAD_DAY), "--json"])
    told = capfd.readouterr()
    found = {row["metric"]: row["value"] for row in json.loads(told.out)["results"]}
    assert "Fatal Python error" not in told.err, "what is killed on purpose frightens nobody"
    assert code == 0 and found["utterances"] == 80
    zero = (
        "failed",
        "mixed_up",
        "oom",
        "overcommitted",
        "above_ceiling",
        "unjudged",
        "never_granted",
        "programs_short",
    )
    assert [found[name] for name in zero] == [0] * len(zero)
    assert (found["events"], found["not_happened"], found["refused_orders"]) == (8, 0, 0)
    assert (found["programs"], found["programs_refused"]) == (1, 0)
    assert found["next_grant_s"] > 0, "after the arbiter's death"
    assert found["granted"] >= 4 + 1 + 1 + 1, "workers, the one that died, a program, and who asked after that death"


class Narrow:
    """A session of a node that takes two at once; whoever submits a third would wait, and hear nothing meanwhile."""

    def __init__(self) -> None:
        self.core = SimpleNamespace(share=2)
        self.most = self._submitted = self._ended = 0

    @property
    def outstanding(self) -> int:
        return self._submitted - self._ended

    def submit(self, samples: np.ndarray) -> None:
        assert self.outstanding < self.core.share, "it would wait"
        self._submitted += 1
        self.most = max(self.most, self.outstanding)

    def outcomes(self, timeout_s: float) -> Iterator[SimpleNamespace]:
        if self.outstanding:
            self._ended += 1
            yield SimpleNamespace(index=self._ended - 1, outcome="error")


def test_outcomes_are_heard_as_they_come_also_while_the_node_has_no_room() -> None:
    scenario = Scenario(stages=(Stage(name="a", weights_gib=1.0),), utterances=9)
    rehearsal, session = Rehearsal(scenario, cast(Driver, None), (8 * GIB,)), Narrow()
    rehearsal._drive(session, time.monotonic())
    assert len(rehearsal.outcomes) == len(rehearsal.took_s) == 9 and session.most == 2


@pytest.mark.parametrize(("seconds", "code"), [([0.4, 1.5], 0), ([1.6, 0.4], 1)])
def test_an_arbiter_that_is_away_for_too_long_fails_the_command(seconds: list[float], code: int) -> None:
    with Driver([Gpu(GIB)]) as driver:
        events = Events([Kill(at_s=0.0, process="arbiter")], driver, 0)
    events.missing, events.next_grants = [], seconds
    report = Report("vram")
    add_events(report, events, absent=[])
    assert report["next_grant_s"] == max(seconds) and report.exit_code == code


@pytest.mark.parametrize(("waits", "seconds"), [([], 3.0), ([2.0], 2.0), ([1.0, 2.0], 1.0)])
def test_what_others_load_after_a_death_of_the_arbiter_is_not_put_down_to_it(
    waits: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has answered when it says what is waited for, and knows that only when it has read its devices."""
    now = 10.0

    class GrantedAfter3Seconds(Lease):
        def acquire(self) -> Lease:
            nonlocal now
            for after_s in waits:
                now = 10.0 + after_s
                self._on_wait("waiting for asr@cuda:0/0 to load on cuda:0")
            now = 13.0
            return self

    monkeypatch.setattr(vram_events, "Lease", GrantedAfter3Seconds)
    monkeypatch.setattr(vram_events, "time", SimpleNamespace(monotonic=lambda: now))
    with Driver([Gpu(GIB)]) as driver:
        events = Events([], driver, 0)
    events._ask("", 10.0)
    assert events.next_grants == [seconds]


@pytest.mark.timeout(120)
def test_what_does_not_happen_or_goes_wrong_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "unlucky.toml"
    file.write_text(UNLUCKY)
    code, found = rehearsed(["--gpus", "8GiB", "--scenario", str(file)], capsys)
    assert code == 1 and found["failed"] == 0
    assert (found["events"], found["not_happened"], found["refused_orders"]) == (5, 2, 1)
    assert (found["programs"], found["programs_refused"], found["programs_short"]) == (2, 1, 1)
    assert "next_grant_s" not in found


@pytest.mark.timeout(120)
def test_a_gpu_with_an_uncorrectable_error_is_left_by_its_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ill.toml"
    text = "utterances = 20\ngap_s = 0.1\n[[stages]]\nname = 'a'\nweights_gib = 1\ndevices = ['cuda:0', 'cuda:1']\n"
    file.write_text(text + "[[events]]\nwhat = 'ecc'\nat_s = 0.5\ngpu = 0\n")
    code, found = rehearsed(["--gpus", "8GiB,8GiB", "--scenario", str(file)], capsys)
    assert code == 0 and (found["events"], found["not_happened"], found["failed"], found["unjudged"]) == (1, 0, 0, 0)
