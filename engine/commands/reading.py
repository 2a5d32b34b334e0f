"""Reading ahead: a thread of its own decodes the files, from before the node is ready, so that the node never waits.

What is read and not yet taken is bounded in bytes. The thread knows nothing of the node: how long an utterance may be
is checked when it is taken, against what the node has said.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from engine import media
from engine.commands.inputs import Utterance
from engine.media import MediaError, TooLong

AHEAD_BYTES = 64 * 2**20

Found = str | np.ndarray | MediaError  # a text, int16 samples at 16 kHz, or why there are none


class ReadAhead:
    """A context manager that gives each utterance with what was read of it, in order."""

    def __init__(self, work: Iterable[Utterance], ahead_bytes: int = AHEAD_BYTES) -> None:
        self._work = work
        self._bound = ahead_bytes
        self._found: deque[tuple[Utterance, Found]] = deque()
        self._bytes = 0
        self._done = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="reading", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[Utterance, Found]]:
        """Raises what the work itself raised (a text file that cannot be read)."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._found or self._done)
                if not self._found:
                    break
                utterance, found = self._found.popleft()
                self._bytes -= _size(found)
                self._changed.notify_all()
            yield utterance, found
        if self._failure is not None:
            raise self._failure

    def nothing_but_errors(self) -> list[MediaError]:
        """Why there is nothing to submit at all, a reason each utterance; [] as soon as one is good.

        To be asked before anything is taken. Errors take no room, so the reader never waits before the first good one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._has_good())
            return [] if self._has_good() else [what for _, what in self._found if isinstance(what, MediaError)]

    def _has_good(self) -> bool:
        return any(not isinstance(what, MediaError) for _, what in self._found)

    def _read(self) -> None:
        try:
            for utterance in self._work:
                if not self._put(utterance, read(utterance)):
                    return
        except BaseException as error:  # told to who takes from here
            self._failure = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _put(self, utterance: Utterance, found: Found) -> bool:
        """Wait for room; False when nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._has_room(found))
            if self._done:
                return False
            self._found.append((utterance, found))
            self._bytes += _size(found)
            self._changed.notify_all()
            return True

    def _has_room(self, found: Found) -> bool:
        """One that is larger than the bound alone passes when nothing else of any size waits."""
        return not self._bytes or self._bytes + _size(found) <= self._bound


def read(utterance: Utterance) -> Found:
    """What there is to submit of one utterance."""
    if utterance.text is not None:
        return utterance.text
    try:
        return media.read(utterance.path, media.LONGEST_S).samples
    except MediaError as error:
        return error


def within(found: Found, utterance: Utterance, max_s: float) -> Found:
    """The same, or TooLong when the sound is longer than ``max_s``."""
    if isinstance(found, TooLong):
        return TooLong(utterance.path.name, found.seconds, max_s)
    if isinstance(found, np.ndarray) and len(found) > max_s * media.RATE_HZ:
        return TooLong(utterance.path.name, len(found) / media.RATE_HZ, max_s)
    return found


def _size(found: Found) -> int:
    return found.nbytes if isinstance(found, np.ndarray) else 0
