"""A session over the protocol alone: a socket, an ``Open``, and what is heard. What its client says is the bench's own.

So a bench can be a client that the library would not let it be: one that keeps to no share, or comes back too soon.
"""

from __future__ import annotations

from typing import Any

import msgpack
import zmq

from stages.simulated import mark_samples

RATE_HZ = 16_000


class PlainSession:
    """Opens a session of the pipeline "full" at once. ``id`` is "" until it is open. ``samples``: of each utterance.

    ``opening``: fields of ``Open`` besides.
    """

    def __init__(self, endpoint: str, tag: str, samples: int, **opening: Any) -> None:
        self.id = ""
        self.window = 0
        self._samples = mark_samples(11, samples).tobytes()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._send({"type": "Hello", "version": 1}, {"type": "Open", "tag": tag, "pipeline": "full", **opening})

    def heard(self) -> list[dict[str, Any]]:
        """The messages that have come, but for ``Opened``."""
        found = []
        while self._socket.poll(0):
            head, *_ = self._socket.recv_multipart()
            for message in msgpack.unpackb(head):
                if message["type"] == "Opened":
                    self.id, self.window = message["session"], message["window"]
                else:
                    found.append(message)
        return found

    def submit(self, index: int, **fields: Any) -> None:
        """An utterance of int16 samples; ``fields`` of ``Submit`` besides."""
        known = {"index": index, "dtype": "s16le", "sample_rate": RATE_HZ, "nbytes": len(self._samples)}
        self._send({"type": "Submit", "session": self.id, **known, **fields}, samples=self._samples)

    def say(self, kind: str, **fields: Any) -> None:
        """Any other message about this session."""
        self._send({"type": kind, "session": self.id, **fields})

    def close(self) -> None:
        """What has not ended is cancelled."""
        self.say("Close", mode="abort")
        self._socket.close(linger=100)

    def _send(self, *messages: dict[str, Any], samples: bytes | None = None) -> None:
        self._socket.send_multipart([msgpack.packb(messages), *([samples] if samples is not None else [])])
