"""Leases in virtual time keep every promise, and a book that breaks one is noticed by the true devices."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_node
from bench import vram, vram_rehearsal
from bench.vram_clock import Clock
from bench.vram_device import TrueDevice
from bench.vram_judge import PROMISES
from bench.vram_node import GIB, LOAD_S, PROCESS_S, READ_BYTES_S, Figures, Plan, VirtualNode
from bench.vram_packing import Packing
from bench.vram_trace import Trace
from engine.arbiter import leases, outlook
from engine.arbiter.lease import ALIVE, LEAVING
from engine.arbiter.leases import Leases
from engine.arbiter.line import Line
from engine.arbiter.outlook import Outlook
from engine.arbiter.room import DeviceMemory
from engine.config import DeadlinesSection
from engine.limits import Limits
from engine.scheduler import residency, retries
from engine.scheduler.shortages import Shortages
from ipc.messages import Done

SAMPLE = Path(__file__).parents[2] / "docs/examples/evening.toml"
QUIET, LOUD = 3, 1  # a seed without outsiders and programs, and one with both
REQUESTS = 250
WRONGLY = 5  # a loud seed whose driver tells sums, and in which outsiders have much


def counts(seed: int = QUIET, requests: int = REQUESTS) -> Counter[str]:
    """What the judge has counted by the end of a history, also of one that breaks down."""
    return Counter(vram.one(seed, requests)["counts"])


LISTED, BY_OTHER_NUMBERS, UNLISTED = 1, 2, 10  # loud seeds by what their drivers list


@pytest.mark.parametrize("seed", [QUIET, LISTED, BY_OTHER_NUMBERS, UNLISTED])
def test_histories_keep_every_promise(seed: int) -> None:
    found = vram.one(seed, REQUESTS)
    assert found["wrong"] == [] and not any(found["counts"].get(promise, 0) for promise in PROMISES)
    assert found["counts"]["granted"] > REQUESTS / 2
    assert 0.5 < found["used"] / found["packed"] <= 1.1


@pytest.mark.parametrize("in_part", ["leases", "node"])
def test_ctrl_c_tells_how_far_it_had_come(
    in_part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    one = vram.one
    monkeypatch.setattr(vram, "A_HISTORY", REQUESTS)
    if in_part == "leases":
        monkeypatch.setattr(vram, "one", lambda seed, count: one(seed, count) if seed == QUIET else interrupted())
    else:
        monkeypatch.setattr(vram, "add_gains", interrupted)
    argv = ("bench", "vram", "--seed", str(QUIET), "--requests", str(2 * REQUESTS))
    assert run_node.main(argv) == 130
    played = REQUESTS if in_part == "leases" else 2 * REQUESTS
    said = f"cut short: {played} of the leases' {2 * REQUESTS} requests had been counted; promises broken: 0\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_driver_that_lists_processes_leaves_nothing_unseen_and_one_that_does_not_may() -> None:
    assert [Trace(seed, 1).listing for seed in (LISTED, BY_OTHER_NUMBERS, UNLISTED)] == ["ours", "theirs", ""]
    assert not counts(LISTED, 600)["unseen"]
    assert counts(BY_OTHER_NUMBERS, 600)["unseen"]


def test_a_book_that_does_not_read_the_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "_tells", lambda self, reading, leases: False)
    assert counts(LISTED, 600)["overcommitted"] + counts(LISTED, 600)["above_ceiling"]


def test_what_a_history_is_to_test_happens_in_it() -> None:
    happened = counts(LOUD, 600)
    assert all(happened[name] for name in ("denied", "parked", "asked_to_leave", "restarts", "grown", "stuck")), (
        happened
    )


def test_the_same_seed_is_the_same_history() -> None:
    assert vram.one(LOUD, 100) == vram.one(LOUD, 100)


# ---------------------------------------------------------------- a promise broken is a promise seen broken


def test_a_book_that_forgets_what_it_has_promised_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def room(self: DeviceMemory, leases: Any) -> int:
        return self.reading.free_bytes + self.limits.total_bytes // 20 if self.reading else 0

    monkeypatch.setattr(DeviceMemory, "room", room)
    found = counts()
    assert found["overcommitted"] and found["oom"]


@pytest.mark.parametrize("seed", [BY_OTHER_NUMBERS, UNLISTED])
def test_so_is_one_that_does_so_where_a_sum_is_all_there_is(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a grant too many may be one that no book could know of; this one could."""

    def room(self: DeviceMemory, leases: Any) -> int:
        assert self.reading is not None
        held = sum(one.held_bytes for one in leases)
        return self.limits.grantable(self.reading.free_bytes, 0, held, self.foreign_bytes)

    monkeypatch.setattr(DeviceMemory, "room", room)
    assert counts(seed)["overcommitted"]


