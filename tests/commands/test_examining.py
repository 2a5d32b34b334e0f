"""The doctor sees before a start what would keep a node with this configuration from starting."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from engine import embedded
from engine.commands import examining

SIMULATED = """
[stages.ears]
kind = "simulated"
options = { accepts = "audio" }
[pipelines]
full = ["ears"]
"""


def found(path: Path, text: str) -> dict[str, examining.Finding]:
    path.write_text(text, encoding="utf-8")
    return {f.topic: f for f in examining.configuration(Namespace(config=str(path), env_file=None, connect=None))}


def test_a_configuration_that_would_start_is_ok(tmp_path: Path) -> None:
    assert {f.state for f in found(tmp_path / "node.toml", SIMULATED).values()} == {"ok"}


def test_the_placement_plan_is_told_in_words_and_for_programs(tmp_path: Path) -> None:
    finding = found(tmp_path / "node.toml", SIMULATED)["placement"]
    assert finding.text.startswith("all resident; cpu: ears 48 MiB; ")
    assert finding.details["verdict"] == "all resident" and finding.details["places"][0]["device"] == "cpu"


def test_models_that_take_turns_are_a_note(tmp_path: Path) -> None:
    two = SIMULATED.replace("[pipelines]", '[stages.mind]\nkind = "simulated"\n[devices]\nmax_models = 1\n[pipelines]')
    finding = found(tmp_path / "node.toml", two)["placement"]
    assert finding.state == "note" and finding.text.startswith("by turns on cpu") and finding.mend


@pytest.mark.parametrize(
    ("text", "topic", "says"),
    [
        ("[stages.ears]\nkind = 3", "configuration", "stages.ears.kind"),
        (SIMULATED + '[stages.asr]\nmodel = "models/asr"\n', "stage asr", "there is no folder"),
        (SIMULATED.replace("[pipelines]", 'devices = ["cuda:77"]\n[pipelines]'), "plan", "cuda:77"),
    ],
)
def test_what_would_end_the_start_is_bad_and_has_a_mend(tmp_path: Path, text: str, topic: str, says: str) -> None:
    finding = found(tmp_path / "node.toml", text)[topic]
    assert finding.state == "bad"
    assert says in finding.text
    assert finding.mend


def test_the_mend_of_a_variant_whose_model_is_not_there_names_the_variant(tmp_path: Path) -> None:
    demo = SIMULATED + f'[stages.nmt]\nmodel = "{embedded.DEMO / "nmt"}"\nvariants = [{{ model = "/no/such/one" }}]\n'
    assert found(tmp_path / "node.toml", demo)["stage nmt"].mend == "set stages.nmt.variants[0].model"


def test_a_stage_the_node_can_do_without_is_a_note(tmp_path: Path) -> None:
    finding = found(tmp_path / "node.toml", SIMULATED + '[stages.nmt]\nmodel = "no/such/one"\nrequired = false\n')
    assert finding["stage nmt"].state == "note"


def test_without_a_file_the_demo_models_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    findings = {one.topic: one for one in examining.configuration(Namespace(config=None, env_file=None, connect=None))}
    assert "embedded demo models" in findings["configuration"].text
    assert findings["stage tts"].text == str(embedded.DEMO / "tts")
