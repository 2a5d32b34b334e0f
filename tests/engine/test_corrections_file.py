"""The history on disk: whole or not there, damaged or newer is begun anew and said, and two writers lose nothing."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine import corrections_file
from engine.corrections import History, Sample, Subject
from engine.corrections_file import Busy, change, ours, place, read
from engine.estimates import Start

GIB = 2**30
SUBJECT = Subject("asr", "asr", "/models/asr", "cpu", "default", 1)


def learnt(key: str, nbytes: int = GIB):
    return lambda history: history.learn(key, SUBJECT, Start(), Sample("load", nbytes, 1.5, note="ä"))


def test_what_is_written_is_read_again_and_its_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "estimates.json"
    assert read(file) == History() and read(None) == History()
    written = change(file, learnt("a"))
    assert read(file) == written and list(written.models) == ["a"]
    assert change(file, learnt("b")).models.keys() == {"a", "b"}
    assert sorted(one.name for one in file.parent.iterdir()) == ["estimates.json", "estimates.json.lock"]


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 900, b"{", b'{"version"\xff', b'{"version": 1, "models": {"a": 1}}', b'{"version": "x"}']
)
def test_a_damaged_file_is_one_line_in_the_log_and_begun_anew(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "estimates.json"
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert read(file) == History()
    assert len(caplog.records) == 1 and "damaged" in caplog.text and str(file) in caplog.text
    change(file, learnt("a"))
    assert list(read(file).models) == ["a"]


@pytest.mark.parametrize(
    "data", [b"[node]\nwindow = 3\n", b"[]", b"\xff\xfe", b'{"models": {}}', b"\0\0 an image of a disk", bytes(2**21)]
)
def test_what_is_something_else_is_said_and_not_touched(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert read(file) == History()
    assert len(caplog.records) == 1 and "no file of estimates" in caplog.text and str(file) in caplog.text
    with pytest.raises(OSError, match="stays as it is"):
        change(file, learnt("a"))
    assert file.read_bytes() == data and os.listdir(tmp_path) == ["node.toml"]
    assert ours(file) is None


def test_every_cut_of_a_file_is_damaged_or_whole(tmp_path: Path) -> None:
    file = tmp_path / "estimates.json"
    change(file, learnt("a"))
    data = file.read_bytes()
    for end in range(len(data)):
        file.write_bytes(data[:end])
        assert read(file) in (
            History(),
            History().learn("a", SUBJECT, Start(), Sample("load", GIB, True, 1.5, note="ä")),
        )


def test_a_file_of_a_newer_version_is_one_line_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "estimates.json"
    file.write_text('{"version": 2, "models": {"a": {"unheard": "of"}}}')
    with caplog.at_level(logging.WARNING):
        assert read(file) == History()
    assert len(caplog.records) == 1 and "version 2" in caplog.text


WRITER = """
import sys
from pathlib import Path
from tests.engine.test_corrections_file import learnt
from engine.corrections_file import change
for number in range(25):
    change(Path(sys.argv[1]), learnt(f"{sys.argv[2]}-{number}"), wait_s=60.0)
"""


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "estimates.json"
    root = str(Path(__file__).resolve().parents[2])
    environ = {**os.environ, "PYTHONPATH": root}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file), name], env=environ) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert read(file).models.keys() == {f"{name}-{number}" for name in "ab" for number in range(25)}


def test_who_finds_it_locked_is_told_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "estimates.json"
    change(file, learnt("a"))
    with open(f"{file}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process is writing"):
            change(file, learnt("b"), wait_s=0.0)
    assert list(read(file).models) == ["a"]


def test_its_place_is_the_configured_one_the_users_cache_or_none() -> None:
    assert place("off", {}) is None
    assert place("/x/y.json", {}) == Path("/x/y.json")
    assert place("", {"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/dragoman/estimates.json")
    assert place("", {"HOME": "/h"}) == Path("/h/.cache/dragoman") / corrections_file.NAME


@pytest.mark.parametrize("nbytes", [-1, 2**62])
def test_a_size_that_no_model_has_is_damage(tmp_path: Path, nbytes: int) -> None:
    file = tmp_path / "estimates.json"
    change(file, learnt("a", 12345))
    file.write_text(file.read_text().replace("12345", str(nbytes)))
    assert read(file) == History()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_what_is_no_regular_file_is_said_and_not_touched_and_nothing_is_made_beside_it(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "here" / "thing"
    place.parent.mkdir()
    make(place, kind, tmp_path)
    before = place.lstat()
    with caplog.at_level(logging.WARNING):
        assert read(place) == History()
        assert ours(place) is None  # so that a node does not say it a second time
    assert len(caplog.records) == 1 and "no regular file" in caplog.text and str(place) in caplog.text
    with pytest.raises(OSError, match="stays as it is"):
        change(place, learnt("a"))
    assert place.lstat() == before and os.listdir(place.parent) == ["thing"]


def make(place: Path, kind: str, elsewhere: Path) -> None:
    """Something that has the name of the file."""
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "link to a pipe":
            os.mkfifo(elsewhere / "pipe")
            place.symlink_to(elsewhere / "pipe")
        case "device":
            try:
                os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
            except PermissionError:
                pytest.skip("only root makes devices")


def test_what_is_kept_or_can_be_is_ours(tmp_path: Path) -> None:
    file = tmp_path / "estimates.json"
    assert ours(None) is None and ours(file) == file
    change(file, learnt("a"))
    assert ours(file) == file
    file.write_bytes(bytes(900))
    assert ours(file) == file


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "kept" / "estimates.json", tmp_path / "link.json"
    link.symlink_to(file)
    change(link, learnt("a"))
    assert link.is_symlink() and "a" in read(file).models
    assert sorted(os.listdir(tmp_path)) == ["kept", "link.json"]


def test_a_file_nested_too_deep_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "estimates.json"
    file.write_text('{"version": 1, "models": ' + "[" * 100_000)
    assert read(file) == History() and "damaged" in caplog.text and ours(file) == file
    assert "a" in change(file, learnt("a")).models
