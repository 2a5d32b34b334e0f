"""Named errors of the transport, and the codes that travel in messages.

Codes are plain strings on the wire; the sets here are what the tests and ``docs/protocol.md`` list.
"""

from __future__ import annotations


class DragomanError(Exception):
    """Base of every error that is told to a user in one line; ``mend`` is the command or change that cures it."""

    def __init__(self, text: str, mend: str = "") -> None:
        super().__init__(f"{text}; {mend}" if mend else text)
        self.text = text
        self.mend = mend


class ConfigError(DragomanError):
    """The configuration cannot be used (exit code 78)."""


class UsageError(DragomanError):
    """The command line asks for something that cannot be (exit code 2)."""


class MemoryTooSmall(DragomanError):
    """A ring or budget cannot hold what the configuration asks of it."""


class PeerGone(Exception):
    """A send found no such peer, or no room above every window: the peer is gone."""

    def __init__(self, peer: bytes | str) -> None:
        super().__init__(f"peer {peer!r} is gone")
        self.peer = peer


class BadFrame(Exception):
    """A frame that is not what the protocol says; ``raw`` may help the log."""


class IllegalMove(Exception):
    """A state machine was asked for a move its table does not have; nothing was changed."""


class StaleData(Exception):
    """A slot does not carry the generation its reference names: the reader must not use it."""


# An accepted utterance ends in exactly one of these classes.
OUTCOMES = ("ok", "error", "skipped")

ERROR_CODES = frozenset(
    {"expired", "failed", "poison", "no_vram", "output_too_long", "bad_output", "bad_text", "bad_language",
     "shutting_down"}
)  # fmt: skip
SKIPPED_CODES = frozenset({"gap", "cancelled"})

# What was never accepted is answered with one of these (``Rejected.code``) or with ``Busy``.
REJECTED_CODES = frozenset(
    {"index_conflict", "bad_index", "too_late", "empty_audio", "bad_audio_format", "bad_audio", "audio_too_long",
     "bad_text", "text_too_long", "bad_language", "bad_pipeline", "bad_model", "bad_priority", "bad_session",
     "bad_message", "unsupported", "too_many_sessions"}
)  # fmt: skip
BUSY_REASONS = frozenset({"capacity", "memory", "held_back", "shutting_down"})
CLOSED_REASONS = frozenset({"drained", "aborted", "taken_over", "detached", "slow_consumer", "shutting_down"})
