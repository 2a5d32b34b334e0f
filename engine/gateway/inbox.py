"""Clients' frames on their way into the core: some messages of one client's, then of the next one's. Pure.

A frame may hold more than two thousand messages, and a turn of the gateway's loop ends in between, so that the
supervisor, the scheduler and other clients are heard. What is left of a frame goes on in the next turn; nothing else of
its client comes before it.
"""

from __future__ import annotations

from collections import deque

from engine.gateway.events import Arrived

PART = 16  # messages of one client, and then it is the next one's turn
MOST = 16  # frames here; then nobody is read until one of them is through


class Inbox:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._frames: dict[bytes, deque[Arrived]] = {}  # by client, whose turn it is first
        self._count = 0

    def __len__(self) -> int:
        """Frames of which something is left."""
        return self._count

    @property
    def is_full(self) -> bool:
        return self._count >= MOST

    def put(self, frame: Arrived) -> None:
        """A frame has come; it stands behind those of its client."""
        self._frames.setdefault(frame.client, deque()).append(frame)
        self._count += 1

    def take(self) -> Arrived:
        """The next messages to be handled, at most ``PART``, with their frame's samples. Raises IndexError: none."""
        if not self._frames:
            raise IndexError("no frame is here")
        client = next(iter(self._frames))
        frames = self._frames.pop(client)
        frame = frames.popleft()
        part, rest = frame.messages[:PART], frame.messages[PART:]
        if rest:
            frames.appendleft(Arrived(client, rest, frame.payload))
        else:
            self._count -= 1
        if frames:
            self._frames[client] = frames
        return Arrived(client, part, frame.payload)

    def check(self) -> None:
        """Invariant: frames are counted, and no client is here without one."""
        assert self._count == sum(len(frames) for frames in self._frames.values())
        assert all(self._frames.values())
