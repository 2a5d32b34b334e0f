"""One session and its client: speaks and pauses, submits what the node takes, keeps the rest, acknowledges.

A speaker does not wait for the translation: it goes on speaking whatever the node does. Its client keeps the contract
of ``docs/protocol.md``: no more unended than its share, and after ``Busy`` again from ``resend_from`` when told to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.scheduler.jobs import CHARS_A_SECOND
from ipc.messages import Ack, Busy, Open, Opened, Outcome, Share, Submit

if TYPE_CHECKING:
    from bench.capacity_node import CapacityNode


@dataclass(slots=True)
class Spoken:
    """An utterance that has no outcome yet. Times in virtual seconds."""

    at: float
    audio_s: float
    worked_s: float = 0.0  # in runs that ended


class Speaker:
    """See the module's docstring. ``good``: outcomes that came in time."""

    def __init__(self, node: CapacityNode, number: int) -> None:
        self.node = node
        self.client = f"client{number}".encode()
        self.tag = f"s{number}"
        self.session = ""
        self.spoken = 0
        self.ended = 0
        self.good = 0
        self._share = 1
        self._unended = 0
        self._hold_until = 0.0
        self._unsent: deque[int] = deque()
        self._waiting: dict[int, Spoken] = {}

    @property
    def idle(self) -> bool:
        """Whether everything spoken has its outcome."""
        return not self._waiting

    def worked(self, index: int, seconds: float) -> None:
        """A run that it was in has ended."""
        if (spoken := self._waiting.get(index)) is not None:
            spoken.worked_s += seconds

    def open(self) -> None:
        self.node.submit(self.client, Open(self.tag))

    def pause(self) -> None:
        """Say nothing for a while, then speak."""
        node = self.node
        audio_s = node.day.speech.draw(node.chance)
        pause_s = node.chance.expovariate(1 / node.day.mean_pause_s) if node.day.mean_pause_s else 0.0
        node.after(pause_s + audio_s, self._speak, audio_s)

    def _speak(self, audio_s: float) -> None:
        if self.node.is_over:
            return
        self._waiting[self.spoken] = Spoken(self.node.clock.now, audio_s)
        self._unsent.append(self.spoken)
        self.spoken += 1
        self._send()
        self.pause()

    def _send(self) -> None:
        now = self.node.clock.now
        while self._unsent and self._unended < self._share and now >= self._hold_until:
            index = self._unsent.popleft()
            self._unended += 1
            audio_s = self._waiting[index].audio_s
            text = f"{audio_s:.6f}".ljust(int(CHARS_A_SECOND * audio_s))  # and as long as it would be
            submit = Submit(self.session, index, text=text, budget_ms=self.node.budget_ms(audio_s))
            self.node.submit(self.client, submit)

    def hear(self, message: Any) -> None:
        """What the node tells this client."""
        match message:
            case Outcome():
                self._ended(message)
            case Busy(index=index, retry_after_ms=wait_ms):
                self._refused(index, wait_ms / 1000)
            case Share(n=share):
                self._share = share
                self._send()
            case Opened(session=session, share=share):
                self.session, self._share = session, share

    def _refused(self, index: int, wait_s: float) -> None:
        self.node.figures.busy += 1
        self._unended -= 1
        self._unsent.appendleft(index)  # one at a time is sent, so the others stand behind it already
        self._hold_until = self.node.clock.now + wait_s
        self.node.after(wait_s, self._send)

    def _ended(self, outcome: Outcome) -> None:
        spoken = self._waiting.pop(outcome.index)  # KeyError: it has come twice
        self.node.figures.reordered += outcome.index != self.ended
        self.ended += 1
        self._unended -= 1
        latency_s, alone_s = self.node.clock.now - spoken.at, self.node.day.alone_s(spoken.audio_s)
        self.good += self.node.figures.ended(outcome, latency_s, spoken.worked_s, alone_s)
        self.node.submit(self.client, Ack(self.session, outcome.index))
        self._send()
