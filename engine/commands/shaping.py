"""``models synthesize KIND --shape NAME``: write a model of a published one's size, with a bar, or say why not."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.commands.inputs import UsageError
from engine.commands.tables import nbytes
from engine.config_rules import nearest
from ipc.errors import DragomanError
from models import shapes


def make(kind: str, name: str, out: Path) -> dict[str, Any]:
    """Write the shape ``name`` into the folder ``out``; what was written, as ``--json`` gives it.

    Raises UsageError for a shape that is not there or not of this kind, and DragomanError, before anything is
    written, where the disk has no room.
    """
    shape = _find(kind, name)
    try:
        plan = shape.plan(name)
    except ImportError as error:
        raise DragomanError(f"cannot write the shape {name}: {error}", f"pip install {error.name}") from error
    _check_room(plan.nbytes, out)
    begun = time.monotonic()
    with whole(out), _bar(plan.weights_bytes) as wrote:
        path = plan.write(out, wrote)
    return {
        "kind": kind,
        "shape": name,
        "path": str(path),
        "bytes": _size(path),
        "published_bytes": shape.published_bytes,
        "seconds": round(time.monotonic() - begun, 2),
    }


@contextmanager
def whole(out: Path) -> Iterator[None]:
    """A model is written into the folder ``out`` here; half a one is removed, as it is of no use, and maybe gigabytes.

    Raises DragomanError for OSError.
    """
    existed = out.exists()
    fresh = not existed or (out.is_dir() and not any(out.iterdir()))
    try:
        yield
    except BaseException as error:
        if fresh:
            shutil.rmtree(out, ignore_errors=True)
            if existed:
                out.mkdir()
        if isinstance(error, OSError):
            raise DragomanError(f"cannot write to {out}: {error.strerror or error}", "give another --out") from error
        raise


def _find(kind: str, name: str) -> shapes.Shape:
    of_kind = [known for known, shape in shapes.SHAPES.items() if shape.kind == kind]
    if name not in shapes.SHAPES:
        raise UsageError(
            f"there is no shape {name!r}",
            f"{nearest(name, shapes.SHAPES)}{kind} has {', '.join(of_kind) or 'none'}",
        )
    shape = shapes.SHAPES[name]
    if shape.kind != kind:
        mend = f"say models synthesize {shape.kind} --shape {name}"
        raise UsageError(f"the shape {name} is one of {shape.kind}, not of {kind}", mend)
    return shape


def _check_room(wanted: int, out: Path) -> None:
    """Raise DragomanError unless ``wanted`` bytes fit on the disk of ``out``, which need not exist yet."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if wanted > free:
        text = f"{out} needs {wanted} bytes ({nbytes(wanted)}), its disk has {free} ({nbytes(free)}) left"
        raise DragomanError(text, "make room, or give another --out")


@contextmanager
def _bar(total: int) -> Iterator[shapes.Wrote]:
    """Something to tell of bytes that are written: a bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield shapes.silent
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        yield lambda count: bar.update(count) and None


def _size(path: Path) -> int:
    from stages.base import weights_bytes

    return weights_bytes(str(path))
