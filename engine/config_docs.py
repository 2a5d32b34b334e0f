"""The configuration's papers, made from its types: the sample file, the sample environment, the reference page.

A field's meaning is the comment beside it in ``engine/config.py``, so there is one place to write it. Run
``python -m engine.config_docs`` in a checkout to write the three files anew; a test compares them.
"""

from __future__ import annotations

import inspect
import io
import json
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import stages
from engine import config, knobs
from engine.config import Config, ModelSection, StageSection
from engine.config_env import variable
from engine.config_rules import MANY_BYTES, Between, Endpoint, Like, OneOf, rule_for, words
from engine.profiles import PROFILES

FILES = {
    "node.toml.sample": "render_sample",
    ".env.sample": "render_env_sample",
    "docs/configuration.md": "render_reference",
}

SAMPLE_HEAD = """\
# A Dragoman node. Copy to node.toml and change what you need: every line that begins with "# " and a field is that
# field's default. `run_node.py serve --config node.toml --print-config` shows what is in force.
"""

SAMPLE_STAGES = """\
# [stages.NAME]: one stage each. A model is a path (from this file's folder) or, for asr, a name its library fetches.
# What begins with /, ., ~ or models/, has two slashes, or lies in a folder that exists, is a path; "small" and
# "owner/model" are names.
# docs/models.md says where to get them; `run_node.py models synthesize KIND --out DIR` makes stand-ins.
"""

SAMPLE_MODELS = {"repair": "models/repair.gguf"}  # the others are folders

SAMPLE_STAGE_FIELDS = """\
# Every field of a stage, with its default:
"""

SAMPLE_MODEL_FIELDS = """\
# [stages.NAME.models.MODEL]: a further model of a stage, with any of these fields; the rest is as the stage says:
"""

SAMPLE_PIPELINES = """\
[pipelines]  # name -> stage names in order; each takes what the one before it gives
full = ["asr", "repair", "nmt", "tts"]
transcribe = ["asr"]
translate-text = ["nmt"]
speak = ["tts"]
"""

ENV_HEAD = """\
# Environment of a Dragoman node: any field of node.toml as DRAGOMAN_<SECTION>_<FIELD>. The environment goes before
# this file (--env-file), and this file before node.toml. Lists: a,b. Tables: name=value,name=value.
# Each variable stands below its meaning, with its default; remove the # before it to set it.
"""

REFERENCE_HEAD = """\
# Configuration

*Made from the types in `engine/config.py` by `python -m engine.config_docs`; do not edit.*

A node reads one TOML file: the one given with `--config`, else `./node.toml`, else `node.toml` in
`$XDG_CONFIG_HOME/dragoman` (`~/.config/dragoman`). Without any it runs the embedded models. Over the file goes the env
file (`--env-file F`), over that the environment. `node.toml.sample` and `.env.sample` list everything with its default.

Every field has a variable `DRAGOMAN_<SECTION>_<FIELD>`: the field's name in capitals, with `_` for `.` and `-`. Lists
are written `a,b`, tables `name=value,name=value`; a stage's own options `DRAGOMAN_STAGES_ASR_OPTIONS_BEAM_SIZE=2`.
Variables set fields of stages and of further models (`DRAGOMAN_STAGES_TTS_MODELS_DE_MODEL`) that the file (or the
embedded configuration) has; they make no new ones.

A stage's `model` is a path, from the file's folder, when it begins with `/`, `.`, `~` or `models/`, has more than one
slash, or when it or the folder it would lie in exists. Anything else (`small`, `owner/model`) is a name that the
stage's library resolves; only asr has one that does. [Models](models.md) says where to get one for each stage.

A stage may have **further models**, `[stages.tts.models.de]` and so on. A session chooses one by name
(`models={"tts": "de"}`; `default` is the stage's own); without a choice it gets the first that knows its languages, the
stage's own before the others: so one voice for each language serves them all. Each further model is a stage of its own
inside the node (`tts.de` in `stats`, in `ctl` and in knobs), with its own processes, memory and queue. It loads at the
start, and is needed for ready, where all models of its device have room together (mind `devices.max_models`); else it
loads when a session has work for it, or by `ctl load tts.de`.

A wrong field ends the start with exit code 78 and one line that names the file or variable, the field and the nearest
valid value. The configuration is read once, and a change needs a new start, but for the few fields marked `ctl set`:
those an operator may change while the node runs (`run_node.py ctl set stages.asr.max_batch=1`), until it stops.

`node.endpoints`: the socket in the node's folder is for its user alone. A loopback `tcp://` address is open to **every
user of the machine**; addresses that other machines reach are refused.
"""

