"""Links: one frame a peer and turn, who speaks is known, rubbish is dropped and counted, a gone peer is an error."""

from __future__ import annotations

import os
import select
import threading
import time

import msgpack
import pytest
import zmq

from ipc import messages, sockets
from ipc.errors import PeerGone
from ipc.sockets import Dealer, Door, Poll, Router

WAIT_S = 5.0


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/link"


@pytest.fixture
def opened():
    """Registers what the test opens, and closes it."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in things:
        thing.close()


@pytest.fixture
def link(endpoint, opened):
    """A supervisor's Router and an arbiter's Dealer that has said hello."""
    router = opened(Router(endpoint, 1, messages.ToSupervisor))
    dealer = opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends))
    dealer.send([messages.Alive("started")])
    assert first(router)[0] == "arbiter#7"
    return router, dealer


def arrivals(thing, timeout_s=WAIT_S):
    """What comes first within ``timeout_s``; an empty list if nothing does. A wake-up may be for nothing."""
    poll = Poll()
    poll.add(thing)
    end = time.monotonic() + timeout_s
    while not (found := list(thing.drain())) and (left := end - time.monotonic()) > 0:
        poll.wait(left)
    return found + list(thing.drain())  # what ends a wait may have been taken alone


def first(thing):
    """The next arrival; fails instead of waiting for ever."""
    return arrivals(thing)[0]


def signalled(thing):
    """Wait until libzmq has signalled ``thing``'s descriptor, without looking at the socket."""
    assert select.select([thing.socket.getsockopt(zmq.FD)], [], [], WAIT_S)[0]


def test_a_turns_messages_travel_as_one_frame_in_the_order_posted(link):
    router, dealer = link
    for n in range(5):
        dealer.post(messages.Report({"n": n}))
    dealer.flush()
    peer, _, batch = first(router)
    assert peer == "arbiter#7"
    assert [message.snapshot["n"] for message in batch] == list(range(5))
    assert list(router.drain()) == []


def test_nothing_posted_sends_nothing(link):
    router, dealer = link
    dealer.flush()
    assert router.flush() == []
    assert arrivals(router, 0.05) == []


def test_a_message_is_sent_once(link):
    router, dealer = link
    router.post("arbiter#7", messages.Serve())
    dealer.post(messages.Drained())
    for _ in range(2):
        router.flush()
        dealer.flush()
    for end, message in ((router, messages.Drained()), (dealer, messages.Serve())):
        came = arrivals(end) + arrivals(end, 0.05)
        assert [batch for _, _, batch in came] == [[message]]


def test_answers_go_to_the_peer_they_name_with_incarnation_and_epoch(link):
    router, dealer = link
    router.epoch = 3
    router.post("arbiter#7", messages.Stop())
    assert router.flush() == []
    assert first(dealer) == (1, 3, [messages.Stop()])


def test_a_frame_is_plain_msgpack_that_anybody_can_read(endpoint, opened):
    raw = zmq.Context.instance().socket(zmq.ROUTER)
    raw.bind(endpoint)
    dealer = opened(Dealer(endpoint, "tts@cpu/0", 2, messages.ToWorker))
    dealer.epoch = 9
    dealer.send([messages.Here(state="loaded", model="m")])
    assert raw.poll(WAIT_S * 1000)
    name, frame = raw.recv_multipart()
    raw.close(linger=0)
    assert name == b"tts@cpu/0#2"
    assert msgpack.unpackb(frame) == [2, 9, [{"type": "Here", "state": "loaded", "model": "m"}]]


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", msgpack.packb([7, 0]), msgpack.packb([7, 0, [{"type": "Nonsense"}]]),
     msgpack.packb([7, 0, [{"type": "Report", "snapshot": 5}]]), msgpack.packb([99, 0, []])],
    ids=["empty", "not msgpack", "too short", "unknown type", "wrong shape", "somebody else's incarnation"],
)  # fmt: skip
def test_rubbish_is_counted_and_dropped_and_the_link_goes_on(link, frame):
    router, dealer = link
    dealer.socket.send(frame)
    dealer.send([messages.Drained()])
    assert first(router)[2] == [messages.Drained()]
    assert router.bad_frames == 1


def test_rubbish_from_the_bound_end_is_dropped_too(link):
    router, dealer = link
    router.socket.send_multipart([b"arbiter#7", b"\xc1"])
    router.send("arbiter#7", [messages.Serve()])
    assert first(dealer) == (1, 0, [messages.Serve()])
    assert dealer.bad_frames == 1


def test_a_peer_that_never_was_is_gone(link):
    router, _ = link
    with pytest.raises(PeerGone):
        router.send("gateway#1", [messages.Stop()])


def test_flush_names_the_gone_and_still_serves_the_others(link):
    router, dealer = link
    router.post("gateway#1", messages.Stop())
    router.post("arbiter#7", messages.Serve())
    assert router.flush() == ["gateway#1"]
    assert first(dealer)[2] == [messages.Serve()]


