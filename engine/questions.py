"""Questions to a driver that may never answer: each in a thread of its own, since a call that hangs cannot be ended."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")
Told = queue.SimpleQueue[tuple[Any, Any, Exception | None]]

_unanswered: dict[tuple[Any, Any], threading.Thread] = {}  # (driver, key of the question) -> who waits for it


def answers(
    driver: Hashable, questions: Mapping[Key, Callable[[], Answer]], limit_s: float, refusal: type[Exception]
) -> tuple[dict[Key, Answer], dict[Key, str]]:
    """The answers, and of the others why there is none: they came to a ``refusal``, or to nothing.

    ``limit_s`` is for all together. A question, by its key, that this driver owes an answer to already is not asked.
    Raises what else a question came to.
    """
    told: Told = queue.SimpleQueue()
    found: dict[Key, Answer] = {}
    silent = dict.fromkeys(questions, f"the driver has not answered for {limit_s:g} s")
    asked = [key for key in questions if not _is_waited_for(driver, key)]
    for key in asked:
        thread = threading.Thread(target=_ask, args=(key, questions[key], told), name="question", daemon=True)
        _unanswered[driver, key] = thread
        thread.start()
    until = monotonic() + limit_s
    for _ in asked:
        try:
            key, answer, error = told.get(timeout=max(0.0, until - monotonic()))
        except queue.Empty:
            break
        del _unanswered[driver, key]
        if error is None:
            found[key] = answer
            del silent[key]
        elif isinstance(error, refusal):
            silent[key] = str(error)
        else:
            raise error
    return found, silent


def is_busy(driver: Hashable) -> bool:
    """Whether this driver owes an answer."""
    return any(_is_waited_for(*one) for one in list(_unanswered) if one[0] == driver)


def _is_waited_for(driver: Hashable, key: Hashable) -> bool:
    return (driver, key) in _unanswered and _unanswered[driver, key].is_alive()


def _ask(key: Any, question: Callable[[], Any], told: Told) -> None:
    try:
        told.put((key, question(), None))
    except Exception as error:  # for who waits to raise
        told.put((key, None, error))