PROFILES_HEAD = """\
## Profiles

`node.profile` chooses the defaults of four fields at once. A field that the file, the env file or the environment sets
goes before it. Tries beyond the third wait as long as the third; tries for want of memory have waits of their own and
are not counted. The embedded demo models take a profile only when one is named (`DRAGOMAN_NODE_PROFILE=conservative`).
"""


@dataclass(frozen=True)
class Row:
    """One field for people."""

    name: str
    type_: Any
    default: Any
    meaning: str


def rows(struct: type[msgspec.Struct]) -> list[Row]:
    """A section's fields with their meaning, in the order they are written."""
    meanings = _comments(struct)
    return [
        Row(field.name, field.type, _default(field), meanings.get(field.name, ""))
        for field in msgspec.structs.fields(struct)
    ]


def sections() -> Iterator[tuple[str, str, list[Row]]]:
    """(name in the file, its docstring's meaning, fields) of every section, stages as ``stages.NAME``."""
    for field in msgspec.structs.fields(Config):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield field.name, _meaning(field.type), rows(field.type)
    yield "stages.NAME", _meaning(StageSection), rows(StageSection)
    yield "stages.NAME.models.MODEL", _meaning(ModelSection), rows(ModelSection)


def _comments(struct: type) -> dict[str, str]:
    """Field name -> the comment on its line."""
    found, name = {}, ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(struct)).readline):
        if token.type == tokenize.NAME and token.line.startswith("    ") and token.start[1] == 4:
            name = token.string
        elif token.type == tokenize.COMMENT and name:
            found[name] = token.string.lstrip("# ")
        elif token.type == tokenize.NEWLINE:
            name = ""
    return found


def _default(field: Any) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _meaning(struct: type) -> str:
    return (struct.__doc__ or "").partition(": ")[2]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# ---------------------------------------------------------------- the papers


def render_sample() -> str:
    """``node.toml.sample``: valid TOML that says the defaults as comments, with four stages and their pipelines."""
    parts = [SAMPLE_HEAD]
    for name, meaning, fields in sections():
        lines = [_sample_line(row) for row in fields]
        if name == "stages.NAME":
            parts += [SAMPLE_STAGES, *_sample_stages(), SAMPLE_STAGE_FIELDS.rstrip("\n"), *lines, ""]
        elif name == "stages.NAME.models.MODEL":
            parts += [SAMPLE_MODEL_FIELDS.rstrip("\n"), *lines, ""]
        else:
            parts += [f"[{name}]  # {meaning}", *lines, ""]
    parts += [SAMPLE_PIPELINES]
    parts += [f"[rings]  # {_comments(Config)['rings']}", "# gateway = 134217728", ""]
    return _with_top(parts)


def _sample_stages() -> Iterator[str]:
    """A table for each kind of stage that runs a model."""
    for kind in _model_kinds():
        yield f"# {_first_line(kind)}"
        yield f"[stages.{kind}]"
        yield f'model = "{SAMPLE_MODELS.get(kind, f"models/{kind}")}"'
        if stages.find(kind).declaration.optional:
            yield "required = false  # without its library or model, utterances skip it"
        yield ""


def _model_kinds() -> list[str]:
    return [kind for kind in stages.KINDS if kind != "simulated"]


def _first_line(kind: str) -> str:
    """What the stage's own file says it is."""
    return (sys.modules[stages.find(kind).__module__].__doc__ or "").partition("\n")[0]


def _with_top(parts: list[str]) -> str:
    """Fields of no section stand before the first table: TOML has no way back."""
    head, *rest = parts
    top = [_sample_line(row) for row in rows(Config) if row.name == "languages"]
    return "\n".join([head, *top, "", *rest]).rstrip("\n") + "\n"


def _sample_line(row: Row) -> str:
    return f"# {row.name} = {_toml(_written(row))}  # {row.meaning}"


