"""A lease of a node's arbiter for a program outside the node, so that all programs on a device share one book.

    with Lease(6 * 2**30) as lease:      # on the running node's first GPU to have room
        ... use lease.device, and look at lease.asked_to_leave now and then ...

``run_node.py lease --gib 6 -- CMD`` does the same for any command. A lease is a promise and not a wall: nothing keeps
its holder from taking more. It ends with ``release``, or with the process, in whatever way that ends.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from engine import ctl
from engine.client import default_endpoint
from engine.process import start_time
from ipc.errors import DragomanError, PeerGone
from ipc.messages import ArbiterToWorker, Denied, Granted, LeaseRequest, LeaseWait, Leave, Release
from ipc.sockets import Dealer, Poll

WAIT_S = 60.0
MOST_BYTES = 2**62  # beyond any device, and still a number that a message can carry
RETRY_S = 0.2  # between attempts to reach an arbiter that is coming back
GREET_S = 1.0
LOOK_S = 0.5
_numbers = itertools.count(1)


class Lease:
    """One lease. ``ctl_endpoint``: the node's operators' socket ("": the running node's). Not for several threads.

    nbytes: what the program will need on the device, a whole number. device: its name ("": the first to have room, of
    the GPUs if there are any, without those that are lost; known once it is granted). One that operators have drained
    is waited for until it is used again. wait_s: how long to wait for room. preemptible: the node may ask for it back.
    priority: "high", "normal" or "low", among those that wait. on_wait: called with the reason, in words, whenever it
    changes.
    Raises ValueError for an ``nbytes`` or a ``wait_s`` that is none.
    """

    def __init__(
        self,
        nbytes: int | float,
        device: str = "",
        *,
        wait_s: float = WAIT_S,
        preemptible: bool = False,
        priority: str = "normal",
        name: str = "",
        ctl_endpoint: str = "",
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        if not 0 <= wait_s < float("inf"):
            raise ValueError(f"wait_s is {wait_s}; give seconds from 0")
        self.nbytes = _whole(nbytes)
        self.device = device
        self.uuid = ""  # of the GPU, for CUDA_VISIBLE_DEVICES; "" for the CPU
        self.number = 0  # the arbiter's number of it, from the grant on
        self._wait_s = wait_s
        self._preemptible = preemptible
        self._priority = priority
        self._name = name or f"process {os.getpid()}"
        self._ctl = ctl_endpoint
        self._on_wait = on_wait or (lambda reason: None)
        self._role, self._life = f"lease@{os.getpid()}/{next(_numbers)}", start_time(os.getpid())
        self._link: Dealer | None = None
        self._asked_to_leave = False
        self._again_at = 0.0
        self._told_to_wait = False
        self._heard_at = 0.0

    def acquire(self) -> Lease:
        """Wait until it is granted. Raises DragomanError with the reason when it is not, or when there is no node.

        The arbiter counts ``wait_s``, without the time that others take to load; after an error, or an interruption,
        nothing is leased.
        """
        if not self._ctl:
            self._ctl = default_endpoint().removesuffix("client") + "ctl"
        devices = self._find_devices()
        request = LeaseRequest(
            time.monotonic_ns(), self._role, self.device, self.nbytes, self._name, self._wait_s, self._preemptible,
            self._priority, pid=os.getpid(), among=() if self.device else tuple(devices),
        )  # fmt: skip
        self._heard_at = time.monotonic()
        try:
            while not self.number:
                self._ask(request)
        except BaseException:
            self._withdraw()
            raise
        self.uuid = devices[self.device]
        return self

    @property
    def asked_to_leave(self) -> bool:
        """Whether the node wants its memory back (only of a preemptible lease)."""
        self._hear(0.0)
        if self.number and self._link is not None and not self._link.greeted and time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + RETRY_S
            with suppress(PeerGone):  # an arbiter that began anew can ask only whom it reaches
                self._link = self._connect()
        return self._asked_to_leave

    def release(self) -> None:
        """Give it back; the memory must be free by then. An arbiter that is away is waited for.

        Raises DragomanError when it does not come back: the lease then ends with this process, or by another try.
        """
        end = time.monotonic() + ctl.TIMEOUT_S
        while self.number:
            self._hear(0.0)  # an arbiter that has died is noticed here
            try:
                link = self._link if self._link is not None and self._link.greeted else self._connect()
                link.send([Release(self.number)])
                link.close()
                self.number = 0
            except PeerGone as error:
                if time.monotonic() > end:
                    text = "the arbiter is not there; the lease ends with this process"
                    raise DragomanError(text, "look at: run_node.py stats") from error
                time.sleep(RETRY_S)

    # ------------------------------------------------------------ inside

    def _find_devices(self) -> dict[str, str]:
        """Devices that would do -> their UUIDs. Raises DragomanError when there is none."""
        stats = self._stats()
        devices: dict[str, dict[str, Any]] = stats["arbiter"]["devices"]
        if self.device:
            if self.device not in devices:
                raise DragomanError(f"the node has no device {self.device!r}", f"it has {', '.join(sorted(devices))}")
            return {self.device: devices[self.device]["uuid"]}
        gpus = [name for name, row in devices.items() if row["uuid"]] or list(devices)
        found = {name: devices[name]["uuid"] for name in gpus if not devices[name]["quarantined"]}
        if not found:
            text = ", ".join(f"{name} is lost" for name in gpus)
            raise DragomanError(f"no device is left to lease: {text}", "look at: run_node.py health")
        return found

    def _stats(self) -> dict[str, Any]:
        """The node's statistics, with its devices: an arbiter that has just started tells of them in a moment."""
        end = time.monotonic() + ctl.TIMEOUT_S
        while not (stats := ctl.ask(self._ctl, "stats")).get("arbiter", {}).get("devices"):
            if time.monotonic() > end:
                raise DragomanError(f"the node at {self._ctl} has not read its devices", "look at: run_node.py stats")
            time.sleep(RETRY_S)
        return stats

    def _connect(self) -> Dealer:
        folder = self._ctl.removesuffix("/ctl")
        link = Dealer(f"{folder}/arbiter", self._role, self._life, ArbiterToWorker)
        link.greet(GREET_S)
        return link

    def _ask(self, request: LeaseRequest) -> None:
        """Ask one life of the arbiter, and hear it until it has answered for good, or died.

        It answers at once, if only that we wait, and then says more when there is more to say.
        """
        self._told_to_wait = False
        link = self._link = self._connect()
        try:
            link.send([request])
            while not self.number and link.greeted:
                self._hear(LOOK_S)
                if not self._told_to_wait:
                    self._check_patience()
        except PeerGone:
            time.sleep(RETRY_S)  # it is starting again
        if self._told_to_wait:
            self._heard_at = time.monotonic()
        self._check_patience()

    def _check_patience(self) -> None:
        """An arbiter that is away is waited for as room is, a minute at most."""
        limit_s = max(ctl.TIMEOUT_S, min(self._wait_s, WAIT_S))
        if not self.number and time.monotonic() > self._heard_at + limit_s:
            raise DragomanError(f"the arbiter at {self._ctl} does not answer", "look at: run_node.py stats")

    def _withdraw(self) -> None:
        """What was asked for is wanted no more; where nobody hears that, the request ends with this process."""
        if self._link is not None and self._link.greeted:
            with suppress(PeerGone):
                self._link.send([Release(0)])
                self._link.close()
        self.number = 0

    def _hear(self, timeout_s: float) -> None:
        link = self._link
        if link is None:
            return
        poll = Poll()
        poll.add(link)
        poll.wait(timeout_s)
        for _, _, batch in link.drain():
            for message in batch:
                self._take(message)
        poll.remove(link)

    def _take(self, message: Any) -> None:
        match message:
            case Granted(lease=number, device=device):
                self.number, self.device = number, device
            case LeaseWait(reason=reason):
                self._told_to_wait = True
                self._on_wait(reason)
            case Denied(reason=reason):
                raise DragomanError(reason, "look at: run_node.py stats")
            case Leave():
                self._asked_to_leave = True

    def __enter__(self) -> Lease:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except DragomanError:
            if error is None:  # else that is what went wrong, and the lease ends with this process
                raise


def _whole(nbytes: Any) -> int:
    """Bytes as the arbiter takes them, of 1.5 * 2**30 as well. Raises ValueError, with what to write instead."""
    try:
        whole = int(nbytes) if isinstance(nbytes, float) and nbytes.is_integer() else operator.index(nbytes)
    except TypeError:
        raise ValueError(f"nbytes is {nbytes!r}; give whole bytes, such as 6 * 2**30") from None
    if not 0 < whole < MOST_BYTES:
        raise ValueError(f"a lease of {whole} bytes; give what the program needs, such as 6 * 2**30")
    return whole
