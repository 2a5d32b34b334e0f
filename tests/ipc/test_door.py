"""The door: frames of anybody's ZeroMQ come in and go out, on Unix sockets and TCP; nothing is lost."""

from __future__ import annotations

import socket
import time

import msgpack
import pytest
import zmq
from linked import WAIT_S, arrivals, first

from ipc import door as doors
from ipc import messages, zmtp
from ipc.door import Door
from ipc.errors import PeerGone
from ipc.poll import Poll


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request, tmp_path):
    if request.param == "ipc":
        return f"ipc://{tmp_path}/door"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def local(tmp_path):
    return f"ipc://{tmp_path}/local"


@pytest.fixture
def opened():
    """Registers what the test opens, and closes it."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in things:
        thing.close()


@pytest.fixture
def connect():
    """Clients of libzmq."""
    sockets = []

    def made(endpoint):
        client = zmq.Context.instance().socket(zmq.DEALER)
        client.connect(endpoint)
        sockets.append(client)
        return client

    yield made
    for client in sockets:
        client.close(linger=0)


def test_messages_and_samples_travel_both_ways(endpoint, opened, connect):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    client = connect(endpoint)
    for samples in (b"samples", bytes(range(256)) * 1000):
        client.send_multipart([msgpack.packb([{"type": "Ping"}]), samples])
        who, frames = first(door)
        assert [bytes(frame) for frame in frames] == [msgpack.packb([{"type": "Ping"}]), samples]
        door.send(who, [messages.Pong(4)], samples[::-1])
        assert client.poll(WAIT_S * 1000)
        head, payload = client.recv_multipart()
        assert (msgpack.unpackb(head), payload) == ([{"type": "Pong", "incarnation": 4}], samples[::-1])


def test_a_message_beyond_the_limit_does_not_reach_the_process(endpoint, opened, connect):
    door = opened(Door([endpoint], max_bytes=1000))
    connect(endpoint).send(b"x" * 2000)
    assert arrivals(door, 0.2) == []
    connect(endpoint).send(b"x" * 900)
    assert bytes(first(door)[1][0]) == b"x" * 900


def test_the_door_gives_other_work_a_turn_and_keeps_what_is_left(endpoint, opened, connect):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    clients = [connect(endpoint) for _ in range(2)]
    for n in range(10):
        clients[n % 2].send(b"%d" % n)
    got: dict[bytes, list[bytes]] = {}
    poll = Poll()
    poll.add(door)
    while sum(map(len, got.values())) < 10:
        assert poll.wait(WAIT_S), "what was left for the next turn does not wake it"
        taken = list(door.drain(limit=3))
        assert len(taken) <= 3
        for who, frames in taken:
            got.setdefault(who, []).append(bytes(frames[0]))
    assert sorted(got.values()) == [[b"0", b"2", b"4", b"6", b"8"], [b"1", b"3", b"5", b"7", b"9"]]


def test_who_stops_reading_the_door_in_the_middle_loses_nothing(endpoint, opened, connect):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    client = connect(endpoint)
    poll = Poll()
    poll.add(door)
    for n in range(20):
        client.send(b"%d" % n)
    got = []
    while len(got) < 20:
        assert poll.wait(WAIT_S)
        for _, frames in door.drain():
            got.append(bytes(frames[0]))
            break
    assert got == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize("name", [b"nobody", b"@nobody", b"\0abcd"])
def test_a_client_that_is_not_there_is_gone(endpoint, opened, name):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    with pytest.raises(PeerGone):
        door.send(name, [messages.Pong(1)])


def test_both_kinds_of_endpoint_at_once(tmp_path, opened, connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        far = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    near = f"ipc://{tmp_path}/door"
    door = opened(Door([near, far], max_bytes=1 << 20))
    for endpoint in (near, far, near):
        client = connect(endpoint)
        client.send(endpoint.encode())
        who, frames = first(door)
        assert bytes(frames[0]) == endpoint.encode()
        door.send(who, [messages.Pong(2)])
        assert client.poll(WAIT_S * 1000)


def test_an_endpoint_in_use_is_an_error_that_leaves_nothing_open(endpoint, opened):
    if endpoint.startswith("ipc"):
        endpoint = "ipc:///no/such/folder/door"
    else:
        opened(Door([endpoint], max_bytes=1000))
    with pytest.raises((OSError, zmq.ZMQError)):
        Door([endpoint], max_bytes=1000)


# ---------------------------------------------------------------- local clients


def test_the_death_of_a_local_client_is_told_after_its_last_words(local, opened, connect):
    door = opened(Door([local], max_bytes=1 << 20))
    client = connect(local)
    poll = Poll()
    poll.add(door)
    for n in range(3):
        client.send(b"%d" % n)
    client.close(linger=1000)
    heard, lost, end = [], [], time.monotonic() + WAIT_S
    while not lost:
        assert time.monotonic() < end
        poll.wait(0.1)
        heard += [frames[0] for _, frames in door.drain(limit=1)]
        lost = door.lost()
    assert heard == [b"0", b"1", b"2"] and len(lost) == 1
    with pytest.raises(PeerGone):
        door.send(lost[0], [messages.Pong(1)])
    assert door.lost() == []


def test_a_local_client_that_never_reads_is_gone_when_its_budget_is_full(local, opened):
    door = opened(Door([local], max_bytes=1 << 20, max_unsent=300_000))
    client = opened(raw(local))
    client.sendall(zmtp.header(2) + b"hi")
    who, _ = first(door)
    sent = 0
    with pytest.raises(PeerGone):
        while sent < 1000:
            door.send_frames(who, [b"head", bytes(100_000)])
            sent += 1
    assert 2 < sent < 200  # the budget, and what the kernel keeps


def test_a_slow_local_client_gets_everything_in_order_in_the_end(local, opened):
    door = opened(Door([local], max_bytes=1 << 20))
    client = opened(raw(local))
    client.sendall(zmtp.header(2) + b"hi")
    who, _ = first(door)
    for n in range(30):
        door.send_frames(who, [b"%d" % n, bytes([n]) * 100_000])
    poll = Poll()
    poll.add(door)
    incoming, got, end = zmtp.Incoming(1 << 20), [], time.monotonic() + WAIT_S
    client.settimeout(0.01)
    while len(got) < 30:
        assert time.monotonic() < end
        poll.wait(0.001)
        list(door.drain())
        try:
            room = incoming.room()
            got += incoming.filled(client.recv_into(room)) if room else incoming.feed(client.recv(30_000))
        except TimeoutError:
            continue
    assert [(bytes(a), bytes(b[:1]), len(b)) for a, b in got] == [(b"%d" % n, bytes([n]), 100_000) for n in range(30)]


def raw(endpoint: str) -> socket.socket:
    """A client by hand, past the greeting."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(endpoint.removeprefix("ipc://"))
    client.sendall(zmtp.opening("DEALER"))
    return client