def _written(row: Row) -> Any:
    """A field's default, or of one that is as the stage says, the stage's."""
    return getattr(StageSection(), row.name) if row.default is None else row.default


def render_env_sample() -> str:
    """``.env.sample``: every variable, commented out, with its default."""
    lines = [ENV_HEAD]
    for name, meaning, fields in sections():
        lines += [f"# ---- [{name}] {meaning}"]
        for row in fields:
            lines += [f"# {row.meaning}", f"#{variable(f'{name}.{row.name}')}={_plain(_written(row))}"]
        lines += [""]
    lines += ["# a pipeline: its stages in order", f"#{variable('pipelines.full')}=asr,repair,nmt,tts"]
    lines += [f"# {_comments(Config)['rings']}", f"#{variable('rings.gateway')}=134217728"]
    lines += [f"# {_comments(Config)['languages']}", f"#{variable('languages')}="]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def render_reference() -> str:
    """``docs/configuration.md``."""
    lines = [REFERENCE_HEAD, *_profiles()]
    for name, meaning, fields in sections():
        lines += [f"## `[{name}]`", "", f"{meaning[:1].upper()}{meaning[1:]}".replace("``", "`"), ""]
        lines += ["| field | type | default | values | meaning |", "|---|---|---|---|---|"]
        lines += [_reference_line(name, row) for row in fields]
        lines += [""]
    lines += ["## Stage options", "", "The table `[stages.NAME.options]`, by kind of stage.", ""]
    for kind in stages.KINDS:
        lines += [f"### {kind}", "", *_stage_options(kind), ""]
    lines += ["## The rest", "", "| field | type | default | values | meaning |", "|---|---|---|---|---|"]
    lines += [_reference_line("", row) for row in rows(Config) if row.name in ("pipelines", "rings", "languages")]
    return "\n".join(lines) + "\n"


def _profiles() -> Iterator[str]:
    """What each profile sets, and what that buys and costs."""
    yield PROFILES_HEAD
    yield "| profile | `max_batch` of asr | `node.max_retries` | `deadlines.retry_delay_s` | `deadlines.budget_max_s` |"
    yield "|---|---|---|---|---|"
    for name, one in PROFILES.items():
        yield f"| `{name}` | {one.concurrency} | {one.max_retries} | {one.retry_delay_s:g} | {one.budget_max_s:g} |"
    yield ""
    yield from (f"* **{name}**: {one.trade_off}." for name, one in PROFILES.items())
    yield ""


def _stage_options(kind: str) -> list[str]:
    """A stage's own words about its options, and their table where it types them."""
    module = sys.modules[stages.find(kind).__module__]
    options = getattr(module, "Options", None)
    if options is None:
        lines = [_first_line(kind), "", inspect.getdoc(stages.find(kind)) or ""]
    else:
        lines = [inspect.getdoc(module) or "", "", "| option | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{row.name}` | `{_toml(row.default)}` | {row.meaning.replace('|', '/')} |" for row in rows(options)
        ]
    return [line.replace("``", "`") for line in lines]


def _reference_line(section: str, row: Row) -> str:
    field = f"{section}.{row.name}".lstrip(".").replace("NAME", "name").replace("MODEL", "model")
    values = _values(field).replace("|", "\\|")
    meaning = row.meaning.replace("|", "\\|") + ("; `ctl set`" if knobs.is_one(field) else "")
    default = "as the stage" if row.default is None else f"`{_toml(row.default)}`"
    return f"| `{row.name}` | {words(row.type_)} | {default} | {values} | {meaning} |"


def _values(field: str) -> str:
    """What a field may be, in words."""
    match rule_for(field):
        case OneOf(choices):
            return ", ".join(choices)
        case Between(low, high, why):
            return f"{low:,.10g} to {high:,.10g}{why}" if high < MANY_BYTES else f"from {low:,.10g}{why}"
        case Like(_, examples) | Endpoint(examples):
            return examples
    return ""


def write(root: Path) -> list[Path]:
    """Write the three papers below ``root``; returns those that changed."""
    changed = []
    for name, renderer in FILES.items():
        path, text = root / name, globals()[renderer]()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    for written in write(Path(inspect.getfile(config)).resolve().parent.parent):
        print(f"written: {written}")
