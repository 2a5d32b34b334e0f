"""Claims on GPUs: one node a GPU, unless both say that they share; they last as long as anybody has inherited them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.supervisor.claims import Claims
from ipc.errors import DragomanError

UUID = "GPU-00000000-1111"
NOBODY = 65534
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


def test_what_a_holder_before_wrote_of_itself_is_gone(tmp_path: Path) -> None:
    before = claims(tmp_path, "/run/with/a/long/name", shared=True)
    before.take(UUID)
    now = claims(tmp_path, "/run/b", shared=True)
    now.take(UUID)
    assert (tmp_path / "locks" / UUID).read_text() == f"{os.getpid()} /run/b\n"
    assert claims(tmp_path, "/run/c").take(UUID) == f"node /run/b (pid {os.getpid()})"


@contextmanager
def anybody() -> Iterator[None]:
    """A user without privileges."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("there", [False, True])
def test_where_a_user_may_not_write_one_line_says_so_at_once_and_what_to_do(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the folders above are not everybody's
    if there:
        Path("locks").mkdir(mode=0o555)
    tmp_path.chmod(0o555)
    with anybody(), pytest.raises(DragomanError) as refused:
        claims(Path()).take(UUID)
    tmp_path.chmod(0o755)
    assert refused.value.text == "cannot keep the locks of GPUs in locks (Permission denied)"
    assert "let this user write there, or set TMPDIR" in refused.value.mend and "\n" not in str(refused.value)


def test_a_lock_that_another_user_does_not_let_us_open_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    claims(Path()).take(UUID)
    Path("locks", UUID).chmod(0)
    with anybody():
        assert claims(Path()).take(UUID) == "a node of another user"


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / UUID).symlink_to(tmp_path / "victim")
    with pytest.raises(DragomanError, match="cannot keep the locks"):
        claims(tmp_path).take(UUID)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("there", ["a file", "a link to a folder"])
def test_what_is_no_folder_of_its_own_takes_no_locks(there: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    if there == "a file":
        (tmp_path / "locks").touch()
    else:
        (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DragomanError, match=r"cannot keep the locks .* \(not a folder\)"):
        claims(tmp_path).take(UUID)
    assert not list((tmp_path / "elsewhere").iterdir())
