"""Where a stage's model is: a path on this machine, or a name that the stage's library looks up for itself."""

from __future__ import annotations

from pathlib import Path


def is_path(model: str, folder: Path = Path()) -> bool:
    """Whether ``model`` means a place on this machine rather than a name ("small", "owner/model") a library resolves.

    It does when it begins with ``/``, ``.``, ``~`` or ``models/``, has more than one slash, or when it, or the folder
    it would lie in, exists below ``folder``.
    """
    if model.startswith(("/", ".", "~", "models/")) or model.count("/") > 1:
        return True
    place = folder / model
    return bool(model) and (place.exists() or ("/" in model and place.parent.is_dir()))
