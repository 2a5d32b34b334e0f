"""Links: one frame a peer and turn, who speaks is known, rubbish is dropped and counted, a gone peer is an error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import msgpack
import pytest
import zmq
from linked import WAIT_S, arrivals, first, meet

from ipc import messages, peers, sockets, zmtp
from ipc.errors import PeerGone
from ipc.poll import Poll
from ipc.sockets import Dealer, Router


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/link"


@pytest.fixture
def link(endpoint, opened):
    """A supervisor's Router and an arbiter's Dealer that has said hello."""
    router = opened(Router(endpoint, 1, messages.ToSupervisor))
    dealer = meet(router, opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends)))
    dealer.send([messages.Alive("started")])
    assert first(router)[0] == "arbiter#7"
    return router, dealer


def test_a_turns_messages_travel_as_one_frame_in_the_order_posted(link):
    router, dealer = link
    for n in range(5):
        dealer.post(messages.Report({"n": n}))
    dealer.flush()
    peer, _, batch = first(router)
    assert peer == "arbiter#7"
    assert [message.snapshot["n"] for message in batch] == list(range(5))
    assert arrivals(router, 0.05) == []


def test_nothing_posted_sends_nothing(link):
    router, dealer = link
    dealer.flush()
    assert router.flush() == []
    assert arrivals(router, 0.05) == []


@pytest.mark.parametrize("size", [1_000, 32_768, 65_500, 65_536, 70_000, 200_000, 3_000_000])
def test_frames_of_any_length_arrive_whole_and_what_follows_them_too(link, size):
    """What a new gateway is told is longer than one read takes."""
    router, dealer = link
    word = "x" * size
    for n in range(3):
        router.send("arbiter#7", [messages.Up(word, n)])
        dealer.send([messages.Alive(word), messages.Alive(str(n))])
    poll, end = Poll(), time.monotonic() + WAIT_S
    poll.add(router)
    poll.add(dealer)
    got, heard = [], []
    while len(got) < 3 or len(heard) < 3:
        assert time.monotonic() < end
        poll.wait(0.1)  # whoever could not send all of it sends the rest meanwhile
        got += [message for _, _, batch in dealer.drain() for message in batch]
        heard += [batch for _, _, batch in router.drain()]
    assert [(message.role == word, message.incarnation) for message in got] == [(True, n) for n in range(3)]
    assert [(batch[0].phase == word, batch[1].phase) for batch in heard] == [(True, str(n)) for n in range(3)]
    assert router.bad_frames == dealer.bad_frames == 0


def test_very_many_messages_travel_in_several_frames_in_the_order_posted(link):
    router, dealer = link
    for n in range(1000):
        dealer.post(messages.Report({"n": n}))
    dealer.flush()
    got = []
    while len(got) < 1000:
        got += [message.snapshot["n"] for _, _, batch in arrivals(router) for message in batch]
    assert got == list(range(1000))


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


@pytest.mark.parametrize("n", [1, 100, 300, 70_000])
def test_a_frame_is_plain_msgpack_that_any_zeromq_program_can_read(endpoint, opened, n):
    raw = zmq.Context.instance().socket(zmq.ROUTER)
    raw.bind(endpoint)
    dealer = opened(Dealer(endpoint, "tts@cpu/0", 2, messages.ToWorker))
    dealer.epoch = 9
    dealer.send([messages.Here(state="loaded", reason="m" * n)])  # kept until libzmq has greeted
    assert arrivals(dealer, 0.2) == []
    assert raw.poll(WAIT_S * 1000)
    name, frame = raw.recv_multipart()
    assert name == b"tts@cpu/0#2"
    assert msgpack.unpackb(frame) == [2, 9, [{"type": "Here", "state": "loaded", "reason": "m" * n}]]
    raw.send_multipart([name, msgpack.packb([1, 9, [{"type": "Park"}]])])
    assert first(dealer) == (1, 9, [messages.Park()])
    raw.close(linger=0)


def test_any_zeromq_program_can_be_a_peer(endpoint, opened):
    router = opened(Router(endpoint, 1, messages.ToSupervisor))
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.setsockopt(zmq.ROUTING_ID, b"arbiter#7")
    raw.connect(endpoint)
    raw.send(msgpack.packb([7, 0, [{"type": "Alive", "phase": "started"}]]))
    assert first(router) == ("arbiter#7", 0, [messages.Alive("started")])
    router.send("arbiter#7", [messages.Serve()])
    assert raw.poll(WAIT_S * 1000)
    assert msgpack.unpackb(raw.recv()) == [1, 0, [{"type": "Serve"}]]
    raw.close(linger=0)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", msgpack.packb([7, 0]), msgpack.packb([7, 0, [{"type": "Nonsense"}]]),
     msgpack.packb([7, 0, [{"type": "Report", "snapshot": 5}]]), msgpack.packb([99, 0, []])],
    ids=["empty", "not msgpack", "too short", "unknown type", "wrong shape", "somebody else's incarnation"],
)  # fmt: skip
def test_rubbish_is_counted_and_dropped_and_the_link_goes_on(link, frame):
    router, dealer = link
    dealer._peer.send([frame])
    dealer.send([messages.Drained()])
    assert first(router)[2] == [messages.Drained()]
    assert router.bad_frames == 1


def test_a_message_of_two_frames_is_rubbish_too(link):
    router, dealer = link
    dealer._peer.send([msgpack.packb([7, 0, []]), b"more"])
    dealer.send([messages.Drained()])
    assert first(router)[2] == [messages.Drained()]
    assert router.bad_frames == 1


def test_rubbish_from_the_bound_end_is_dropped_too(link):
    router, dealer = link
    router._peers["arbiter#7"].send([b"\xc1"])
    router.send("arbiter#7", [messages.Serve()])
    assert first(dealer) == (1, 0, [messages.Serve()])
    assert dealer.bad_frames == 1


@pytest.mark.parametrize("name", [b"", b"arbiter", b"arbiter#x", b"\xff#1", b"arbiter#7"])
def test_who_gives_no_name_or_somebody_elses_is_shown_the_door(link, endpoint, name):
    router, dealer = link
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.setsockopt(zmq.RECONNECT_IVL, -1)
    if name:
        raw.setsockopt(zmq.ROUTING_ID, name)
    raw.connect(endpoint)
    raw.send(msgpack.packb([7, 0, [{"type": "Drained"}]]))
    end = time.monotonic() + WAIT_S
    while not router.bad_frames:
        assert time.monotonic() < end
        assert arrivals(router, 0.02) == []
    dealer.send([messages.Alive("still here")])
    assert first(router)[2] == [messages.Alive("still here")]
    raw.close(linger=0)


def test_a_name_is_not_taken_from_its_owner_by_who_may_not_have_it(endpoint, opened):
    asked = []

    def admits(peer: str, pid: int) -> bool:
        asked.append((peer, pid))
        return len(asked) > 1

    router = opened(Router(endpoint, 1, messages.ToSupervisor, admits=admits))
    thief = opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends))
    end = time.monotonic() + WAIT_S
    while not thief.ended:
        assert time.monotonic() < end
        assert arrivals(router, 0.02) == [] and arrivals(thief, 0.02) == []
    owner = meet(router, opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends)))
    owner.send([messages.Alive("mine")])
    assert first(router)[2] == [messages.Alive("mine")]
    assert asked == [("arbiter#7", os.getpid())] * 2 and router.pid("arbiter#7") == os.getpid()
    assert list(router.peers) == ["arbiter#7"] and router.pid("nobody#1") == 0


def test_what_one_says_in_the_turn_in_which_it_is_dismissed_for_another_is_nobodys(endpoint, opened):
    """Also where it says that it is of life 0, as nobody is."""

    def admits(peer: str, pid: int) -> bool:
        router.dismiss(peer)  # for who comes now
        return True

    router = opened(Router(endpoint, 1, messages.ToSupervisor, admits=admits))
    squatter = meet(router, opened(Dealer(endpoint, "lease@1/1", 0, messages.SupervisorSends)))
    with socket.socket(socket.AF_UNIX) as owner:
        owner.connect(endpoint.removeprefix("ipc://"))
        assert arrivals(router, 0.05) == []  # it is accepted, and has said nothing yet
        squatter.send([messages.Alive("mine")])
        owner.sendall(zmtp.opening("DEALER", "lease@1/1#0"))
        assert arrivals(router, 0.5) == []
        assert "lease@1/1#0" in router


def test_what_comes_with_the_greeting_is_kept_for_the_next_drain(endpoint, opened):
    raw = zmq.Context.instance().socket(zmq.ROUTER)
    raw.bind(endpoint)
    dealer = opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends))
    assert dealer.greet(WAIT_S) and dealer.greeted
    dealer._early = [(dealer._peer, (1, 0, [messages.Serve()]))]  # in one piece with its READY
    assert dealer.drain() == [(1, 0, [messages.Serve()])] and dealer.drain() == []
    raw.close(linger=0)


def test_greeting_who_is_not_there_does_not_wait(endpoint, opened):
    dealer = opened(Dealer(endpoint, "arbiter", 7, messages.SupervisorSends))
    began = time.monotonic()
    assert not dealer.greet(WAIT_S)
    assert time.monotonic() - began < 1.0


def test_nameless_connections_take_no_peer_s_place(link, endpoint, opened):
    router, _ = link
    poll = Poll()
    poll.add(router)
    silent = []
    for _ in range(sockets.MOST_NAMELESS + 20):
        one = opened(socket.socket(socket.AF_UNIX))
        one.connect(endpoint.removeprefix("ipc://"))
        silent.append(one)
        poll.wait(0.01)
        router.drain()
    assert len(router._names) <= sockets.MOST_NAMELESS + 1 and "arbiter#7" in router


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
    new = meet(router, opened(Dealer(endpoint, "arbiter", 8, messages.SupervisorSends)))
    new.send([messages.Alive("started")])
    assert first(router)[0] == "arbiter#8"
    router.send("arbiter#8", [messages.Stop()])
    assert first(new)[2] == [messages.Stop()]
    assert arrivals(old, 0.05) == []


def test_whoever_connects_where_nobody_is_bound_has_a_peer_that_is_gone(endpoint, opened):
    dealer = opened(Dealer(endpoint, "gateway", 1, messages.SupervisorSends))
    dealer.post(messages.Alive("started"))
    with pytest.raises(PeerGone):
        dealer.flush()
    assert arrivals(dealer, 0.01) == []


def test_the_place_of_a_former_life_is_taken_over(link, endpoint, opened):
    """A process that was killed leaves its socket's file behind; the next one binds there."""
    router, _ = link
    os.link(endpoint.removeprefix("ipc://"), endpoint.removeprefix("ipc://") + ".kept")
    router.close()
    os.rename(endpoint.removeprefix("ipc://") + ".kept", endpoint.removeprefix("ipc://"))
    new = opened(Router(endpoint, 2, messages.ToSupervisor))
    meet(new, opened(Dealer(endpoint, "gateway", 1, messages.SupervisorSends)))


