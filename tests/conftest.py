"""What every test stands on: no telemetry, and a user of the tests' own, whose nodes nobody else's node is taken for.

A node's folder, and so what finds it, depends on XDG_RUNTIME_DIR and TMPDIR. The tests get their own before anything
else looks: they neither see a node that runs on this machine nor leave a folder behind. Their cache is their own, too:
what a node measures of its models decides what the next one asks for, so each test begins without. And no example of
hypothesis is late: how long one takes says something of the machine, and what else it does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dragoman", deadline=None)
settings.load_profile("dragoman")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reports to its makers when it is imported

_BESIDE = tempfile.gettempdir()  # asked before TMPDIR changes: pytest's own folders stay where they are expected
_OWN = Path(tempfile.mkdtemp(prefix="dgm-tests-"))  # short: it has to leave room for a socket's name
for _name in ("XDG_RUNTIME_DIR", "TMPDIR"):
    _folder = _OWN / _name[:3].lower()
    _folder.mkdir(mode=0o700)
    os.environ[_name] = str(_folder)

_USERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dragoman"
_CACHE = _OWN / "cache" / "dragoman"
_CACHE.mkdir(parents=True)
for _folder in _USERS.glob("standin-*"):  # compiled once, not once for each run of the tests
    (_CACHE / _folder.name).symlink_to(_folder)
os.environ["XDG_CACHE_HOME"] = str(_CACHE.parent)


@pytest.fixture(autouse=True)
def _nothing_measured() -> Iterator[None]:
    yield
    (_CACHE / "estimates.json").unlink(missing_ok=True)


def pytest_unconfigure() -> None:
    shutil.rmtree(_OWN, ignore_errors=True)
