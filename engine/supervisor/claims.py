"""A node's claims on GPUs: one lock a GPU, so that two nodes do not each believe a card to be theirs.

::

    <temp dir>/dragoman-gpus/       mode 1777: of all users of the machine
        GPU-5f3a...                 flock: exclusive, or shared by nodes that are told to share (devices.share);
                                    in it the pid and the folder of the last one that took it

A claim is an open file, and every worker on that GPU inherits it. So it ends when the last of them is gone, however the
supervisor ended: the next node cannot find memory taken by what is left of the one before.

Who held the lock alone removes the file, if nobody of its node is left; a file whose lock is free is nobody's. Nodes
that do not see the same temporary folder (another TMPDIR, another container) do not see each other's claims.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ipc.errors import DragomanError

NAME_BYTES = 300  # of a holder's line that are shown
SHARE = "stop that node, or let both have a part of it: devices.share = true and devices.max_bytes, in both"


def folder(environ: Mapping[str, str] | None = None) -> Path:
    """Where the locks of all users lie."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("TMPDIR") or tempfile.gettempdir()) / "dragoman-gpus"


class Claims:
    """The claims of one node, whose run folder is ``node``. ``shared``: others that say so may claim the same GPUs."""

    def __init__(self, base: Path, node: Path, *, shared: bool = False) -> None:
        self._base = base
        self._node = node
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fds: dict[str, int] = {}  # UUID -> the open file that is the claim

    def take(self, uuid: str) -> str:
        """Claim a GPU: "", or who has it, in words. Raises DragomanError when there is no place."""
        while uuid not in self._fds:
            try:
                fd = self._open(self._path(uuid))
            except OSError as error:
                if isinstance(error, PermissionError) and os.path.lexists(self._path(uuid)):
                    return "a node of another user"  # it has made it in this moment, or does not let us
                raise _unusable(self._base, error) from error
            try:
                fcntl.flock(fd, self._kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(fd)
                os.close(fd)
                return holder
            if _is_file(fd, self._path(uuid)):
                self._fds[uuid] = fd
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()} {self._node}\n".encode(), 0)
            else:  # its last holder has just removed it
                os.close(fd)
        return ""

    def fd(self, uuid: str) -> int:
        """The descriptor for a worker on this GPU to inherit."""
        return self._fds[uuid]

    def close(self, *, nobody_left: bool) -> None:
        """Let go; remove the files if they are nobody's then. ``nobody_left``: no worker of this node lives."""
        for uuid, fd in self._fds.items():
            if nobody_left:
                with suppress(OSError):  # others share it, or it is another user's
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._path(uuid).unlink()
            os.close(fd)
        self._fds.clear()

    def _path(self, uuid: str) -> Path:
        return self._base / uuid.replace("/", "_")

    def _open(self, path: Path) -> int:
        self._make_base()
        while True:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            with suppress(FileExistsError):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                os.fchmod(fd, 0o666)  # whatever the umask: other users' nodes claim it too
                return fd

    def _make_base(self) -> None:
        with suppress(FileExistsError):
            self._base.mkdir()
            self._base.chmod(0o1777)
        if not stat.S_ISDIR(self._base.lstat().st_mode):
            raise NotADirectoryError(20, "not a folder")


def _is_file(fd: int, path: Path) -> bool:
    """Whether this open file is still the one of that name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _holder(fd: int) -> str:
    """Who has written its name there last. Any user can write there, so it is only shown."""
    pid, _, node = os.pread(fd, NAME_BYTES, 0).decode("utf-8", "replace").strip().partition(" ")
    if not pid.isdecimal() or not node.isprintable():
        return "another node"
    if Path(f"/proc/{pid}").exists():
        return f"node {node} (pid {pid})"
    return f"what is left of node {node} (its pid {pid} is gone)"


def _unusable(base: Path, error: OSError) -> DragomanError:
    mend = "let this user write there, or set TMPDIR, to the same folder for all nodes of this machine"
    return DragomanError(f"cannot keep the locks of GPUs in {base} ({error.strerror})", mend)
