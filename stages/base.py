"""What a stage is: the contract between a worker process and one model family.

A stage module is *import-light*: importing it must not import its model library (that happens in
``load``), because the supervisor reads declarations and describes models without loading anything.

The worker's calls, in order, all from one thread::

    stage = AsrStage(StageConfig(...))   # stores only
    stage.load()                         # imports the library, opens the model on the device
    stage.warm_up()                      # a few runs, so that the first utterance pays nothing
    stage.run([Item, ...])               # as often as work arrives; one Output or StageError per item
    stage.close()

Arrays in an ``Item`` are read-only views of shared memory and valid only inside ``run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

Kind = Literal["audio", "text"]


class StageError(Exception):
    """One item (or a load) failed; the stage itself goes on.

    ``code`` is one of the protocol's error codes (``failed``, ``bad_output``, ``output_too_long``,
    ``oom``, ``bad_language``, ``bad_text``, ``stale_input``, ``bad_model``). ``retry`` says whether
    the same input may succeed on another attempt.
    """

    def __init__(self, code: str, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retry = retry


@dataclass(frozen=True)
class OutputSize:
    """Upper bound in bytes of the array a stage emits: base + per_byte x nbytes + per_char x chars."""

    base: int = 0
    per_byte: float = 0.0
    per_char: int = 0

    def bound(self, nbytes: int, chars: int) -> int:
        """Bytes to reserve for an input of ``nbytes`` of audio or ``chars`` characters."""
        return self.base + int(self.per_byte * nbytes) + self.per_char * chars


@dataclass(frozen=True)
class Declaration:
    """What the engine must know of a stage before any model is loaded."""

    name: str  # the stage's kind, as in the configuration: "asr"
    accepts: Kind  # what a run gets
    emits: Literal["audio", "text", "same"]  # "same": the kind that came in
    requires: tuple[str, ...] = ()  # importable modules; one that is missing makes the stage absent
    output: OutputSize | None = None  # None: emits no array of its own, so it owns no ring
    max_chars: int = 4000  # longest text taken; longer ends in error(bad_text)
    optional: bool = False  # absent is allowed: the stage is skipped with its reason
    install_hint: str = ""  # the command that installs what ``requires`` names
    translates: bool = False  # its output is in the session's target language, before it: the source
    cpu_allowed: bool = True
    compute_types: tuple[str, ...] = ()  # number formats that its library knows; (): they are not checked
    degrades_to_cpu: bool = False  # where its device has no room, the CPU is better than waiting


@dataclass(frozen=True)
class ModelFacts:
    """What can be read from a model's files without loading them.

    ``languages``: language codes it takes (or, for tts, speaks); None when the files do not say.
    ``targets``: those that it translates into, where they are others.
    ``weights_bytes``: size of the weight files, the start of the memory estimate.
    """

    weights_bytes: int = 0
    languages: frozenset[str] | None = None
    targets: frozenset[str] | None = None


@dataclass(frozen=True)
class Longest:
    """The longest input of one utterance that the node lets through: seconds of audio, characters of text."""

    audio_s: float = 120.0
    chars: int = 4000


@dataclass(frozen=True)
class Memory:
    """What a model needs on its device beside its library, in bytes.

    ``weights_bytes``: as the library holds them there, which need not be the file's number format.
    ``workspace_bytes``: the most that a run of the largest batch of the longest inputs takes on top.
    ``at_load_bytes``: of these, what is taken as soon as the model is loaded.
    """

    weights_bytes: int
    workspace_bytes: int
    at_load_bytes: int = 0


@dataclass(frozen=True)
class StageConfig:
    """Everything a worker hands its stage.

    ``model``: path of the model's file or folder, or a name the library resolves itself ("" for stages without one).
    ``device``: "cpu" or "cuda" (index 0: the process sees exactly one).
    ``compute_type``: CTranslate2's names for CTranslate2 models; other stages read what they know.
    ``threads``: CPU threads the library may use.
    ``options``: the stage's own table from the configuration, validated by ``Stage.check_options``.
    ``warm_up_runs``: on made-up input, before the worker counts as ready.
    """

    model: str = ""
    device: str = "cpu"
    compute_type: str = "default"
    threads: int = 1
    max_batch: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    warm_up_runs: int = 3


class Item(msgspec.Struct, frozen=True):
    """One utterance at one stage.

    ``audio``: float32 or int16 array of shape (samples,), mono, or None for a text stage.
    ``text``: the text so far, or None for an audio stage.
    ``source``/``target``: the session's language codes ("" when the pipeline has none).
    """

    session: str
    index: int
    attempt: int
    source: str = ""
    target: str = ""
    text: str | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 0


class Output(msgspec.Struct, frozen=True):
    """What a stage made of one item: a text, an array, or its input passed on (``same``).

    ``audio``: int16 or float32, shape (samples,); copied by the worker before the next call.
    ``state``: "completed", or "skipped" when the stage kept its input on purpose (``reason`` says why).
    ``degraded``: how the result is worse than asked for, or "".
    ``confidence``: mean log-probability of the transcript where the model gives it.
    """

    text: str | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 0
    same: bool = False
    state: Literal["completed", "skipped"] = "completed"
    reason: str = ""
    degraded: str = ""
    confidence: float | None = None
    language: str = ""


class Stage:
    """Base of all stages. Subclasses set ``declaration`` and fill in the five methods."""

    declaration: ClassVar[Declaration]

    def __init__(self, config: StageConfig) -> None:
        self.config = config

    @classmethod
    def declare(cls, options: Mapping[str, Any]) -> Declaration:
        """The declaration under these options; most stages have only one."""
        del options
        return cls.declaration

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise ValueError (one line: field, what is wrong, nearest valid value) on a bad option."""
        if options:
            raise ValueError(f"stage {cls.declaration.name} has no option {sorted(options)[0]!r}")

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        """Read sizes and languages from the model's files. Import-light.

        Raises StageError("bad_model") with a one-line text when a local path is given and is not
        such a model: what is missing, and the command that makes or fetches one.
        """
        del options
        return ModelFacts(weights_bytes=weights_bytes(model))

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        """What the model will need, from the sizes its files state. Import-light; None when they do not say."""
        del config, longest
        return None

    def load(self) -> None:
        """Open the model. Raises StageError("bad_model" or "oom")."""

    def warm_up(self) -> None:
        """Run the model ``config.warm_up_runs`` times on made-up input."""

    def run(self, items: Sequence[Item]) -> list[Output | StageError]:
        """Run one batch; exactly one entry per item, in order. One bad item never fails its batch."""
        raise NotImplementedError(type(self).__name__)

    def close(self) -> None:
        """Let go of the model."""


def weights_bytes(model: str) -> int:
    """Total size in bytes of the files at ``model`` (0 when it is not a local path)."""
    path = Path(model)
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return 0
