"""Operators' orders to a node at work: no utterance fails by one, and each outlives whoever dies right after it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import Driver, Gpu
from engine import ctl
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, MIB, gpus  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
STAGES = ("asr", "repair", "nmt", "tts")
LIMITS = {"settle_s": 0.5, "turn_s": 0.5}


def order(node: Node, verb: str, target: str) -> dict[str, Any]:
    return ctl.ask(node.ctl_endpoint, verb, target=target)


def explain(node: Node) -> str:
    ask = [sys.executable, str(ROOT / "run_node.py"), "explain", "--connect", node.ctl_endpoint]
    return subprocess.run(ask, capture_output=True, text=True).stdout


def done(node: Node) -> bool:
    """Nobody is on the way any more by an order."""
    return not node.stats()["operators"]["pending"]


def life(node: Node, role: str) -> int:
    """The life of a role that is there now; 0 between two of them."""
    return next((row["incarnation"] for row in node.stats()["processes"] if row["role"] == role), 0)


def phase(node: Node, role: str) -> str:
    rows = [row for row in node.stats()["processes"] if row["role"] == role]
    return rows[0]["phase"] if rows else ""


def kill_scheduler(node: Node) -> None:
    before = life(node, "scheduler")
    kill(process_of(node, "scheduler")["pid"])
    wait_until(lambda: life(node, "scheduler") > before and node.stats()["scheduler"].get("handed_over"))


@contextmanager
def under_load(node: Node) -> Iterator[Callable[[], int]]:
    """A session that never stops; gives a function that says how many have ended. At the end all of them are well."""
    marks, ended, stop = Marks(), [], threading.Event()

    def speak() -> None:
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(100_000):
                session.submit(marks.make("t", index))
                ended.extend(session.core.ended)
                session.core.ended.clear()
                if stop.is_set():
                    break
            ended.extend(session.outcomes(timeout_s=60))

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        wait_until(lambda: len(ended) > 5)
        yield lambda: len(ended)
        so_far = len(ended)
        wait_until(lambda: len(ended) > so_far + 5)
    finally:
        stop.set()
        speaker.join(90)
    assert not speaker.is_alive()
    for outcome in ended:
        marks.compare("t", outcome)
    assert not marks.mixed_up
    assert_in_order(ended)
    assert {o.outcome for o in ended} == {"ok"}, {o.error for o in ended}


def twice(**rest: Any) -> dict[str, Any]:
    """Four stages with two workers each; the deadlines allow for a stop."""
    stages = {name: {"instances": 2} for name in STAGES}
    return config(sleep_ms=5.0, stages=stages, deadlines=LIMITS, **rest)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
@pytest.mark.parametrize("target", ["asr@cpu/0", "nmt"])
def test_a_restart_costs_no_utterance_and_no_budget(target: str, then_kill: bool) -> None:
    with Node(config(sleep_ms=5.0, deadlines=LIMITS, node={"restart_budget": 1})) as node:
        role = target if "@" in target else f"{target}@cpu/0"
        with under_load(node):
            for _ in range(3):
                before = life(node, role)
                assert order(node, "restart", target)["workers"] == [role]
                if then_kill:
                    kill(process_of(node, "scheduler")["pid"])
                wait_until(lambda before=before: life(node, role) == before + 1 and done(node))
                wait_until(lambda: phase(node, role) == "loaded")
                then_kill = False
        assert not [death for death in node.stats()["deaths"] if "@" in death["role"]]
        assert process_of(node, role)["restarts"] == 0


@pytest.mark.timeout(120)
def test_a_worker_that_was_given_up_comes_back_when_an_operator_says_so() -> None:
    with Node(config(deadlines=LIMITS, stages={"asr": {"instances": 2}}, node={"restart_budget": 0})) as node:
        kill(process_of(node, "asr@cpu/1")["pid"])
        wait_until(lambda: node.stats()["scheduler"]["stages"]["asr"]["lost"] == 1)
        order(node, "restart", "asr@cpu/1")
        wait_until(lambda: node.stats()["scheduler"]["stages"]["asr"]["loaded"] == 2)
        assert node.stats()["health"]["ready"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
def test_unload_gives_memory_back_and_work_brings_the_model_back(then_kill: bool) -> None:
    with Node(config(deadlines=LIMITS, stages={"tts": {"pinned": True}})) as node:
        order(node, "unload", "tts")
        if then_kill:
            kill_scheduler(node)
        wait_until(lambda: done(node) and phase(node, "tts@cpu/0") == "empty")
        wait_until(lambda: not [x for x in node.stats()["leases"] if x["worker"].startswith("tts")])
        assert node.stats()["operators"]["unloaded"] == ["tts@cpu/0"]
        with under_load(node):
            wait_until(lambda: phase(node, "tts@cpu/0") == "loaded")
            assert node.stats()["operators"]["unloaded"] == []


@pytest.mark.timeout(120)
def test_unload_under_load_fails_nothing() -> None:
    with Node(config(sleep_ms=5.0, deadlines=LIMITS)) as node, under_load(node):
        before = life(node, "nmt@cpu/0")
        order(node, "unload", "nmt")
        wait_until(lambda: life(node, "nmt@cpu/0") > before and phase(node, "nmt@cpu/0") == "loaded")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
def test_load_brings_a_model_back_before_there_is_work(then_kill: bool) -> None:
    with Node(config(deadlines=LIMITS)) as node:
        order(node, "unload", "nmt")
        wait_until(lambda: done(node) and phase(node, "nmt@cpu/0") == "empty")
        order(node, "load", "nmt")
        if then_kill:
            kill_scheduler(node)
        wait_until(lambda: phase(node, "nmt@cpu/0") == "loaded")
        assert node.stats()["operators"]["unloaded"] == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
def test_a_drained_device_is_empty_while_others_work_and_full_again_when_resumed(then_kill: bool) -> None:
    with Node(twice()) as node:
        marks = Marks()
        with node.client() as client, client.session(source="en", target="de", tag="t") as session:
            for index in range(10):
                session.submit(marks.make("t", index))
            order(node, "drain", "cpu")
            if then_kill:
                kill_scheduler(node)
            wait_until(lambda: done(node) and {phase(node, f"{name}@cpu/0") for name in STAGES} == {"empty"})
            stats = wait_until(lambda: (s := node.stats()) and not s["leases"] and s)
            assert stats["operators"]["drained"] == stats["scheduler"]["orders"]["drained"] == ["cpu"]
            assert "cpu is drained" in stats["health"]["reason"]
            assert stats["deaths"] == [] or then_kill
            order(node, "resume", "cpu")
            outcomes = list(session.outcomes(timeout_s=30))
        assert_in_order(outcomes)
        assert len(outcomes) == 10 and {o.outcome for o in outcomes} == {"ok"}
        wait_until(lambda: {phase(node, f"{name}@cpu/{n}") for name in STAGES for n in range(2)} == {"loaded"})


@pytest.mark.timeout(120)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")
@pytest.mark.parametrize("then_kill", [False, True])
def test_while_one_gpu_is_drained_the_other_does_all_the_work(
    then_kill: bool,
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(*(Gpu(context_bytes=CONTEXT) for _ in range(2)), lag_s=0.1)
    options = {name: {"vram_bytes": 200 * MIB} for name in STAGES}
    with Node(config(sleep_ms=5.0, stages={n: {"devices": ["auto"]} for n in STAGES}, options=options)) as node:
        with under_load(node) as count:
            order(node, "drain", "cuda:1")
            if then_kill:
                kill_scheduler(node)
            wait_until(lambda: driver.truth(1) == 0)
            so_far = count()
            wait_until(lambda: count() > so_far + 20)
            assert driver.truth(1) == 0 and driver.truth(0) > 0
            order(node, "resume", "cuda:1")
            wait_until(lambda: driver.truth(1) == driver.truth(0))
        assert [death["role"] for death in node.stats()["deaths"]] == ["scheduler"] * then_kill


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
def test_a_pin_keeps_a_model_from_leaving_and_unpin_lets_it_go(then_kill: bool) -> None:
    with Node(config(deadlines=LIMITS, stages={"tts": {"keep_alive_s": 1.0}})) as node:
        order(node, "pin", "tts")
        order(node, "load", "tts")
        if then_kill:
            kill_scheduler(node)
        wait_until(lambda: phase(node, "tts@cpu/0") == "loaded")
        before = life(node, "tts@cpu/0")
        order(node, "set", "stages.tts.keep_alive_s=0.1")
        order(node, "set", "stages.nmt.keep_alive_s=0.1")
        while life(node, "nmt@cpu/0") < 3:  # the other one goes twice meanwhile, and is the clock
            wait_until(lambda: phase(node, "nmt@cpu/0") == "empty")
            order(node, "load", "nmt")
            wait_until(lambda: life(node, "nmt@cpu/0") >= 2 and phase(node, "nmt@cpu/0") == "empty")
        assert (life(node, "tts@cpu/0"), phase(node, "tts@cpu/0")) == (before, "loaded")
        order(node, "unpin", "tts")
        wait_until(lambda: phase(node, "tts@cpu/0") == "empty")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then_kill", [False, True])
def test_a_knob_is_in_force_at_once_and_for_the_schedulers_that_follow(then_kill: bool) -> None:
    with Node(config(deadlines=LIMITS, stages={"asr": {"max_batch": 4}})) as node:
        assert node.stats()["scheduler"]["concurrency"]["asr"] == 4
        order(node, "set", "stages.asr.max_batch=2")
        if then_kill:
            kill_scheduler(node)
        wait_until(lambda: node.stats()["scheduler"].get("concurrency", {}).get("asr") == 2)
        assert node.stats()["operators"]["knobs"] == {"stages.asr.max_batch": 2}
        order(node, "set", "stages.asr.max_batch=4")
        wait_until(lambda: node.stats()["scheduler"]["concurrency"]["asr"] == 4)
        assert node.stats()["operators"]["knobs"] == {}, "what is as configured was set by nobody"


REFUSED = [
    ("restart", "asr@cpu/7", "no worker or stage 'asr@cpu/7'"),
    ("restart", "scheduler", "no worker or stage 'scheduler'"),
    ("drain", "cuda:0", "this node has no device 'cuda:0'; it has cpu"),
    ("resume", "cpu", "cpu is not drained"),
    ("load", "vad", "no stage 'vad'"),
    ("unload", "vad", "no stage 'vad'"),
    ("pin", "vad", "no stage 'vad'"),
    ("unpin", "asr", "stage asr is not pinned"),
    ("set", "stages.asr.max_batch=2", "the highest is 1, as configured"),
    ("set", "stages.asr.max_batch=many", "it must be a whole number"),
    ("set", "stages.asr.model=x", "stages.asr.model cannot be set while the node runs"),
    ("set", "deadlines.turn_s=0", "the lowest is 0.01"),
    ("set", "deadlines.turn_s=nan", "deadlines.turn_s is nan"),
    ("set", "deadlines.turn_s", "sets nothing"),
]


@pytest.fixture(scope="module")
def resting() -> Iterator[Node]:
    """A node that every order to it is refused by."""
    with Node(config()) as node:
        yield node


@pytest.mark.parametrize(("verb", "target", "words"), REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line_and_changes_nothing(
    resting: Node, verb: str, target: str, words: str
) -> None:
    before = resting.stats()["operators"]
    with pytest.raises(DragomanError) as refused:
        order(resting, verb, target)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert resting.stats()["operators"] == before


def test_the_command_says_what_it_does_and_waits_for_it() -> None:
    with Node(config(deadlines=LIMITS)) as node:
        done = command(node, "drain", "cpu", "--wait", "20")
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("draining cpu: asr@cpu/0")
        stats = node.stats()
        assert not [row for row in stats["processes"] if row["phase"] == "loaded"] and not stats["leases"]
        again = command(node, "drain", "cpu")
        assert again.returncode == 1 and again.stderr.count("\n") == 1 and "drained already" in again.stderr
        assert command(node, "load", "asr").returncode == 1
        shown = command(node, "resume", "cpu", "--json", "--wait", "20")
        assert json.loads(shown.stdout)["workers"] == [f"{name}@cpu/0" for name in STAGES]
        assert command(node, "load", "asr", "--wait", "20").returncode == 0
        assert phase(node, "asr@cpu/0") == "loaded"
        before = life(node, "asr@cpu/0")
        assert command(node, "restart", "asr", "--wait", "20").returncode == 0
        assert life(node, "asr@cpu/0") > before and phase(node, "asr@cpu/0") == "loaded"
        assert command(node, "unload", "asr", "--wait", "20").returncode == 0
        assert not [one for one in node.stats()["leases"] if one["worker"].startswith("asr")]
        assert command(node, "explode", "asr").returncode == 2


def command(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "run_node.py"), "ctl", *arguments, "--connect", node.ctl_endpoint]
    return subprocess.run(line, capture_output=True, text=True)


def test_who_translates_with_a_drained_node_is_told_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("hello\n")
    text = {"stages": {"nmt": {"kind": "simulated"}}, "pipelines": {"translate-text": ["nmt"]}}
    with Node(text) as node:
        assert command(node, "drain", "cpu", "--wait", "10").returncode == 0
        endpoint, line = node.endpoint, [sys.executable, str(ROOT / "run_node.py"), "translate"]
        line += [str(tmp_path / "lines.txt"), "--out", str(tmp_path / "out"), "--connect", endpoint]
        with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            says = "stage nmt waits: cpu is drained (run_node.py ctl resume cpu lets it be used)"
            assert any(says in said for said in run.stderr)
            waits = "stage nmt waits with 1 utterance: cpu is drained (run_node.py ctl resume cpu lets it be used)"
            wait_until(lambda: explain(node) == f"{waits}\n")
            wait_until(lambda: [job["stages"] for job in node.stats()["jobs"]] == [{"nmt": "pending"}])
            assert command(node, "resume", "cpu").returncode == 0
            assert run.wait(60) == 0
