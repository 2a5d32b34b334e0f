"""Profiles fill in what nobody set, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import config_file
from engine.config import Config, StageSection
from engine.profiles import PROFILES
from ipc.errors import ConfigError

FILE = """
[stages.asr]
model = "small"
[stages.ears]
kind = "asr"
model = "small"
[stages.nmt]
[pipelines]
transcribe = ["asr"]
"""


def load(tmp_path: Path, text: str = "", **env: str) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(text + FILE)
    return config_file.load(path, {f"DRAGOMAN_{name}": value for name, value in env.items()})


def of(config: Config) -> tuple[int, int, float, float]:
    deadlines = config.deadlines
    batch = config.stages["asr"].max_batch
    return batch, config.node.max_retries, deadlines.retry_delay_s, deadlines.budget_max_s


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("conservative", (1, 3, 10.0, 300.0)),
        ("balanced", (2, 3, 10.0, 300.0)),
        ("aggressive", (3, 5, 15.0, 300.0)),
    ],
)
def test_a_profile_sets_its_four_fields(tmp_path: Path, name: str, values: tuple) -> None:
    config = load(tmp_path, f'[node]\nprofile = "{name}"\n')
    assert of(config) == values and config.stages["ears"].max_batch == values[0], "every recogniser"
    assert config.stages["nmt"].max_batch == 1, "and no other stage"


def test_balanced_is_what_a_node_is_that_says_nothing(tmp_path: Path) -> None:
    assert of(load(tmp_path)) == of(load(tmp_path, '[node]\nprofile = "balanced"\n'))


def test_what_is_set_stays_wherever_it_is_set(tmp_path: Path) -> None:
    text = '[node]\nprofile = "aggressive"\nmax_retries = 0\n[deadlines]\nretry_delay_s = 2.0\n'
    assert of(load(tmp_path, text, STAGES_ASR_MAX_BATCH="7")) == (7, 0, 2.0, 300.0)


def test_the_environment_chooses_a_profile_too(tmp_path: Path) -> None:
    assert of(load(tmp_path, '[node]\nprofile = "aggressive"\n', NODE_PROFILE="conservative")) == (1, 3, 10.0, 300.0)


def test_a_profile_that_is_none_is_one_line_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"node.profile .*did you mean balanced.*conservative or balanced or aggressive"
    ):
        load(tmp_path, '[node]\nprofile = "balance"\n')


@pytest.mark.parametrize(
    "text", ["node = 3\n", "stages = 3\n", "[deadlines]\nretry_delay_s = 'x'\n", "[node]\nprofile=3\n"]
)
def test_what_is_no_table_is_still_the_checks_business(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        config_file.load(write(tmp_path, text), {})


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "bad.toml").write_text(text)
    return tmp_path / "bad.toml"


def test_the_embedded_configuration_is_as_it_is_until_a_profile_is_named() -> None:
    base = Config(stages={"asr": StageSection(model="m")}, pipelines={"transcribe": ("asr",)})
    assert config_file.load(None, {}, base=base) == base
    named = config_file.load(None, {"DRAGOMAN_NODE_PROFILE": "aggressive", "DRAGOMAN_NODE_MAX_RETRIES": "1"}, base=base)
    assert of(named) == (3, 1, 15.0, 300.0)


def test_the_reference_shows_every_profile_and_its_trade_off() -> None:
    page = config_file.render_reference()
    for name, profile in PROFILES.items():
        assert f"| `{name}` | {profile.concurrency} | {profile.max_retries} |" in page and profile.trade_off in page
