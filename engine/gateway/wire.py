"""Client frames: bytes to messages, and messages to frames of a bounded size.

A frame is decoded once, by type. Only when that fails is it taken apart message by message, so that one bad message is
answered by name and its neighbours still count. Nothing here trusts anything: sizes are checked before decoding, and a
decoder with types in hand refuses a bomb before it is built. What a bad frame costs is bounded: so many messages, and
so many answers by name, then one for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args

import msgspec

from ipc import messages
from ipc.messages import MAX_CONTROL_BYTES, ClientMessage, Rejected, Submit

MAX_INDEX = 2**63 - 1
MAX_MESSAGES = 2500  # of a frame; more than 64 KiB can hold of any message about a session
MAX_REFUSED = 16  # messages of a frame that are answered by name
CLIENT_TYPES = tuple(kind.__name__ for kind in get_args(ClientMessage))
INDEXED_TYPES = frozenset({"Submit", "Skip", "Cancel"})
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)

_Bounded = msgspec.Meta(max_length=MAX_MESSAGES)
_decode_all = msgspec.msgpack.Decoder(Annotated[list[ClientMessage], _Bounded]).decode
_decode_one = msgspec.msgpack.Decoder(ClientMessage).decode
_decode_parts = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], _Bounded]).decode
_decode_int = msgspec.msgpack.Decoder(int).decode


class _Head(msgspec.Struct):
    """What can be read of a message that does not decode."""

    type: str = ""
    session: str = ""
    tag: str = ""
    index: msgspec.Raw = msgspec.Raw(b"\xc0")


_decode_head = msgspec.msgpack.Decoder(_Head).decode


def read(frames: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
    """Messages and samples of one arrival; a ``Rejected`` stands in the place of each message that is refused."""
    if not 1 <= len(frames) <= 2:
        return (_refuse(f"{len(frames)} frames came; a frame of messages and at most one of samples is taken"),), None
    payload = frames[1] if len(frames) == 2 else None
    if len(frames[0]) > MAX_CONTROL_BYTES:
        return (_refuse(f"a frame of messages may have {MAX_CONTROL_BYTES} bytes, {len(frames[0])} came"),), None
    try:
        decoded: list[Any] = _decode_all(frames[0])
    except _DECODE_ERRORS:
        decoded = list(_one_by_one(frames[0]))
    return _with_one_owner(decoded, payload)


def _with_one_owner(decoded: list[Any], payload: bytes | None) -> tuple[tuple[Any, ...], bytes | None]:
    """The samples belong to the one audio ``Submit`` of the frame."""
    owners = [at for at, message in enumerate(decoded) if type(message) is Submit and message.text is None]
    if len(owners) > 1:
        for at in owners:
            message = decoded[at]
            decoded[at] = _refuse("at most one Submit of a frame carries audio", message.session, message.index)
        return tuple(decoded), None
    if payload is not None and not owners:
        if not any(type(message) is Rejected for message in decoded):  # else one of those was their owner
            decoded.append(_refuse("samples came without a Submit that they belong to"))
        return tuple(decoded), None
    return tuple(decoded), payload


def _one_by_one(frame: bytes) -> Iterator[Any]:
    try:
        parts = _decode_parts(frame)
    except _DECODE_ERRORS as error:
        yield _refuse(f"the first frame is not a list of messages: {error}")
        return
    refused = 0
    for at, part in enumerate(parts):
        if refused == MAX_REFUSED:
            yield _refuse(f"{refused} messages of this frame are refused; the other {len(parts) - at} are not read")
            return
        try:
            yield _decode_one(part)
        except _DECODE_ERRORS as error:
            refused += 1
            yield _explain(part, str(error))


def _explain(part: msgspec.Raw, error: str) -> Rejected:
    try:
        head = _decode_head(part)
    except _DECODE_ERRORS:
        return _refuse(f"not a message: {error}")
    if head.type not in CLIENT_TYPES:
        return Rejected(
            "unsupported", f"type {head.type[:32]!r} is not known", head.session[:128], tag=head.tag[:64],
            accepted=CLIENT_TYPES,
        )  # fmt: skip
    index = _index_of(head.index)
    if index is None and head.type in INDEXED_TYPES:
        return Rejected("bad_index", f"index must be a whole number from 0 to {MAX_INDEX}", head.session[:128])
    return Rejected("bad_message", f"{head.type}: {error}", head.session[:128], index, head.tag[:64])


def _index_of(raw: msgspec.Raw) -> int | None:
    try:
        index = _decode_int(raw)
    except _DECODE_ERRORS:
        return None
    return index if 0 <= index <= MAX_INDEX else None


def _refuse(text: str, session: str = "", index: int | None = None) -> Rejected:
    return Rejected("bad_message", text, session, index)


NO_MEMORY = (_refuse("the node has no memory for this frame; nothing of it is taken"),)


class Letter:
    """Frames for one client being put together: as few as possible, each with at most one array."""

    def __init__(self) -> None:
        self.frames: list[tuple[list[bytes], Any]] = []  # packed messages, samples
        self._room = 0

    def add(self, message: Any, payload: Any) -> None:
        """Append a message, in the newest frame if it has room."""
        packed = messages.encode(message)
        if len(packed) > self._room or (payload is not None and self.frames[-1][1] is not None):
            self.frames.append(([], None))
            self._room = MAX_CONTROL_BYTES - 8
        batch = self.frames[-1][0]
        batch.append(packed)
        self._room -= len(packed)
        if payload is not None:
            self.frames[-1] = (batch, payload)

    def parts(self) -> Iterator[list[Any]]:
        """What to send, one arrival after another: a list of messages, and samples if there are any."""
        for batch, payload in self.frames:
            head = b"".join([_list_head(len(batch)), *batch])
            yield [head] if payload is None else [head, payload]


def _list_head(count: int) -> bytes:
    """How a msgpack list of so many entries begins."""
    return bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
