"""Which of this user's nodes clients find by themselves: the newest one that published itself and still lives.

A node's folder says both. The file ``published`` in it is the mark, made when the node was ready; ``lock`` is held by
its supervisor for as long as it lives, so a folder that a killed node left behind is not taken for a node. The link
``default`` beside the folders names the one that was published last, until that one dies without a farewell.
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = "default"
LOCK = "lock"
MARK = "published"


def newest(base: Path) -> Path | None:
    """The folder, below ``base``, of the node to be found there; None when no published node lives."""
    for folder in (_pointed_at(base), *marked(base)):
        if folder is not None and is_held(folder / LOCK):
            return folder
    return None


def marked(base: Path) -> list[Path]:
    """Folders with the mark, the newest mark first, of the living and the dead."""
    try:
        times = {folder: _marked_at(folder) for folder in base.iterdir() if not folder.is_symlink()}
    except OSError:  # there is no such place
        return []
    return sorted((folder for folder, at in times.items() if at), key=lambda folder: times[folder], reverse=True)


def is_held(lock: Path) -> bool:
    """Whether somebody holds this lock file."""
    import fcntl  # not on every system that the client library runs on

    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _pointed_at(base: Path) -> Path | None:
    try:
        return (base / DEFAULT).resolve(strict=True)
    except OSError:
        return None


def _marked_at(folder: Path) -> int:
    """When the mark was made, in ns; 0: there is none."""
    try:
        return (folder / MARK).stat().st_mtime_ns
    except OSError:
        return 0
