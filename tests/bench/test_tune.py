"""bench tune chooses what serves most within its limits, and changes nothing of a configuration but the tuned knobs."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import run_node
from bench import load, tune, tune_file, tune_grid, workloads
from bench.load_users import Ended, Load
from bench.standin_driver import GIB, Driver, Gpu
from bench.tune import Trial, Tuning
from bench.tune_grid import Axis, start_value
from engine import config_env, config_file
from engine.config import Config
from ipc.errors import DragomanError, UsageError

CONFIG = workloads.translation()
FILE = """# our node, looked after by anna
languages = ["en", "de"]  # for now

[node]
mode = "pipelined"   # not serial

[stages.asr]  # hears
kind = "simulated"
max_batch = 1  # more when the new card is here
# instances = 1  # workers on each of these devices
options = { accepts = "audio", sleep_ms = 3 }

[stages.nmt]
kind = "simulated"

[pipelines]
full = ["asr", "nmt"]
"""


def bench(*argv: str) -> int:
    try:
        return run_node.main(("bench", "tune", *argv))
    except SystemExit as exit:  # argparse's way of leaving
        return int(exit.code or 0)


# ---------------------------------------------------------------- where to begin


@pytest.mark.parametrize(
    ("total", "reserve", "peak", "start"),
    [(24, 6, 6, 2), (24, 6, 5, 2), (24, 0, 6, 3), (8, 6, 6, 1), (12, 0, 6, 1), (24, 6, 0, 1)],
)
def test_it_begins_with_as_many_as_have_room_and_one_less(total: int, reserve: int, peak: int, start: int) -> None:
    assert start_value(total, reserve, peak) == start


def stats(**busy_ms: float) -> dict[str, Any]:
    """Of stages with a worker on the GPU, 100 runs of two utterances each."""
    return {
        "scheduler": {
            "stages": {name: {"avg_processing_ms": ms, "done": 200, "loaded": 1} for name, ms in busy_ms.items()},
            "workers": {f"{name}@cuda:0/0": {"runs": 100, "utterances": 200} for name in busy_ms},
        },
        "leases": [{"worker": f"{name}@cuda:0/0", "device": "cuda:0", "nbytes": 6 * GIB} for name in busy_ms],
        "arbiter": {"devices": {"cuda:0": {"total_bytes": 24 * GIB, "foreign_bytes": 0}}},
    }


def test_the_busiest_stage_is_the_one_whose_workers_work_most() -> None:
    found = stats(asr=30, nmt=40)
    assert tune.busiest(found, ["asr", "nmt"]) == "nmt"
    found["scheduler"]["workers"]["nmt@cuda:0/1"] = {"runs": 100, "utterances": 200}
    found["scheduler"]["stages"]["nmt"]["loaded"] = 2
    assert tune.busiest(found, ["asr", "nmt"]) == "asr", "its work is shared by two"


def test_what_others_hold_of_the_gpu_is_reserved() -> None:
    found = stats(asr=30, nmt=40)
    assert tune.start_instances(found, "asr") == 2
    found["arbiter"]["devices"]["cuda:0"]["foreign_bytes"] = GIB
    assert tune.start_instances(found, "asr") == 1
    found["leases"] = [{**row, "device": "cpu"} for row in found["leases"]]
    assert tune.start_instances(found, "asr") == 0, "the CPU's memory is not what bounds it"


# ---------------------------------------------------------------- the grid


def test_a_knob_is_named_in_full_or_by_its_stage_or_is_that_of_every_stage_tuned() -> None:
    found = tune_grid.axes(["stages.asr.max_batch=1,2", "nmt.max_batch=2,1,2", "instances=1,2"], CONFIG, ["asr", "tts"])
    assert found == [
        Axis("stages.asr.max_batch", ("stages.asr.max_batch",), (1, 2)),
        Axis("nmt.max_batch", ("stages.nmt.max_batch",), (1, 2)),
        Axis("instances", ("stages.asr.instances", "stages.tts.instances"), (1, 2)),
    ]
    assert len(list(tune_grid.points(found))) == 8


def test_a_point_changes_its_knobs_and_nothing_else() -> None:
    axes = tune_grid.axes(["max_batch=2", "node.send_ahead=0"], CONFIG, ["asr", "nmt"])
    (point,) = tune_grid.points(axes)
    made = tune_grid.configured(CONFIG, axes, point)
    assert [made.stages[name].max_batch for name in made.stages] == [2, 1, 2, 1] and made.node.send_ahead == 0
    assert tune_grid.present(made, axes) == point
    back = tune_grid.axes(["max_batch=1", "node.send_ahead=1"], made, ["asr", "nmt"])
    assert tune_grid.configured(made, back, (1, 1)) == CONFIG


def test_stages_that_differ_have_no_point_of_their_own() -> None:
    axes = tune_grid.axes(["asr.max_batch=2"], CONFIG, ())
    made = tune_grid.configured(CONFIG, axes, (2,))
    assert tune_grid.present(made, tune_grid.axes(["max_batch=1,2"], made, ["asr", "nmt"])) is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("", "is no KNOB=VALUE"),
        ("asr.max_batch", "is no KNOB=VALUE"),
        ("max_batch= , ", "is empty"),
        ("=1,2", "is empty"),
        ("talk.mp3", "is no KNOB=VALUE"),
        ("asr.max_batsh=1", "asr.max_batsh"),
        ("nope.max_batch=1", "nope.max_batch"),
        ("node.mode=1", "node.mode"),
        ("max_batch=one", "whole number"),
        ("max_batch=1,0", "the lowest is 1"),
        ("deadlines.silent_s=0.1", "heartbeat_s"),
    ],
)
def test_what_is_no_axis_is_refused_by_name(given: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        tune_grid.axes([given], CONFIG, ["asr"])


def test_a_knob_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stages\.asr\.max_batch twice"):
        tune_grid.axes(["max_batch=1", "asr.max_batch=2"], CONFIG, ["asr"])


# ---------------------------------------------------------------- the best, and the knee


def trial(batch: int, throughput: float, *, ok: float = 1.0, over: float = 0.5, lost: int = 0, **more: Any) -> Trial:
    count = 1000
    good = [Ended(0, n, 1.0, 0.0, count * ok / throughput, "ok") for n in range(int(count * ok))]
    bad = [Ended(0, n, 1.0, 0.0, 1.0, "error", "failed") for n in range(int(count * ok), count)]
    return Trial(Load(1, good + bad, lost), (batch,), over_deadline=over, **more)


def tuning(*trials: Trial) -> Tuning:
    return Tuning([Axis("max_batch", ("stages.asr.max_batch",), (1, 2, 4, 8))], list(trials))


def test_the_best_serves_most_and_the_knee_is_the_lowest_that_is_about_as_good() -> None:
    one, two, four, eight = trial(1, 50, is_configured=True), trial(2, 96), trial(4, 100), trial(8, 99)
    found = tuning(one, two, four, eight)
    assert found.best is four and found.knee is two and found.configured is one
    assert found.changes(CONFIG) == {"stages.asr.max_batch": 4}
    assert (
        tune.verdict(found)
        == "best: max_batch=4, 100 utterances/s, 2.00 × as configured; knee: max_batch=2, 96% of that"
    )


@pytest.mark.parametrize(
    "poor",
    [
        {"oom": 0.05}, {"ok": 0.95}, {"over": 1.01}, {"over": float("nan")}, {"lost": 1},
        {"refusal": "asr@cuda:0/1 has no model"},
    ],
)  # fmt: skip
def test_what_does_not_serve_is_never_chosen_however_fast(poor: dict[str, Any]) -> None:
    slow, fast = trial(1, 50, is_configured=True), trial(2, 100, **poor)
    assert tuning(slow, fast).best is slow
    assert tuning(trial(2, 100, is_configured=True, **poor)).best is None
    assert "at no point" in tune.verdict(tuning(trial(2, 100, is_configured=True, **poor)))


def test_just_within_the_limits_serves() -> None:
    assert trial(1, 50, oom=0.049, ok=0.951, over=1.0).serves


def test_the_table_has_a_row_for_each_trial_and_says_which_is_which() -> None:
    found = tuning(trial(1, 50, is_configured=True), trial(2, 100), trial(4, 10, refusal="no room"))
    rows = tune.table(found).splitlines()
    assert len(rows) == 4
    assert "as configured" in rows[1] and "best, knee" in rows[2] and rows[3].endswith("no room")


def test_a_worker_that_waits_for_memory_makes_it_another_configuration() -> None:
    waits = {"asr@cuda:0/0": ("", False), "asr@cuda:0/1": ("6.0 GiB", False), "asr@cpu/0": ("its turn", True)}
    rows = {role: {"waiting_for": why, "standby": standby} for role, (why, standby) in waits.items()}
    assert tune.without_model({"scheduler": {"workers": rows}}) == "asr@cuda:0/1 has no model: 6.0 GiB"
    del rows["asr@cuda:0/1"]
    assert tune.without_model({"scheduler": {"workers": rows}}) == ""


# ---------------------------------------------------------------- what is written


def test_the_file_differs_in_the_tuned_knobs_alone_and_keeps_its_comments() -> None:
    made = tune_file.edited(FILE, {"stages.asr.max_batch": 4, "stages.asr.instances": 2, "stages.nmt.max_batch": 2})
    before, after = FILE.splitlines(), made.splitlines()
    assert [line for line in before if line not in after] == [
        "max_batch = 1  # more when the new card is here", "# instances = 1  # workers on each of these devices",
    ]  # fmt: skip
    assert [line for line in after if line not in before] == [
        "max_batch = 4  # more when the new card is here", "instances = 2  # workers on each of these devices",
        "max_batch = 2",
    ]  # fmt: skip
    meant = tomllib.loads(FILE)
    meant["stages"]["asr"] |= {"max_batch": 4, "instances": 2}
    meant["stages"]["nmt"]["max_batch"] = 2
    assert tomllib.loads(made) == meant


def test_a_table_that_is_not_there_comes_at_the_end() -> None:
    made = tune_file.edited(FILE, {"deadlines.turn_s": 2.5})
    assert made == FILE + "\n[deadlines]\nturn_s = 2.5\n"
    assert tune_file.edited(FILE, {}) == FILE


@pytest.mark.parametrize(
    "text",
    [
        "stages = { asr = { kind = 'simulated', max_batch = 1 } }\n",
        "[stages]\nasr.max_batch = 1\n",
        "[stages.asr]\nnote = '''\nmax_batch = 1\n'''\n",
    ],
)
def test_a_file_written_in_another_way_is_left_alone(text: str) -> None:
    with pytest.raises(DragomanError, match=r"set in it: stages\.asr\.max_batch = 4"):
        tune_file.edited(text, {"stages.asr.max_batch": 4})


def test_without_a_file_it_is_an_env_file_that_serve_takes(tmp_path: Path) -> None:
    path = tmp_path / "tuned.env"
    path.write_text(tune_file.env_file({"stages.asr.max_batch": 4, "node.send_ahead": 0}))
    made = config_file.load(None, {}, path, base=CONFIG)
    assert made.stages["asr"].max_batch == 4 and made.node.send_ahead == 0
    assert list(config_env.read_file(path)) == ["DRAGOMAN_STAGES_ASR_MAX_BATCH", "DRAGOMAN_NODE_SEND_AHEAD"]


# ---------------------------------------------------------------- the whole command


def test_a_grid_is_measured_and_the_configuration_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, written, picture = tmp_path / "node.toml", tmp_path / "tuned.toml", tmp_path / "tune.png"
    given.write_text(FILE)
    argv = ("--config", str(given), "--seconds", "0.3", "--users", "3", "--grid", "asr.max_batch=1,2", "--json")
    assert bench(*argv, "--write", str(written), "--plot", str(picture)) == 0
    values = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert values["asr.max_batch=1:success_rate"] == values["asr.max_batch=2:success_rate"] == 1
    assert values["best_asr.max_batch"] in (1, 2) and values["knee_asr.max_batch"] <= 2
    config = config_file.load(written, {})
    assert config.stages["asr"].max_batch == values["best_asr.max_batch"]
    axes = [Axis("asr.max_batch", ("stages.asr.max_batch",), (1,))]
    assert tune_grid.configured(config, axes, (1,)) == config_file.load(given, {})
    assert Image.open(picture).size[0] > 1000


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")
def test_a_point_that_finds_no_memory_is_told_and_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Driver([Gpu(total_bytes=8 * GIB)]) as driver:
        for name, value in driver.environ({}).items():
            monkeypatch.setenv(name, value)
        file = tmp_path / "node.toml"
        vram = FILE.replace("sleep_ms = 3", f"sleep_ms = 3, vram_run_bytes = {GIB}")
        file.write_text(f'{vram}\n[devices]\nuse = ["cuda:0"]\n[deadlines]\nlease_wait_s = 0.5\n')
        assert bench("--config", str(file), "--seconds", "0.3", "--users", "2", "--grid", "asr.max_batch=1,16") == 0
    told = capsys.readouterr().out
    assert "asr.max_batch=16" in told and "fits nowhere: it needs" in told and "best: asr.max_batch=1" in told


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--simulated", "--grid", "max_batch="), "is empty"),
        (("--simulated", "--grid", "max_botch=1"), "max_botch"),
        (("--simulated", "--stages", "ear"), "ear"),
        (("--simulated", "no-such.wav"), "no-such.wav"),
        (("--simulated", "--write", "node.toml"), "--write"),
        (("--simulated", "--grid", "max_batch=1", "no-such.wav"), "AUDIO goes before --grid"),
        (("--simulated", "--stages", "asr", "no-such.wav"), "AUDIO goes before --stages"),
        (("--simulated", "--grid", __file__), "AUDIO goes before --grid"),
        (("--write", "/no/such/folder/node.toml"), "/no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_before_any_node_is_started(
    argv: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.node.Node.start", lambda self: pytest.fail("a node was started"))
    assert bench(*argv) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error:") and named in said


def test_a_file_that_cannot_be_changed_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.node.Node.start", lambda self: pytest.fail("a node was started"))
    file = tmp_path / "node.toml"
    file.write_text("stages = { asr = { kind = 'simulated' } }\npipelines = { full = ['asr'] }\n")
    argv = ("--config", str(file), "--grid", "asr.max_batch=1,2", "--write", str(tmp_path / "tuned.toml"))
    assert bench(*argv) == 1
    assert "set in it: stages.asr.max_batch" in capsys.readouterr().err


def test_audio_behind_the_knobs_or_stages_is_audio_all_the_same(tmp_path: Path) -> None:
    sound = tmp_path / "talk.wav"
    sound.touch()
    args = tune.parser().parse_args(["a.wav", "--grid", "max_batch=1,2", str(sound), "--stages", "asr", str(tmp_path)])
    tune.take_audio(args, CONFIG)
    assert args.audio == ["a.wav", str(sound), str(tmp_path)]
    assert (args.grid, args.stages) == (["max_batch=1,2"], ["asr"])


def test_a_stage_is_a_stage_whatever_files_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asr").mkdir()
    args = tune.parser().parse_args(["--stages", "asr"])
    tune.take_audio(args, CONFIG)
    assert (args.audio, args.stages) == ([], ["asr"])


@pytest.mark.parametrize("option", ["--plot", "--write"])
def test_where_no_file_can_be_written_is_said_before_anything_is_measured(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.node.Node.start", lambda self: pytest.fail("a node was started"))
    assert bench(option, "/proc/made.png", "--grid", "max_batch=1,2") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: cannot write /proc/made.png: ") and said.endswith(f"give another {option}")


def test_a_picture_that_fails_costs_neither_the_figures_nor_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, picture = tmp_path / "node.toml", tmp_path / "gone" / "tune.png"
    config.write_text(FILE)
    picture.parent.mkdir()

    def measure(tuner: tune.Tuner, config: Config, what: str) -> Trial:
        if picture.parent.exists():
            picture.parent.rmdir()  # after it was tried
        return Trial(Load(4.0, [Ended(0, index, 1.0, 0.0, 0.2, "ok") for index in range(8)]), over_deadline=0.5)

    monkeypatch.setattr(tune.Tuner, "measure", measure)
    argv = ("--config", str(config), "--grid", "asr.max_batch=1,2", "--write", str(tmp_path / "tuned.toml"))
    assert bench(*argv, "--plot", str(picture)) == 1
    out, err = capsys.readouterr()
    assert "best: asr.max_batch=1" in out and f"cannot write {picture}" in err
    assert (tmp_path / "tuned.toml").exists()


def test_a_file_of_simulated_stages_keeps_estimates_only_where_it_says(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"

    def kept(text: str) -> str:
        file.write_text(text)
        found = load.chosen(tune.parser().parse_args(["--config", str(file)]))
        return found.devices.estimates_file

    assert kept(FILE) == "off"
    assert kept(FILE + '[devices]\nestimates_file = "mine.json"\n') == str(tmp_path / "mine.json")
    assert kept(FILE.replace('[stages.nmt]\nkind = "simulated"', '[stages.nmt]\nkind = "nmt"')) == ""


def test_an_empty_grid_is_usage() -> None:
    assert bench("--simulated", "--grid") == 2


def test_what_is_tuned_by_default_is_about_the_start_value() -> None:
    axes = tune_grid.usual("asr", Config(stages=CONFIG.stages), 4)
    assert [axis.values for axis in axes] == [(1, 4, 5), (1, 2, 4)]
    assert [axis.values for axis in tune_grid.usual("asr", CONFIG, 0)] == [(1, 2), (1, 2, 4)]


@pytest.mark.parametrize("trials", [0, 1])
def test_ctrl_c_shows_what_was_measured_and_writes_nothing(
    trials: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(FILE)
    measured: list[str] = []

    def measure(tuner: tune.Tuner, config: Config, what: str) -> Trial:
        if len(measured) == trials:
            raise KeyboardInterrupt
        measured.append(what)
        return Trial(Load(4.0, [Ended(0, index, 1.0, 0.0, 0.2, "ok") for index in range(8)]), over_deadline=0.5)

    monkeypatch.setattr(tune.Tuner, "measure", measure)
    argv = ("--config", str(config), "--grid", "asr.max_batch=1,2", "--write", str(tmp_path / "tuned.toml"))
    assert bench(*argv) == 130
    out, err = capsys.readouterr()
    assert ("what was measured until then follows" if trials else "nothing has been measured") in err
    assert ("as configured" in out) == bool(trials)
    assert not (tmp_path / "tuned.toml").exists()
