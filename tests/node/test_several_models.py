"""A stage with several models, in whole nodes of simulated stages: who gets which, and what happens to the others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.standin_driver import GIB, Driver, Gpu
from engine import ctl
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import Marks, assert_in_order, config, kill, process_of, wait_until
from tests.node.test_standin_gpus import CONTEXT, gpus  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(120)
MODELS: dict[str, dict[str, Any]] = {
    "formal": {"options": {"suffix": " formally"}, "languages": ["de", "en"]},
    "fr": {"options": {"suffix": " en francais"}, "languages": ["en", "fr"]},
}
QUICK = {"settle_s": 0.5, "turn_s": 1.0}


def several(sleep_ms: float = 2.0, max_models: int = 6, cues: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """Translation has three models, told apart by what they append; its own speaks German and English.

    ``cues``: of the formal one.
    """
    formal = MODELS["formal"] | {"options": MODELS["formal"]["options"] | {"cues": cues}}
    stage = {"models": MODELS | {"formal": formal}, "languages": ["de", "en"]}
    options = {"nmt": {"translates": True, "suffix": " as usual"}}
    return config(sleep_ms, stages={"nmt": stage}, options=options, deadlines=QUICK, devices={"max_models": max_models})


def said(outcome: Any) -> str:
    """What the model that translated has appended."""
    return outcome.texts["nmt"].partition(" ")[2]


def models(outcome: Any) -> list[str]:
    """The model of each record of the translation."""
    return [record.get("model", "") for record in outcome.stages if record["stage"] == "nmt"]


class Talk:
    """One session a model, all at once."""

    def __init__(self, node: Node, stack: ExitStack, *chosen: tuple[str, str, str]) -> None:
        self.marks = Marks()
        self.sessions = {}
        for tag, target, model in chosen:
            client = stack.enter_context(node.client())
            asked = {"nmt": model} if model else {}
            self.sessions[tag] = stack.enter_context(client.session(source="en", target=target, tag=tag, models=asked))

    def say(self, tag: str, *indices: int) -> None:
        for index in indices:
            self.sessions[tag].submit(self.marks.make(tag, index))

    def heard(self, tag: str) -> list[Any]:
        outcomes = list(self.sessions[tag].outcomes(timeout_s=60.0))
        for outcome in outcomes:
            self.marks.compare(tag, outcome)
        assert not self.marks.mixed_up
        assert [o.outcome for o in outcomes] == ["ok"] * len(outcomes), outcomes
        return outcomes


CHOSEN = ("usual", "de", ""), ("french", "fr", ""), ("formal", "de", "formal")
SAY = {"usual": "as usual", "french": "en francais", "formal": "formally"}
NAMES = {"usual": "", "french": "fr", "formal": "formal"}


def test_a_session_gets_the_model_it_names_or_the_first_that_knows_its_languages() -> None:
    with Node(several()) as node, ExitStack() as stack:
        talk = Talk(node, stack, *CHOSEN)
        with node.client() as client:
            assert list(client.limits["choices"]["nmt"]) == ["default", "formal", "fr"]
        for tag in SAY:
            talk.say(tag, *range(10))
        for tag in SAY:
            outcomes = talk.heard(tag)
            assert_in_order(outcomes)
            assert {said(one) for one in outcomes} == {SAY[tag]}
            assert [name for one in outcomes for name in models(one)] == [NAMES[tag]] * 10
        assert set(node.stats()["scheduler"]["stages"]) == {"asr", "repair", "nmt", "nmt.formal", "nmt.fr", "tts"}


def test_the_command_line_chooses_a_model_too(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(Marks().make("a", 0).tobytes())
    with Node(several()) as node:

        def translate(*models: str) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, str(ROOT / "run_node.py"), "translate", str(tmp_path / "said.wav"), "--quiet",
                     "--out", str(tmp_path / "out"), "--connect", node.endpoint]  # fmt: skip
            return subprocess.run([*words, *(f"--model={one}" for one in models)], capture_output=True, text=True)

        assert translate("nmt=formal").returncode == 0
        row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
        assert row["translation"].endswith(" formally")
        refused = translate("nmt=polite")
        assert refused.returncode == 2 and "there are default, formal, fr" in refused.stderr
        deaf = translate("nmt=fr")
        words = "error: model fr of stage nmt does not know 'en' and 'de'; accepted: "
        assert deaf.returncode == 2 and deaf.stderr.startswith(words)
        both = translate("nmt=formal", "nmt=fr")
        assert both.returncode == 2 and "--model chooses both nmt=formal and nmt=fr" in both.stderr


def test_an_unknown_model_and_one_without_the_language_are_refused_in_one_line() -> None:
    with Node(several()) as node, node.client() as client:
        for target, model, words in (("de", "polite", "default, formal, fr"), ("fr", "formal", "nmt")):
            with pytest.raises(DragomanError) as caught:
                client.session(source="en", target=target, models={"nmt": model})
            assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_worker_of_one_model_that_is_killed_leaves_the_sessions_of_the_others_alone() -> None:
    with Node(several(cues=({"index": 10, "action": "kill"},))) as node, ExitStack() as stack:
        talk = Talk(node, stack, *CHOSEN)
        others = {role: process_of(node, role)["pid"] for role in ("nmt@cpu/0", "nmt.fr@cpu/0")}
        for index in range(20):
            for tag in SAY:
                talk.say(tag, index)
        for tag in SAY:
            outcomes = talk.heard(tag)
            assert_in_order(outcomes)
            assert {said(one) for one in outcomes} == {SAY[tag]}
            tries = [models(one) for one in outcomes]
            assert tries == [[NAMES[tag]] * (1 + (tag == "formal" and index == 10)) for index in range(20)]
        assert [death["role"] for death in node.stats()["deaths"]] == ["nmt.formal@cpu/0"]
        assert others == {role: process_of(node, role)["pid"] for role in others}


@pytest.mark.parametrize("victim", ["scheduler", "gateway"])
def test_sessions_keep_their_models_when_who_knows_them_dies(victim: str) -> None:
    with Node(several(sleep_ms=10.0)) as node, ExitStack() as stack:
        talk = Talk(node, stack, *CHOSEN)
        for index in range(20):
            for tag in SAY:
                talk.say(tag, index)
            if index == 10:
                kill(process_of(node, victim)["pid"])
        for tag in SAY:
            outcomes = talk.heard(tag)
            assert_in_order(outcomes)
            assert {said(one) for one in outcomes} == {SAY[tag]}


def test_where_not_all_have_room_further_models_load_when_they_have_work_and_take_turns() -> None:
    with Node(several(max_models=4)) as node, ExitStack() as stack:
        stats = node.stats()
        assert "away at the start: nmt.formal, nmt.fr" in stats["mode_reason"], "ready without them"
        assert stats["health"]["ready"] and len(stats["arbiter"]["leases"]) <= 4
        talk = Talk(node, stack, *CHOSEN)
        for tag in SAY:
            talk.say(tag, *range(5))
        for tag in SAY:
            outcomes = talk.heard(tag)
            assert_in_order(outcomes)
            assert {said(one) for one in outcomes} == {SAY[tag]}
        stats = node.stats()
        assert len(stats["arbiter"]["leases"]) <= 4 and stats["deaths"] == []
        assert stats["scheduler"]["parked"] >= 2


def test_an_operator_speaks_of_a_model_by_its_name_inside_the_node() -> None:
    with Node(several(max_models=5)) as node:
        assert "away at the start: nmt.formal, nmt.fr" in node.stats()["mode_reason"]
        ctl.ask(node.ctl_endpoint, "load", target="nmt.fr")
        wait_until(lambda: node.stats()["scheduler"]["stages"]["nmt.fr"]["loaded"])
        ctl.ask(node.ctl_endpoint, "set", target="stages.nmt.fr.max_batch=1")
        with pytest.raises(DragomanError, match=r"there are asr, repair, nmt, nmt.formal, nmt.fr, tts"):
            ctl.ask(node.ctl_endpoint, "load", target="nmt.it")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")
def test_on_a_card_for_one_of_two_models_sessions_that_alternate_do_not_swap_them_each_time(
    gpus: Callable[..., Driver],  # noqa: F811
) -> None:
    driver = gpus(Gpu(2 * GIB, context_bytes=CONTEXT))
    needs = {"devices": ["cuda:0"], "estimate_bytes": GIB}
    other = {"options": {"suffix": " formally"}, "estimate_bytes": GIB}
    options = {"nmt": {"vram_bytes": GIB - 2 * CONTEXT, "suffix": " as usual", "load_ms": 300}}
    with Node(config(stages={"nmt": needs | {"models": {"formal": other}}}, options=options, deadlines=QUICK)) as node:
        with ExitStack() as stack:
            talk = Talk(node, stack, ("usual", "de", ""), ("formal", "de", "formal"))
            for index in range(30):
                talk.say("usual", index)
                time.sleep(0.03)  # they speak in turn: nothing waits for this
                talk.say("formal", index)
                time.sleep(0.03)
            for tag in ("usual", "formal"):
                outcomes = talk.heard(tag)
                assert_in_order(outcomes)
                assert {said(one) for one in outcomes} == {SAY[tag]}
        assert 1 <= node.stats()["scheduler"]["parked"] < 15, "of 59 times that the other one was wanted"
    assert driver.get(0, "out_of_memory") == 0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")
def test_what_all_sessions_need_stays_while_rivals_take_turns_beside_it_and_the_node_is_well(
    gpus: Callable[..., Driver],  # noqa: F811
    tmp_path: Path,
) -> None:
    driver = gpus(Gpu(10 * GIB, context_bytes=CONTEXT))
    sizes = {"asr": 3 * GIB, "nmt": 2 * GIB, "formal": 5 * GIB}
    vram = {name: {"vram_bytes": nbytes - 2 * CONTEXT} for name, nbytes in sizes.items()}
    formal = {"options": {"suffix": " formally"} | vram["formal"], "estimate_bytes": sizes["formal"]}
    stages = {name: {"devices": ["cuda:0"], "estimate_bytes": sizes[name]} for name in ("asr", "nmt")}
    stages["nmt"]["models"] = {"formal": formal}
    options = {"asr": vram["asr"], "nmt": vram["nmt"] | {"suffix": " as usual", "load_ms": 100}}
    log = tmp_path / "log"
    with Node(config(stages=stages, options=options, deadlines=QUICK), log_level="info", log_file=log) as node:
        with ExitStack() as stack:
            talk = Talk(node, stack, ("usual", "de", ""), ("formal", "de", "formal"))
            for number, tag in ((number, tag) for number in range(4) for tag in SAY if tag in talk.sessions):
                talk.say(tag, *range(3 * number, 3 * number + 3))
                assert {said(one) for one in talk.heard(tag)} == {SAY[tag]}
                assert node.stats()["health"]["ready"], node.stats()["health"]
    assert "nmt@cuda:0/0 is parked" in log.read_text() and "asr@cuda:0/0 is parked" not in log.read_text()
    assert driver.get(0, "out_of_memory") == 0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")
def test_a_model_that_was_refused_is_explained_until_it_asks_again(gpus: Callable[..., Driver]) -> None:  # noqa: F811
    driver = gpus(Gpu(8 * GIB, context_bytes=CONTEXT))
    driver.set_foreign(0, 6 * GIB)
    formal = {"devices": ["cuda:0"], "estimate_bytes": 4 * GIB, "options": {"vram_bytes": 3 * GIB}}
    deadlines = QUICK | {"retry_delay_s": 3.0, "lease_wait_s": 0.5}
    with (
        Node(config(stages={"nmt": {"models": {"formal": formal}}}, deadlines=deadlines)) as node,
        ExitStack() as stack,
    ):
        talk = Talk(node, stack, ("formal", "de", "formal"))
        talk.say("formal", 0)
        ask = [sys.executable, str(ROOT / "run_node.py"), "explain", "nmt.formal", "--connect", node.ctl_endpoint]

        def told() -> str:
            text = subprocess.run(ask, capture_output=True, text=True).stdout
            return text if "asks again" in text else ""

        text = wait_until(told)
        expected = (
            r"nmt\.formal@cuda:0/0 was refused and asks again in [0-3]\.\d s\n  because: .*needs 4\.\d GiB on cuda:0"
        )
        assert re.match(expected, text), text
        rows = json.loads(subprocess.run([*ask, "--json"], capture_output=True, text=True).stdout)
        assert [row["worker"].partition("#")[0] for row in rows] == ["nmt.formal@cuda:0/0"], "asking or about to"
        driver.set_foreign(0, 0)
        assert [models(one)[-1] for one in talk.heard("formal")] == ["formal"]