TALKER = """
import os, sys
from ipc import messages
from ipc.sockets import Dealer
from ipc.poll import Poll
dealer = Dealer(sys.argv[1], "w@cpu/0", 3, messages.SupervisorSends)
poll = Poll()
poll.add(dealer)
while not dealer.greeted:
    poll.wait(1.0)
    dealer.drain()
for n in range(200):
    dealer.send([messages.Report({"n": n})])
os.kill(os.getpid(), 9)
"""


def test_everything_a_killed_process_had_sent_is_read_before_its_end_is_seen(endpoint, opened):
    router = opened(Router(endpoint, 1, messages.ToSupervisor))
    poll = Poll()
    poll.add(router)
    talker = subprocess.Popen([sys.executable, "-c", TALKER, endpoint])
    heard, end = [], time.monotonic() + 20
    while "w@cpu/0#3" not in router:  # it speaks when it has been greeted
        assert time.monotonic() < end
        poll.wait(0.1)
        heard += [message.snapshot["n"] for _, _, batch in router.drain() for message in batch]
    assert talker.wait(20) == -signal.SIGKILL
    while "w@cpu/0#3" in router:
        assert time.monotonic() < end
        poll.wait(0.1)
        heard += [message.snapshot["n"] for _, _, batch in router.drain() for message in batch]
    assert heard == list(range(200))
    with pytest.raises(PeerGone):
        router.send("w@cpu/0#3", [])


