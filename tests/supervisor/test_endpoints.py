"""An address that somebody listens at is told before anything is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from engine.supervisor import endpoints
from ipc.errors import ConfigError, DragomanError


def test_a_port_that_somebody_listens_at_is_named_and_one_that_is_free_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DragomanError, match=f"node.endpoints: cannot listen at {endpoint} .*in use"):
            endpoints.check_free([endpoint])
    endpoints.check_free([endpoint])


def test_a_file_that_somebody_listens_at_is_named_and_what_a_dead_one_left_passes(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path / 'door'}"
    endpoints.check_free([endpoint])
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "door"))
        taken.listen()
        with pytest.raises(DragomanError, match="in use"):
            endpoints.check_free([endpoint])
    endpoints.check_free([endpoint])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/none/door"
    with pytest.raises(
        ConfigError, match=f"node.endpoints: cannot listen at {endpoint} .there is no folder {tmp_path}"
    ):
        endpoints.check_free([endpoint])
    (tmp_path / "none").mkdir()
    endpoints.check_free([endpoint])


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written to"):
        endpoints.check_free([f"ipc://{tmp_path}/door"])
