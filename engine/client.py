"""The client library: sessions with a node, from any program that has pyzmq, msgpack and numpy.

    with Client() as client, client.session(source="en", target="de") as session:
        session.submit(samples, sample_rate=44100)
        for outcome in session.outcomes():
            print(outcome.index, outcome.translation)

A client reads whenever it is inside one of its calls, whatever the call is for: outcomes are kept for ``outcomes()``
and acknowledged with the next message that goes out, after 50 ms at the latest while calls go on, when ``outcomes()``
has given the last one, and at ``close()``. So a client that stops calling leaves at most the outcomes of its last 50 ms
unacknowledged; the node keeps those for it. What it could not take is sent again, and after its restart it is told who
we are. Between calls nothing happens; no thread is started. **One client belongs to one thread.** What is kept is
bounded: ``submit`` raises ``Busy`` while ``max_unread`` outcomes or ``max_unread_bytes`` of their audio have not been
read.

``engine.client_core`` decides, ``engine.client_link`` moves frames, ``engine.client_session`` is a session's surface;
this file is the client, and the loop that joins them.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from engine import published
from engine.client_core import SessionCore, State, check_opening
from engine.client_link import Link, Message, frames
from engine.client_session import OnProgress, Session
from engine.outcome import WIRE_DTYPES, Busy, NodeGone, Outcome, Progress, Rejected, SessionClosed
from ipc.errors import DragomanError

__all__ = ["Busy", "Client", "NodeGone", "Outcome", "Progress", "Rejected", "Session", "SessionClosed"]
VERSION = 1  # of the protocol
FRESH_S = 0.001  # what has been read so recently need not be read again before sending or waiting
RIDE_S = 0.05  # how long an acknowledgement waits for a message to ride with
MAX_UNREAD, MAX_UNREAD_BYTES = 10_000, 2**30
SHARED_TEMP = "/tmp"  # where a node lives whose own folders are too deep for a socket address


class Client:
    """A connection to a node, and its sessions.

    ``endpoint``: ``ipc://PATH`` or ``tcp://HOST:PORT``; None: this user's running node.
    ``dtype``: samples on the wire, "s16le" or "f32le" (twice the bytes).
    ``patience_s``: a node that answers nothing for so long is gone.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        dtype: str = "s16le",
        patience_s: float = 10.0,
        max_unread: int = MAX_UNREAD,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
        name: str = "engine.Client",
    ) -> None:
        if dtype not in WIRE_DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(WIRE_DTYPES)}")
        self.endpoint = endpoint
        self.dtype = dtype
        self.patience_s = patience_s
        self.max_unread = max_unread
        self.max_unread_bytes = max_unread_bytes
        self.name = name
        self.limits: Mapping[str, Any] = {}  # what the node takes, from its Welcome
        self.incarnation: int | None = None
        self._link: Link | None = None
        self._sessions: dict[str, Session] = {}  # by tag
        self._arrivals: dict[tuple[str, int], None] = {}  # (tag, index) of unread outcomes, oldest first
        self._unread_bytes = 0
        self._news: deque[tuple[OnProgress, Progress]] = deque()
        self._failure: DragomanError | None = None
        self._read_at = -inf
        self._ack_by = inf  # when acknowledgements that have found no message to ride with go alone

    # ------------------------------------------------------------ life

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Connect, and wait until the node says what it takes. Raises NodeGone, Rejected."""
        if self._link is None:
            self.endpoint = self.endpoint or default_endpoint()
            link = Link(self.endpoint, self.patience_s)
            link.start()
            link.post(self._hello())
            self._link = link
        self.run(lambda: bool(self.limits))

    @property
    def silent_s(self) -> float:
        """For how long the node has left a question unanswered; at ``patience_s`` it is gone. 0.0: it answers."""
        return 0.0 if self._link is None else self._link.silent_s(time.monotonic())

    def session(
        self,
        source: str = "",
        target: str = "",
        pipeline: str = "full",
        models: Mapping[str, str] | None = None,
        priority: str = "normal",
        window: int = 64,
        first_index: int = 0,
        partials: bool = False,
        on_deadline: str = "fail",
        weight: int = 1,
        tag: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Session:
        """Open a session. Raises Rejected with the node's reason, NodeGone.

        ``models``: stage -> which of its models (``limits["choices"]``); else the first that knows the languages.
        ``window``: most utterances between the last one in our hands and the newest. ``on_progress`` is called, inside
        other calls and without calling back, with each ``Progress`` when given (which asks for ``partials``).
        ``priority``: "high", "normal" or "low".
        ``on_deadline``: what is given up for an utterance that is late: "fail" all of it, "skip_repair" the repair of
        its transcript, "text" that and then its speech. ``weight``: 1 to 100, its share against others of its priority.
        """
        self.start()
        self._forget_closed()
        tag = secrets.token_hex(6) if tag is None else tag
        if tag in self._sessions:
            raise ValueError(f"a session of this client has the tag {tag!r} already")
        opening = {
            "tag": tag, "pipeline": pipeline, "source": source, "target": target,
            "models": dict(models) if isinstance(models, Mapping) else models or {},
            "priority": priority, "window": window, "first_index": first_index,
            "partials": bool(partials or on_progress), "on_deadline": on_deadline, "weight": weight,
        }  # fmt: skip
        check_opening(opening)
        core = SessionCore(opening)
        frames([{"type": "Open", **opening}])  # too long for a frame: said before anything is sent
        session = self._sessions[tag] = Session(self, core, on_progress)
        self.post(core.open(time.monotonic()))
        try:
            self.run(lambda: core.state is not State.OPENING)
            if core.failure is not None:
                raise core.failure
        except BaseException:
            del self._sessions[tag]
            raise
        return session

    def _forget_closed(self) -> None:
        for tag, session in list(self._sessions.items()):
            if session.core.state is State.CLOSED and not session.core.ended:
                del self._sessions[tag]

    def outcomes(self, timeout_s: float | None = None) -> Iterator[Outcome]:
        """Outcomes of all sessions as they arrive, each session's in order; ends and raises as ``Session.outcomes``."""
        return self.read(None, timeout_s)

    def pump(self, timeout_s: float = 0.0) -> None:
        """Read and send what there is, for at most ``timeout_s``. Raises NodeGone."""
        self.run(lambda: False, timeout_s)

    def close(self) -> None:
        """Disconnect. Sessions that were not closed can be resumed for a while, by whoever has their token."""
        if self._link is not None:
            with suppress(NodeGone):
                self._flush()
            self._link.close()
            self._link = None
            self.limits = {}

    # ------------------------------------------------------------ the loop

    def run(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Turn until ``done()``; False when ``timeout_s`` have passed first. Raises NodeGone."""
        now = time.monotonic()
        end = inf if timeout_s is None else now + timeout_s
        fresh = timeout_s != 0 and now - self._read_at < FRESH_S
        while True:
            wake = self._turn(now, fresh)
            fresh = False
            if done():
                return True
            if now >= end:
                return False
            self._wire().wait(min(wake, end) - now)
            now = time.monotonic()

    def _turn(self, now: float, fresh: bool) -> float:
        """Read everything, unless that has just been done, and send what may be sent; returns when to look again."""
        try:
            if not fresh:
                self._read(now)
            return self._say(now)
        finally:
            if self._link is not None and (self._link.posted or now >= self._ack_by):
                self._flush()

    def _read(self, now: float) -> None:
        for message, payload in self._wire().drain():
            self._take(message, payload, now)
        self._read_at = now
        if self._failure is not None or self._news:
            self._tell()

    def _say(self, now: float) -> float:
        link = self._wire()
        wake = min(now + 0.5, self._ack_by)
        for session in self._sessions.values():
            core = session.core
            if core.state is State.OPEN and core.unended:
                self._send_ready(core, now)
                core.failure = core.failure or core.stuck()
                wake = min(wake, core.hold_until) if core.hold_until > now else wake
            if core.closing and (closing := core.close_message()):
                self._acks()
                link.post(closing)
        if link.ping_due(now) and (not self.limits or any(s.core.outstanding() for s in self._sessions.values())):
            self._ping(now)
        return wake

    def _send_ready(self, core: SessionCore, now: float) -> None:
        while (utterance := core.sendable(now)) is not None:
            self._acks()
            self._wire().flush(core.message(utterance), utterance.data)

    def _ping(self, now: float) -> None:
        """Ask for a sign of life, and name the sessions: who lost one of them says so."""
        link = self._wire()
        link.ping(now)
        for session in self._sessions.values():
            if session.core.state is State.OPEN and session.core.outstanding():
                link.post(session.core.still_here())

    def _acks(self) -> None:
        """Acknowledgements ride with what goes out next."""
        self._ack_by = inf
        for session in self._sessions.values():
            if ack := session.core.ack():
                self._wire().post(ack)

    def _flush(self) -> None:
        """Send what was posted, acknowledgements with it."""
        if self._link is not None:
            self._acks()
            self._link.flush()

    def _take(self, message: Message, payload: Any, now: float) -> None:
        match message["type"]:
            case "Welcome":
                self.limits = message["limits"]
                self._node_is(message["incarnation"], now)
            case "Pong":
                self._node_is(message["incarnation"], now)
            case "Status" | "Partial":
                self._progress(message)
            case "Rejected" if not (message.get("session") or message.get("tag")):
                self._failure = Rejected(message["code"], message["text"], tuple(message.get("accepted", ())))
            case _:
                if (session := self._find(message)) is not None:
                    self._handle(session, message, payload, now)

    def _handle(self, session: Session, message: Message, payload: Any, now: float) -> None:
        core = session.core
        had = len(core.ended)
        try:
            self.post(core.handle(message, payload, now))
        except (ValueError, KeyError, TypeError) as error:
            self._failure = NodeGone(f"{self.endpoint} does not speak this protocol ({error})")
        for position in range(had, len(core.ended)):
            outcome = core.ended[position]
            self._arrivals[core.tag, outcome.index] = None
            self._unread_bytes += outcome.nbytes
        if core.acked != core.through:
            self._ack_by = now if core.state is State.CLOSED else min(self._ack_by, now + RIDE_S)

    def _node_is(self, incarnation: int, now: float) -> None:
        """Another life of the node answers: it has to be told which sessions are ours."""
        changed = self.incarnation not in (None, incarnation)
        self.incarnation = incarnation
        if changed or not self.limits:
            self._wire().post(self._hello())
        for session in self._sessions.values():
            self.post(session.core.resume(now) if changed else session.core.ask_again(now))

    def _find(self, message: Message) -> Session | None:
        if tag := message.get("tag"):
            return self._sessions.get(tag)
        name = message.get("session")
        for session in self._sessions.values():
            if name in (session.core.id, session.core.token):
                return session
        return None

    def _progress(self, message: Message) -> None:
        session = self._find(message)
        if session is not None and session.on_progress is not None:
            fields = ("session", "index", "stage", "state", "text", "attempt", "reason")
            news = Progress(**{name: message[name] for name in fields if name in message})
            self._news.append((session.on_progress, news))

    def _tell(self) -> None:
        """Once everything that arrived is in its place: failures and news, either of which may end the call."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        while self._news:
            on_progress, news = self._news.popleft()
            on_progress(news)

    def _hello(self) -> Message:
        return {"type": "Hello", "version": VERSION, "client": self.name}

    def post(self, messages: list[Message]) -> None:
        self._wire().post(*messages)

    def _wire(self) -> Link:
        if self._link is None:
            raise NodeGone("the client is closed", "call start(), or use it as a context manager")
        return self._link

    # ------------------------------------------------------------ for its sessions

    def read(self, session: Session | None, timeout_s: float | None) -> Iterator[Outcome]:
        """Unread outcomes of one session, or of all, until nothing submitted is without one."""
        while True:
            if (outcome := self._next(session)) is not None:
                yield outcome
                continue
            waiting = [s for s in ([session] if session else self._sessions.values()) if s.core.unended]
            if not waiting:
                self._flush()
                return
            for one in waiting:
                one.raise_failure()
            if not self.run(partial(_news_of, waiting), timeout_s):
                outstanding = sum(one.outstanding for one in waiting)
                raise TimeoutError(f"no outcome for {timeout_s:g} s; {outstanding} are outstanding")

    def _next(self, session: Session | None) -> Outcome | None:
        if session is None:
            key = next(iter(self._arrivals), None)
            session = self._sessions[key[0]] if key else None
        if session is None or not session.core.ended:
            return None
        outcome = session.core.ended.popleft()
        self._arrivals.pop((session.tag, outcome.index), None)
        self._unread_bytes -= outcome.nbytes
        return outcome

    def make_room(self) -> None:
        if len(self._arrivals) >= self.max_unread or self._unread_bytes >= self.max_unread_bytes:
            text = f"{len(self._arrivals)} outcomes ({self._unread_bytes / 2**20:.0f} MiB) have not been read"
            raise Busy("unread", text, "read some with outcomes() before submitting more")


def _news_of(sessions: list[Session]) -> bool:
    return any(one.core.ended or one.core.failure or not one.core.unended for one in sessions)


def default_endpoint() -> str:
    """Address of this user's running node: the newest published one in the folder where nodes live. Raises NodeGone."""
    if not hasattr(os, "getuid"):
        raise NodeGone("nodes are found by themselves on Linux only", "give the endpoint: Client('tcp://HOST:PORT')")
    runtime, temporary = os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR") or tempfile.gettempdir()
    places = [Path(runtime) / "dragoman"] if runtime else []
    places += [Path(place) / f"dragoman-{os.getuid()}" for place in dict.fromkeys((temporary, SHARED_TEMP))]
    for place in places:
        with suppress(OSError):
            private = place.stat().st_uid == os.getuid() and not place.stat().st_mode & 0o077
            if private and (home := published.newest(place)) is not None:
                return f"ipc://{home / 'client'}"
    looked = " and ".join(str(place) for place in places)
    raise NodeGone(f"no node is running (looked in {looked})", "start one: run_node.py serve")
