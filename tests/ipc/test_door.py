"""The door: frames of anybody's ZeroMQ come in and go out, on Unix sockets and TCP; nothing is lost."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

import msgpack
import pytest
import zmq
from linked import WAIT_S, arrivals, first

from ipc import door as doors
from ipc import messages, streams, zmtp
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


# ---------------------------------------------------------------- strangers


def pump(door, poll, seconds=0.05):
    """Turn the door's loop for a while; everything that came."""
    end, found = time.monotonic() + seconds, []
    while time.monotonic() < end:
        poll.wait(0.01)
        found += door.drain()
    return found


@pytest.fixture
def watched(local, opened):
    """Makes a door and the poll that watches it."""

    def made(**options):
        door, poll = opened(Door([local], **{"max_bytes": 1 << 20, **options})), Poll()
        poll.add(door)
        return door, poll

    return made


def test_a_flood_of_connections_is_let_in_a_few_at_a_time(watched, local, opened):
    door, poll = watched()
    for _ in range(100):
        opened(raw(local))
    poll.wait(WAIT_S)
    list(door.drain(limit=1))
    assert 0 < len(door._streams) <= streams.ACCEPTED_AT_ONCE
    pump(door, poll, 0.3)
    assert len(door._streams) == 100


def test_without_a_descriptor_for_one_more_it_is_turned_away_and_the_door_goes_on(watched, local, opened, connect):
    door, poll = watched()
    (listener,) = door._listeners
    real, refused = listener._sock, []

    class Full:
        def accept(self):
            if not refused:
                refused.append(True)
                raise OSError(errno.EMFILE, "too many open files")
            return real.accept()

        def __getattr__(self, name):
            return getattr(real, name)

    listener._sock = Full()
    late = opened(raw(local))
    pump(door, poll)
    late.settimeout(WAIT_S)
    with pytest.raises(ConnectionResetError):  # it had spoken already
        late.recv(10)
    assert refused and door._streams == {}
    connect(local).send(b"after")
    assert bytes(pump(door, poll, 0.3)[0][1][0]) == b"after"


def test_who_connects_and_says_nothing_is_shown_out(watched, local, opened):
    door, poll = watched(timeout_ms=50)
    silent = opened(socket.socket(socket.AF_UNIX))
    silent.connect(local.removeprefix("ipc://"))
    talker = opened(raw(local))
    talker.sendall(zmtp.header(2) + b"hi")
    assert len(pump(door, poll, 0.2)) == 1
    assert len(door._streams) == 1, "the silent one is still there, or the other one is not"


def test_silent_ones_take_nobody_s_place(watched, local, opened, connect, monkeypatch):
    monkeypatch.setattr(doors, "MOST_UNGREETED", 3)
    door, poll = watched()
    for _ in range(10):
        silent = opened(socket.socket(socket.AF_UNIX))
        silent.connect(local.removeprefix("ipc://"))
        pump(door, poll, 0.02)
    assert len(door._streams) == 3
    connect(local).send(b"hello")
    assert bytes(pump(door, poll, 0.3)[0][1][0]) == b"hello"


def test_a_promise_of_a_large_message_costs_little_and_is_given_back(watched, local, opened):
    door, poll = watched(max_bytes=15 << 20)
    left = door._budget.left
    clients = [opened(raw(local)) for _ in range(10)]
    for client in clients:
        client.sendall(zmtp.header(15 << 20) + b"x")
    pump(door, poll, 0.1)
    assert left - door._budget.left == 10  # what has come
    for client in clients:
        client.close()
    pump(door, poll, 0.1)
    assert door._budget.left == left


@pytest.mark.parametrize("flags", [0, zmtp.MORE])
def test_all_incomplete_messages_together_are_bounded(watched, local, opened, connect, monkeypatch, flags):
    monkeypatch.setattr(doors, "INCOMPLETE_BYTES", 400_000)
    door, poll = watched(max_bytes=100_000)
    for _ in range(6):
        client = opened(raw(local))
        client.sendall(zmtp.header(50_000, zmtp.MORE) + bytes(50_000) + zmtp.header(45_000, flags) + bytes(44_999))
        pump(door, poll, 0.05)
    assert door.bad_frames == 2 and len(door._streams) == 4
    connect(local).send(b"small")
    assert bytes(pump(door, poll, 0.3)[0][1][0]) == b"small"


