"""Client frames: what does not decode is answered by name, nothing is evaluated, and neighbours still count."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gateway.wire import Letter, read
from ipc.messages import MAX_CONTROL_BYTES, Accepted, Outcome, Ping, Rejected, Skip, Submit

PING = {"type": "Ping"}


def one(*batch: object, payload: bytes | None = None) -> list:
    frames = [msgpack.packb(list(batch))] + ([payload] if payload is not None else [])
    return list(read(frames)[0])


@pytest.mark.parametrize("index", [-0.0, 1.0, float("nan"), True, None, "1", 2**63, -1, [1], -(2**63)])
def test_an_index_that_is_no_index_is_bad_index(index: object) -> None:
    answers = one({"type": "Skip", "session": "s", "index": index})
    if isinstance(answers[0], Skip):  # whole numbers out of range decode; the session refuses them by its window
        assert isinstance(index, int) and not 0 <= index < 2**63
    else:
        assert (answers[0].code, answers[0].session) == ("bad_index", "s")


def test_a_missing_index_is_bad_index() -> None:
    assert one({"type": "Submit", "session": "s", "text": "x"})[0].code == "bad_index"


@pytest.mark.parametrize(
    "message",
    [
        {"type": "Submit", "session": "s", "index": 3, "nbytes": "many"},
        {"type": "Submit", "session": "s", "index": 3, "surprise": 1},
        {"type": "Submit", "session": "s", "index": 3, "text": 5},
    ],
)
def test_a_wrong_field_is_bad_message_and_names_the_utterance(message: dict) -> None:
    (rejected,) = one(message)
    assert (rejected.code, rejected.session, rejected.index) == ("bad_message", "s", 3)


def test_an_unknown_type_is_unsupported_with_what_is_known() -> None:
    (rejected,) = one({"type": "Dance", "session": "s", "tag": "t"})
    assert rejected.code == "unsupported" and "Submit" in rejected.accepted and len(rejected.accepted) == 9


def test_neighbours_of_a_bad_message_still_count() -> None:
    answers = one(PING, {"type": "Ping", "x": 1}, 5, None, PING)
    assert [type(a) for a in answers] == [Ping, Rejected, Rejected, Rejected, Ping]


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x90\x90", b"\xdd\xff\xff\xff\xff", b"\x91" * 60_000, b"\x80" * 65_000, b"\xc7\x01\x05x",
     msgpack.packb({"type": "Ping"}), b"\x91\x81\xa4type\xa2\xff\xfe", b"GET / HTTP/1.1\r\n\r\n",
     b"\xdc\xff\xff" + b"\x80" * 65_000, b"cos\nsystem\n(S'touch /tmp/x'\ntR."],
)  # fmt: skip
def test_garbage_is_one_or_more_refusals_and_never_an_exception(frame: bytes) -> None:
    answers, payload = read([frame])
    assert answers and all(isinstance(a, Rejected) for a in answers) and payload is None


def test_frames_of_the_wrong_number_or_size_are_refused() -> None:
    good = msgpack.packb([PING])
    for frames in ([good, b"", b""], [], [good + bytes(MAX_CONTROL_BYTES)]):
        answers, _ = read(frames)
        assert [a.code for a in answers] == ["bad_message"]


def test_samples_need_one_owner() -> None:
    audio = {"type": "Submit", "session": "s", "index": 0, "dtype": "s16le", "nbytes": 2}
    assert [type(a) for a in one(audio, payload=b"xx")] == [Submit]
    assert [type(a) for a in one(audio | {"text": "t"}, audio, payload=b"xx")] == [Submit, Submit]
    assert [a.code for a in one(audio, audio | {"index": 1}, payload=b"xx")] == ["bad_message"] * 2
    answers = one(PING, payload=b"xx")
    assert isinstance(answers[0], Ping) and answers[1].code == "bad_message"


@given(st.binary(max_size=400))
def test_any_bytes_are_answered(frame: bytes) -> None:
    answers, _ = read([frame])
    assert all(isinstance(a, msgspec.Struct) for a in answers)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
                    | st.binary(max_size=5),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["type", "session", "index", "text", "tag"]) | st.text(max_size=3), inner,
                        max_size=4), max_leaves=12))  # fmt: skip
def test_any_value_is_answered(value: object) -> None:
    answers, _ = read([msgpack.packb(value, unicode_errors="surrogatepass")])
    assert all(isinstance(a, msgspec.Struct) for a in answers)


def test_frames_to_a_client_are_few_small_and_carry_one_array_each() -> None:
    letter = Letter()
    for index in range(3):
        letter.add(Accepted("s", index), None)
    letter.add(Outcome("s", 0, "ok", nbytes=1), b"x")
    letter.add(Accepted("s", 4), None)
    letter.add(Outcome("s", 1, "ok", nbytes=1), b"y")
    letter.add(Outcome("s", 2, "ok", texts={"asr": "z" * 60_000}), None)
    letter.add(Outcome("s", 3, "ok", texts={"asr": "z" * 60_000}), None)
    shown = [([m["type"] + str(m["index"]) for m in msgpack.unpackb(head)], (*samples, None)[0])
             for head, *samples in letter.parts()]  # fmt: skip
    assert shown == [
        (["Accepted0", "Accepted1", "Accepted2", "Outcome0", "Accepted4"], b"x"),
        (["Outcome1", "Outcome2"], b"y"),
        (["Outcome3"], None),
    ]
    assert all(len(head) <= MAX_CONTROL_BYTES for head, *_ in letter.parts())
