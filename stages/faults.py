"""What a model library raised, as the one StageError a user should see.

A library's exception may run over several lines and name its own internals; the node reports one line. The text of
the exception also has to tell memory from everything else, because running out of it is the only failure that
another attempt, or a smaller batch, is known to mend.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stages.base import StageError

OOM_SIGNS = ("out of memory", "failed to allocate", "bad_alloc", "cublas_status_alloc_failed")
LFS_POINTER = b"version https://git-lfs"
LONGEST = 300  # characters of a library's message worth showing


def one_line(error: BaseException) -> str:
    """The exception's message on one line, at most 300 characters; its type's name when it has none."""
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def stage_error(code: str, what: str, error: Exception) -> StageError:
    """``error`` as StageError("oom", retry) or StageError(code), its text led by ``what``.

    A ``failed`` run may be tried again, unless the library refused its input (ValueError, TypeError).
    """
    line = one_line(error)
    if isinstance(error, MemoryError) or any(sign in line.lower() for sign in OOM_SIGNS):
        return StageError("oom", f"{what}: {line}", retry=True)
    refused = isinstance(error, (ValueError, TypeError))
    return StageError(code, f"{what}: {line}", retry=code == "failed" and not refused)


def not_a(path: Path, what: str) -> StageError:
    """That this file is none of that kind; and that it was not fetched, where only a pointer to it lies there."""
    with path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    mend = "; only its Git LFS pointer is there: fetch the file itself (git lfs pull)" if pointer else ""
    return StageError("bad_model", f"{path} is not {what}{mend}")


def match_language(wanted: str, known: Collection[str]) -> str | None:
    """The code in ``known`` for ``wanted``: itself ("de"), or without its region ("de-AT"); None when unknown."""
    code = wanted.replace("_", "-").lower()
    return next((name for name in (wanted, code, code.split("-")[0]) if name in known), None)


def some(languages: Collection[str]) -> str:
    """Up to twelve of the codes, for a message."""
    listed = sorted(languages)
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