def test_a_book_that_puts_all_foreign_memory_down_to_its_holders_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it believes wrongly does not excuse it."""
    obeyed = DeviceMemory.take

    def take(self: DeviceMemory, reading: Any, leases: Any) -> None:
        obeyed(self, reading, leases)
        for one in leases:
            if one.state in ALIVE and not self.lists_us:
                part = min(self._unlisted_bytes, one.promised_bytes)
                one.held_bytes, self._unlisted_bytes = one.held_bytes + part, self._unlisted_bytes - part

    assert not counts(WRONGLY, 1000)["above_ceiling"]
    monkeypatch.setattr(DeviceMemory, "take", take)
    assert counts(WRONGLY, 1000)["above_ceiling"]


def test_a_book_that_overlooks_what_the_dead_have_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    obeyed = DeviceMemory.room

    def room(self: DeviceMemory, leases: Any) -> int:
        return obeyed(self, leases) + sum(one.held_bytes for one in leases if one.state in LEAVING)

    monkeypatch.setattr(DeviceMemory, "room", room)
    assert counts()["overcommitted"]


def test_a_book_that_overlooks_the_ceiling_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = 12  # a quiet seed
    assert any(one.ceiling_bytes for one in Trace(ceilings, REQUESTS).limits)
    obeyed = DeviceMemory.room

    def room(self: DeviceMemory, leases: Any) -> int:
        return obeyed(self, leases) + self.limits.total_bytes - self.limits.usable_bytes

    monkeypatch.setattr(DeviceMemory, "room", room)
    assert counts(ceilings)["above_ceiling"]


def test_two_loads_at_once_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    obeyed = Outlook.next

    def next_(self: Outlook, line: Line) -> Any:
        return line.head if self.closed and self.closed.kind == "turn" else obeyed(self, line)

    monkeypatch.setattr(Outlook, "next", next_)
    monkeypatch.setattr(Leases, "check", lambda self: None)
    assert counts()["two_loads"]


def test_one_model_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(memory: DeviceMemory, *rest: Any) -> Outlook:
        limits, memory.limits = memory.limits, replace(memory.limits, max_models=memory.limits.max_models + 1)
        try:
            return outlook.look(memory, *rest)
        finally:
            memory.limits = limits

    monkeypatch.setattr(leases, "look", lenient)
    assert counts()["too_many_models"]


def test_a_request_that_is_never_answered_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "spent", lambda self, now: iter(()))
    assert counts(requests=500)["starved"]


def test_a_request_that_is_passed_beyond_its_time_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "elder", lambda self, room, models, now: None)
    assert counts(LOUD, 500)["passed"]


def test_a_grant_upon_an_old_reading_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "age", lambda self, now, since: 0.0)
    assert counts(2, 400)["stale"]


def test_a_grant_on_a_device_that_is_kept_empty_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_drain", lambda self, drained, now: [])
    assert counts()["out_of_use"]


def test_one_that_would_do_with_any_device_and_waits_for_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_from_elsewhere", lambda self, device, outlook: None)
    assert counts(LOUD, 1000)["deadlocks"]


def test_a_book_that_stops_granting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    obeyed = Outlook.next
    turns = Counter[str]()

    def next_(self: Outlook, line: Line) -> Any:
        turns["all"] += 1
        return obeyed(self, line) if turns["all"] < 300 else None

    monkeypatch.setattr(Outlook, "next", next_)
    monkeypatch.setattr(Leases, "_expired", staticmethod(lambda outlook, line, now: None))
    assert counts(requests=60)["deadlocks"]


def test_a_lease_that_outlives_its_holder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leases, "_bury", lambda self, role, incarnation, stuck, now: [])
    monkeypatch.setattr(Leases, "check", lambda self: None)
    assert counts(requests=60)["kept_for_nobody"]


def test_a_book_that_does_not_add_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceMemory, "_shrink", lambda self, nbytes, leases: 0)
    found = vram.one(QUIET, REQUESTS)
    assert found["counts"]["broke_down"] and "does not add up" in found["wrong"][0]


def test_the_benchmark_ends_with_1_and_says_which_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DeviceMemory, "_shrink", lambda self, nbytes, leases: 0)
    assert vram.main(["--requests", "50", "--seed", "3", "--json"]) == 1
    told = capsys.readouterr()
    assert "seed 3: " in told.err
    assert {row["metric"]: row["holds"] for row in json.loads(told.out)["results"]}["broke_down"] is False


# ---------------------------------------------------------------- the node


SHORT = {"utterances": 60}


def test_a_node_with_all_models_resident_is_far_better_than_one_model_at_a_time() -> None:
    ours, theirs = VirtualNode(Plan(**SHORT)).run(), VirtualNode(Plan(**SHORT, max_models=1, max_batch=1)).run()
    assert ours.outcomes == theirs.outcomes == {"ok": 60} and not ours.ooms and not theirs.ooms
    assert theirs.loads > ours.loads == 4
    assert ours.makespan_s < theirs.makespan_s and ours.waited_s < theirs.waited_s


@pytest.mark.parametrize("how", vram.FORCED)
def test_memory_that_runs_out_by_design_costs_few_runs_and_no_utterance(how: str) -> None:
    found = vram.forced(how, seed=1)
    ooms = sum(one.ooms for one in found)
    assert 0 < ooms < 0.05 * sum(one.runs + one.loads for one in found)
    assert all(one.outcomes == {"ok": 200} for one in found)


def test_a_batch_that_runs_out_is_run_again_in_halves_and_one_estimated_too_low_leases_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The virtual worker answers a shortage as a real one does; else the rates above would be of nobody's node."""
    heard: Counter[str] = Counter()
    obeyed, asked = VirtualNode._tell, VirtualNode._ask

    def tell(self: VirtualNode, peer: str, message: Any) -> None:
        heard["halved"] += isinstance(message, Done) and message.fits == 1
        obeyed(self, peer, message)

    def ask(self: VirtualNode, *what: Any, grows: bool = False) -> None:
        heard["grown"] += grows
        asked(self, *what, grows=grows)

    monkeypatch.setattr(VirtualNode, "_tell", tell)
    monkeypatch.setattr(VirtualNode, "_ask", ask)
    node = VirtualNode(Plan(3, **vram.FORCED["outsider"]))  # type: ignore[arg-type]
    node.run()
    assert heard["halved"] and heard["grown"]


