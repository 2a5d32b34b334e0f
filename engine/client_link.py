"""The client's end of the wire: frames out, frames in, and how long the node has been silent.

A frame is a msgpack list of messages of at most 64 KiB, followed by the samples of its one ``Submit`` or ``Outcome``.
Sends never block and no routing id is set: libzmq chooses one for each connection, and reconnects in silence. A new
node knows nobody until spoken to, hence the ``Ping`` every half second while something is outstanding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgpack
import zmq
from zmq.backend import Socket as _Compiled
from zmq.backend import zmq_poll

from engine.outcome import NodeGone

MAX_FRAME_BYTES = 64 * 1024
PING_S = 0.5
HIGH_WATER = 20_000  # frames; far above every window, so that a refused send means there is no node
LOCAL_BUFFER_BYTES = 2**20  # on this machine an utterance of some seconds goes out at once
LINGER_MS = 500  # last acknowledgements at close
Message = dict[str, Any]
Held = zmq.Frame  # samples on their way; its length is in bytes
_NOW, _MORE, _IN = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.POLLIN)
_send = _Compiled.send  # what zmq.Socket adds around it is Python, and dearer than the message
_packer = msgpack.Packer()  # each has a buffer of 256 KiB


def hold(samples: Any) -> Held:
    """Copy an array's bytes, once: they can be sent and sent again without another copy, whatever becomes of it."""
    return Held(samples, copy=True)


class Link:
    """One connection to a node. ``patience_s``: how long a node may leave a question unanswered."""

    def __init__(self, endpoint: str, patience_s: float) -> None:
        self.endpoint = endpoint
        self.patience_s = patience_s
        self._posted: list[Message] = []
        self._pinged_at = float("-inf")
        self._asked_at: float | None = None  # of the oldest question since the node's last word
        self._socket: zmq.Socket | None = None
        self._asked: list[tuple[zmq.Socket, int]] = []
        self._head: zmq.Frame | None = None  # first part of what ended the last wait
        self._patience_ms = -1  # the socket's time-out

    def start(self) -> None:
        """Connect (in silence: whether a node is there shows when it answers)."""
        socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket = socket
        self._asked = [(socket, _IN)]
        socket.sndhwm = socket.rcvhwm = HIGH_WATER
        socket.linger = LINGER_MS
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if self.endpoint.startswith("ipc:"):
            socket.sndbuf = LOCAL_BUFFER_BYTES
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self.close()
            text = f"cannot connect to {self.endpoint!r} ({error.strerror})"
            raise NodeGone(text, "an endpoint reads ipc://PATH or tcp://HOST:PORT") from error

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
        assert self._socket is not None
        head, self._head = self._head, None
        if head is not None:  # what else came with it ends the next wait at once
            yield from self._opened(head)
            return
        while zmq_poll(self._asked, 0):
            yield from self._opened(self._socket.recv(_NOW, False))

    def _opened(self, head: zmq.Frame) -> Iterator[tuple[Message, Any]]:
        payload: zmq.Frame | None = None
        part = head
        while part.more:
            part = self._socket.recv(_NOW, False)  # type: ignore[union-attr]
            payload = part if payload is None else payload
        self._asked_at = None
        for message in self._decoded(head):
            carries = message["type"] == "Outcome" and message.get("nbytes", 0)
            yield message, payload.buffer if carries and payload is not None else None

    def ping_due(self, now: float) -> bool:
        """Whether it is time to ask for a sign of life; raises NodeGone when the node has been silent for too long."""
        if self._asked_at is not None and now - self._asked_at > self.patience_s:
            self._asked_at = None  # who calls again waits again
            text = f"no answer from {self.endpoint} for {self.patience_s:g} s"
            raise NodeGone(text, "is the node running? see: run_node.py stats")
        return now - self._pinged_at >= PING_S

    def ping(self, now: float) -> None:
        """Ask for a sign of life, in the next frame."""
        self._pinged_at = now
        if self._asked_at is None:
            self._asked_at = now
        self.post({"type": "Ping"})

    def wait(self, timeout_s: float) -> None:
        """Return when something has arrived, or after ``timeout_s``. A receive that waits costs less than a poll."""
        assert self._socket is not None
        timeout_ms = max(0, int(timeout_s * 1000 + 0.999))
        if timeout_ms != self._patience_ms:
            self._patience_ms = timeout_ms
            self._socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
        with suppress(zmq.Again):
            self._head = self._socket.recv(0, False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, frame: bytes, data: Held | None = None) -> None:
        assert self._socket is not None
        try:
            if data is None:
                _send(self._socket, frame, _NOW)
            else:
                _send(self._socket, frame, _MORE)
                _send(self._socket, data, _NOW)
        except zmq.Again as error:
            raise NodeGone(f"{self.endpoint} takes nothing any more", "is the node running?") from error

    def _decoded(self, head: Any) -> list[Message]:
        try:
            messages = msgpack.unpackb(head.buffer)
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
