"""The operators' socket: one ``Ask`` a frame, one ``Answer`` back. Operators are not clients and have no session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ipc.door import Door
from ipc.errors import DragomanError, PeerGone
from ipc.messages import Answer, Ask, encode

MAX_ASK_BYTES = 65_536


class Operators:
    """Answers operators by ``verbs``: name -> function from the question's arguments to the answer's data."""

    def __init__(self, endpoint: str, verbs: Mapping[str, Callable[[dict[str, str]], dict[str, Any]]]) -> None:
        self._verbs = verbs
        self.door = Door([endpoint], MAX_ASK_BYTES)  # to poll

    def answer(self) -> None:
        """Answer everything that has arrived. An envelope (REQ sockets have one) is given back as it came."""
        for asker, frames in self.door.drain():
            *envelope, body = frames or [b""]
            try:
                self.door.send_frames(asker, [*envelope, encode(self._answer(body))])
            except PeerGone:
                continue  # who asked has left
        self.door.lost()

    def _answer(self, body: bytes) -> Answer:
        try:
            ask = msgspec.msgpack.decode(body, type=Ask)
        except (msgspec.MsgspecError, ValueError) as error:
            return Answer(False, error=f"not a question of an operator: {error}")
        if ask.verb not in self._verbs:
            return Answer(False, error=f"no verb {ask.verb!r}; there are {', '.join(self._verbs)}")
        try:
            return Answer(True, self._verbs[ask.verb](ask.args))
        except DragomanError as error:
            return Answer(False, error=str(error))

    def close(self) -> None:
        self.door.close()
