"""Promise: a node's sockets live in a private folder that never outlives the node by more than the next start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import published
from engine.supervisor import environment, folder
from engine.supervisor.folder import DEFAULT, RunFolder, base_folder
from ipc.errors import DragomanError

UID = os.getuid()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "dragoman"
    path.mkdir(mode=0o700)
    return path


def names(base: Path) -> set[str]:
    return {entry.name for entry in base.iterdir() if not entry.name.startswith(".")}


def leave_a_killed_node(base: Path) -> str:
    """The id of a published node whose supervisor was killed."""
    code = (
        "import os,signal,sys; from pathlib import Path; from engine.supervisor.folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]), 'deadbeef'); run.open(); (run.path/'client').touch(); run.publish()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "PYTHONPATH": environment.package_root()}
    subprocess.run([sys.executable, "-c", code, str(base)], env=env, timeout=60, check=False)
    return "deadbeef"


def test_a_folder_is_private_and_goes_with_its_node(base: Path) -> None:
    run = RunFolder(base)
    run.open()
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert len(run.node) == 8 and int(run.node, 16) >= 0
    assert run.endpoint("client") == f"ipc://{run.path}/client"
    run.close()
    assert names(base) == set()


def test_a_start_removes_what_a_killed_node_left_and_nothing_else(base: Path) -> None:
    alive = RunFolder(base)
    alive.open()
    leave_a_killed_node(base)
    assert "deadbeef" in names(base)
    (base / "someone-elses").mkdir()
    fresh = RunFolder(base)
    fresh.open()
    assert names(base) - {DEFAULT} == {alive.node, fresh.node, "someone-elses"}
    alive.close()
    fresh.close()


def test_the_default_is_the_newest_published_node_and_falls_back_when_it_ends(base: Path) -> None:
    first, second = RunFolder(base), RunFolder(base)
    first.open()
    first.publish()
    assert os.readlink(base / DEFAULT) == first.node
    second.open()
    assert os.readlink(base / DEFAULT) == first.node  # a private node is not found by itself
    second.publish()
    assert os.readlink(base / DEFAULT) == second.node
    second.close()
    assert os.readlink(base / DEFAULT) == first.node
    first.close()
    assert names(base) == set()


def test_a_private_node_is_never_found_by_itself_not_even_as_the_last_one(base: Path) -> None:
    first, private = RunFolder(base), RunFolder(base)
    first.open()
    first.publish()
    private.open()
    first.close()
    assert published.newest(base) is None
    assert names(base) == {private.node}
    private.close()


def test_when_the_newest_node_is_killed_the_one_before_it_is_found_at_once(base: Path) -> None:
    first = RunFolder(base)
    first.open()
    first.publish()
    killed = leave_a_killed_node(base)
    assert os.readlink(base / DEFAULT) == killed  # nobody is there to move the pointer
    assert published.newest(base) == first.path
    next_one = RunFolder(base)
    next_one.open()
    assert os.readlink(base / DEFAULT) == first.node
    next_one.close()
    first.close()


def test_the_runtime_folder_is_taken_when_there_is_one(tmp_path: Path) -> None:
    assert base_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "dragoman"
    assert base_folder({"TMPDIR": str(tmp_path)}) == tmp_path / f"dragoman-{UID}"
    assert (tmp_path / f"dragoman-{UID}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_a_folder_too_deep_for_a_socket_is_passed_over(tmp_path: Path, extra: int, fits: bool) -> None:
    room = folder.MAX_SOCKET_PATH_BYTES - len(f"/dragoman/{'0' * 8}/{folder.LONGEST_SOCKET}")
    deep = tmp_path / ("d" * (room + extra - len(str(tmp_path)) - 1))
    deep.mkdir()
    chosen = base_folder({"XDG_RUNTIME_DIR": str(deep), "TMPDIR": str(tmp_path)})
    assert (chosen == deep / "dragoman") is fits


def test_a_user_with_folders_of_his_own_does_not_see_the_nodes_in_tmp(tmp_path: Path) -> None:
    own = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    assert folder.candidates(own, UID) == [tmp_path / "dragoman", tmp_path / f"dragoman-{UID}"]
    deep = {"TMPDIR": str(tmp_path / ("d" * 100))}
    assert folder.candidates(deep, UID)[-1] == Path("/tmp") / f"dragoman-{UID}"


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dragoman").mkdir(mode=0o755)
    with pytest.raises(DragomanError, match="chmod 700"):
        base_folder({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_a_link_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "dragoman").symlink_to("elsewhere")
    with pytest.raises(DragomanError, match="not a folder of this user"):
        base_folder({"XDG_RUNTIME_DIR": str(tmp_path)})
