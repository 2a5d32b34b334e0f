"""The client's end of the wire: frames out, frames in, and how long the node has been silent.

A frame is a msgpack list of messages of at most 64 KiB, followed by the samples of its one ``Submit`` or ``Outcome``.
Sends never block and no routing id is set: libzmq chooses one for each connection, and reconnects in silence. A new
node knows nobody until spoken to, hence the ``Ping`` every half second while something is outstanding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

from engine.outcome import NodeGone

MAX_FRAME_BYTES = 64 * 1024
PING_S = 0.5
HIGH_WATER = 20_000  # frames; far above every window, so that a refused send means there is no node
LINGER_MS = 500  # last acknowledgements at close
Message = dict[str, Any]


class Link:
    """One connection to a node. ``patience_s``: how long a node may leave a question unanswered."""

    def __init__(self, endpoint: str, patience_s: float) -> None:
        self.endpoint = endpoint
        self.patience_s = patience_s
        self._posted: list[Message] = []
        self._pinged_at = float("-inf")
        self._asked_at: float | None = None  # of the oldest question since the node's last word
        self._socket: zmq.Socket | None = None
        self._poller = zmq.Poller()

    def start(self) -> None:
        """Connect (in silence: whether a node is there shows when it answers)."""
        socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket = socket
        self._poller.register(socket, zmq.POLLIN)
        socket.sndhwm = socket.rcvhwm = HIGH_WATER
        socket.linger = LINGER_MS
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self.close()
            text = f"cannot connect to {self.endpoint!r} ({error.strerror})"
            raise NodeGone(text, "an endpoint reads ipc://PATH or tcp://HOST:PORT") from error

    def post(self, *messages: Message) -> None:
        """Put messages into the next frame."""
        self._posted += messages

    def flush(self, submit: Message | None = None, data: bytes | None = None) -> None:
        """Send what was posted, and ``submit`` with its samples behind it. Raises NodeGone."""
        posted, self._posted = self._posted, []
        *earlier, last = frames([*posted, submit] if submit else posted) or [b""]
        for frame in earlier:
            self._send([frame])
        if last:
            self._send([last] if data is None else [last, data])

    def drain(self) -> Iterator[tuple[Message, Any]]:
        """Every message that has arrived, with the samples that belong to it (or None). Raises NodeGone."""
        assert self._socket is not None
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            head = self._socket.recv(zmq.DONTWAIT)
            rest = self._socket.recv_multipart(zmq.DONTWAIT, copy=False) if self._socket.rcvmore else []
            self._asked_at = None
            for message in self._decoded(head):
                carries = message["type"] == "Outcome" and message.get("nbytes", 0)
                yield message, rest[0].buffer if carries and rest else None

    def beat(self, now: float, outstanding: bool) -> bool:
        """Whether it is time to ping; raises NodeGone when the node has been silent for too long."""
        if self._asked_at is not None and now - self._asked_at > self.patience_s:
            self._asked_at = None  # who calls again waits again
            text = f"no answer from {self.endpoint} for {self.patience_s:g} s"
            raise NodeGone(text, "is the node running? see: run_node.py stats")
        if not outstanding or now - self._pinged_at < PING_S:
            return False
        self._pinged_at = now
        if self._asked_at is None:
            self._asked_at = now
        return True

    def wait(self, timeout_s: float) -> None:
        """Return when something has arrived, or after ``timeout_s``."""
        self._poller.poll(max(0, int(timeout_s * 1000 + 0.999)))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, parts: list[bytes]) -> None:
        assert self._socket is not None
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT, copy=False)
        except zmq.Again as error:
            raise NodeGone(f"{self.endpoint} takes nothing any more", "is the node running?") from error

    def _decoded(self, head: Any) -> list[Message]:
        try:
            messages = msgpack.unpackb(head)
            if all(isinstance(message["type"], str) for message in messages):
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
        packed = msgpack.packb(message)
        if len(packed) + 5 > MAX_FRAME_BYTES:
            raise ValueError(f"a {message['type']} of {len(packed)} bytes is longer than a frame ({MAX_FRAME_BYTES})")
        if batch and size + len(packed) + 5 > MAX_FRAME_BYTES:
            made.append(_list(batch))
            batch, size = [], 0
        batch.append(packed)
        size += len(packed)
    return [*made, _list(batch)] if batch else made


def _list(packed: list[bytes]) -> bytes:
    header = msgpack.Packer().pack_array_header(len(packed))
    return b"".join([header, *packed])
