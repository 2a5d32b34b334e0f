"""``doctor --bundle``: all that a helper needs, nothing that is nobody's business, and it says what is in it."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from engine.commands import bundling
from engine.node import Node
from ipc.errors import DragomanError
from tests.node.rehearsal import config

ROOT = Path(__file__).parents[2]
FILE = """
[node]
profile = "conservative"
[stages.asr]
kind = "simulated"
options = { accepts = "audio", suffix = "kept" }
[pipelines]
full = ["asr"]
"""


def doctor(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "node.toml").write_text(FILE)
    line = [sys.executable, str(ROOT / "run_node.py"), "doctor", "--config", str(tmp_path / "node.toml"), *arguments]
    known = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path), **env}
    return subprocess.run(line, capture_output=True, text=True, env=known)


def unpacked(path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None and member.mode == 0o600
            found[member.name.partition("/")[2]] = file.read().decode()
    return found


def test_it_holds_what_it_says_and_says_what_it_holds(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--bundle", str(tmp_path / "help.tar.gz"))
    assert done.returncode == 0, done.stderr
    members = unpacked(tmp_path / "help.tar.gz")
    assert set(members) == {"README.txt", *bundling.ABOUT}
    for name in bundling.ABOUT:
        assert name in members["README.txt"] and name in done.stdout
    assert json.loads(members["doctor.json"])["healthy"]
    assert tomllib.loads(members["configuration.toml"])["node"]["profile"] == "conservative"
    assert "pyzmq==" in members["versions.txt"]
    assert "no node of this user" in members["stats.json"] and "no node" in members["log.txt"]
    assert (tmp_path / "help.tar.gz").stat().st_mode & 0o077 == 0, "it is its owner's alone"


def test_nothing_that_is_nobodys_business_is_in_it(tmp_path: Path) -> None:
    secret = {"DRAGOMAN_STAGES_ASR_MODEL": str(tmp_path / "deep" / "model"), "DRAGOMAN_API_KEY": "hush-1"}
    done = doctor(tmp_path, "--bundle", str(tmp_path / "help.tar.gz"), "--json", **secret)
    assert json.loads(done.stdout)["bundle"] == str(tmp_path / "help.tar.gz")
    for name, text in unpacked(tmp_path / "help.tar.gz").items():
        assert "hush" not in text and str(tmp_path) not in text, name
    assert "~/deep/model" in unpacked(tmp_path / "help.tar.gz")["configuration.toml"]


@pytest.mark.parametrize(
    "name",
    ["key", "api_key", "keys", "token", "resume_token", "password", "secret", "hotwords", "initial_prompt", "apikey",
     "api-key", "accessToken", "Authorization", "passphrase", "pwd", "clientSecret"],
)  # fmt: skip
def test_values_named_like_secrets_are_removed_at_any_depth(name: str) -> None:
    tree = {"a": [{"b": {name: "hush", "beam_size": 5}}], name: ["hush"]}
    assert bundling.without_secrets(tree) == {"a": [{"b": {name: "(removed)", "beam_size": 5}}], name: "(removed)"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("keep_alive_s", 5), ("max_tokens", 64), ("monkey", "x"), ("token", ""), ("author", "x"), ("maxTokens", 9)],
)
def test_others_stay(name: str, value: object) -> None:
    assert bundling.without_secrets({name: value}) == {name: value}


def test_of_a_stages_options_only_texts_with_known_names_are_shown() -> None:
    options = {"beam_size": 5, "source": "en", "login": "hush", "headers": {"X": "hush"}, "more": ["hush"], "pass": 7}
    left = {"beam_size": 5, "source": "en", "login": "(removed)", "headers": {"X": "(removed)"},
            "more": ["(removed)"], "pass": "(removed)"}  # fmt: skip
    assert bundling.without_secrets({"stages": {"asr": {"options": options}}}) == {"stages": {"asr": {"options": left}}}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("DRAGOMAN_STAGES_ASR_OPTIONS_PASS=hush", False),
        ("DRAGOMAN_STAGES_ASR_OPTIONS_USER_PASS=hush", False),
        ("DRAGOMAN_STAGES_ASR_OPTIONS_LOGIN=hush", False),
        ("DRAGOMAN_STAGES_ASR_OPTIONS={'initial_prompt': 'hush'}", False),
        ("DRAGOMAN_MODEL_HOST=hush", False),
        ("DRAGOMAN_STAGES_ASR_OPTIONS_BEAM_SIZE=5", True),
        ("DRAGOMAN_STAGES_NMT_OPTIONS_SOURCE=en", True),
        ("DRAGOMAN_STAGES_ASR_MAX_BATCH=4", True),
        ("DRAGOMAN_NODE_MAX_TEXT_CHARS=900", True),
        ("DRAGOMAN_DEVICES_USE=cuda:0", True),
        ("DRAGOMAN_PIPELINES_FULL=asr,nmt", True),
        ("CUDA_VISIBLE_DEVICES=0", True),
    ],
)
def test_variables_are_shown_when_they_set_what_is_known(line: str, shown: bool) -> None:
    name, _, value = line.partition("=")
    assert bundling._environment({name: value}).strip() == (line if shown else f"{name}=(removed)")


def test_the_running_nodes_statistics_and_last_lines_are_in_it(tmp_path: Path) -> None:
    with Node(config(), log_level="info", log_file=tmp_path / "log") as node:
        done = doctor(tmp_path, "--bundle", str(tmp_path / "help.tgz"), "--connect", node.ctl_endpoint)
        assert done.returncode == 0, done.stderr
        members = unpacked(tmp_path / "help.tgz")
        assert json.loads(members["stats.json"])["node"] == node.name
    assert "asr@cpu/0 loaded in" in members["log.txt"], "what its processes said"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--bundle", str(tmp_path / "none" / "help.tar.gz"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot write the bundle" in done.stderr


def test_a_bundle_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        bundling.written(tmp_path / "help.tar.gz", {"a": "x", "b": None})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_credentials_in_addresses_are_removed() -> None:
    assert bundling._anonymous("tcp://anna:pw@10.0.0.1:5") == "tcp://(removed)@10.0.0.1:5"


def test_a_password_may_be_a_number() -> None:
    assert bundling.without_secrets({"password": 1234, "pin": 1}) == {"password": "(removed)", "pin": "(removed)"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://u:p/w@h/", "http://(removed)@h/"),
        ("started with --api-key=hush --beam 5", "started with --api-key=(removed) --beam 5"),
        ("Authorization: Bearer hush, then", "Authorization: (removed)"),
        ("run --token hush --beam 5", "run --token (removed) --beam 5"),
        ("run --api-key 'hush hush' -x", "run --api-key '(removed)' -x"),
        ("sent Bearer hush", "sent (removed)"),
        ("Authorization: Token hush", "Authorization: (removed)"),
        ('{"Authorization": "Token hush", "a": 1}', '{"Authorization": "(removed)", "a": 1}'),
        ('password="two words", x', 'password="(removed)", x'),
        ('{"line": "password=\\"two words\\" x"}', '{"line": "password=\\"(removed)\\" x"}'),
        ("https://x/y?sig=hush", "https://x/y?sig=(removed)"),
        ("https://x/y?client_secret=hush", "https://x/y?client_secret=(removed)"),
        ("got hf_hushhushhushhushhush.", "got (removed)."),
        ('{"token": "hush"}', '{"token": "(removed)"}'),
        ("asr@cpu/0 loaded in 3 s; 64 tokens", "asr@cpu/0 loaded in 3 s; 64 tokens"),
    ],
)
def test_secrets_in_lines_of_a_log_are_removed(text: str, left: str) -> None:
    assert bundling._anonymous(text) == left


def test_a_file_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DragomanError):
        bundling.written(tmp_path / "a" / "b", {})
