"""The folder a node lives in while it runs: its sockets, its lock, and the pointer to the default node.

::

    $XDG_RUNTIME_DIR/dragoman/          or <temp dir>/dragoman-<uid>/, mode 0700, owned by this user
        .lock                           held while a folder is made or removed
        default -> 5f3a09bc             the newest node that clients may find by itself
        5f3a09bc/                       8 hex digits: the node's id
            lock                        flock held by the supervisor for as long as it lives
            published                   clients may find this node by themselves (see engine/published.py)
            supervisor scheduler arbiter client ctl          sockets

Who creates, removes; and because a supervisor can be killed, every start also removes the folders whose lock is free.
Whoever may enter the 0700 folder is the user; a path never comes from the configuration. Socket paths are limited to
107 bytes by the kernel: a runtime folder that is too deep is passed over for the temporary one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engine import published
from engine.published import DEFAULT, LOCK, MARK
from ipc.errors import DragomanError

MAX_SOCKET_PATH_BYTES = 107
LONGEST_SOCKET = "supervisor"
ID_HEX_DIGITS = 8


class RunFolder:
    """One node's folder. ``open`` makes and locks it, ``close`` removes it."""

    def __init__(self, base: Path, node: str = "") -> None:
        self.base = base
        self.node = node or secrets.token_hex(ID_HEX_DIGITS // 2)
        self.path = base / self.node
        self._lock_fd = -1

    def open(self) -> None:
        """Remove what dead nodes left, then make and lock this node's folder. Raises DragomanError."""
        try:
            with _base_lock(self.base):
                remove_stale(self.base)
                _mend_default(self.base)
                self.path.mkdir(mode=0o700)
                self._lock_fd = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _unusable(self.base, error) from error

    def endpoint(self, name: str) -> str:
        """Address of the socket called ``name``."""
        return f"ipc://{self.path / name}"

    def publish(self) -> None:
        """Make this node the one that clients find without an address."""
        with _base_lock(self.base):
            (self.path / MARK).touch()
            _point_default_at(self.base, self.node)

    def close(self) -> None:
        """Remove the folder; the default pointer moves to the newest published node that still lives."""
        if self._lock_fd < 0:
            return
        with _base_lock(self.base):
            shutil.rmtree(self.path, ignore_errors=True)
            remove_stale(self.base)
            _mend_default(self.base)
        os.close(self._lock_fd)
        self._lock_fd = -1


def base_folder(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The folder that holds the nodes' folders of this user, made if need be.

    Raises DragomanError when there is no place that is private to the user and short enough for a socket.
    """
    environ = os.environ if environ is None else environ
    uid = os.getuid() if uid is None else uid
    for candidate in candidates(environ, uid):
        if _fits(candidate):
            return _made_private(candidate, uid)
    raise DragomanError(
        f"no folder for the node's sockets: {candidate} is too long for a socket address",
        "set TMPDIR to a shorter path",
    )


def candidates(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Places for the base folder, best first. ``/tmp`` is one only where the temporary folder is too deep for sockets:
    who sets TMPDIR (a test, a sandbox) neither lives in the folder of this user's other nodes nor finds them.
    """
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    temporary = Path(environ.get("TMPDIR") or tempfile.gettempdir()) / f"dragoman-{uid}"
    named = [Path(runtime) / "dragoman"] if runtime and os.access(runtime, os.W_OK) else []
    return [*named, temporary, *([] if _fits(temporary) else [Path("/tmp") / f"dragoman-{uid}"])]


def remove_stale(base: Path) -> list[str]:
    """Remove the folders of nodes that are dead (their lock is free); returns their ids."""
    dead = [folder for folder in _folders(base) if _is_free(folder / LOCK)]
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in dead]


def _fits(base: Path) -> bool:
    longest = base / ("0" * ID_HEX_DIGITS) / LONGEST_SOCKET
    return len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES


def _made_private(base: Path, uid: int) -> Path:
    try:
        with suppress(FileExistsError):
            base.mkdir(mode=0o700)
        found = base.lstat()
    except OSError as error:
        raise _unusable(base, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise DragomanError(f"{base} is not a folder of this user alone", f"remove it, or run: chmod 700 {base}")
    return base


def _unusable(base: Path, error: OSError) -> DragomanError:
    return DragomanError(
        f"cannot make a folder for the node's sockets in {base} ({error.strerror})", "set XDG_RUNTIME_DIR or TMPDIR"
    )


@contextmanager
def _base_lock(base: Path) -> Iterator[None]:
    fd = os.open(base / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _folders(base: Path) -> list[Path]:
    return [f for f in base.iterdir() if len(f.name) == ID_HEX_DIGITS and f.is_dir() and not f.is_symlink()]


def _is_free(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # its maker holds the base lock until the lock file is there and taken
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _mend_default(base: Path) -> None:
    """Let the pointer name the node that clients should find, or nothing, whoever died meanwhile."""
    home = published.newest(base)
    _point_default_at(base, home.name if home else "")


def _point_default_at(base: Path, node: str) -> None:
    if not node:
        (base / DEFAULT).unlink(missing_ok=True)
        return
    fresh = base / f".{DEFAULT}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(node)
    fresh.replace(base / DEFAULT)
