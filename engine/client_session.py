"""A session's surface: what a user of the client library calls on it.

Nothing is decided here: arguments become an ``Utterance`` (``engine.audio`` converts samples), the session's core says
what may be sent, and the client's loop turns until what was asked for has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engine import audio
from engine.client_core import SessionCore, State
from engine.client_link import MAX_FRAME_BYTES, Held, Message, hold
from engine.client_utterance import Place, Utterance
from engine.outcome import Busy, NodeGone, Outcome, Progress, Rejected, SessionClosed

if TYPE_CHECKING:
    from engine.client import Client

OnProgress = Callable[[Progress], None]


class Session:
    """One speaker's ordered stream of utterances; made by ``Client.session``."""

    def __init__(self, client: Client, core: SessionCore, on_progress: OnProgress | None) -> None:
        self.core = core
        self.on_progress = on_progress
        self._client = client

    @property
    def id(self) -> str:
        """The node's name for it (another one after a node without memory of it opened it again)."""
        return self.core.id

    @property
    def tag(self) -> str:
        return self.core.tag

    @property
    def outstanding(self) -> int:
        """How many submitted utterances have no outcome yet."""
        return len(self.core.unended)

    @property
    def refused(self) -> int:
        """How often the node has answered Busy; the client submits again by itself."""
        return self.core.refused

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Drain, unless told to abort, and wait until the node has closed it; after an exception abort and go on."""
        if kind is None:
            if not self.core.closing:
                self.close()
            self._client.run(lambda: self.core.state is State.CLOSED)
            if self.core.unended:
                self.raise_failure()
        elif self.core.state is not State.CLOSED:
            with suppress(NodeGone):
                self.close("abort")

    def submit(
        self,
        samples_or_text: Any,
        sample_rate: int = audio.RATE,
        index: int | None = None,
        budget_s: float | None = None,
        skip: tuple[str, ...] = (),
    ) -> int:
        """Send one utterance; returns its index. Waits, reading, until the node's window and share have room.

        ``samples_or_text``: a text, or samples of shape (n,) or (n, channels) in int16, int32, uint8 or float of any
        width, at ``sample_rate`` Hz. ``budget_s``: its deadline from receipt. ``skip``: stages to leave out.
        Raises Rejected (nothing was sent, the index is free), Busy, SessionClosed, NodeGone.
        """
        self.raise_failure()
        if self.core.closing or self.core.state is State.CLOSED:
            raise SessionClosed(self.core.closing or "closed", "it takes nothing any more", "open a new session")
        utterance = self._utterance(samples_or_text, sample_rate, index, budget_s, skip)
        self._client.make_room()
        self.core.submit(utterance)
        self._send(utterance)
        return utterance.index

    def _send(self, utterance: Utterance) -> None:
        """Turn until it is on the wire, or take it back and say why it never will be."""
        try:
            self._client.run(lambda: utterance.place is not Place.QUEUED or self._hopeless())
        except BaseException:
            self.core.withdraw(utterance)
            raise
        if utterance.place is Place.QUEUED and utterance.index in self.core.unended:
            self.core.withdraw(utterance)
            self.raise_failure()
            raise Busy("shutting_down", "the node is stopping and takes nothing new", "submit again when it is back")

    def outcomes(self, timeout_s: float | None = None) -> Iterator[Outcome]:
        """Outcomes in the order received, which is index order; ends when everything submitted has its outcome.

        Indices that were skipped (by ``skip``, or as a gap) have one too, and so have rejected ones. Submitting while
        iterating is fine. Raises TimeoutError when the next one takes longer than ``timeout_s``, SessionClosed,
        NodeGone.
        """
        return self._client.read(self, timeout_s)

    def skip(self, index: int) -> None:
        """This index will never be submitted: it ends as skipped(gap) and holds up nothing.

        Waits, reading, until the window reaches it. Nothing happens when it was sent already: see ``cancel``.
        """
        if isinstance(problem := self.core.may_submit(index), Rejected) and problem.code == "bad_index":
            raise problem
        self.raise_failure()
        if (utterance := self.core.skip(index)) is not None:
            self._send(utterance)

    def cancel(self, index: int) -> None:
        """End this utterance as skipped(cancelled), whatever its state; nothing happens if it has ended."""
        self._client.post(self.core.cancel(index))
        self._client.pump()

    def close(self, mode: str = "drain") -> None:
        """Close when all outcomes are there (drain), or cancel what has none (abort). Does not wait; read on."""
        if mode not in ("drain", "abort"):
            raise ValueError(f"mode {mode!r} is not drain or abort")
        self.core.close(mode)
        self._client.pump()

    def raise_failure(self) -> None:
        """Raise why the session closed, or what the node refused of it since the last call."""
        failure = self.core.failure
        if failure is not None:
            if self.core.state is not State.CLOSED:
                self.core.failure = None
            raise failure

    def _hopeless(self) -> bool:
        core = self.core
        return core.hold_reason == "shutting_down" or core.failure is not None or core.state is State.CLOSED

    def _utterance(
        self, samples_or_text: Any, sample_rate: int, index: int | None, budget_s: float | None, skip: tuple[str, ...]
    ) -> Utterance:
        index = self.core.next_index if index is None else index
        if (problem := self.core.may_submit(index)) is not None:
            raise problem
        fields: Message = {"skip": list(skip)} if skip else {}
        if budget_s is not None:
            fields["budget_ms"] = _budget_ms(budget_s)
        if isinstance(samples_or_text, str):
            return Utterance(index, {**fields, "text": self._text(samples_or_text)})
        data = self._samples(samples_or_text, sample_rate)
        described = {"dtype": self._client.dtype, "nbytes": len(data), "sample_rate": audio.RATE}
        return Utterance(index, {**fields, **described}, data)

    def _samples(self, samples: Any, sample_rate: int) -> Held:
        dtype = self._client.dtype
        try:
            data = audio.to_wire(samples, sample_rate, dtype)
        except audio.BadAudio as error:
            raise Rejected(error.code, error.text) from error
        seconds = len(data) / audio.RATE
        if seconds > (longest := self._client.limits.get("max_utterance_s", float("inf"))):
            raise Rejected("audio_too_long", f"{seconds:.1f} s; this node takes utterances up to {longest:g} s")
        return hold(data)

    def _text(self, text: str) -> str:
        try:
            nbytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise Rejected("bad_text", f"character {error.start} is half a surrogate pair, not Unicode text") from error
        longest = self._client.limits.get("max_text_chars", MAX_FRAME_BYTES)
        if len(text) > longest or nbytes > MAX_FRAME_BYTES - 4096:
            raise Rejected("text_too_long", f"{len(text)} characters; this node takes up to {longest}")
        return text


def _budget_ms(budget_s: float) -> int:
    if not 0.001 <= budget_s < 2**31:
        raise ValueError(f"budget_s {budget_s!r} is not a time of at least 0.001 s")
    return round(budget_s * 1000)