def test_a_scheduler_that_tries_again_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "OOM", (0.001,) * 1000)
    monkeypatch.setattr(Shortages, "held_until", lambda self, device: None)  # ... and never pauses a device
    found = vram.forced("outsider", seed=1)
    assert sum(one.ooms for one in found) > 0.05 * sum(one.runs + one.loads for one in found)


# ---------------------------------------------------------------- what it is measured with


def test_a_true_device_takes_lags_and_runs_out() -> None:
    clock = Clock()
    device = TrueDevice("cuda:0", 100, clock, lambda: 2.0)
    assert device.take("a#1", 60) and not device.take("b#1", 41) and device.take("b#1", 40)
    clock.after(10.0, device.give_back, "a#1")
    clock.step()
    assert (device.free_bytes, device.lagging_bytes, device.held_bytes) == (0, 60, 40)
    clock.step()
    assert device.free_bytes == 60
    device.settle()
    assert device.used_byte_s == 100 * 10 + 40 * 2
    device.others(80)
    assert device.foreign_bytes == 60, "no more than there is"


@pytest.mark.parametrize(
    ("items", "packed"),
    [
        ([(-60, "a", "cuda:0", "m"), (-50, "b", "cuda:0", "n")], 60),
        ([(-60, "a", "cuda:0", "m"), (-50, "b", "", "")], 110),  # a program may lie anywhere
        ([(-30, "a", "cuda:0", "m"), (-20, "b", "cuda:0", "n"), (-20, "c", "cuda:0", "m")], 50),  # one model at most
        ([(-96, "a", "cuda:0", "m"), (-10, "b", "cuda:0", "m")], 10),  # above the ceiling
    ],
)
def test_the_packing_is_first_fit_decreasing_within_what_is_configured(items: list[Any], packed: int) -> None:
    clock = Clock()
    limits = [Limits("cuda:0", 100, ceiling_bytes=95, max_models=1), Limits("cuda:1", 100)]
    packing = Packing(limits, clock)
    for item in items:
        packing.arrive(item)
    packing.recompute({"cuda:0": 0, "cuda:1": 0})
    clock.after(2.0, packing.settle)
    clock.step()
    assert packing.byte_s == 2 * packed


def test_parts_together_are_the_whole() -> None:
    whole = vram.play(LOUD, 1100, 1)
    parts = vram.play(LOUD, 1100, 2)
    assert whole[0] == parts[0] and whole[0]["requests"] == 1100
    assert whole[1:3] == pytest.approx(parts[1:3])


# ---------------------------------------------------------------- rehearsing