def test_what_a_peer_does_not_read_waits_and_arrives_whole_and_in_order(link):
    """More than the kernel keeps; both ends' loops go on meanwhile."""
    router, dealer = link
    sending, receiving = Poll(), Poll()
    sending.add(router)
    receiving.add(dealer)
    for n in range(600):
        router.send("arbiter#7", [filler(n)])
    assert router._peers["arbiter#7"].unsent_bytes > 0
    got, end = [], time.monotonic() + WAIT_S
    while len(got) < 600:
        assert time.monotonic() < end
        sending.wait(0)
        list(router.drain())
        receiving.wait(0)
        got += [message.role for _, _, batch in dealer.drain() for message in batch]
    assert got == [filler(n).role for n in range(600)]
    assert router._peers["arbiter#7"].unsent_bytes == 0


def filler(n: int) -> messages.Up:
    return messages.Up(f"{n}" + "x" * 2000, n)


def test_a_peer_that_never_reads_is_gone_before_it_costs_much_memory(link):
    router, _ = link
    router._peers["arbiter#7"]._max_unsent = 100_000
    with pytest.raises(PeerGone):
        for n in range(10_000):
            router.send("arbiter#7", [filler(n)])
    assert router._peers["arbiter#7"].unsent_bytes < 110_000


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
    assert poll.wait(WAIT_S) == {router, pipe[0]}
    assert [batch for _, _, batch in router.drain()] == [[messages.Drained()]]
    poll.remove(pipe[0])
    assert poll.wait(0.01) == set()


