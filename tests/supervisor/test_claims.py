"""Claims on GPUs: one node a GPU, unless both say that they share; they last as long as anybody has inherited them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.supervisor.claims import Claims
from ipc.errors import DragomanError

UUID = "GPU-00000000-1111"
HOLD = "import sys; print(flush=True); sys.stdin.read()"


def claims(base: Path, node: str = "/run/a", shared: bool = False) -> Claims:
    return Claims(base / "locks", Path(node), shared=shared)


def test_a_gpu_is_one_node_s_and_the_other_is_told_whose(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path, "/run/b")
    assert first.take(UUID) == "" and first.take(UUID) == ""
    assert second.take(UUID) == f"node /run/a (pid {os.getpid()})"
    assert second.take("GPU-other") == ""
    first.close(nobody_left=True)
    assert second.take(UUID) == ""
    second.close(nobody_left=True)
    assert list((tmp_path / "locks").iterdir()) == []


def test_nodes_that_say_so_share_and_nobody_else_with_them(tmp_path: Path) -> None:
    first, second, third = (claims(tmp_path, f"/run/{n}", shared=n != "c") for n in "abc")
    assert first.take(UUID) == second.take(UUID) == ""
    assert "/run/b" in third.take(UUID)
    first.close(nobody_left=True)
    assert "/run/b" in third.take(UUID)
    second.close(nobody_left=True)
    assert third.take(UUID) == ""
    assert "/run/c" in first.take(UUID)


def test_a_claim_lasts_until_the_last_who_inherited_it_is_gone(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path, "/run/b")
    first.take(UUID)
    worker = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(first.fd(UUID),)
    )
    assert worker.stdout is not None and worker.stdout.readline()
    first.close(nobody_left=False)
    assert "/run/a" in second.take(UUID)
    worker.kill()
    worker.wait()
    assert second.take(UUID) == ""


def test_what_a_dead_node_s_workers_hold_is_said_to_be_that(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path, "/run/b")
    first.take(UUID)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "locks" / UUID).write_text(f"{gone.pid} /run/a\n")
    assert second.take(UUID) == f"what is left of node /run/a (its pid {gone.pid} is gone)"


def test_a_file_that_is_removed_while_another_node_opens_it_is_no_claim(tmp_path: Path) -> None:
    first, third = claims(tmp_path), claims(tmp_path, "/run/c")
    first.take(UUID)

    class Late(Claims):
        """Its claim is the very file that the first node removes."""

        def _open(self, path: Path) -> int:
            fd = super()._open(path)
            first.close(nobody_left=True)
            return fd

    assert Late(tmp_path / "locks", Path("/run/b")).take(UUID) == ""
    assert "/run/b" in third.take(UUID)


def test_other_users_may_claim_too_and_what_they_write_is_only_shown(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path, "/run/b")
    first.take("MIG-GPU-1/2/0")  # the names of older drivers' instances
    (lock,) = (tmp_path / "locks").iterdir()
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666
    assert stat.S_IMODE(lock.parent.stat().st_mode) == 0o1777
    for text in (b"\xff\x00\x1b[2J", b"", b"12 /run/\x1b[2J", b"x" * 5000):
        lock.write_bytes(text)
        assert second.take("MIG-GPU-1/2/0") == "another node"


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / UUID).symlink_to(tmp_path / "victim")
    with pytest.raises(DragomanError, match="cannot keep the locks"):
        claims(tmp_path).take(UUID)
    assert not (tmp_path / "victim").exists()
