"""A file that a benchmark writes at its end: whether it can be written is tried before anything is measured.

It is written beside its place and moved there, so that what fails half-way leaves neither half a file nor, of one that
was there before, nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ipc.errors import DragomanError, UsageError

TRIAL_BYTES = 2**16  # about as large as a picture


def check(path: Path | None, option: str) -> None:
    """Raise UsageError when this is no place for a file, DragomanError when nothing can be written there."""
    if path is None:
        return
    if "\0" in str(path):
        raise UsageError(f"{option} {str(path)!r} is no name of a file", "give another")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {option}", "make it, or give another")
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder", "give the name of a file in it")
    if _is_stream(path):
        return
    try:
        try:
            _beside(path).write_bytes(bytes(TRIAL_BYTES))
        finally:
            with suppress(OSError):
                _beside(path).unlink()
    except OSError as error:
        raise _cannot(path, option, error) from error


def write(path: Path, data: bytes, option: str) -> None:
    """Write the file; raises DragomanError, and leaves what was there, when that cannot be."""
    try:
        if _is_stream(path):
            path.write_bytes(data)
            return
        try:
            _beside(path).write_bytes(data)
            if path.exists():
                shutil.copymode(path, _beside(path))
            _beside(path).replace(path.resolve())
        finally:
            with suppress(OSError):
                _beside(path).unlink()
    except OSError as error:
        raise _cannot(path, option, error) from error


def _is_stream(path: Path) -> bool:
    """Whether it is there and no file, as /dev/stdout."""
    return path.exists() and not path.is_file()


def _beside(path: Path) -> Path:
    """In the folder of what the name stands for: a link stays one. Raises OSError for one that stands for nothing."""
    try:
        real = path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    return real.with_name(f".{real.name}.{os.getpid()}")


def _cannot(path: Path, option: str, error: OSError) -> DragomanError:
    return DragomanError(f"cannot write {path}: {error.strerror or error}", f"give another {option}")
