"""Every message means the same to plain msgpack as to the node, and the unions have a place for each."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import messages
from ipc.messages import Answer, Ask, ClientMessage, NodeMessage, Report

VECTORS = Path(__file__).parents[2].parent / "shared" / "assets" / "vectors" / "msgpack-test-suite.json"
UNIONS = {
    name: getattr(messages, name)
    for name in ("ClientMessage", "NodeMessage", "SupervisorSends", "ToSupervisor", "ToScheduler", "ToGateway",
                 "ToWorker", "ToArbiter", "ArbiterToWorker")
}  # fmt: skip
PLAIN = {
    str: st.text(max_size=20),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    dict: st.dictionaries(st.text(max_size=5), st.none() | st.integers(0, 2**32) | st.text(max_size=5), max_size=3),
}


def members(union: object) -> tuple[type, ...]:
    return get_args(union) or (union,)  # type: ignore[return-value]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation, as far as messages use them."""
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is type(None):
        return st.none()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.deferred(lambda: examples(kind))
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of([values(one) for one in of])
    if origin is tuple and of[-1] is Ellipsis:
        return st.lists(values(of[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[values(one) for one in of])
    if origin is dict:
        return st.dictionaries(values(of[0]), values(of[1]), max_size=3)
    raise NotImplementedError(kind)


def examples(kind: type) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})


ALL = sorted({kind for union in UNIONS.values() for kind in members(union)} | {Ask, Answer}, key=lambda k: k.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip_through_plain_msgpack(kind: type, data: st.DataObject) -> None:
    message = data.draw(examples(kind))
    plain = msgpack.unpackb(messages.encode(message), strict_map_key=False)
    assert plain["type"] == kind.__name__
    again = msgpack.packb(plain)
    assert msgspec.msgpack.decode(again, type=kind) == message
    for union in UNIONS.values():
        if kind in members(union):
            assert messages.list_decoder(union).decode(msgpack.packb([plain])) == [message]
            assert messages.frame_decoder(union).decode(msgpack.packb([3, 4, [plain]])) == (3, 4, [message])


def test_every_message_has_a_receiver() -> None:
    """A message that no union names could be written and never be read."""
    written = {
        kind for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, (messages._Wire, messages._Strict))
        and kind not in (messages._Wire, messages._Strict)
    }  # fmt: skip
    assert written == set(ALL)


def test_a_message_is_a_flat_map_and_leaves_defaults_out() -> None:
    """What a client in another language sees: a map with ``type``, and nothing that is at its default."""
    raw = messages.encode([messages.Submit("s", 3, text="hi"), messages.Ping()])
    assert msgpack.unpackb(raw) == [{"type": "Submit", "session": "s", "index": 3, "text": "hi"}, {"type": "Ping"}]


@pytest.mark.parametrize("kind", members(ClientMessage), ids=lambda kind: kind.__name__)
def test_fields_nobody_knows_are_errors_from_outside_and_ignored_from_inside(kind: type) -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.list_decoder(ClientMessage).decode(msgpack.packb([{"type": kind.__name__, "surprise": 1}]))
    messages.list_decoder(NodeMessage).decode(msgpack.packb([{"type": "Pong", "incarnation": 1, "surprise": 1}]))


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "Submit", "session": "s", "index": 1.5},
        {"type": "Submit", "session": "s", "index": True},
        {"type": "Submit", "session": "s", "index": "1"},
        {"type": "Submit", "session": 1, "index": 1},
        {"type": "Submit", "index": 1},
        {"type": "Submit", "session": "s", "index": 1, "skip": "asr"},
        {"type": "Open", "tag": None},
        {"type": "Outcome", "session": "s", "index": 1, "outcome": "ok"},
        {"no": "type"},
        "Ping",
        ["Ping"],
        None,
    ],
)
def test_a_wrong_shape_is_an_error_by_name(bad: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.list_decoder(ClientMessage).decode(msgpack.packb([bad]))


def test_reports_carry_any_plain_map() -> None:
    report = Report({"a": {"b": [1, 2.5, None, "x"]}})
    assert msgspec.msgpack.decode(messages.encode(report), type=Report) == report


def test_a_frame_of_one_side_is_not_readable_as_the_other() -> None:
    raw = messages.encode([messages.Ping()])
    with pytest.raises(msgspec.ValidationError):
        messages.list_decoder(NodeMessage).decode(raw)


# ---------------------------------------------------------------- vectors made elsewhere


def foreign() -> list[tuple[str, bytes]]:
    """(suite, encoding). No message carries a timestamp, and the libraries round its nanoseconds differently."""
    suites = json.loads(VECTORS.read_text())
    return [
        (suite, bytes.fromhex(encoding.replace("-", "")))
        for suite, cases in suites.items() if "timestamp" not in suite
        for case in cases for encoding in case["msgpack"]
    ]  # fmt: skip


@pytest.mark.skipif(not VECTORS.exists(), reason="the msgpack test suite is not beside this checkout")
def test_foreign_encodings_mean_the_same_to_both_libraries() -> None:
    cases = foreign()
    assert len(cases) > 200
    for suite, raw in cases:
        ours, theirs = _plain(msgspec.msgpack.decode(raw)), _plain(msgpack.unpackb(raw, strict_map_key=False))
        assert (type(ours), ours) == (type(theirs), theirs), (suite, raw.hex())


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.msgpack.Ext):
        return ("ext", value.code, bytes(value.data))
    if isinstance(value, msgpack.ExtType):
        return ("ext", value.code, value.data)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