def told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a user is told who asked for something that cannot be."""
    assert vram.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize("wrong", ["eight", "0GiB", "8GiB,", "8gib", "8GiB 24GiB", "8XB"])
def test_sizes_are_read_and_a_wrong_one_is_told(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vram.sizes("8GiB, 24GiB,500MB") == (8 * GIB, 24 * GIB, 500_000_000)
    assert "write it like 8GiB" in told_in_one_line(["--gpus", wrong, "--scenario", str(SAMPLE)], capsys)


@pytest.mark.parametrize("half", [["--gpus", "8GiB"], ["--scenario", str(SAMPLE)]])
def test_half_a_rehearsal_is_told_what_is_missing(half: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs --gpus and --scenario" in told_in_one_line(half, capsys)


ONE_STAGE = "[[stages]]\nname = 'a'\nweights_gib = 1\n"


def event(what: str, more: str = "") -> str:
    """A scenario with one."""
    return f"{ONE_STAGE}[[events]]\nwhat = '{what}'\nat_s = 0\n{more}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stages = [", "Invalid value"),
        ("nonsense = 1\nstages = []", "nonsense"),
        ("stages = []", "nothing to do"),
        (ONE_STAGE + ONE_STAGE, "two stages 'a'"),
        (ONE_STAGE + "[deadlines]\nplan_s = 1\nturn_s = 'x'", "deadlines.turn_s: Expected `float`, got `str`"),
        (event("kill", "process = 'a@cuda:5/0'"), "'a@cuda:5/0': there are 2 GPUs"),
        (event("order", "order = 'drain cuda:9'"), "'drain cuda:9': there are 2 GPUs"),
        (event("program", "gib = 1\nfor_s = 1\ndevice = 'cuda:2'"), "'cuda:2': there are 2 GPUs"),
        ("[[stages]]\nname = 'asr'", "weights_gib"),
        ("[[stages]]\nname = 'a'\nweights_gib = nan", "weights_gib"),
        (ONE_STAGE + "run_gib = inf", "run_gib"),
        (ONE_STAGE + "max_batch = 0", "max_batch"),
        (ONE_STAGE + "weight = 2", "weight"),
        ("utterances = 0\n" + ONE_STAGE, "utterances"),
        (ONE_STAGE + "[[outsiders]]\ngpu = 2\nat_s = 0\ngib = 1", "GPU 2"),
        (event("meteor"), "events[0].what: Invalid value 'meteor'"),
        (event("kill", "process = 'arbiter'\nwhen = 3"), "events[0]: Object contains unknown field `when`"),
        (event("kill"), "missing required field `process`"),
        (event("kill", "process = 'artbiter'"), "no process 'artbiter': there are arbiter, scheduler, gateway, a"),
        (event("kill", "process = 'arbiter'\nwhile_loading = 'b'"), "no stage 'b'"),
        (event("lose", "gpu = 2"), "GPU 2, and there are 2"),
        (event("ecc", "gpu = -1"), "GPU -1"),
        (event("hang", "gpu = 5\nfor_s = 1"), "GPU 5"),
        (event("hang"), "missing required field `for_s`"),
        (event("order", "order = 'empty cuda:0'"), "'empty cuda:0' is no order: write one of restart, drain"),
        (event("order", "order = 'drain'"), "'drain' is no order"),
        (event("order", "order = ''"), "'' is no order"),
        (event("program", "gib = 1\nfor_s = 1\npriority = 'urgent'"), "Invalid enum value 'urgent'"),
        (event("program", "gib = -1\nfor_s = 1"), "`float` >= 0"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_told(
    tmp_path: Path, text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text(text)
    told = told_in_one_line(["--gpus", "8GiB,8GiB", "--scenario", str(file)], capsys)
    assert str(file) in told and complaint in told


def test_a_scenario_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = told_in_one_line(["--gpus", "8GiB", "--scenario", str(tmp_path / "none.toml")], capsys)
    assert "No such file" in told
    assert "Is a directory" in told_in_one_line(["--gpus", "8GiB", "--scenario", str(tmp_path)], capsys)


def test_the_sample_scenario_is_one() -> None:
    scenario = vram_rehearsal.read(SAMPLE, 2)
    config = vram_rehearsal.config(scenario)
    assert config["pipelines"]["full"] == ["asr", "repair", "nmt", "tts"]
    assert config["stages"]["asr"]["estimate_bytes"] == scenario.needs()["asr"]


def rivals(gap_s: float) -> Figures:
    """Two models of one stage on a card for one; a session of each, whose utterances come in turn."""
    return VirtualNode(Plan(utterances=300, gap_s=gap_s, max_models=1, pipeline=("tts",), models=2)).run()


def test_two_models_with_room_for_one_are_not_swapped_for_each_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    turn_s, swap_s = DeadlinesSection().turn_s, 2 * (LOAD_S + PROCESS_S + GIB / READ_BYTES_S)
    brisk, calm = rivals(1.5), rivals(3.0)
    assert (brisk.failed, calm.failed) == (0, 0)
    assert brisk.loads < 300 / 3 and calm.loads < 300 * 0.6
    assert max(brisk.longest_s, calm.longest_s) < turn_s + swap_s, "and nobody waits for longer than a turn and a swap"
    monkeypatch.setattr(residency, "leaves_at", lambda *args: 0.0)  # at once, whenever nobody needs it
    assert calm.loads < 0.8 * rivals(3.0).loads
