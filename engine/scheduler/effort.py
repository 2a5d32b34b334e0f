"""What an utterance takes of a stage, by how much speech it is: a line through the runs that were seen. Pure.

Some runs take as long as the speech is, some always the same (a recogniser's window, a prompt), most something between.
A session is charged for what it takes of a worker; by seconds of speech alone a flood of tiny utterances would take all
of a stage whose runs have one length. The line is that of least squares, with exponential forgetting (about the last
50), between the two extremes: through the origin, and level. Where all were alike it goes through the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 0.04
ALIKE = 0.1  # lengths that scatter by less than this share of their mean tell nothing of the slope


@dataclass(slots=True)
class Effort:
    """One stage's. Means and moments of ``speech`` (seconds) and ``run`` (seconds of a worker for it)."""

    speech: float = 0.0
    run: float = 0.0
    scatter: float = 0.0  # mean square distance of speech from its mean
    joint: float = 0.0  # mean product of both distances

    def learn(self, speech_s: float, run_s: float) -> None:
        """One utterance has run: its part of a batch's time, where it was in one."""
        if not self.run:
            self.speech, self.run = speech_s, run_s
            return
        off, run_off = speech_s - self.speech, run_s - self.run
        self.speech += WEIGHT * off
        self.run += WEIGHT * run_off
        self.scatter += WEIGHT * ((1 - WEIGHT) * off * off - self.scatter)
        self.joint += WEIGHT * ((1 - WEIGHT) * off * run_off - self.joint)

    def of(self, speech_s: float) -> float:
        """Seconds of a worker that so much speech should take; 0: nothing was seen yet."""
        return max(0.0, self.run + self._slope() * (speech_s - self.speech))

    def cost(self, speech_s: float) -> float:
        """The same as seconds of speech: an utterance of mean length costs its length, whatever the stage."""
        return max(1e-3, self.of(speech_s) * self.speech / self.run) if self.run else speech_s

    def _slope(self) -> float:
        steepest = self.run / self.speech if self.speech else 0.0
        if self.scatter <= (ALIKE * self.speech) ** 2:
            return steepest
        return min(max(0.0, self.joint / self.scatter), steepest)
