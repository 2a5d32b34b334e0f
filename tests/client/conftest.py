"""A fake node and a client of it for each test; the sessions' own invariants are checked when the test is over."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_node import FakeNode

from engine.client import Client


@pytest.fixture
def socket_path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dgm-"))  # pytest's own folders are too deep for a socket address
    yield folder / "client"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(socket_path: Path) -> Iterator[FakeNode]:
    with FakeNode(socket_path) as fake:
        yield fake


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with Client(node.endpoint, patience_s=5.0) as made:
        yield made
        for session in made._sessions.values():
            session.core.check()
