"""A file of a benchmark is there whole or not at all, and that it cannot be is known before."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import written
from ipc.errors import DragomanError, UsageError


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may have more than some bytes, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_it_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    written.check(tmp_path / "load.png", "--plot")
    assert os.listdir(tmp_path) == []


def test_a_file_is_written_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"before")
    path.chmod(0o640)
    written.write(path, b"after", "--write")
    assert path.read_bytes() == b"after" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["node.toml"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.toml").symlink_to("node.toml")
    written.write(tmp_path / "link.toml", b"after", "--write")
    assert (tmp_path / "link.toml").is_symlink() and (tmp_path / "node.toml").read_bytes() == b"after"


def test_a_full_disk_is_known_before(tmp_path: Path) -> None:
    said = r"cannot write .*load\.png: File too large; give another --plot"
    with full_disk(), pytest.raises(DragomanError, match=said):
        written.check(tmp_path / "load.png", "--plot")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", [None, b"an earlier one"])
def test_what_fails_half_way_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "load.png"
    if before:
        path.write_bytes(before)
    with full_disk(), pytest.raises(DragomanError, match=r"cannot write .*load\.png"):
        written.write(path, bytes(1000), "--plot")
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == (
        {"load.png": before} if before else {}
    )


def test_a_folder_is_no_file_and_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        written.check(tmp_path, "--plot")
    with pytest.raises(UsageError, match="there is no folder"):
        written.check(tmp_path / "no" / "load.png", "--plot")


def test_names_that_stand_for_no_file_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(DragomanError, match=r"cannot write .*loop\.png: Too many levels of symbolic links"):
        written.check(loop, "--plot")
    with pytest.raises(UsageError, match="is no name of a file"):
        written.check(tmp_path / "a\0b", "--plot")
