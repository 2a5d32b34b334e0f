"""Runs batches through a stage: from run items to arrays and texts, and back to results. Owns the worker's rings.

A stage gets read-only views of the rings; what it emits is copied into the slot that came with the run. The input's
generation is checked before and after the stage ran: a mismatch means the slot was given to somebody else meanwhile,
which is a failure to be tried again, never a wrong result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from engine import failpoints, logs
from engine.boot import Boot
from ipc.errors import StaleData
from ipc.messages import Ref, Run, RunItem, RunResult
from ipc.ring import Ring
from stages.base import Item, Output, Stage, StageError

_OOM_WORDS = ("out of memory", "bad_alloc", "failed to allocate", "cudaerrormemoryallocation")
_FAULT_WORDS = (  # after one of these a CUDA context fails every later call: only another process mends it
    "illegal memory access", "illegal address", "illegal instruction", "misaligned address", "device-side assert",
    "unspecified launch failure", "cudaerrorlaunchfailure", "cuda_error_launch_failed", "invalid program counter",
    "hardware stack error", "uncorrectable ecc", "gpu is lost", "fallen off the bus", "execution_failed",
)  # fmt: skip
_STALE = StageError("stale_input", "the input's slot was reused", retry=True)


def stage_error(error: BaseException) -> StageError:
    """Any exception of a library as a StageError: out of memory is told apart, the rest may be tried again."""
    if isinstance(error, StageError):
        return error
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _OOM_WORDS):
        return StageError("oom", text, retry=True)
    return StageError("failed", text, retry=True)


def fault(error: StageError) -> str:
    """The text of an error after which this process has no use of its GPU any more; else ""."""
    return error.text if any(word in error.text.lower() for word in _FAULT_WORDS) else ""


class Runner:
    """One stage and the rings it reads and writes.

    ``fits``: of the last run, the size of batches that had memory, when the whole had not; else 0.
    ``fault``: why no later run can end well (a sticky CUDA error); else "".
    """

    def __init__(self, boot: Boot, stage: Stage) -> None:
        self.stage = stage
        self.role = boot.role
        self.fits = 0
        self.fault = ""
        self._halved = False
        self.rings = {g.name: Ring(g.name, g.fd, g.blocks, writable=g.writable) for g in boot.rings}

    def run(self, run: Run) -> list[RunResult]:
        """Run one batch; one result per item, in order."""
        begun = time.monotonic_ns()
        self.fits, self._halved = 0, False
        inputs = [self._item(item) for item in run.items]
        fresh = [item for item in inputs if item is not None]
        outputs = iter(self._call(fresh, len(fresh)) if fresh else ())
        answers = [
            self._kept(item, _STALE if input_ is None else next(outputs))
            for item, input_ in zip(run.items, inputs, strict=True)
        ]
        ended = time.monotonic_ns()
        return [_result(item, *answer, begun, ended) for item, answer in zip(run.items, answers, strict=True)]

    def _item(self, item: RunItem) -> Item | None:
        """What the stage gets, or None when the input is not what its reference says any more."""
        ref = item.input
        if ref is None:
            return Item(item.session, item.index, item.attempt, item.source, item.target, item.text)
        try:
            audio = self.rings[ref.ring].view(ref)
        except StaleData:
            return None
        return Item(
            item.session, item.index, item.attempt, item.source, item.target, item.text, audio, ref.sample_rate
        )  # fmt: skip

    def _call(self, items: Sequence[Item], most: int) -> list[Output | StageError]:
        """The stage's answers. What runs out of memory runs again in batches half as large as ``most``, down to one."""
        answers = self._try(items)
        starved = [n for n, answer in enumerate(answers) if isinstance(answer, StageError) and answer.code == "oom"]
        if not starved and self._halved:
            self.fits = min(self.fits or most, most)
        if not starved or len(items) == 1 or self.fault:
            return answers
        half, self._halved = max(1, most // 2), True
        logs.get().warning("a batch of %d ran out of memory; running in batches of %d", len(items), half)
        for first in range(0, len(starved), half):
            part = starved[first : first + half]
            for n, answer in zip(part, self._call([items[n] for n in part], half), strict=True):
                answers[n] = answer
        return answers

    def _try(self, items: Sequence[Item]) -> list[Output | StageError]:
        """One call of the stage; where a batch raises, but not for want of memory, one for each item."""
        try:
            answers = list(self.stage.run(items))
        except Exception as error:
            cause = stage_error(error)
            logs.get().warning("session %s index %d: %s", items[0].session, items[0].index, error)
            self.fault = self.fault or fault(cause)
            if len(items) == 1 or cause.code == "oom" or self.fault:
                return [cause] * len(items)
            logs.get().warning("a batch of %d failed (%s); running one by one", len(items), error)
            return [self._try([item])[0] for item in items]
        for answer in answers:
            if isinstance(answer, StageError):
                self.fault = self.fault or fault(answer)
        return answers

    def _kept(self, item: RunItem, answer: Output | StageError) -> tuple[Output | StageError, Ref | None]:
        """The answer and where its array lies now, if the input was intact to the end and the slot is long enough."""
        if isinstance(answer, StageError):
            return answer, None
        if item.input is not None and not self.rings[item.input.ring].intact(item.input):
            return _STALE, None
        if answer.audio is None:
            return answer, None
        try:
            return answer, self._publish(item, answer.audio, answer.sample_rate)
        except StageError as error:
            return error, None

    def _publish(self, item: RunItem, array: np.ndarray, sample_rate: int) -> Ref:
        """Copy an array into the item's slot. Raises StageError when it has none or is too small."""
        if array.nbytes > item.slot_nbytes or item.slot_offset < 0:
            raise StageError("output_too_long", f"{array.nbytes} bytes; the slot has {item.slot_nbytes}")
        ring = self.rings[self.role]
        return ring.write(
            item.slot_offset, item.slot_nbytes, item.ticket, np.ascontiguousarray(array), sample_rate,
            failpoints.inside("worker.writing"),
        )  # fmt: skip


def put_on_board(runs: deque[Run], run: Run) -> None:
    """Add a run to those that have not begun: behind them, or before the last if it ``overtakes``."""
    runs.insert(len(runs) - (run.overtakes and len(runs) > 0), run)


def _result(item: RunItem, answer: Output | StageError, ref: Ref | None, begun: int, ended: int) -> RunResult:
    if isinstance(answer, StageError):
        return RunResult(
            item.ticket, "failed", answer.code, answer.text, answer.retry, begun_ns=begun, ended_ns=ended
        )  # fmt: skip
    return RunResult(
        item.ticket, answer.state, text=answer.text, ref=ref, same=answer.same, reason=answer.reason,
        degraded=answer.degraded, confidence=answer.confidence, language=answer.language, begun_ns=begun,
        ended_ns=ended,
    )  # fmt: skip
