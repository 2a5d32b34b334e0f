"""Whether an MPS daemon is there: told by its socket or pipe, of which a dead one leaves the file behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engine import mps


def served(folder: Path) -> bool:
    return mps.is_served({"CUDA_MPS_PIPE_DIRECTORY": str(folder)})


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_daemon_that_listens_is_there_and_one_that_died_is_not(tmp_path: Path, kind: socket.SocketKind) -> None:
    assert not served(tmp_path)
    daemon = socket.socket(socket.AF_UNIX, kind)
    daemon.bind(str(tmp_path / "control"))
    daemon.listen()
    assert served(tmp_path)
    daemon.setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody connected
        daemon.accept()
    daemon.close()
    assert (tmp_path / "control").exists() and not served(tmp_path)


def test_a_pipe_is_there_while_somebody_reads_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "control")
    assert not served(tmp_path)
    reader = os.open(tmp_path / "control", os.O_RDONLY | os.O_NONBLOCK)
    assert served(tmp_path)
    os.close(reader)
    assert not served(tmp_path)
