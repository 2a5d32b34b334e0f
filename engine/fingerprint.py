"""Which model this is, without reading all of it.

The question is only how much memory a model takes, and that follows from its layers and number formats: they stand at
the beginning of a CTranslate2 or GGUF file, in the small files beside it, and show in every file's size. So the name
and size of each file and ``EDGE`` bytes of its beginning and end are hashed: milliseconds for a model of any size,
where all of a 3 GB file would take seconds at each start. Two models that differ only in the weights between have one
fingerprint, which is right here. Times of change are left out: the same model fetched again is the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

EDGE = 64 * 1024


def fingerprint(model: str) -> str:
    """16 hex digits for the files at ``model``; a name that is no path, or nothing that can be read, counts by name."""
    digest = hashlib.sha256()
    path = Path(model).expanduser()
    try:
        if not model or not path.exists():
            digest.update(b"name\0" + model.encode())
        elif path.is_dir():
            for file in sorted(one for one in path.rglob("*") if one.is_file()):
                _take(digest, str(file.relative_to(path)), file)
        else:
            _take(digest, path.suffix, path)  # renamed, it is the same
    except OSError:
        digest.update(b"unreadable\0" + model.encode())
    return digest.hexdigest()[:16]


def _take(digest: hashlib._Hash, name: str, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with file.open("rb") as opened:
        digest.update(opened.read(EDGE))
        opened.seek(max(EDGE, size - EDGE))
        digest.update(opened.read(EDGE))
