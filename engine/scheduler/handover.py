"""Scheduler and gateway are each other's memory: what a new gateway is told, and what a new epoch hears. Pure.

A gateway that says ``Here("empty")`` gets every session, every job and every input slot that is not free, and then
``Restored``. What has not ended goes over as its ``Admit``, what has as ``Ended``; but the samples of an outcome died
with the old gateway, so its last stage runs once more (``Past.again``) and it goes over as ``Remade``.

A gateway that says ``Here("whole")`` tells the same to this epoch; ``complete`` says that it has told everything.
"""

from __future__ import annotations

import msgspec

from engine.scheduler.book import GATEWAY, Book, Line
from engine.scheduler.jobs import Job
from engine.scheduler.past import Past
from ipc.messages import Admit, Ended, Here, Remade, Restored
from ipc.peers import split_peer


class Handover:
    """See the module's docstring."""

    def __init__(self, book: Book, past: Past) -> None:
        self.book = book
        self.past = past
        self.complete = False

    def meet(self, peer: str, message: Here, now: float) -> None:
        """A life of the gateway speaks for the first time."""
        book = self.book
        if book.gateway:
            self.part(book.gateway)
        book.gateway = peer
        book.over = frozenset()
        book.fleet_changed = True
        book.free(book.slots.heard(split_peer(peer)[0]))
        if message.state == "empty":
            self._tell_all(now)
            self.past.flow.begin_waiting(now)
            book.send(GATEWAY, Restored())
            self.complete = True
            self._note_meeting(split_peer(peer)[1])
        book.stir_all()

    def told_all(self) -> None:
        """The gateway has told this epoch everything."""
        self.past.settle()
        self.complete = True
        self.book.note("info", f"the gateway has told this scheduler {self._known()}")

    def part(self, peer: str) -> None:
        """This life of the gateway is dead: it reads no slot any more, and what it was told it was told in vain."""
        book = self.book
        if peer == book.gateway:
            book.gateway = ""
        book.free(book.slots.gone(peer))

    def _note_meeting(self, incarnation: int) -> None:
        """A line for the log: what a new gateway was told, or that nobody is left who could tell it anything."""
        if incarnation > 1 and self.book.epoch > 1 and not self.book.lines:
            text = (
                "scheduler and gateway are both new: what had been accepted and not fetched before is lost, if any was"
            )
            self.book.note("warning", text)
        elif incarnation > 1:
            self.book.note("info", f"a new gateway has been told {self._known()}")

    def _known(self) -> str:
        lines = self.book.lines.values()
        unended, kept = sum(len(line.unended) for line in lines), sum(len(line.jobs) for line in lines)
        return f"{len(lines)} sessions, {unended} utterances that have not ended and {kept - unended} that have"

    def _tell_all(self, now: float) -> None:
        for line in self.book.lines.values():
            self.book.send(GATEWAY, msgspec.structs.replace(line.session, first_index=line.acked + 1))
            for index in sorted(line.jobs):
                self._tell_job(line, line.jobs[index], now)
            for ended in line.elsewhere.values():
                self.book.send(GATEWAY, ended)
        for held in self.book.ingress.values():
            self.book.send(GATEWAY, held)

    def _tell_job(self, line: Line, job: Job, now: float) -> None:
        if not job.ended and job.lost is None:
            return self.book.send(GATEWAY, _with_what_is_left(job, now))
        if job.ended and not (job.has_audio and self.past.again(line, job, now)):
            assert job.outcome is not None, job.key
            return self.book.send(GATEWAY, Ended(job.outcome, job.admit))
        lost = line.jobs[job.index].lost
        assert lost is not None, job.key
        return self.book.send(GATEWAY, Remade(lost, job.admit))


def _with_what_is_left(job: Job, now: float) -> Admit:
    """The job's ``Admit`` as it would be sent now."""
    left_ms = round(1000 * (job.deadline - now))
    return msgspec.structs.replace(job.admit, budget_ms=max(1, left_ms), waiting=False)
