"""Links between the node's processes: ZeroMQ's protocol, spoken by the process itself. They only move frames.

A process posts messages as it decides and flushes once per loop turn, so that each peer gets one frame a turn, or a few
where there is very much to be told.

* ``Router`` is bound, and addresses peers by name; ``Dealer`` connects to one Router and speaks first.
  A peer's name is ``role#incarnation``.

libzmq moves each message through a thread of its own: two wake-ups more a message, which cost more than all the rest of
it (docs/decisions/0012-links-without-a-thread.md). So these links read and write their Unix sockets in the loop's own
thread, in ZeroMQ's wire format: libzmq can be the other end of either. A peer's death is the end of its stream, and
comes after everything it had sent.

Sends never block: what the kernel does not take waits here, up to ``MAX_UNSENT_BYTES``, far above every window; beyond
that the peer is gone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from ipc import messages, zmtp
from ipc.errors import BadFrame, PeerGone
from ipc.peers import peer_name, split_peer
from ipc.poll import Poll
from ipc.streams import Listener, Stream, path_of

__all__ = ["Dealer", "Poll", "Router"]

MAX_FRAME_BYTES = 16 * 2**20
MAX_UNSENT_BYTES = 64 * 2**20
MOST_A_FRAME = (
    128  # messages, each of which is shorter than a client's frame may be: what is told to a new peer is long
)
MOST_NAMELESS = 64  # connections that have not said yet who they are; then the oldest goes
_NOBODY = ("", 0)  # has not said yet who it is


class _Link:
    """What Router and Dealer share."""

    def __init__(
        self, incarnation: int, union: object, epoch: int, max_frame_bytes: int = MAX_FRAME_BYTES,
        max_unsent_bytes: int = MAX_UNSENT_BYTES,
    ) -> None:  # fmt: skip
        self.incarnation = incarnation
        self._max_frame_bytes = max_frame_bytes
        self._max_unsent_bytes = max_unsent_bytes
        self.epoch = epoch
        self.bad_frames = 0
        self.stirred: list[Any] = []  # what the poll found readable since the last drain
        self._decode = messages.frame_decoder(union).decode

    def _stream(self, sock: socket.socket, opening: bytes) -> Stream:
        return Stream(self, sock, opening, self._max_frame_bytes, self._max_unsent_bytes)

    def _arrivals(self) -> list[tuple[Stream, tuple[int, int, list[Any]]]]:
        """What has arrived where the poll found something: (stream, (incarnation, epoch, messages))."""
        stirred, self.stirred = self.stirred, []
        found = []
        for stream in stirred:
            for parts in stream.read():
                try:
                    (body,) = parts
                    found.append((stream, self._decode(body)))
                except (msgspec.MsgspecError, ValueError):
                    self.bad_frames += 1
        return found


def _parts(batch: list[Any]) -> Iterable[list[Any]]:
    """What goes into each frame."""
    if len(batch) <= MOST_A_FRAME:
        return (batch,)
    return (batch[at : at + MOST_A_FRAME] for at in range(0, len(batch), MOST_A_FRAME))


class Router(_Link):
    """The bound end of internal links: many peers, each by its name.

    ``admits``: whether a process (see ``Stream.pid``) may take a name; asked when it says it. None: any may.
    """

    def __init__(
        self, endpoint: str, incarnation: int, union: object, epoch: int = 0, *, max_frame_bytes: int = MAX_FRAME_BYTES,
        max_unsent_bytes: int = MAX_UNSENT_BYTES, admits: Callable[[str, int], bool] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(incarnation, union, epoch, max_frame_bytes, max_unsent_bytes)
        self.endpoint = endpoint
        self._admits = admits
        self._posted: dict[str, list[Any]] = {}
        self._peers: dict[str, Stream] = {}
        self._names: dict[Stream, tuple[str, int]] = {}  # peer and incarnation; "" until it has said who it is
        self._opening = zmtp.opening("ROUTER")
        self._poll: Poll | None = None
        self._listener = Listener(self, path_of(endpoint), self._welcome)

    def __contains__(self, peer: str) -> bool:
        """Whether the peer's stream has not ended: while it has not, more may come from it."""
        return peer in self._peers

    @property
    def peers(self) -> Collection[str]:
        """Everybody who is there and has said who it is."""
        return self._peers.keys()

    def pid(self, peer: str) -> int:
        """The process at the other end; 0: none that is known, or nobody is there."""
        stream = self._peers.get(peer)
        return stream.pid if stream is not None else 0

    def post(self, peer: str, message: Any) -> None:
        """Put a message into this turn's frame for ``peer``."""
        self._posted.setdefault(peer, []).append(message)

    def flush(self) -> list[str]:
        """Send one frame to each peer that has messages; returns the peers that are gone."""
        gone: list[str] = []
        if not self._posted:
            return gone
        posted, self._posted = self._posted, {}
        for peer, batch in posted.items():
            try:
                self.send(peer, batch)
            except PeerGone:
                gone.append(peer)
        return gone

    def send(self, peer: str, batch: list[Any]) -> None:
        """Send one frame now. Raises PeerGone."""
        stream = self._peers.get(peer)
        if stream is None:
            raise PeerGone(peer)
        for part in _parts(batch):
            stream.send_frame(messages.encode((self.incarnation, self.epoch, part)))

    def dismiss(self, peer: str) -> None:
        """End the stream of a peer that has no business here."""
        if (stream := self._peers.get(peer)) is not None:
            stream.close()

    def drain(self) -> list[tuple[str, int, list[Any]]]:
        """Everything the last wait found: (peer, epoch, messages). Bad frames are counted and dropped."""
        found = []
        for stream, (incarnation, epoch, batch) in self._arrivals():
            peer, life = self._names.get(stream, _NOBODY)  # nobody's: dismissed since it was read
            if peer and incarnation == life:
                found.append((peer, epoch, batch))
            else:
                self.bad_frames += 1
        return found

    # ---------------------------------------------------------------- connections

    def _welcome(self, sock: socket.socket) -> None:
        nameless = [stream for stream, known in self._names.items() if known is _NOBODY]
        if len(nameless) >= MOST_NAMELESS:
            nameless[0].close()
        stream = self._stream(sock, self._opening)
        self._names[stream] = _NOBODY
        if self._poll is not None:
            stream.join(self._poll)

    def met(self, stream: Stream, identity: bytes) -> None:
        """The other end has said who it is. Raises BadFrame for no name, another's, or one that is here."""
        try:
            peer = identity.decode()
            incarnation = split_peer(peer)[1]
        except ValueError as error:
            raise BadFrame(f"{identity!r} is no peer's name") from error
        if self._admits is not None and not self._admits(peer, stream.pid):
            raise BadFrame(f"{peer} is not its name")
        if peer in self._peers:
            raise BadFrame(f"{peer} is here already")
        self._peers[peer] = stream
        self._names[stream] = peer, incarnation

    def parted(self, stream: Stream) -> None:
        """A stream has ended."""
        peer, _ = self._names.pop(stream, _NOBODY)
        if peer:
            del self._peers[peer]

    def join(self, poll: Poll) -> None:
        self._poll = poll
        self._listener.join(poll)
        for stream in self._names:
            stream.join(poll)

    def part(self, poll: Poll) -> None:
        self._poll = None
        self._listener.part(poll)
        for stream in self._names:
            stream.part()

    def close(self) -> None:
        if self._poll is not None:
            self.part(self._poll)
        for stream in list(self._names):
            stream.close()
        self._listener.close()


