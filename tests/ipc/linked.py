"""What the tests of links share: who waits for what."""

from __future__ import annotations

import time

from ipc.poll import Poll

WAIT_S = 5.0


def arrivals(thing, timeout_s=WAIT_S):
    """What comes first within ``timeout_s``; an empty list if nothing does. A wake-up may be for nothing."""
    poll = Poll()
    poll.add(thing)
    end = time.monotonic() + timeout_s
    found = []
    while not found and (left := end - time.monotonic()) > 0:
        poll.wait(left)
        found = list(thing.drain())
    poll.remove(thing)
    return found


def first(thing):
    """The next arrival; fails instead of waiting for ever."""
    return arrivals(thing)[0]


def meet(router, dealer):
    """Turn both ends until they have greeted each other."""
    poll, end = Poll(), time.monotonic() + WAIT_S
    poll.add(router)
    poll.add(dealer)
    while not dealer.greeted:
        assert time.monotonic() < end, "they never meet"
        poll.wait(0.1)
        router.drain()
        dealer.drain()
    poll.remove(router)
    poll.remove(dealer)
    return dealer