@pytest.mark.parametrize("data", [b"GET / HTTP/1.0\r\n\r\n" * 10, zmtp.GREETING + b"\0\5hello", bytes(1000)])
def test_who_speaks_another_language_is_cut_off_and_the_others_stay(local, opened, connect, data):
    door = opened(Door([local], max_bytes=1 << 20))
    stranger = opened(socket.socket(socket.AF_UNIX))
    stranger.connect(local.removeprefix("ipc://"))
    stranger.sendall(data)
    client = connect(local)
    client.send(b"hello")
    assert bytes(first(door)[1][0]) == b"hello"
    arrivals(door, 0.05)
    assert door.bad_frames == 1
    stranger.settimeout(WAIT_S)
    rest = stranger.recv(1000)
    while rest:  # our own greeting comes first
        try:
            rest = stranger.recv(1000)
        except ConnectionResetError:
            break


def test_half_a_message_costs_what_has_come_of_it_and_no_answer(local, opened, connect):
    door = opened(Door([local], max_bytes=1 << 20))
    slow = opened(raw(local))
    slow.sendall(zmtp.header(100_000) + b"x" * 10)
    client = connect(local)
    client.send(b"meanwhile")
    assert bytes(first(door)[1][0]) == b"meanwhile"
    slow.sendall(b"x" * 99_990)
    assert bytes(first(door)[1][0]) == b"x" * 100_000


def test_more_connections_than_there_is_room_for_are_turned_away(local, opened, connect, monkeypatch):
    monkeypatch.setattr(doors, "MOST_CONNECTIONS", 3)
    door = opened(Door([local], max_bytes=1 << 20))
    held = [opened(raw(local)) for _ in range(3)]
    for one in held:
        one.sendall(zmtp.header(2) + b"hi")
    assert len(arrivals(door) + arrivals(door, 0.05)) == 3
    late = opened(socket.socket(socket.AF_UNIX))
    late.connect(local.removeprefix("ipc://"))
    late.settimeout(WAIT_S)
    arrivals(door, 0.05)
    assert late.recv(10) == b"", "the fourth is let in"
    held[0].close()
    arrivals(door, 0.05)
    connect(local).send(b"now")
    assert bytes(first(door)[1][0]) == b"now"