def test_a_removed_link_wakes_nobody(link):
    router, dealer = link
    poll = Poll()
    poll.add(router)
    poll.remove(router)
    dealer.send([messages.Drained()])
    assert poll.wait(0.01) == set()


def test_what_is_left_unread_ends_the_next_wait_too(link):
    router, dealer = link
    poll = Poll()
    poll.add(router)
    dealer.send([messages.Drained()])
    assert poll.wait(WAIT_S) == {router}
    assert poll.wait(WAIT_S) == {router}
    assert [batch for _, _, batch in router.drain()] == [[messages.Drained()]]
    assert poll.wait(0.01) == set()


def test_an_ended_peer_does_not_keep_the_poll_awake(link):
    router, dealer = link
    poll = Poll()
    poll.add(dealer)
    router.close()
    poll.wait(WAIT_S)
    assert dealer.drain() == []
    assert poll.wait(0.01) == set()
    with pytest.raises(PeerGone):
        dealer.send([messages.Drained()])


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


def test_links_start_no_thread(endpoint, opened):
    program = (
        "import os, sys\nfrom ipc import messages\nfrom ipc.sockets import Dealer, Poll, Router\n"
        "router = Router(sys.argv[1], 1, messages.ToSupervisor)\n"
        "dealer = Dealer(sys.argv[1], 'w', 1, messages.SupervisorSends)\n"
        "dealer.send([messages.Drained()])\n"
        "print(len(os.listdir('/proc/self/task')), 'zmq' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, endpoint], capture_output=True, text=True, check=True)
    threads, imported = done.stdout.split()
    assert imported == "False"
    assert int(threads) == idle_threads(), "a link's process has more threads than numpy's own"


def idle_threads() -> int:
    """Threads of a process that has only imported what links import (numpy's BLAS makes some)."""
    program = "import os, numpy, msgspec\nprint(len(os.listdir('/proc/self/task')))"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("role", ["arbiter", "asr@cpu/0", "tts@cuda:1/3"])
def test_a_peers_name_tells_role_and_incarnation(role):
    assert peers.split_peer(sockets.peer_name(role, 12)) == (role, 12)
