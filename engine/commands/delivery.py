"""Carrying a run's utterances through a node: one client, several sessions, everything on one thread.

Utterances are submitted in order, each to its session, and whatever has ended in any session is written down between
two submissions. What cannot be submitted (no sound in the file) gets its row at once and holds up nobody.

Ctrl-C once: nothing more is submitted, what is in flight is waited for. Twice: KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from engine import held_up
from engine.commands import complaints
from engine.commands.inputs import Utterance
from engine.commands.reading import Found, within
from engine.commands.results import Results, Row, outcome_row, refusal_row
from engine.media import MediaError
from engine.outcome import Busy, NodeGone, Outcome, Progress, Rejected, SessionClosed

SILENT_S = 2.0  # a node that answers nothing for so long is told of, while it is waited for
SLOW_S = 3.0  # nothing has ended for so long: the user is told what is waited for, where the node says it
WAIT_S = 0.1  # how long one look may take, so that nothing has to be noticed by waiting for ever


@dataclass(frozen=True)
class Wish:
    """How every utterance of a run is to be treated. ``languages``: source and target of each session in turn."""

    sessions: int = 1
    pipeline: str = "full"
    languages: Sequence[tuple[str, str]] = (("en", "de"),)
    skip: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)  # stage -> which of its models
    budget_s: float | None = None
    max_utterance_s: float = 120.0


@dataclass
class Lane:
    """A session and what is in flight in it: index -> utterance."""

    session: Any  # engine.client.Session
    flying: dict[int, Utterance] = field(default_factory=dict)
    broken: str = ""  # why nothing more can go through it
    broken_code: str = ""


class Delivery:
    """``run`` does it; ``told`` hears each row as it is written, ``say`` a line for the user."""

    def __init__(self, client: Any, wish: Wish, results: Results,
                 told: Callable[[Row, Outcome | None], None], say: Callable[[str], None],
                 heard: Callable[[Any], None] | None = None) -> None:  # fmt: skip
        self.interrupted = False
        self._silence_told = False
        self._client = client
        self._wish = wish
        self._results = results
        self._told = told
        self._say = say
        self._heard = heard
        self._lanes: list[Lane] = []
        self._reason = ""  # why the one that was last told of waits
        self._reasons_told = {""}
        self._ended_at = time.monotonic()

    def run(self, work: Iterable[tuple[Utterance, Found]]) -> None:
        """Submit everything, write every outcome down, close the sessions. KeyboardInterrupt on the second Ctrl-C."""
        with _on_interrupt(self._interrupt):
            self._lanes = [Lane(self._open(number)) for number in range(self._wish.sessions)]
            self._results.open()  # not before: a run that is refused leaves an earlier one's results alone
            for utterance, found in work:
                if self.interrupted:
                    break
                self._submit(utterance, within(found, utterance, self._wish.max_utterance_s))
                self._collect(wait_s=0.0)
            while self.in_flight():
                self._collect(WAIT_S)
            for lane in self._lanes:
                if not lane.broken:
                    self._close(lane)

    def in_flight(self) -> int:
        """Utterances submitted and without an outcome."""
        return sum(len(lane.flying) for lane in self._lanes)

    def _open(self, number: int) -> Any:
        source, target = self._wish.languages[number % len(self._wish.languages)]
        return self._client.session(
            source=source,
            target=target,
            pipeline=self._wish.pipeline,
            models=self._wish.models,
            tag=f"s{number}",
            on_progress=self._note,
        )

    def _close(self, lane: Lane) -> None:
        try:
            lane.session.close()
        except NodeGone as error:  # everything has its row: nothing is lost with it
            self._break_all(error)

    def _submit(self, utterance: Utterance, found: Found) -> None:
        lane = self._lanes[utterance.session]
        if isinstance(found, MediaError):
            return self._refuse(lane, utterance, found.code, str(found))
        if lane.broken:
            return self._refuse(lane, utterance, lane.broken_code, lane.broken)
        try:
            index = lane.session.submit(found, budget_s=self._wish.budget_s, skip=self._wish.skip)
        except Rejected as error:
            return self._refuse(lane, utterance, error.code, str(error).removeprefix(f"{error.code}: "))
        except Busy as error:  # the node is stopping: this one is not taken, those in flight still end
            return self._refuse(lane, utterance, error.reason, str(error))
        except NodeGone as error:  # gone for all sessions: waiting for it once is enough
            self._break_all(error)
            return self._refuse(lane, utterance, lane.broken_code, lane.broken)
        except SessionClosed as error:
            self._break(lane, error)
            return self._refuse(lane, utterance, lane.broken_code, lane.broken)
        lane.flying[index] = utterance
        return None

    def _collect(self, wait_s: float) -> None:
        """Write down what has ended, in the order received; waits at most ``wait_s`` for one more."""
        try:
            for outcome in self._ended(wait_s):
                self._finish(outcome)
        except TimeoutError:
            self._say_silence()
            self._say_reason()
        except NodeGone as error:
            self._break_all(error)
        except (SessionClosed, Rejected) as error:
            for lane in self._lanes:
                if lane.session.core.failure is not None:
                    self._break(lane, error)

    def _say_silence(self) -> None:
        """One line for each time that the node does not answer."""
        silent = self._client.silent_s >= SILENT_S
        if silent and not self._silence_told:
            self._say(f"the node does not answer; it is waited for, {self._client.patience_s:g} s in all")
        self._silence_told = silent

    def _note(self, news: Progress) -> None:
        """What an utterance waits for is known until it goes on."""
        if news.state:
            self._reason = held_up.words(news.stage, news.reason) if news.reason else ""
        if self._heard:
            self._heard(news)

    def _say_reason(self) -> None:
        """Why nothing comes, each reason once, when nothing has come for a while."""
        if self._reason not in self._reasons_told and time.monotonic() - self._ended_at >= SLOW_S:
            self._reasons_told.add(self._reason)
            self._say(self._reason)

    def _ended(self, wait_s: float) -> Iterator[Outcome]:
        """Outcomes as they come. A broken session makes the common reading fail, so then each is read alone."""
        if not any(lane.broken for lane in self._lanes):
            yield from self._client.outcomes(timeout_s=wait_s)
            return
        self._client.pump(wait_s)
        for lane in self._lanes:
            if not lane.broken:
                with suppress(TimeoutError):
                    yield from lane.session.outcomes(timeout_s=0.0)

    def _finish(self, outcome: Outcome) -> None:
        lane = next(lane for lane in self._lanes if lane.session.tag == outcome.tag)
        self._ended_at = time.monotonic()
        utterance = lane.flying.pop(outcome.index, None)
        if utterance is not None:
            audio = self._results.save_audio(utterance, outcome.audio, outcome.sample_rate)
            self._write(outcome_row(utterance, outcome, audio), outcome)

    def _break_all(self, error: NodeGone) -> None:
        for lane in self._lanes:
            if not lane.broken:
                self._break(lane, error)

    def _break(self, lane: Lane, error: NodeGone | SessionClosed | Rejected) -> None:
        """The session has ended under us: what was in flight has no outcome and never will."""
        lane.broken = str(error)
        lane.broken_code = getattr(error, "reason", complaints.GONE)
        flying, lane.flying = lane.flying, {}
        for index, utterance in flying.items():
            self._refuse(lane, utterance, lane.broken_code, lane.broken, index)

    def _refuse(self, lane: Lane, utterance: Utterance, code: str, text: str, index: int | None = None) -> None:
        self._write(refusal_row(utterance, lane.session.id, lane.session.tag, index, code, text), None)

    def _write(self, row: Row, outcome: Outcome | None) -> None:
        self._results.add(row)
        self._told(row, outcome)

    def _interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self._say(f"draining: {self.in_flight()} in flight are waited for; Ctrl-C again stops at once")


@contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """SIGINT calls ``act`` for the time of the block (only the main thread can ask for that)."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
