"""bench load counts every utterance of every user, whatever becomes of it, and a user's mistake is one line."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

import run_node
from bench import load, workloads
from bench.drive import newest
from bench.load_users import Crowd, Ended, Load, Speech
from engine import ctl, embedded, media
from engine.config import Config, NodeSection
from engine.node import Node
from engine.outcome import NodeGone, Rejected
from ipc.errors import DragomanError, UsageError
from ipc.ring import BLOCK

NO_NODE = "ipc:///nowhere/at/all/client"
SHORT = [[Speech(np.ones(3_200, np.int16)), Speech(np.ones(1_600, np.int16))]]  # 0.2 and 0.1 s


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node(workloads.translation(0.1)) as found:
        yield found


def crowd(endpoint: str, users: int, seconds: float, pace: str = "asap") -> Load:
    found = Crowd(endpoint, SHORT, users, seconds, pace)
    found.start()
    while not found.join():
        pass
    return found.load()


def wait_until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def bench(*argv: str) -> int:
    try:
        return run_node.main(("bench", "load", *argv))
    except SystemExit as exit:  # argparse's way of leaving
        return int(exit.code or 0)


# ---------------------------------------------------------------- users


def test_as_many_utterances_are_on_their_way_as_there_are_users(node: Node) -> None:
    found = crowd(node.endpoint, users=3, seconds=0.4)
    assert {one.user for one in found.ended} == {0, 1, 2}
    for user in range(3):
        own = [one for one in found.ended if one.user == user]
        assert all(one.said_s < found.seconds and one.ok for one in own)
        assert all(before.ended_s <= after.said_s for before, after in pairwise(own))
    assert found.success_rate == 1 and found.lost == found.reordered == 0


def test_at_the_pace_of_speech_an_utterance_comes_when_it_has_been_spoken_whatever_is_on_its_way(node: Node) -> None:
    found = crowd(node.endpoint, users=2, seconds=1.0, pace="speech")
    for user in range(2):
        own = [one for one in found.ended if one.user == user]
        assert len(own) >= 5
        gaps = [after.said_s - before.said_s for before, after in pairwise(own)]
        assert gaps == pytest.approx([after.audio_s for after in own[1:]]), "its own length after the last one"
        assert own[0].said_s < own[0].audio_s, "somewhere in its first utterance"


def test_refusals_are_counted_and_end_well() -> None:
    base = workloads.translation(2)
    room = {"gateway": 2 * BLOCK}  # for two utterances
    with Node(msgspec.structs.replace(base, node=NodeSection(max_utterance_s=0.5), rings=room)) as found:
        result = crowd(found.endpoint, users=8, seconds=0.5)
    assert result.refused > 0 and result.success_rate == 1


def test_failures_are_named_and_are_no_success() -> None:
    base = workloads.translation(0.1)
    cues = [{"index": 0, "action": "fail", "retry": False}]  # the first of each user
    nmt = msgspec.structs.replace(base.stages["nmt"], options={**base.stages["nmt"].options, "cues": cues})
    with Node(msgspec.structs.replace(base, stages={**base.stages, "nmt": nmt})) as found:
        result = crowd(found.endpoint, users=2, seconds=0.4)
    assert result.ends == {"error/failed": 2}
    assert result.success_rate == pytest.approx(1 - 2 / len(result.ended))
    assert result.throughput == pytest.approx((len(result.ended) - 2) / result.seconds)


def test_a_crowd_without_a_node_says_so_and_does_not_hang() -> None:
    with pytest.raises(NodeGone, match="no node at"):
        crowd(NO_NODE, users=3, seconds=0.1)


# ---------------------------------------------------------------- figures


def ended(*latencies: float, user: int = 0, first: int = 0) -> list[Ended]:
    return [Ended(user, first + n, 2.0, 1.0, 1.0 + latency, "ok") for n, latency in enumerate(latencies)]


def test_figures_follow_from_what_ended() -> None:
    found = Load(2, [*ended(1.0, 2.0), *ended(3.0, user=1), Ended(1, 1, 2.0, 1.0, 5.0, "error", "expired")], lost=1)
    assert found.seconds == 5 and found.throughput == 3 / 5 and found.audio_throughput == 6 / 5
    assert found.mean_s == 2 and found.latency_s(0.5) == 2
    assert found.success_rate == 3 / 5, "what was lost is no success"
    assert found.ends == {"error/expired": 1}


def test_the_deadline_is_s5s() -> None:
    deadlines = Config().deadlines
    assert [load.deadline_s(deadlines, audio_s) for audio_s in (60, 300, 600)] == [60, 180, 300]
    assert load.over_deadline(Load(1, ended(62.0)), deadlines) == 2


def test_what_expired_was_late_whenever_the_node_gave_it_up() -> None:
    late = [Ended(0, 99 + n, 2.0, 1.0, 1.5, "error", "expired") for n in range(2)]
    found = load.over_deadline(Load(1, ended(*[1.0] * 98) + late), Config().deadlines)
    assert found > 1, "two of a hundred expired"
    assert not load.IN_TIME.holds(found)


def test_a_lost_or_reordered_outcome_fails_the_benchmark() -> None:
    good = {1: Load(1, ended(1.0)), 4: Load(4, ended(1.0, 2.0))}
    assert load.summary(good, 0, None).exit_code == 0
    assert load.summary({**good, 4: Load(4, ended(1.0), lost=1)}, 0, None).exit_code == 1
    assert load.summary({**good, 4: Load(4, ended(1.0, first=1))}, 0, None).exit_code == 1


def test_many_are_compared_with_one_alone() -> None:
    report = load.summary({1: Load(1, ended(1.0)), 4: Load(4, ended(3.0, 3.0, 3.0))}, 0, None)
    assert report["throughput_over_alone"] == pytest.approx((3 / 4) / (1 / 2))
    assert report["p50_over_alone"] == 3


def test_nothing_that_ended_well_is_no_figure_and_no_traceback() -> None:
    report = load.summary({2: Load(2, [Ended(0, 0, 1.0, 0.0, 1.0, "error", "failed")])}, float("nan"), None)
    assert report["success_rate"] == 0 and np.isnan(report["latency_p50"])
    assert load.panels({2: Load(2)})


# ---------------------------------------------------------------- the whole command


def test_a_running_node_is_measured_and_drawn(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, picture = tmp_path / "said.wav", tmp_path / "load.png"
    media.write_wav(sound, np.ones(8_000, np.int16), 16_000)
    argv = ("--connect", node.endpoint, "--users", "3", "--seconds", "0.4", "--plot", str(picture), "--json")
    assert bench(str(sound), *argv) == 0
    report = json.loads(capsys.readouterr().out)
    values = {row["metric"]: row["value"] for row in report["results"]}
    assert report["name"] == "load"
    assert values["users"] == 3 and values["success_rate"] == values["alone_success_rate"] == 1
    assert values["lost"] == values["reordered"] == values["oom_rate"] == 0
    assert values["audio_throughput"] == pytest.approx(0.5 * values["throughput"], abs=1e-3)
    assert {"latency_mean", "latency_p50", "latency_p90", "latency_p99", "busy", "throughput_over_alone"} <= set(values)
    assert Image.open(picture).size[0] > 1000


def test_where_no_picture_can_be_written_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.node.Node.start", lambda self: pytest.fail("a node was started"))
    assert bench("--simulated", "--plot", "/proc/load.png") == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: cannot write /proc/load.png: ")


def test_a_picture_that_fails_costs_only_itself(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "gone"
    place.mkdir()

    def press(*_: object, into: dict[int, Load]) -> None:
        place.rmdir()  # after it was tried
        into[2] = Load(2, [Ended(0, 0, 1.0, 0.0, 0.2, "ok")])

    monkeypatch.setattr(load, "press", press)
    argv = ("--connect", node.endpoint, "--users", "2", "--no-alone", "--json", "--plot", str(place / "load.png"))
    assert bench(*argv) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["name"] == "load" and f"cannot write {place / 'load.png'}" in err


def test_a_private_node_tells_how_near_its_deadline_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--simulated", "--users", "2", "--no-alone", "--seconds", "0.3", "--json") == 0
    values = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert 0 < values["p99_over_deadline"] < 1 and "alone_throughput" not in values


def test_demo_models_hear_the_demos_clips_by_their_languages() -> None:
    limits = {"pipelines": {"full": []}, "models": {"asr": str(embedded.DEMO / "asr")}, "max_utterance_s": 120}
    args = argparse.Namespace(pipeline="full", audio=[], source=None, target=None)
    found = load.spoken(args, limits)
    assert sum(map(len, found)) == 12
    assert all(len({(speech.source, speech.target) for speech in one}) == 1 for one in found)
    args.source = "de"
    assert {speech.source for one in load.spoken(args, limits) for speech in one} == {"de"}


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("en", "en", "--target en is what is spoken: it is not translated into itself; there are en→de, en→zh, de→"),
        ("fr", None, "no clip of the demo is spoken in 'fr'; give AUDIO, or another: there are en→de, en→zh, de→"),
    ],
)
def test_languages_that_the_demo_does_not_have_are_named_with_those_it_has(
    source: str, target: str | None, named: str
) -> None:
    limits = {
        "pipelines": {"full": []}, "models": {"asr": str(embedded.DEMO / "asr")}, "max_utterance_s": 120,
        "targets": {"full": ["de", "en", "zh"]},
    }  # fmt: skip
    args = argparse.Namespace(pipeline="full", audio=[], source=source, target=target)
    with pytest.raises(UsageError) as refused:
        load.spoken(args, limits)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--connect", ""), "--connect names no endpoint"),
        (("--simulated", "no-such.wav"), "no-such.wav"),
        (("--simulated", __file__), "sound"),
        (("--simulated", str(Path(__file__).parent)), "nothing in"),
        (("--simulated", "--pipeline", "sing"), "sing"),
        (("--simulated", "--users", "1025"), "--users 1025: the node takes 1024 sessions"),
        (("--simulated", "--plot", "load.svg"), ".png"),
        (("--simulated", "--plot", "/no/such/folder/load.png"), "/no/such/folder"),
    ],
)
def test_a_mistake_is_one_line(argv: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--seconds", "0.1", *argv) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error:") and named in said[0]


def test_no_node_to_connect_to_is_no_matter_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--seconds", "0.1", "--connect", NO_NODE) == 1
    assert capsys.readouterr().err.startswith(f"error: --connect: there is no node at {NO_NODE}")


def test_a_folder_gives_its_sounds(tmp_path: Path) -> None:
    for number in (2, 1):
        media.write_wav(tmp_path / f"{number}.wav", np.ones(number * 1_600, np.int16), 16_000)
    (tmp_path / "notes.txt").write_text("no sound")
    assert [len(sound) for sound in load.read([str(tmp_path)], 120)] == [1_600, 3_200]


def test_what_the_node_never_accepts_is_said_and_not_measured() -> None:
    texts = {"say": ("nmt", "tts")}  # no standard name: what it takes shows when it is used
    base = workloads.translation(0.1)
    with Node(msgspec.structs.replace(base, pipelines={**base.pipelines, **texts})) as found:
        wrong = Crowd(found.endpoint, SHORT, 2, 0.4, pipeline="say")
        wrong.start()
        with pytest.raises(Rejected, match=r"bad_text: .*takes a text"):
            while not wrong.join():
                pass


def test_more_users_than_sessions_hear_the_nodes_own_words() -> None:
    base = workloads.translation(0.1)
    with Node(msgspec.structs.replace(base, node=NodeSection(max_sessions=2))) as found:
        with pytest.raises(Rejected, match="too_many_sessions: 2 sessions are open, the most this node takes"):
            crowd(found.endpoint, users=3, seconds=0.1)
        assert crowd(found.endpoint, users=2, seconds=0.1).success_rate == 1, "those that had been taken are closed"


def test_a_refused_crowd_leaves_what_was_measured_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    base = workloads.translation()
    with Node(msgspec.structs.replace(base, node=NodeSection(max_sessions=2))) as found:
        assert bench("--connect", found.endpoint, "--users", "3", "--seconds", "0.3", "--json") == 2
    out, err = capsys.readouterr()
    values = {row["metric"]: row["value"] for row in json.loads(out)["results"]}
    assert values["users"] == 1 and values["utterances"] > 0
    assert "cut short: what was measured until then follows\nerror: the node refuses these users: too_many_" in err


def test_ctrl_c_shows_what_was_measured_and_closes_the_sessions(node: Node) -> None:
    argv = ("--connect", node.endpoint, "--users", "12", "--no-alone", "--seconds", "300", "--json")  # most wait
    before = newest(node.stats, "gateway")["gateway"]["accepted"]
    here = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here is ignored there
    try:
        running = subprocess.Popen(
            [sys.executable, run_node.__file__, "bench", "load", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, here)
    try:
        wait_until(lambda: newest(node.stats, "gateway")["gateway"]["accepted"] > before + 10)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert err.splitlines()[-1] == "cut short: what was measured until then follows"
    values = {row["metric"]: row["value"] for row in json.loads(out)["results"]}
    assert values["utterances"] >= 7 and values["success_rate"] == 1 and values["lost"] == 0
    wait_until(lambda: newest(node.stats, "gateway")["gateway"]["sessions"] == 0)


def test_a_node_that_ends_leaves_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = load.show
    with Node(workloads.translation()) as found:

        def end_it(shown: tqdm, crowd: Crowd) -> None:
            show(shown, crowd)
            if crowd.load().ended:
                found.close()

        monkeypatch.setattr(load, "show", end_it)
        assert bench("--connect", found.endpoint, "--users", "2", "--no-alone", "--seconds", "300", "--json") == 1
    out, err = capsys.readouterr()
    assert {row["metric"]: row["value"] for row in json.loads(out)["results"]}["utterances"] > 0
    assert "cut short: what was measured until then follows\nerror: " in err


def test_while_users_connect_it_says_how_many_have_their_session() -> None:
    waiting, shown = Crowd(NO_NODE, SHORT, 2, 0.1), tqdm(total=1, bar_format=load.BAR, file=io.StringIO())
    load.show(shown, waiting)
    assert shown.postfix == "0 have a session"


@pytest.mark.parametrize(
    "argv",
    [("--users", "0"), ("--seconds", "-1"), ("--pace", "never"), ("--simulated", "--connect", NO_NODE), ("--no-such",)],
)
def test_what_argparse_refuses_is_usage(argv: tuple[str, ...]) -> None:
    assert bench(*argv) == 2


# ---------------------------------------------------------------- a node whose work waits


def test_why_nothing_ends_is_said_once_and_only_when_nothing_has_ended_for_a_while() -> None:
    row = {"waiting": 1, "loaded": 0, "why": "it needs 6 GiB, 5 are free"}
    silence = load.Silence(lambda: {"scheduler": {"stages": {"asr": row}}})
    assert not list(silence.look(ended=0, now=0.0)) and not list(silence.look(ended=1, now=load.SLOW_S))
    assert list(silence.look(ended=1, now=2 * load.SLOW_S)) == ["stage asr waits: it needs 6 GiB, 5 are free"]
    row["why"] = "it needs 6 GiB, 4 are free"
    assert not list(silence.look(ended=1, now=3 * load.SLOW_S))
    row["why"] = "cpu is drained"
    assert len(list(silence.look(ended=1, now=4 * load.SLOW_S))) == 1


def test_a_node_that_tells_nothing_is_not_asked_and_one_that_is_gone_ends_nothing() -> None:
    def gone() -> dict[str, object]:
        raise DragomanError("it is gone")

    for silence in (load.Silence(None), load.Silence(gone)):
        assert not list(silence.look(ended=0, now=0.0)) and not list(silence.look(ended=0, now=load.SLOW_S))


def test_a_drained_node_says_so_and_shows_no_figure_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "SLOW_S", 0.5)
    base = workloads.translation(0.1)
    hasty = msgspec.structs.replace(base.deadlines, budget_base_s=4.0, budget_per_audio=0.0)
    with Node(msgspec.structs.replace(base, deadlines=hasty)) as found:
        ctl.ask(found.ctl_endpoint, "drain", target="cpu")
        wait_until(lambda: all(not row["loaded"] for row in found.stats()["scheduler"]["stages"].values()))
        assert bench("--connect", found.endpoint, "--users", "2", "--no-alone", "--seconds", "0.5") == 0
    out, err = capsys.readouterr()
    assert err.count("stage asr waits: cpu is drained (run_node.py ctl resume cpu lets it be used)") == 1
    assert "ended_error/expired" in out and "nan" not in out + err
