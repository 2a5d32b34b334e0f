"""The history of measurements on disk: one JSON file, in the user's cache unless configured.

Several nodes may write it: each reads it anew under a lock and adds only what it has measured itself. It is written
beside and moved into place, so that readers need no lock and never see half of it. It is not forced to the disk: what a
power cut may take is measured again by the next start. A file that is damaged, or of a version that this one does not
know, is said once and begun anew; one that is something else is not touched, nor is a lock made beside it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from engine import logs
from engine.corrections import VERSION, History
from ipc.errors import DragomanError

OFF = "off"
NAME = "estimates.json"
LOCK_S = 2.0  # how long another writer is waited for
LOOK_S = 0.02
MOST_ZEROS = 2**20  # a longer file of them is no history that a power cut has emptied

_decoder = msgspec.json.Decoder(History)


class _Version(msgspec.Struct):
    version: int = 0


class NotOurs(ValueError):
    """Something else has the file's name."""


class Busy(DragomanError):
    """Another process is writing."""


def place(configured: str, environ: Mapping[str, str]) -> Path | None:
    """Where the history lies: the configured file, else the user's cache; None: it is not kept (``off``)."""
    if configured == OFF:
        return None
    if configured:
        return Path(configured).expanduser()
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or tempfile.gettempdir()) / ".cache")
    return base / "dragoman" / NAME


def read(path: Path | None) -> History:
    """What has been measured so far; nothing when there is no file, or none that can be used (a line in the log)."""
    try:
        return _read(path) if path is not None else History()
    except NotOurs as error:
        logs.get().warning("%s %s: what is measured is not kept", path, error)
    except ValueError as error:
        logs.get().warning("%s %s: measuring estimates anew", path, error)
    except OSError as error:
        logs.get().warning("measured estimates cannot be read from %s (%s)", path, error.strerror)
    return History()


def ours(path: Path | None) -> Path | None:
    """The same, where what is measured can be kept there; None: something else has the name, as ``read`` says."""
    try:
        if path is not None:
            _read(path)
    except NotOurs:
        return None
    except (ValueError, OSError):  # begun anew, or tried again
        pass
    return path


def _read(path: Path) -> History:
    """Raises ValueError when the file cannot be used, OSError when it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device replaced by a file
            raise NotOurs(
                'is no regular file and stays as it is (devices.estimates_file names it; "off" keeps nothing)'
            )
        data = path.read_bytes()
        if not _is_ours(data):
            raise NotOurs("is no file of estimates and stays as it is (devices.estimates_file names it)")
        found = msgspec.json.decode(data, type=_Version).version
        if found != VERSION:
            raise ValueError(f"is of version {found}, not {VERSION}")
        return _decoder.decode(data)
    except (FileNotFoundError, NotADirectoryError):
        return History()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is damaged ({error})") from error


def _is_ours(data: bytes) -> bool:
    """Whether it begins as we write it, however damaged the rest may be, or has been emptied by a power cut."""
    if not data.strip(b"\0") and len(data) <= MOST_ZEROS:
        return True
    ours, begun = b'{"version"', b"".join(data[:64].split())
    return begun.startswith(ours) or ours.startswith(begun)


def change(path: Path, how: Callable[[History], History], *, wait_s: float = LOCK_S) -> History:
    """Read the newest history, change it, write it back; returns what was written.

    What is ours and cannot be used is replaced.
    Raises Busy when another process has been writing for ``wait_s``, OSError when it cannot be written, or is not ours.
    """
    _usable(path)
    path = path.resolve()  # a link to it stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock"), wait_s):
        changed = how(_usable(path))
        _write(path, msgspec.json.format(msgspec.json.encode(changed), indent=1))
    return changed


def _usable(path: Path) -> History:
    """What is there, as far as it can be used. Raises OSError when it is not ours."""
    try:
        return _read(path)
    except NotOurs as error:
        raise OSError(errno.EEXIST, f"it {error}") from error
    except ValueError:  # ``read`` says so
        return History()


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


@contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd, path, wait_s)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path, wait_s: float) -> None:
    pause, left = threading.Event(), wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if left <= 0:
                raise Busy(f"another process is writing {path.with_suffix('')}", "try again") from None
        pause.wait(LOOK_S)
        left -= LOOK_S
