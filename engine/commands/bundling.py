"""``doctor --bundle``: one archive with what somebody who helps has to see, and nothing that is nobody's business.

``gather`` collects, ``written`` packs. Every text goes through ``without_secrets`` first: values of fields that are
named like secrets, credentials in addresses, texts that a user wrote for a model, and the path of the home folder are
replaced. No audio, no transcript and no model is ever in it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import tarfile
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.commands import asking, choosing, finding
from ipc.errors import DragomanError

REMOVED = "(removed)"
SECRET = re.compile(r"(^|_)(keys?|tokens?|auth|bearer|pwd|pin)($|_)|apikey|token$|secret|credential|authori[sz]ation")
NUMBERS_TOO = re.compile(r"(^|_)(pwd|pin)($|_)|passw(or)?d|passphrase")  # others named like secrets count something
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-|\s")
IN_TEXT = re.compile(
    r"""\b((?:api[-_]?|access[-_]?)?(?:key|token)|password|passwd|passphrase|pwd|secret|authorization)(["']?\s*[=:]\s*["']?)"""
    r"""(?:(?:bearer|basic)\s+)?[^\s"',;]+""",
    re.IGNORECASE,
)
WORDS = ("initial_prompt", "hotwords", "prompt", "system_prompt", "instructions")  # options that people write
IN_ADDRESS = re.compile(r"://(?:[^/@\s\"']+|[^@\s\"']*:[^@\s\"']*)@")
PREFIXES = ("DRAGOMAN_", "CUDA_", "NVIDIA_", "OMP_", "XDG_RUNTIME_DIR", "TMPDIR")
README = """\
A bundle of `run_node.py doctor --bundle`: what somebody who helps has to see.

{listing}

Not in it: audio, transcripts, translations, models, keys. Removed: values of fields named like secrets, credentials in
addresses, prompts and hotwords; the home folder is written as ~. Names of sessions and of files are as they are: look
through it before you pass it on.
"""
ABOUT = {
    "doctor.json": "what the doctor found on this machine, and what would mend it",
    "configuration.toml": "the configuration in force",
    "environment.txt": "variables that the node looks at",
    "versions.txt": "Python, system, and every installed package",
    "stats.json": "what the running node says of itself",
    "log.txt": "the last lines of the running node's log",
}


def gather(args: argparse.Namespace, report: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of every member, cleaned. ``report``: the doctor's own. What cannot be had says why instead."""
    members = {
        "doctor.json": _json(report),
        "configuration.toml": _configuration(args),
        "environment.txt": _environment(os.environ),
        "versions.txt": _versions(),
        **_node(args.connect or None),
    }
    clean = {name: _anonymous(text) for name, text in members.items()}
    listing = "\n".join(f"{name:20} {len(text.encode()):>9} bytes  {ABOUT[name]}" for name, text in clean.items())
    return {"README.txt": README.format(listing=listing), **clean}


def written(path: Path, members: Mapping[str, str]) -> Path:
    """Pack the members into a .tar.gz that only its owner may read. Raises DragomanError where it cannot be written."""
    home = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz") or "bundle"
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            fresh = Path(file.name)
            try:
                with tarfile.open(fileobj=file, mode="w:gz") as archive:
                    for name, text in members.items():
                        _add(archive, f"{home}/{name}", text.encode())
                fresh.rename(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise DragomanError(f"cannot write the bundle {path}: {error.strerror}", "name another file") from error
    return path


def without_secrets(value: Any, name: str = "") -> Any:
    """Plain values with what is nobody's business replaced; of numbers only passwords are (``max_tokens`` is none)."""
    if value and (_is_secret(name, isinstance(value, (int, float))) or name in WORDS):
        return REMOVED
    if isinstance(value, Mapping):
        return {key: without_secrets(one, str(key)) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(one) for one in value]
    return value


def _is_secret(name: str, number: bool) -> bool:
    """Whether a field of this name, be it written aB, a-b or a_b, keeps a secret."""
    words = CAMEL.sub("_", name).lower()
    return bool(NUMBERS_TOO.search(words) or (not number and SECRET.search(words)))


def _configuration(args: argparse.Namespace) -> str:
    try:
        config, words = choosing.config(args)
    except DragomanError as error:
        return f"# it cannot be used: {error}\n"
    return f"# {words}\n{choosing.as_toml(config, without_secrets)}"


def _environment(environ: Mapping[str, str]) -> str:
    """Lines NAME=value. A stage's option is a name at the end of a variable's."""
    lines = []
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIXES):
            field = name.lower()
            hidden = _is_secret(field, False) or field.endswith(tuple(f"_{word}" for word in WORDS))
            lines.append(f"{name}={REMOVED if hidden else value}")
    return "\n".join(lines) + "\n"


def _versions() -> str:
    installed = sorted({f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions()}, key=str.lower)
    lines = [f"python {platform.python_version()} ({platform.python_implementation()})", platform.platform()]
    return "\n".join([*lines, " ".join(platform.libc_ver()).strip(), "", *installed]) + "\n"


def _node(given: str | None) -> dict[str, str]:
    """Statistics and log of the running node."""
    try:
        endpoint = finding.ctl_endpoint(given)
        stats = asking.ask(endpoint, "stats")
        lines = asking.ask(endpoint, "log")["lines"]
    except DragomanError as error:
        return {"stats.json": _json({"error": str(error)}), "log.txt": f"{error}\n"}
    return {"stats.json": _json(stats), "log.txt": "\n".join(lines) + "\n"}


def _json(value: Any) -> str:
    return json.dumps(without_secrets(value), ensure_ascii=False, indent=2, default=str) + "\n"


def _anonymous(text: str) -> str:
    home = os.path.expanduser("~")
    text = IN_TEXT.sub(rf"\g<1>\g<2>{REMOVED}", IN_ADDRESS.sub(f"://{REMOVED}@", text))
    return text.replace(home, "~") if len(home) > 1 else text


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(data))