class Dealer(_Link):
    """The connecting end of an internal link: one peer, whose endpoint must be bound already."""

    def __init__(self, endpoint: str, role: str, incarnation: int, union: object) -> None:
        super().__init__(incarnation, union, 0)
        self._posted: list[Any] = []
        self._early: list[Any] = []  # arrived while we waited for the greeting
        self._peer: Stream | None = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path_of(endpoint))
            self._peer = self._stream(sock, zmtp.opening("DEALER", peer_name(role, incarnation)))
        except (OSError, PeerGone):  # it died meanwhile: the first send says so
            sock.close()

    @property
    def ended(self) -> bool:
        """Whether nobody is at the other end (any more)."""
        return self._peer is None

    @property
    def greeted(self) -> bool:
        """Whether the bound end has answered: from then on what is sent goes out at once."""
        return self._peer is not None and self._peer.greeted

    def greet(self, timeout_s: float) -> bool:
        """Wait until ``greeted``. What the bound end says meanwhile is kept for ``drain``."""
        poll, end = Poll(), time.monotonic() + timeout_s
        poll.add(self)
        while self._peer is not None and not self.greeted and (left := end - time.monotonic()) > 0:
            poll.wait(left)
            self._early += self._arrivals()
        poll.remove(self)
        return self.greeted

    def post(self, message: Any) -> None:
        """Put a message into this turn's frame."""
        self._posted.append(message)

    def flush(self) -> bool:
        """Send this turn's frame, if any; whether there was one. Raises PeerGone."""
        if not self._posted:
            return False
        batch, self._posted = self._posted, []
        self.send(batch)
        return True

    def send(self, batch: list[Any]) -> None:
        """Send one frame now. Raises PeerGone."""
        if self._peer is None:
            raise PeerGone("bound end")
        for part in _parts(batch):
            self._peer.send_frame(messages.encode((self.incarnation, self.epoch, part)))

    def drain(self) -> list[tuple[int, int, list[Any]]]:
        """Everything the last wait found: (sender's incarnation, epoch, messages)."""
        arrivals = self._arrivals()
        if self._early:
            arrivals, self._early = self._early + arrivals, []
        return [arrival for _, arrival in arrivals]

    def last_words(self, timeout_s: float) -> list[tuple[int, int, list[Any]]]:
        """What a peer that is dead had sent, up to the end of its stream. Take the link out of your poll before."""
        poll, end = Poll(), time.monotonic() + timeout_s
        arrivals = self.drain()
        poll.add(self)
        while self._peer is not None and (left := end - time.monotonic()) > 0:
            poll.wait(left)
            arrivals += self.drain()
        poll.remove(self)
        return arrivals

    def met(self, stream: Stream, identity: bytes) -> None:
        """The bound end needs no name."""

    def parted(self, stream: Stream) -> None:
        self._peer = None

    def join(self, poll: Poll) -> None:
        if self._peer is not None:
            self._peer.join(poll)

    def part(self, poll: Poll) -> None:
        if self._peer is not None:
            self._peer.part()

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
