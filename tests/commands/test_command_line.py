"""The command line explains itself, and a user's mistake is one line and the right exit code, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import run_node
from engine.commands import VERBS

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = '[stages.asr]\nkind = "simulated"\noptions = { accepts = "audio" }\n[pipelines]\nfull = ["asr"]\n'


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No running node, no configuration and no cache of the user's is seen."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    for name in [n for n in os.environ if n.startswith("DRAGOMAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("engine.commands.finding.running", lambda: None)


def call(*argv: str) -> int:
    try:
        return run_node.main(argv)
    except SystemExit as exit:  # argparse's way of leaving
        return int(exit.code or 0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_and_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"run_node.py {verb}" in text
    assert "examples:" in text
    assert "exit codes:" in text


def test_the_top_level_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("fly",),
        ("translate", "a.wav"),
        ("translate", "a.wav", "--out", "o", "--sessions", "0"),
        ("translate", "a.wav", "--out", "o", "--budget", "soon"),
        ("translate", "a.wav", "--out", "o", "--connect", "ipc://x", "--private"),
        ("translate", "run_node.py", "--out", "o", "--connect", "ipc://x", "--config", "gone.toml"),
        ("models", "synthesize", "asr"),
        ("stats", "--jsno"),
    ],
)
def test_a_wrong_command_line_ends_with_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*argv) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (("stats", "--jsno"), "usage: run_node.py stats "),
        (("translate", "a.wav", "--out", "o", "--sesions", "2"), "usage: run_node.py translate "),
        (("models", "list", "--jsno"), "usage: run_node.py models list "),
        (("ctl", "drain", "cuda:0", "cuda:1"), "usage: run_node.py ctl "),
        (("--jsno", "stats"), "usage: run_node.py "),
    ],
)
def test_a_wrong_option_shows_the_usage_of_its_verb(
    argv: tuple[str, ...], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*argv) == 2
    told = capsys.readouterr().err
    assert told.startswith(usage)
    assert "unrecognized arguments: " in told


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("translate", "gone.wav", "--out", "o"), 2, "gone.wav"),
        (("ctl", "set", "stages.asr.max_batch"), 2, "ctl set KNOB=VALUE"),
        (("ctl", "set", "stages.asr.max_batch="), 2, "ctl set KNOB=VALUE"),
        (("bench", "no-such"), 2, "no-such"),
        (("models", "synthesize", "poet", "--out", "o"), 2, "asr-tones"),
        (("models", "synthesize", "asr", "--out", "."), 2, "--force"),
        (("translate", "run.wav", "--out", "o", "--config", "sim.toml", "--pipeline", "bogus"), 2, "there are full"),
        (("translate", "run.wav", "--out", "o", "--config", "sim.toml", "--skip", "bogus"), 2, "its stages are asr"),
        (("translate", "run.wav", "--out", "o", "--private"), 2, "run.wav"),
        (("translate", "gone.wav", "--out", "o", "--config", "sim.toml", "--pipeline", "own"), 2, "gone.wav"),
        (("translate", "t.txt", "--out", "o", "--private", "--target", "xx"), 2, "--target xx"),
        (("lease", "--gib", "1", "--connect", "garbage", "--", "true"), 1, "is not an address"),
        (("lease", "--gib", "1", "--", "./run.wav"), 1, "not to be executed"),
        (("lease", "--gib", "1e30", "--", "true"), 2, "below 1,048,576"),
        (("stats",), 1, "run_node.py serve"),
        (("stats", "--json"), 1, "run_node.py serve"),
        (("health",), 1, "run_node.py serve"),
        (("serve", "--config", "gone.toml"), 78, "gone.toml"),
        (("translate", "run.wav", "--out", "o", "--config", "gone.toml"), 78, "gone.toml"),
        (("serve", "--env-file", "gone.env"), 78, "gone.env"),
        (("translate", "run.wav", "--out", "run.wav/o", "--private"), 1, "cannot write"),
    ],
)
def test_a_users_mistake_is_one_line_that_says_what_to_do(
    argv: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.wav").write_bytes(b"")
    (tmp_path / "t.txt").write_text("hello")
    (tmp_path / "sim.toml").write_text(SIMULATED, encoding="utf-8")
    assert call(*argv) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1, err


def test_nothing_is_written_before_the_inputs_are_known_to_be_there(tmp_path: Path) -> None:
    assert call("translate", "gone.wav", "--out", "o") == 2
    assert not (tmp_path / "o").exists()


def test_a_connect_endpoint_where_nothing_answers_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for endpoint in (f"ipc://{tmp_path}/ctl", "not an address"):
        assert call("health", "--connect", endpoint) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_it_starts_as_a_script_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_node.py"), "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("dragoman ")


def test_a_python_without_the_libraries_is_told_how_to_get_one(tmp_path: Path) -> None:
    argv = [sys.executable, "-S", str(ROOT / "run_node.py"), "--version"]  # -S: nothing that was installed is seen
    done = subprocess.run(argv, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "make env" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_the_terminal_cannot_show_ends_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, str(ROOT / "run_node.py"), "models", "synthesize", "m\u00f6we", "--out", "o"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: there is no clockwork model")


def test_the_command_line_imports_no_model_library_and_no_transport_of_the_node_to_show_help() -> None:
    code = (
        "import sys, run_node\n"
        "try: run_node.main(['translate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ctranslate2', 'faster_whisper', 'onnxruntime', 'llama_cpp', 'piper', 'av', 'engine.node'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_bench_lists_the_benchmarks_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("bench") == 0
    told = capsys.readouterr().out
    assert "harness" not in told and "vram_program" not in told and "W1" not in told
    names = {line.split()[0] for line in told.splitlines() if not line.startswith(" ")}
    assert {"pipeline", "vram", "tune", "simulate", "plan"} <= names


def test_an_interrupt_while_modules_are_loaded_is_no_traceback() -> None:
    """Held open: one of the modules that every verb needs stops for a moment, and says so."""
    slow = "import sys, time; sys.stdout.write('here'); sys.stdout.flush(); time.sleep(30)"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "zmq.py").write_text(slow)
        environ = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, str(ROOT / "run_node.py"), "stats"]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here is ignored there
        try:
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        finally:
            signal.signal(signal.SIGINT, before)
        with process:
            assert process.stdout is not None and process.stdout.read(4) == b"here"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (-signal.SIGINT, b"")
