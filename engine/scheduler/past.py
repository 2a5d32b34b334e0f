"""What has ended and is not acknowledged: its record, what is kept for it, how its result is made once more. Pure.

The samples of a result are in the gateway's outbox and nowhere else. When that dies they are made again: by the last
stage alone, from the text before it, which is in the record. A last stage that takes samples needs what the client
sent, so those inputs are kept until the acknowledgement. They are a precaution and not a promise: where ring memory
is wanted they are given up (``Spare``), and a result lost after that is an error.
"""

from __future__ import annotations

import math

import msgspec

from engine.scheduler.book import GATEWAY, Book, Line
from engine.scheduler.flow import Flow
from engine.scheduler.jobs import Job, State
from ipc.messages import Admit, Ended, Held, JobOutcome, Outcome, Remade

GIVEN_UP = "its result was lost with the gateway, and what it was made from had been given up for want of ring memory"


class Past:
    """See the module's docstring."""

    def __init__(self, book: Book, flow: Flow) -> None:
        self.book = book
        self.flow = flow
        self._held: list[Held] = []  # told to this epoch, not yet known to be needed

    # ---------------------------------------------------------------- what another process tells

    def ended(self, message: Ended, now: float) -> None:
        """An index that ended at the gateway (gap, Skip), or before this epoch: recorded, not run."""
        outcome, admit = message.outcome, message.admit
        line = self.book.lines.get(outcome.session)
        if line is None:
            return
        job = line.jobs.get(outcome.index)
        if job is not None:
            if not job.ended:  # the gateway has given it up
                self.flow.end(job, outcome.outcome, outcome.code, outcome.error, now)
        elif admit is None:
            line.elsewhere[outcome.index] = message
        else:
            line.jobs[outcome.index] = _ended_job(line, outcome, admit)
        line.highest_ended = max(line.highest_ended, outcome.index)

    def remade(self, message: Remade, now: float) -> None:
        """What had ended before this epoch, and whose samples are lost."""
        line = self.book.lines[message.outcome.session]
        if message.outcome.index in line.jobs:
            return
        job = line.jobs[message.outcome.index] = _ended_job(line, message.outcome, message.admit)
        if not self.again(line, job, now):
            assert job.outcome is not None
            self.book.send(GATEWAY, JobOutcome(job.outcome))

    def hold(self, held: Held) -> None:
        """A slot of the gateway's ring that is not free."""
        self.book.adopt(held)
        self._held.append(held)

    def settle(self) -> None:
        """All has been told: slots that no job needs are free when nobody can be reading them any more."""
        for held in self._held:
            job = self.book.job((held.session, held.index))
            if job is None or not self._needs_input(job):
                self.book.drop((held.ref.ring, held.ref.generation))
        self._held.clear()

    def _needs_input(self, job: Job) -> bool:
        if job.ended:
            return self.book.is_kept(job)
        return job.lost is None or self.book.ends_on_samples(job)

    # ---------------------------------------------------------------- once more

    def again(self, line: Line, job: Job, now: float) -> bool:
        """Make the result of an ended job once more, without a deadline. False: it cannot be, and is an error now."""
        if self.book.ends_on_samples(job) and not self._has_input(job):
            assert job.outcome is not None
            lost = {"outcome": "error", "code": "failed", "error": GIVEN_UP, "dtype": "", "nbytes": 0, "sample_rate": 0}
            job.outcome, job.has_audio = msgspec.structs.replace(job.outcome, **lost), False
            return False
        last = len(job.stages) - 1
        made = Job(
            job.session, job.admit, math.inf, language=job.language, degraded=self._before(job, last),
            records=list(job.records), lost=job.outcome,
        )  # fmt: skip
        if self.book.ends_on_samples(job):  # so all of them run, on what the client sent
            made.ref, made.text = job.ingress, job.admit.text
        else:
            made.at, made.states = last, [*job.states[:last], State.PENDING]
            made.texts = {stage: text for stage, text in job.texts.items() if stage != job.names[-1]}
            made.text = next(
                (made.texts[stage] for stage in reversed(job.names[:last]) if stage in made.texts), job.admit.text
            )
        line.jobs[job.index] = made
        line.unended.add(job.index)
        self.flow.enter(made, now)
        return True

    def _before(self, job: Job, last: int) -> list[str]:
        """How it was degraded by the stages that do not run again."""
        if self.book.ends_on_samples(job):
            return []
        return [said for said in job.degraded if not said.startswith(f"{job.names[last]}: ")]

    def spare(self) -> None:
        """Ring memory is wanted: inputs that are only kept in case of a gateway's death are given up."""
        for line in self.book.lines.values():
            for job in line.jobs.values():
                if job.ended and job.ingress is not None and self.book.is_kept(job):
                    self.book.drop((job.ingress.ring, job.ingress.generation))

    def _has_input(self, job: Job) -> bool:
        return job.ingress is None or self.book.slots.is_needed((job.ingress.ring, job.ingress.generation))


def _ended_job(line: Line, outcome: Outcome, admit: Admit) -> Job:
    """The record of a job that ended in an earlier epoch."""
    passed = [State.COMPLETED] * len(line.session.pipeline)
    return Job(
        line.session, admit, 0.0, states=passed, at=len(passed), ended=True, outcome=outcome,
        has_audio=outcome.nbytes > 0, texts=dict(outcome.texts), language=outcome.language,
        records=list(outcome.stages), degraded=outcome.degraded.split("; ") if outcome.degraded else [],
    )  # fmt: skip
