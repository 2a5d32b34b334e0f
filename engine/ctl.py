"""Asking a running node: one ``Ask`` to its operators' socket, one ``Answer`` back."""

from __future__ import annotations

from typing import Any

import msgspec
import zmq

from ipc.door import context
from ipc.errors import DragomanError
from ipc.messages import Answer, Ask, encode

TIMEOUT_S = 5.0


def ask(endpoint: str, verb: str, *, timeout_s: float = TIMEOUT_S, **args: str) -> dict[str, Any]:
    """The data of the answer. Raises DragomanError when the node does not answer in time or refuses."""
    socket = context().socket(zmq.DEALER)
    socket.linger = 0
    try:
        socket.connect(endpoint)
        socket.send(encode(Ask(verb, args)))
        if not socket.poll(round(timeout_s * 1000)):
            raise DragomanError(f"the node at {endpoint} did not answer within {timeout_s:g} s", "is it running?")
        answer = msgspec.msgpack.decode(socket.recv(), type=Answer)
    finally:
        socket.close()
    if not answer.ok:
        raise DragomanError(answer.error)
    return answer.data
