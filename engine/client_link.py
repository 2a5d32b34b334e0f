"""The client's end of the conversation: frames out, frames in, and how long the node has been silent.

A frame is a msgpack list of messages of at most 64 KiB, followed by the samples of its one ``Submit`` or ``Outcome``.
No routing id is set: the node chooses one for each connection, and the wire reconnects in silence. A new node knows
nobody until spoken to, hence the ``Ping`` every half second while something is outstanding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

from engine import client_wire
from engine.outcome import NodeGone

MAX_FRAME_BYTES = 64 * 1024
PING_S = 0.5
Message = dict[str, Any]
Held = bytes  # samples on their way
_packer = msgpack.Packer()  # each has a buffer of 256 KiB


def hold(samples: Any) -> Held:
    """Copy an array's bytes, once: they can be sent and sent again without another copy, whatever becomes of it."""
    return bytes(samples)


class Link:
    """One connection to a node. ``patience_s``: how long a node may leave a question unanswered."""

    def __init__(self, endpoint: str, patience_s: float) -> None:
        self.endpoint = endpoint
        self.patience_s = patience_s
        self._posted: list[Message] = []
        self._pinged_at = float("-inf")
        self._asked_at: float | None = None  # of the oldest question since the node's last word
        self._wire: client_wire.Wire | None = None

    def start(self) -> None:
        """Connect (in silence: whether a node is there shows when it answers). Raises NodeGone."""
        self._wire = client_wire.connect(self.endpoint)

    def post(self, *messages: Message) -> None:
        """Put messages into the next frame."""
        self._posted += messages

    @property
    def posted(self) -> bool:
        """Whether something waits for ``flush``."""
        return bool(self._posted)

    def flush(self, submit: Message | None = None, data: Held | None = None) -> None:
        """Send what was posted, and ``submit`` with its samples behind it. Raises NodeGone."""
        posted, self._posted = self._posted, []
        *earlier, last = frames([*posted, submit] if submit else posted) or [b""]
        for frame in earlier:
            self._send(frame)
        if last:
            self._send(last, data)

    def drain(self) -> Iterator[tuple[Message, Any]]:
        """Every message that has arrived, with the samples that belong to it (or None). Raises NodeGone."""
        assert self._wire is not None
        for head, *rest in self._wire.receive():
            self._asked_at = None
            for message in self._decoded(head):
                carries = rest and message["type"] == "Outcome" and message.get("nbytes", 0)
                yield message, rest[0] if carries else None

    def ping_due(self, now: float) -> bool:
        """Whether it is time to ask for a sign of life; raises NodeGone when the node has been silent for too long."""
        if self._asked_at is not None and now - self._asked_at > self.patience_s:
            self._asked_at = None  # who calls again waits again
            text = f"no answer from {self.endpoint} for {self.patience_s:g} s"
            raise NodeGone(text, "is the node running? see: run_node.py stats")
        return now - self._pinged_at >= PING_S

    def silent_s(self, now: float) -> float:
        """For how long the node has left a question unanswered; 0.0 when it has not."""
        return 0.0 if self._asked_at is None else now - self._asked_at

    def ping(self, now: float) -> None:
        """Ask for a sign of life, in the next frame."""
        self._pinged_at = now
        if self._asked_at is None:
            self._asked_at = now
        self.post({"type": "Ping"})

    def wait(self, timeout_s: float) -> None:
        """Return when something has arrived, or after ``timeout_s``."""
        assert self._wire is not None
        self._wire.wait(max(0.0, timeout_s))

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _send(self, frame: bytes, data: Held | None = None) -> None:
        assert self._wire is not None
        self._wire.send([frame] if data is None else [frame, data])

    def _decoded(self, head: Any) -> list[Message]:
        try:
            messages = msgpack.unpackb(head)
            if all([isinstance(message["type"], str) for message in messages]):  # noqa: C419 - a generator costs more
                return list(messages)
        except (ValueError, TypeError, KeyError):
            pass  # said below, as one line
        raise NodeGone(f"{self.endpoint} does not speak this protocol", "give the endpoint that the node printed")


def frames(messages: list[Message]) -> list[bytes]:
    """Messages packed in order into as few frames of at most 64 KiB as they need.

    Raises ValueError when one message alone is longer, UnicodeEncodeError when a text is not Unicode.
    """
    made: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for message in messages:
        packed = _packer.pack(message)
        if len(packed) + 5 > MAX_FRAME_BYTES:
            raise ValueError(f"a {message['type']} of {len(packed)} bytes is longer than a frame ({MAX_FRAME_BYTES})")
        if batch and size + len(packed) + 5 > MAX_FRAME_BYTES:
            made.append(_list(batch))
            batch, size = [], 0
        batch.append(packed)
        size += len(packed)
    return [*made, _list(batch)] if batch else made


def _list(packed: list[bytes]) -> bytes:
    return b"".join([_packer.pack_array_header(len(packed)), *packed])
