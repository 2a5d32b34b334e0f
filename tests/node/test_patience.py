"""While the driver does not answer, who waits is told what for; nobody who is served in time hears of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.standin_driver import Driver, Gpu
from engine.commands import patience

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in driver needs gcc")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = '[stages.ears]\nkind = "simulated"\noptions = { accepts = "audio" }\n[pipelines]\nfull = ["ears"]\n'


@pytest.mark.parametrize(("verb", "says"), [("doctor", patience.DRIVER), ("serve", patience.START)])
def test_who_waits_for_a_driver_that_hangs_is_told_so_and_goes_on(verb: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(CONFIG)
    with Driver([Gpu()]) as driver:
        driver.hang()
        command = [sys.executable, str(ROOT / "run_node.py"), verb, "--config", str(file)]
        with subprocess.Popen(
            command, env=driver.environ(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None and process.stdout is not None
            try:
                assert any(says in line for line in process.stderr)
                driver.resume()
                assert any("cuda:0" in line for line in process.stdout)
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate()


def test_who_is_served_in_time_hears_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with patience.waiting("nobody comes", after_s=3600.0):
        pass
    with patience.waiting("nobody comes", after_s=3600.0) as over:
        over()
    assert not capsys.readouterr().err
