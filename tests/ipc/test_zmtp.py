"""ZMTP: however the bytes are cut, the same messages come out; libzmq understands ours and we understand libzmq's."""

from __future__ import annotations

import socket

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from ipc import zmtp
from ipc.errors import BadFrame

LIMIT = 2**20
BODIES = st.one_of(
    st.binary(max_size=600),
    st.sampled_from([bytes(255), bytes(256), bytes(zmtp.LARGE_BYTES - 1), bytes(range(256)) * 200, b"x" * 100_000]),
)
MESSAGES = st.lists(st.lists(BODIES, min_size=1, max_size=3), max_size=4)


def wire(messages: list[list[bytes]]) -> bytes:
    return zmtp.opening("DEALER", "a#1") + b"".join(b"".join(zmtp.pieces(m)) for m in messages)


def take(incoming: zmtp.Incoming, data: bytes) -> list[list[bytes]]:
    """Give ``data`` the way a stream does: into ``room()`` while there is one."""
    found: list = []
    while data:
        room = incoming.room()
        if room is None:
            found += incoming.feed(data)
            data = b""
        else:
            part = data[: len(room)]
            room[: len(part)] = part
            found += incoming.filled(len(part))
            data = data[len(part) :]
    return [[bytes(body) for body in parts] for parts in found]


@given(MESSAGES, st.lists(st.integers(1, 70_000), max_size=30))
def test_however_the_bytes_are_cut_the_same_messages_come_out(messages, cuts):
    data, incoming, found = wire(messages), zmtp.Incoming(LIMIT), []
    for size in cuts:
        found += take(incoming, data[:size])
        data = data[size:]
    found += take(incoming, data)
    assert found == messages
    assert incoming.identity == b"a#1"


def test_byte_by_byte():
    messages = [[b"one"], [b"head", b"y" * 40_000], [b""]]
    incoming, found = zmtp.Incoming(LIMIT), []
    for byte in wire(messages):
        found += take(incoming, bytes([byte]))
    assert found == messages and incoming.at_ease


def test_a_large_body_is_received_where_it_stays():
    incoming = zmtp.Incoming(LIMIT)
    incoming.feed(zmtp.opening("DEALER"))
    head, _body = zmtp.pieces([b"z" * 100_000])
    assert incoming.feed(head + b"z" * 10) == []
    room = incoming.room()
    assert room is not None and len(room) == 99_990
    room[:] = b"z" * 99_990
    ((body,),) = incoming.filled(99_990)
    assert isinstance(body, memoryview) and bytes(body) == b"z" * 100_000 and incoming.room() is None


OPENED = zmtp.opening("DEALER")


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", zmtp.GREETING.replace(b"NULL", b"PLAI"), zmtp.GREETING[:10] + b"\x02" + zmtp.GREETING[11:],
     zmtp.GREETING + zmtp.header(3) + b"abc", zmtp.GREETING + zmtp.header(4, zmtp.COMMAND) + b"\x03BAD",
     zmtp.GREETING + zmtp.header(9, zmtp.COMMAND) + b"\x05READY\x09So", OPENED + zmtp.header(LIMIT + 1),
     OPENED + zmtp.header(2**63), OPENED + b"".join(zmtp.header(0, zmtp.MORE) for _ in range(zmtp.MAX_PARTS + 1)),
     OPENED + zmtp.header(LIMIT, zmtp.MORE) + bytes(LIMIT) + zmtp.header(1) + b"x",
     OPENED + zmtp.header(zmtp.MAX_READY_BYTES + 1, zmtp.COMMAND)],
    ids=["not ZMTP", "another mechanism", "ZMTP 2", "a message before READY", "another command first",
         "READY cut short", "too long", "a length of 2**63", "frames without end", "too long in sum",
         "a command too long"],
)  # fmt: skip
def test_what_is_not_the_protocol_is_a_bad_frame_before_it_costs_memory(data):
    incoming = zmtp.Incoming(LIMIT)
    with pytest.raises(BadFrame):
        take(incoming, data + bytes(64))


@given(st.binary(max_size=300))
def test_rubbish_is_a_bad_frame_or_incomplete_and_nothing_else(data):
    for start in (b"", zmtp.GREETING, OPENED):
        incoming = zmtp.Incoming(LIMIT)
        try:
            take(incoming, start + data)
        except BadFrame:
            pass


def test_a_ping_is_answered_with_its_context():
    incoming = zmtp.Incoming(LIMIT)
    incoming.feed(OPENED)
    ping = b"\x04PING\x00\x0acontext"
    assert incoming.feed(zmtp.header(len(ping), zmtp.COMMAND) + ping) == []
    assert incoming.answers == [zmtp.header(12, zmtp.COMMAND) + b"\x04PONGcontext"]


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER])
def test_libzmq_takes_our_opening_and_messages_and_we_take_its(tmp_path, kind):
    """The other end is libzmq itself, heartbeats on."""
    with zmq.Context() as context, context.socket(kind) as theirs, socket.socket(socket.AF_UNIX) as ours:
        theirs.linger = 0
        theirs.setsockopt(zmq.HEARTBEAT_IVL, 20)
        theirs.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        theirs.bind(f"ipc://{tmp_path}/s")
        ours.settimeout(5.0)
        ours.connect(f"{tmp_path}/s")
        ours.sendall(zmtp.opening("DEALER", "me#7"))
        incoming, found, pinged = zmtp.Incoming(LIMIT), [], 0
        while incoming.identity is None:  # libzmq wants its own READY read before any message
            incoming.feed(ours.recv(4096))
        for piece in zmtp.pieces([b"head", b"x" * 300, b"y" * 100_000]):
            ours.sendall(piece)
        assert theirs.poll(5000)
        *named, head, middle, large = theirs.recv_multipart()
        assert named == ([b"me#7"] if kind == zmq.ROUTER else [])
        assert (head, middle, large) == (b"head", b"x" * 300, b"y" * 100_000)
        theirs.send_multipart([*named, b"back", b"z" * 200_000])
        while not found or pinged < 2:  # its heartbeats go on as long as we answer
            room = incoming.room()
            if room is not None:
                found += incoming.filled(ours.recv_into(room))
            else:
                found += incoming.feed(ours.recv(4096))
            for answer in incoming.answers:
                ours.sendall(answer)
                pinged += 1
            incoming.answers = []
        assert [bytes(body) for body in found[0]] == [b"back", b"z" * 200_000]
        assert incoming.identity is not None