def test_who_stops_listening_but_stays_costs_nothing(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    client.sendall(zmtp.header(2) + b"hi")
    ((who, _),) = pump(door, poll)
    door.send_frames(who, [bytes(9 << 20)])
    client.shutdown(socket.SHUT_RD)
    pump(door, poll, 0.1)
    turns, end = 0, time.monotonic() + 0.1
    while time.monotonic() < end:
        poll.wait(0.02)
        list(door.drain())
        turns += 1
    assert turns < 20, "the door spins"
    client.sendall(zmtp.header(4) + b"more")
    assert [bytes(frames[0]) for _, frames in pump(door, poll)] == [b"more"]


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    with pytest.raises(OSError, match="something else"):
        Door([f"ipc://{precious}"], 1000)
    assert precious.read_text() == "precious"


def test_pings_that_nobody_reads_the_answers_of_cost_nothing(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    ping = zmtp.header(7, zmtp.COMMAND) + b"\x04PING\0\0"
    client.sendall(zmtp.header(2) + b"hi")
    pump(door, poll)
    ((_, stream),) = door._streams.items()
    door.send_frames(next(iter(door._streams)), [bytes(8 << 20)])  # more than the kernel takes
    before = stream.unsent_bytes
    for _ in range(20):
        client.sendall(ping * 2000)
        pump(door, poll, 0.02)
    client.sendall(zmtp.header(5) + b"still")
    assert [bytes(frames[0]) for _, frames in pump(door, poll, 0.1)] == [b"still"]
    assert stream.unsent_bytes <= before


def test_many_pings_at_once_are_answered_and_what_came_with_them_counts(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    client.sendall((zmtp.header(7, zmtp.COMMAND) + b"\x04PING\0\0") * 3000 + zmtp.header(2) + b"hi")
    assert [bytes(frames[0]) for _, frames in pump(door, poll, 0.2)] == [b"hi"]
    client.settimeout(WAIT_S)
    assert b"\x04PONG" in client.recv(100_000)


def test_half_a_message_in_one_direction_does_not_stop_the_other(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    client.sendall(zmtp.header(2) + b"hi")
    ((who, _),) = pump(door, poll)
    payload = bytes(9 << 20)
    door.send_frames(who, [payload])
    client.sendall(zmtp.header(200_000) + b"x" * 100_000)  # and no more
    client.settimeout(0.01)
    got, end = 0, time.monotonic() + WAIT_S
    while got < len(payload):
        assert time.monotonic() < end, f"{got} bytes came"
        pump(door, poll, 0.001)
        try:
            got += len(client.recv(1 << 20))
        except TimeoutError:
            continue
    turns, end = 0, time.monotonic() + 0.1
    while time.monotonic() < end:
        poll.wait(0.02)
        list(door.drain())
        turns += 1
    assert turns < 20, "the door spins"


def test_last_words_count_even_when_there_is_nobody_left_to_answer(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    for word in (b"one", b"two", b"three"):
        client.sendall(zmtp.header(len(word)) + word)
    client.close()  # with answers unread
    heard, end = [], time.monotonic() + WAIT_S
    while not (lost := door.lost()):
        assert time.monotonic() < end
        poll.wait(0.05)
        for who, frames in door.drain(limit=1):
            heard.append(bytes(frames[0]))
            door.send(who, [messages.Pong(1)])  # nobody hears it, and that is no error
    assert heard == [b"one", b"two", b"three"] and len(lost) == 1


def test_a_closing_door_waits_for_all_together_not_for_each(local, opened):
    door, poll = Door([local], 1 << 20), Poll()
    poll.add(door)
    for _ in range(8):
        opened(raw(local)).sendall(zmtp.header(2) + b"hi")
    for who, _ in pump(door, poll, 0.2):
        door.send_frames(who, [bytes(9 << 20)])
    began = time.monotonic()
    door.close(linger_ms=100)
    assert time.monotonic() - began < 0.6


def test_a_closing_door_lets_last_words_out(watched, local, opened):
    door, poll = watched()
    client = opened(raw(local))
    client.sendall(zmtp.header(2) + b"hi")
    ((who, _),) = pump(door, poll)
    door.send_frames(who, [bytes(9 << 20)])
    reader = threading.Thread(target=lambda: got.append(read_all(client)))
    got: list[int] = []
    reader.start()
    door.close(linger_ms=5000)
    reader.join(10)
    assert got[0] > 9 << 20


def read_all(client: socket.socket) -> int:
    client.settimeout(WAIT_S)
    count = 0
    while data := client.recv(1 << 20):
        count += len(data)
    return count


def test_two_doors_at_one_place_are_an_error_and_the_first_stays(watched, local, connect):
    door, poll = watched()
    with pytest.raises(OSError, match="in use"):
        Door([local], 1000)
    connect(local).send(b"hello")
    assert bytes(pump(door, poll, 0.3)[0][1][0]) == b"hello"


def test_a_door_that_closes_leaves_its_successor_s_place_alone(local, opened):
    first = Door([local], 1000)
    path = local.removeprefix("ipc://")
    os.unlink(path)
    opened(Door([local], 1000))
    first.close()
    assert os.path.exists(path)
