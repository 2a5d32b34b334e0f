"""What a client gets back: the end of an utterance, news on the way to it, and the errors it may have to catch.

Every submitted index ends in exactly one ``Outcome``. The node's classes are ``ok``, ``error`` and ``skipped``; the
client library adds ``rejected`` for an utterance the node never accepted, so that nothing submitted is without an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ipc.errors import DragomanError

WIRE_DTYPES: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}

# What an attempt says where its message leaves it out; its ``stage`` and ``state`` are always there.
ATTEMPT: Mapping[str, Any] = {
    "attempt": 0, "worker": "", "device": "", "reason": "", "queued_ns": 0, "begun_ns": 0, "ended_ns": 0, "model": "",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The one end of an utterance.

    ``outcome``: ok | error | skipped | rejected; ``code`` names an error, a skip or a rejection, ``error`` explains it.
    ``texts``: stage -> the text it made. ``degraded``: how an ok result is worse than asked for, or "".
    ``audio``: int16 or float32 of shape (samples,), mono, at ``sample_rate`` Hz; None when there is none.
    ``stages``: one map per attempt, in order, always of the same keys: stage, state, attempt (0: never begun), worker,
    device, reason, model ("": the stage's own), and queued_ns, begun_ns, ended_ns on the node's monotonic clock (0: did
    not happen).
    """

    session: str
    index: int
    outcome: str
    code: str = ""
    error: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    audio: np.ndarray | None = field(default=None, repr=False, compare=False)
    sample_rate: int = 0
    degraded: str = ""
    recovered: bool = False
    language: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list, repr=False)
    tag: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def transcript(self) -> str | None:
        """What was heard ("" for silence), or None when the utterance did not get so far."""
        return self.texts.get("asr")

    @property
    def repaired(self) -> str | None:
        return self.texts.get("repair")

    @property
    def translation(self) -> str | None:
        return self.texts.get("nmt")

    @property
    def nbytes(self) -> int:
        """Bytes of audio it holds."""
        return 0 if self.audio is None else self.audio.nbytes


def from_wire(message: Mapping[str, Any], payload: Any, tag: str) -> Outcome:
    """An ``Outcome`` message and its samples. Raises ValueError when the samples are not what the message says."""
    return Outcome(
        session=message["session"],
        index=message["index"],
        outcome=message["outcome"],
        code=message.get("code", ""),
        error=message.get("error", ""),
        texts=message.get("texts", {}),
        audio=_samples(message, payload),
        sample_rate=message.get("sample_rate", 0),
        degraded=message.get("degraded", ""),
        recovered=message.get("recovered", False),
        language=message.get("language", ""),
        stages=[{**ATTEMPT, **record} for record in message.get("stages", ())],
        tag=tag,
    )


def _samples(message: Mapping[str, Any], payload: Any) -> np.ndarray | None:
    nbytes = message.get("nbytes", 0)
    if not nbytes:
        return None
    dtype = WIRE_DTYPES.get(message.get("dtype", ""))
    if dtype is None or payload is None or len(payload) != nbytes or nbytes % dtype.itemsize:
        raise ValueError(f"outcome {message['index']}: the samples are not {nbytes} bytes of {message.get('dtype')!r}")
    return np.frombuffer(payload, dtype=dtype)


@dataclass(frozen=True)
class Progress:
    """News of an utterance before its outcome: a stage's ``state`` changed, or (``text`` not None) a stage's text."""

    session: str
    index: int
    stage: str
    state: str = ""
    text: str | None = None
    attempt: int = 0
    reason: str = ""


class Rejected(DragomanError):
    """The node (or the library for it) does not take this; ``code`` is one of ``ipc.errors.REJECTED_CODES``."""

    def __init__(self, code: str, text: str, accepted: tuple[str, ...] = ()) -> None:
        super().__init__(f"{code}: {text}", f"accepted: {', '.join(accepted)}" if accepted else "")
        self.code = code
        self.accepted = accepted


class Busy(DragomanError):
    """Not now: too much is unread here (``unread``), or the node is stopping (``shutting_down``). Nothing was sent."""

    def __init__(self, reason: str, text: str, mend: str = "") -> None:
        super().__init__(f"busy ({reason}): {text}", mend)
        self.reason = reason


class NodeGone(DragomanError):
    """No node answers at the endpoint."""


class SessionClosed(DragomanError):
    """The session ended before everything submitted had its outcome; ``reason`` as in ``ipc.errors.CLOSED_REASONS``."""

    def __init__(self, reason: str, text: str, mend: str = "") -> None:
        super().__init__(f"session closed ({reason}): {text}", mend)
        self.reason = reason
