"""A stage without a model: it sleeps, burns, fills memory, passes arrays on and misbehaves on cue.

It stands in for a real stage when an operator rehearses a configuration and when hardware or models are missing. Its
behaviour is a function of its options, the session, the index and the attempt alone, so a run repeats exactly.

**Watermark.** With ``mark`` an audio array is one 64-bit number repeated over all its samples (four 16-bit words, as
int16). Reading it compares every sample, so a torn or foreign slot shows as ``torn``; writing it fills the array again.
The number travels between stages as ``mark:<16 hex digits>`` at the start of the text.

**GPU memory.** On a GPU, ``vram_bytes`` are taken while it loads, and ``vram_run_bytes`` for each utterance of a run's
batch, in the stand-in driver (``stages/vram.py``); on the CPU they mean nothing. As in real runtimes, the workspace of
the largest batch so far is kept. What does not fit is ``oom``, of the load or of the whole batch. ``close`` gives back
all but the context. The estimate counts them like weights and workspace of a real model, and knows of no context: with
a driver whose contexts take memory, set the stage's ``estimate_bytes``. With ``stated_bytes`` its estimate is wrong, as
a real one may be, until it has been measured.

**Cues** are tables ``{index, attempt, session, action, ...}`` matched on every run; the first that matches acts:
``fail`` (code, text, retry), ``oom``, ``sticky`` (a CUDA error after which every run fails), ``hang`` (until killed),
``kill`` (SIGKILL itself), ``segv``, ``exit``, ``sleep`` (ms), ``text`` (text).
``attempt`` 0 matches every attempt, ``session`` "" every session, else the tag it was
opened with. With ``index`` -1 the action happens while the model loads, with -2 while it warms up; there ``bad_model``
(text), ``fail`` and ``oom`` fail the load.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, ClassVar

import msgspec
import numpy as np

from stages.base import (
    Declaration,
    Item,
    Longest,
    Memory,
    ModelFacts,
    Output,
    OutputSize,
    Stage,
    StageConfig,
    StageError,
)
from stages.vram import Vram

MARK_PREFIX = "mark:"
LOAD = -1  # the index that cues match while loading
WARM_UP = -2  # ... and while warming up
STICKY = "CUDA error: an illegal memory access was encountered (on cue)"
ACTIONS = ("fail", "oom", "sticky", "hang", "kill", "segv", "exit", "sleep", "text", "bad_model")
CHOICES = {"accepts": ("audio", "text"), "emits": ("audio", "text", "same"), "dtype": ("int16", "float32")}
LEAST = {
    "sleep_ms": 0, "per_item_ms": 0, "sigma": 0, "seed": 0, "gil_share": 0, "load_ms": 0, "ballast_bytes": 0,
    "output_bytes": 0, "sample_rate": 1, "max_chars": 1, "vram_bytes": 0, "vram_run_bytes": 0, "stated_bytes": 0,
}  # fmt: skip

WRONG_TYPE = re.compile("Expected `(.+)`, got `(.+)`")
TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a string", "array": "a list",
         "object": "a table"}  # fmt: skip
GOT = TYPES | {"float": "a fraction"}


class Cue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When and what: see the module's docstring."""

    index: int
    action: str
    attempt: int = 1
    session: str = ""
    code: str = "failed"
    text: str = "on cue"
    retry: bool = True
    ms: float = 0.0

    def __post_init__(self) -> None:
        _among("cue action", self.action, ACTIONS)
        _at_least("cue index", self.index, WARM_UP)
        _at_least("cue attempt", self.attempt, 0)
        _at_least("cue ms", self.ms, 0)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a simulated stage."""

    accepts: str = "text"  # audio | text
    emits: str = "text"  # audio | text | same
    sleep_ms: float = 0.0  # time of one run, whatever its batch
    per_item_ms: float = 0.0  # ... plus this for each utterance in it
    sigma: float = 0.0  # spread: times are multiplied by a log-normal of mean 1
    seed: int = 0
    gil_share: float = 0.0  # part of the time spent computing in the interpreter instead of sleeping
    burn: bool = False  # compute for all of the time
    load_ms: float = 0.0
    ballast_bytes: int = 0  # main memory taken while loaded
    vram_bytes: int = 0  # GPU memory taken while loaded; needs the stand-in driver
    vram_run_bytes: int = 0  # ... and, from its first run on, for each utterance of the largest batch
    stated_bytes: int = 0  # what its file would say that its weights take; 0: what they do take
    output_bytes: int = 0  # size of the array it emits
    dtype: str = "int16"
    sample_rate: int = 16000
    touch: bool = False  # read every page of an input array
    mark: bool = False  # carry the watermark
    suffix: str = ""  # appended to the text, to see which stages a text went through
    translates: bool = False
    confidence: float = 0.0  # below 0: how sure it is of its text, as a mean log-probability
    max_chars: int = 4000
    cues: tuple[Cue, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _among(f"option {name}", getattr(self, name), allowed)
        for name, least in LEAST.items():
            _at_least(f"option {name}", getattr(self, name), least)
        if self.gil_share > 1:
            raise ValueError(f"option gil_share is {self.gil_share:g}; the highest is 1")


def _among(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; {_nearest(value, choices)}use one of {', '.join(choices)}")


def _at_least(what: str, value: float, least: float) -> None:
    if not least <= value < inf:
        raise ValueError(f"{what} is {value:g}; the lowest is {least:g}")


def _nearest(value: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, choices, n=1)
    return f"did you mean {close[0]}? " if close else ""


def parse(options: Mapping[str, Any]) -> Options:
    """Options from a configuration table. Raises ValueError with one line."""
    known = Options.__struct_fields__
    for name in options:
        if name not in known:
            raise ValueError(
                f"stage simulated has no option {name!r}; {_nearest(name, known)}it has {', '.join(known)}"
            )
    try:
        return msgspec.convert(dict(options), Options)
    except msgspec.ValidationError as error:
        raise ValueError(f"stage simulated: {_in_words(str(error))}") from error


def _in_words(error: str) -> str:
    """What msgspec says of an option, without its notation."""
    what, _, path = error.partition(" - at `$")
    path = path.strip(".`")
    if found := WRONG_TYPE.fullmatch(what):
        return f"option {path} must be {TYPES.get(found[1], found[1])}, not {GOT.get(found[2], found[2])}"
    what = what.replace("Object missing required field", "it lacks").replace("Object contains", "it has an")
    return f"option {path}: {what}" if path else what


class SimulatedStage(Stage):
    """See the module's docstring."""

    declaration: ClassVar[Declaration] = Declaration(name="simulated", accepts="text", emits="text")

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config)
        self._options = parse(config.options)
        self._ballast: bytearray | None = None
        self._vram = Vram()
        self._held: list[int] = []  # handles: the weights, then the parts of the workspace
        self._workspace_bytes = 0
        self._is_broken = False

    @classmethod
    def declare(cls, options: Mapping[str, Any]) -> Declaration:
        o = parse(options)
        return Declaration(
            name="simulated",
            accepts=o.accepts,  # type: ignore[arg-type]
            emits=o.emits,  # type: ignore[arg-type]
            output=OutputSize(base=o.output_bytes) if o.emits == "audio" else None,
            max_chars=o.max_chars,
            translates=o.translates,
        )

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        parse(options)

    @classmethod
    def describe(cls, model: str, options: Mapping[str, Any]) -> ModelFacts:
        del model
        o = parse(options)
        return ModelFacts(weights_bytes=o.stated_bytes or max(o.ballast_bytes, o.vram_bytes + o.vram_run_bytes))

    @classmethod
    def memory(cls, config: StageConfig, longest: Longest) -> Memory | None:
        del longest
        o = parse(config.options)
        if config.device == "cpu":
            return Memory(o.stated_bytes or o.ballast_bytes, 0)
        return Memory(o.stated_bytes or o.vram_bytes, o.vram_run_bytes * config.max_batch)

    def load(self) -> None:
        self._act_while(LOAD)
        if self._on_gpu:
            self._vram.open()
            self._held.append(self._vram.take(self._options.vram_bytes))
        _pause(self._options.load_ms / 1000)
        if self._options.ballast_bytes:
            self._ballast = bytearray(self._options.ballast_bytes)

    def warm_up(self) -> None:
        self._act_while(WARM_UP)

    def _act_while(self, phase: int) -> None:
        for cue in self._options.cues:
            if cue.index == phase and isinstance(failure := self._act(cue), StageError):
                raise failure

    def run(self, items: Sequence[Item]) -> list[Output | StageError]:
        if self._is_broken:
            raise RuntimeError(STICKY)
        if self._on_gpu:
            self._make_workspace(self._options.vram_run_bytes * len(items))
        return self._run(items)

    def _make_workspace(self, nbytes: int) -> None:
        """Let the workspace have as many bytes. Raises StageError when there are not so many more."""
        if nbytes > self._workspace_bytes:
            self._held.append(self._vram.take(nbytes - self._workspace_bytes))
            self._workspace_bytes = nbytes

    def close(self) -> None:
        self._ballast = None
        for handle in self._held:
            self._vram.give_back(handle)
        self._held.clear()
        self._workspace_bytes = 0

    @property
    def _on_gpu(self) -> bool:
        """Whether this stage takes GPU memory at all."""
        return self.config.device != "cpu" and bool(self._options.vram_bytes or self._options.vram_run_bytes)

    def _run(self, items: Sequence[Item]) -> list[Output | StageError]:
        o = self._options
        begun = time.perf_counter()
        outputs = [self._run_one(item) for item in items]
        if not (o.sleep_ms or o.per_item_ms):
            return outputs
        spread = [self._spread(item) for item in items]
        self._spend(begun, (o.sleep_ms * max(spread) + o.per_item_ms * sum(spread)) / 1000)
        return outputs

    def _run_one(self, item: Item) -> Output | StageError:
        cue = self._cue(item)
        if cue is not None and (answer := self._act(cue)) is not None:
            return answer
        o = self._options
        if o.touch and item.audio is not None and not o.mark:
            memoryview(item.audio).cast("B")[::4096].tobytes()  # type: ignore[arg-type]
        if o.emits == "same":
            return Output(same=True)
        text = self._text(item)
        if o.emits == "text":
            return Output(text=text + o.suffix, confidence=o.confidence if o.confidence < 0 else None)
        return Output(text=None, audio=self._array(text), sample_rate=o.sample_rate)

    def _text(self, item: Item) -> str:
        if item.text is not None:
            return item.text
        if self._options.mark and item.audio is not None:
            return read_mark(item.audio)
        return f"{item.session}/{item.index}"

    def _array(self, text: str) -> np.ndarray:
        o = self._options
        dtype = np.dtype(o.dtype)
        count = o.output_bytes // dtype.itemsize
        if o.mark and text.startswith(MARK_PREFIX):
            mark = bytes.fromhex(text[len(MARK_PREFIX) : len(MARK_PREFIX) + 16])
            return mark_samples(int.from_bytes(mark, "little"), count).astype(dtype, copy=False)
        return np.ones(count, dtype=dtype)

    def _cue(self, item: Item) -> Cue | None:
        for cue in self._options.cues:
            if cue.index == item.index and cue.attempt in (0, item.attempt):
                if cue.session in ("", item.session.rpartition(".")[0]):
                    return cue
        return None

    def _act(self, cue: Cue) -> Output | StageError | None:
        match cue.action:
            case "fail":
                return StageError(cue.code, cue.text, retry=cue.retry)
            case "oom":
                return StageError("oom", "out of memory (on cue)", retry=True)
            case "sticky":
                self._is_broken = True
                raise RuntimeError(STICKY)
            case "hang":
                threading.Event().wait()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(0)
            case "sleep":
                _pause(cue.ms / 1000)
            case "text":
                return Output(text=cue.text)
            case "bad_model":
                raise StageError("bad_model", cue.text)
            case other:
                raise ValueError(f"stage simulated: no action {other!r}")
        return None

    def _spread(self, item: Item) -> float:
        sigma = self._options.sigma
        if not sigma:
            return 1.0
        rng = np.random.default_rng([self._options.seed, item.index])
        return float(rng.lognormal(-sigma * sigma / 2, sigma))

    def _spend(self, begun: float, seconds: float) -> None:
        """Let the run that began at ``begun`` have taken ``seconds``, marks and arrays included."""
        burn = seconds if self._options.burn else seconds * self._options.gil_share
        until = time.perf_counter() + burn
        while time.perf_counter() < min(until, begun + seconds):
            pass
        _pause(begun + seconds - time.perf_counter())


def read_mark(audio: np.ndarray) -> str:
    """``mark:<hex>`` if every sample of ``audio`` (int16 or float32) repeats one 64-bit mark, else ``torn``."""
    words = np.ascontiguousarray(audio, dtype="<i2")
    whole = words[: len(words) // 4 * 4].view("<u8")
    if not len(whole) or (whole != whole[0]).any():
        return "torn"
    mark = whole[:1].tobytes()
    if words[len(whole) * 4 :].tobytes() != mark[: len(words) % 4 * 2]:
        return "torn"
    return MARK_PREFIX + mark.hex()


def mark_samples(mark: int, count: int) -> np.ndarray:
    """int16 array of ``count`` samples that carries a 64-bit ``mark``."""
    return np.full(-(-count // 4), mark, dtype="<u8").view("<i2")[:count]


def _pause(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)  # the simulated work itself