def test_a_former_life_does_not_hear_what_is_meant_for_the_present_one(link, endpoint, opened):
    router, old = link
    new = opened(Dealer(endpoint, "arbiter", 8, messages.SupervisorSends))
    new.send([messages.Alive("started")])
    assert first(router)[0] == "arbiter#8"
    router.send("arbiter#8", [messages.Stop()])
    assert first(new)[2] == [messages.Stop()]
    assert arrivals(old, 0.05) == []


def test_whoever_connects_before_the_other_end_is_bound_is_heard(endpoint, opened):
    dealer = opened(Dealer(endpoint, "gateway", 1, messages.SupervisorSends))
    dealer.send([messages.Alive("started")])
    router = opened(Router(endpoint, 1, messages.ToSupervisor))
    assert first(router)[2] == [messages.Alive("started")]


def test_a_frame_beyond_the_limit_does_not_reach_the_process(endpoint, opened):
    door = opened(Door([endpoint], max_bytes=1000))
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.connect(endpoint)
    client.send(b"x" * 2000)
    assert arrivals(door, 0.2) == []
    client.close(linger=0)


def test_the_door_carries_messages_and_samples_both_ways(endpoint, opened):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.connect(endpoint)
    client.send_multipart([msgpack.packb([{"type": "Ping"}]), b"samples"])
    who, frames = first(door)
    assert frames == [msgpack.packb([{"type": "Ping"}]), b"samples"]
    door.send(who, [messages.Pong(4)], b"back")
    assert client.poll(WAIT_S * 1000)
    head, payload = client.recv_multipart()
    assert (msgpack.unpackb(head), payload) == ([{"type": "Pong", "incarnation": 4}], b"back")
    client.close(linger=0)


def test_the_door_gives_other_work_a_turn(endpoint, opened):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.connect(endpoint)
    for n in range(10):
        client.send(b"%d" % n)
    got = []
    poll = Poll()
    poll.add(door)
    while len(got) < 10:
        assert poll.wait(WAIT_S), "what was left for the next turn does not wake it"
        taken = [frames[0] for _, frames in door.drain(limit=3)]
        assert len(taken) <= 3
        got += taken
    assert got == [b"%d" % n for n in range(10)]
    client.close(linger=0)


def test_a_client_that_is_not_there_is_gone(endpoint, opened):
    door = opened(Door([endpoint], max_bytes=1 << 20))
    with pytest.raises(PeerGone):
        door.send(b"nobody", [messages.Pong(1)])


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_poll_waits_on_links_and_descriptors_together(link, pipe):
    router, dealer = link
    poll = Poll()
    poll.add(router)
    poll.add(pipe[0])
    os.write(pipe[1], b"x")
    assert pipe[0] in poll.wait(WAIT_S)
    dealer.send([messages.Drained()])
    signalled(router)
    assert poll.wait(WAIT_S) == {router.socket, pipe[0]}
    assert first(router)[2] == [messages.Drained()]
    poll.remove(pipe[0])
    assert poll.wait(0.01) == set()


def test_a_removed_link_wakes_nobody(link):
    router, dealer = link
    poll = Poll()
    poll.add(router)
    poll.remove(router)
    dealer.send([messages.Drained()])
    signalled(router)
    assert poll.wait(0.01) == set()


def test_a_message_that_came_while_we_were_sending_is_not_overslept(link):
    router, dealer = link
    poll = Poll()
    poll.add(router)
    poll.wait(0)
    dealer.send([messages.Drained()])
    signalled(router)
    router.send("arbiter#7", [messages.Serve()])  # libzmq takes the signal while it sends
    assert router.socket in poll.wait(WAIT_S)
    assert first(router)[2] == [messages.Drained()]


def test_a_message_that_was_there_before_poll_looked_is_not_overslept(link):
    router, dealer = link
    dealer.send([messages.Drained()])
    signalled(router)
    router.socket.getsockopt(zmq.EVENTS)  # takes the signal
    poll = Poll()
    poll.add(router)
    assert router.socket in poll.wait(WAIT_S)


def test_thousands_of_turns_lose_no_wake_up(endpoint, opened):
    """Both ends post, flush, wait and drain as the processes do; a lost wake-up stops the exchange."""
    rounds, lost = 2000, threading.Event()
    router = opened(Router(endpoint, 1, messages.ToSupervisor))

    def worker():
        dealer = Dealer(endpoint, "w", 1, messages.SupervisorSends)
        poll = Poll()
        poll.add(dealer)
        answered = 0
        dealer.send([messages.Drained()])
        while answered < rounds:
            if not poll.wait(WAIT_S):
                lost.set()
                break
            for _, _, batch in dealer.drain():
                for _ in batch:
                    answered += 1
                    dealer.post(messages.Drained())
            dealer.flush()
        dealer.close()

    thread = threading.Thread(target=worker)
    thread.start()
    poll = Poll()
    poll.add(router)
    while thread.is_alive():
        poll.wait(0.2)
        for peer, _, batch in router.drain():
            for _ in batch:
                router.post(peer, messages.Serve())
        router.flush()
    thread.join()
    assert not lost.is_set()


@pytest.mark.parametrize("role", ["arbiter", "asr@cpu/0", "tts@cuda:1/3"])
def test_a_peers_name_tells_role_and_incarnation(role):
    assert sockets.split_peer(sockets.peer_name(role, 12)) == (role, 12)
