"""``doctor --bundle``: one archive with what somebody who helps has to see, and nothing that is nobody's business.

``gather`` collects, ``written`` packs. Every text goes through ``without_secrets`` first: values of fields that are
named like secrets, credentials in addresses, texts that a user wrote for a model, and the path of the home folder are
replaced, and of a stage's options every text but a few known ones. No audio, no transcript and no model is ever in it.
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

import msgspec

from engine import config_env
from engine.commands import asking, choosing, finding
from engine.config import Config, ModelSection, StageSection
from ipc.errors import DragomanError

REMOVED = "(removed)"
SECRET = re.compile(
    r"(^|_)(keys?|tokens?|auth|bearer|jwt|cookies?|sig|signature|private|sas|salt)($|_)"
    r"|apikey|token$|secret|credential|authori[sz]ation"
)
NUMBERS_TOO = re.compile(  # others named like secrets count something
    r"(^|_)(pass|pwd|pw|pin)($|_)|passw(or)?d|passphrase|passcode"
)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-|\s")
SAID = r"""(?P<quote>\\*["'])(?:(?!(?P=quote))(?:\\.|.))*|[^\s"',;]+"""  # a value in quotes, or up to a blank
HEADER = re.compile(
    r"""\b((?:proxy-)?authorization|(?:set-)?cookie)(\\*["']?\s*[=:]\s*)(?:(\\*["']).*?(?=\3|$)|.+)""", re.I
)
IN_TEXT = re.compile(
    r"((?<![\w-])[\w-]*(?:key|token|pass|passw(?:or)?d|passphrase|passcode|pwd|secret|credentials?|jwt|signature|sig))"
    rf"""(\\*["']?\s*[=:]\s*|\s+is\s+)(?:{SAID})""",
    re.IGNORECASE,
)
FLAG = re.compile(
    r"((?<!\S)--?[\w-]*(?:key|token|pass|passw(?:or)?d|passphrase|pwd|secret|credentials?|jwt))(\s+)" rf"(?:{SAID})",
    re.IGNORECASE,
)
BARE = re.compile(  # what looks like a secret wherever it stands
    r"""(?i:\b(?:bearer|basic)\s+)(?!\(removed\))[^\s"',;\\]+"""
    r"|\b(?:hf|sk|gh[pousr]|github_pat|glpat|xox[abp])[-_][\w-]{16,}|\beyJ[\w-]+\.[\w-]+\.[\w-]*"
)
WORDS = ("initial_prompt", "hotwords", "prompt", "system_prompt", "instructions")  # options that people write
IN_ADDRESS = re.compile(r"://(?:[^/@\s\"']+|[^@\s\"']*:[^@\s\"']*)@")
OPTIONS_SHOWN = frozenset(  # a stage's options are anybody's: of texts in them only these are shown
    ("accepts", "emits", "source", "target", "dtype", "language", "speaker", "chat_format", "device", "compute_type")
)
PREFIXES = ("DRAGOMAN_", "CUDA_", "NVIDIA_", "OMP_", "XDG_RUNTIME_DIR", "TMPDIR")
README = """\
A bundle of `run_node.py doctor --bundle`: what somebody who helps has to see.

{listing}

Not in it: audio, transcripts, translations, models, keys. Removed: values of fields named like secrets, credentials in
addresses, texts in a stage's options (but a few like source and target); the home folder is written as ~. Names of
sessions and of files are as they are: look through it before you pass it on.
"""
ABOUT = {
    "doctor.json": "what the doctor found on this machine, and what would mend it",
    "configuration.toml": "the configuration that doctor looked at, which a running node need not have",
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


def without_secrets(value: Any, name: str = "", *, option: bool = False) -> Any:
    """Plain values with what is nobody's business replaced; of numbers only passwords are (``max_tokens`` is none).

    ``option``: it is within a stage's ``options``, where a text is shown only under a name of OPTIONS_SHOWN.
    """
    if value and (_is_secret(name, isinstance(value, (int, float))) or name in WORDS):
        return REMOVED
    if isinstance(value, Mapping):
        return {key: without_secrets(one, str(key), option=option or key == "options") for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(one, name if option else "", option=option) for one in value]
    return REMOVED if option and value and isinstance(value, str) and name not in OPTIONS_SHOWN else value


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
    """Lines NAME=value. Of the node's own only those that set a known field are shown."""
    lines = [
        f"{name}={value if _is_shown(name, value) else REMOVED}"
        for name, value in sorted(environ.items())
        if name.startswith(PREFIXES)
    ]
    return "\n".join(lines) + "\n"


def _is_shown(name: str, value: str) -> bool:
    section, _, field = name.removeprefix(config_env.PREFIX).lower().partition("_")
    if _is_secret(name.lower(), False):
        return False
    if not name.startswith(config_env.PREFIX) or name in config_env.OTHERS or section in ("pipelines", "rings"):
        return True
    if "_options" in field:  # a stage's option is a name at the end of a variable's
        option = field.partition("_options_")[2]
        return bool(option in OPTIONS_SHOWN or re.fullmatch(r"[-+.\d]+|true|false", value, re.IGNORECASE))
    return any(name.lower().endswith(f"_{known}") for known in _fields(section))


def _fields(section: str) -> tuple[str, ...]:
    """Fields of a section of the configuration that a variable may set."""
    if section == "stages":
        return (*StageSection.__struct_fields__, *ModelSection.__struct_fields__)
    found = {one.name: one.type for one in msgspec.structs.fields(Config)}.get(section)
    return getattr(found, "__struct_fields__", (section,) if found else ())


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
    text = IN_ADDRESS.sub(f"://{REMOVED}@", text)
    text = HEADER.sub(lambda found: f"{found[1]}{found[2]}{found[3] or ''}{REMOVED}", text)
    for named in (IN_TEXT, FLAG):
        text = named.sub(lambda found: f"{found[1]}{found[2]}{found['quote'] or ''}{REMOVED}", text)
    text = BARE.sub(REMOVED, text)
    return text.replace(home, "~") if len(home) > 1 else text


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(data))
