"""A node of one thread without stages: it answers what a test says, through a real ROUTER and the node's own types.

Every arriving frame is decoded by ``ipc.messages`` as strictly as the gateway does; ``heard`` keeps what came. By
default each utterance is accepted and ends ok at once. A test gives other behaviour as ``answer``: a function of the
message that returns the answers, or None for the default.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from ipc import messages
from ipc.messages import (
    Accepted,
    Ack,
    Cancel,
    Close,
    Closed,
    Hello,
    Limits,
    Open,
    Opened,
    Outcome,
    Ping,
    Pong,
    Resume,
    Skip,
    Submit,
    UnknownSession,
    Welcome,
)  # fmt: skip

LIMITS = Limits(
    max_utterance_s=120.0, max_text_chars=4000, max_window=1024, max_control_bytes=65536, dtypes=("s16le", "f32le"),
    sample_rate=16000, pipelines={"full": ("asr", "nmt", "tts")}, sources={}, targets={},
)  # fmt: skip
Answer = Callable[[Any], "list[Any] | None"]


class FakeNode:
    """``share`` and ``window`` are told in ``Opened``; ``knows``: session id -> token."""

    def __init__(self, path: Path, *, share: int = 64, window: int = 64) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}"
        self.share, self.window = share, window
        self.incarnation = 1
        self.answer: Answer = lambda message: None
        self.idle: Callable[[], None] = lambda: None  # called on its thread when nothing has come for 5 ms
        self.heard: list[Any] = []
        self.frames: list[tuple[int, list[Any], bytes | None]] = []  # size of frame 1, its messages, samples
        self.knows: dict[str, str] = {}
        self.bound: dict[str, bytes] = {}  # session id -> connection
        self.next_index: dict[str, int] = {}
        self._tags: dict[str, str] = {}
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], threading.Event]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._decode = messages.list_decoder(messages.ClientMessage).decode
        self.errors: list[BaseException] = []

    def __enter__(self) -> FakeNode:
        bound = threading.Event()
        self._commands.put((lambda: None, bound))
        self._thread.start()
        assert bound.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self.errors, self.errors

    def tell(self, session: str, *said: Any) -> None:
        """Send messages to whoever has the session, now."""
        self._do(lambda: [self._send(self.bound[session], [message]) for message in said])

    def restart(self, *, remembers: bool, silent: bool = False) -> None:
        """Come back as another life; ``silent``: under the same number, as when the whole node started anew."""

        def anew() -> None:
            self.incarnation += 0 if silent else 1
            self.bound.clear()
            if not remembers:
                self.knows.clear()
            self._close()
            self._bind()

        self._do(anew)

    def close_socket(self) -> None:
        self._do(self._close)

    def of(self, kind: type) -> list[Any]:
        """Everything heard of one type."""
        return [message for message in self.heard if isinstance(message, kind)]

    # ------------------------------------------------------------ its thread

    def _do(self, command: Callable[[], Any]) -> None:
        done = threading.Event()
        self._commands.put((command, done))
        assert done.wait(5)

    def _bind(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.endpoint)

    def _close(self) -> None:
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        self._bind()
        try:
            while not self._stop.is_set():
                while not self._commands.empty():
                    command, done = self._commands.get()
                    command()
                    done.set()
                if self._socket.closed:
                    self._stop.wait(0.005)
                elif self._socket.poll(5):
                    self._turn()
                else:
                    self.idle()
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            self._close()

    def _turn(self) -> None:
        client, head, *rest = self._socket.recv_multipart()
        heard = self._decode(head)
        self.frames.append((len(head), heard, rest[0] if rest else None))
        for message in heard:
            self.heard.append(message)
            answers = self.answer(message)
            for answer in self._usual(client, message) if answers is None else answers:
                self._send(client, [answer])

    def _send(self, client: bytes, batch: list[Any], payload: bytes | None = None) -> None:
        for message in batch:
            if isinstance(message, tuple):
                self._send(client, [message[0]], message[1])
                return
        self._socket.send_multipart([client, messages.encode(batch), *([payload] if payload is not None else [])])

    def _usual(self, client: bytes, message: Any) -> Iterator[Any]:
        session = getattr(message, "session", None)
        if session is not None and self.bound.get(session) != client:
            yield UnknownSession(session)
            return
        match message:
            case Hello():
                yield Welcome(1, self.incarnation, LIMITS)
            case Ping():
                yield Pong(self.incarnation)
            case Open():
                yield self._open(client, message)
            case Resume():
                yield self._resume(client, message)
            case Submit():
                yield Accepted(session, message.index)
                yield Outcome(session, message.index, "ok", texts={"asr": message.text or f"heard {message.index}"})
            case Skip():
                yield Outcome(session, message.index, "skipped", "gap")
            case Close():
                yield Closed(session, "drained" if message.mode == "drain" else "aborted")
            case Ack() | Cancel():
                pass

    def _open(self, client: bytes, message: Open) -> Opened:
        session, token = f"{message.tag}.{len(self.heard)}", f"token-{len(self.heard)}"
        self.knows[session], self.bound[session] = token, client
        self.next_index[session] = message.first_index
        self._tags[session] = message.tag
        return Opened(message.tag, session, token, message.first_index, self.share, min(self.window, message.window))

    def _resume(self, client: bytes, message: Resume) -> Any:
        for session, token in self.knows.items():
            if token == message.token:
                self.bound[session] = client
                next_index = self.next_index.get(session, 0)
                return Opened(self._tags[session], session, token, next_index, self.share, self.window)
        return UnknownSession(message.token)
