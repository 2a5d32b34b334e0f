"""One utterance of a simulated client: what its user does with it, what is wrong with it, and how it may end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from engine.outcome import Outcome
from engine.scheduler.past import GIVEN_UP

NAME_BYTES = 16  # an utterance is known by the first of its samples, in whatever stage it is
BUDGETS_MS = (50, 300, 1000, 3000)
MOST_FAILURES = 3  # so many tries again an utterance has; one that is to end well reports no more


@dataclass
class Wish:
    """``flaw``: poison kills each worker that runs it at stage ``where``; failing reports a failure there every time,
    flaky now and then. ``left_out``: it is never sent; the client says so (skip) or does not (gap).
    """

    index: int
    samples: bytes
    flaw: str = ""
    where: str = ""
    left_out: str = ""
    budget_ms: int | None = None
    on_deadline: str = "fail"  # of its session
    cancelled: bool = False
    accepted: bool = False  # its client was told so
    failures: int = 0  # reported so far

    @property
    def name(self) -> str:
        """What its text says."""
        return self.samples[:NAME_BYTES].hex()

    @property
    def is_poison(self) -> bool:
        return self.flaw == "poison"

    def fails(self, stage: str) -> bool:
        """Whether a run of it reports a failure now."""
        if stage != self.where:
            return False
        return self.flaw == "failing" or (self.flaw == "flaky" and self.failures < MOST_FAILURES)

    def can_fail(self, stage: str) -> bool:
        """Whether it may fail along with its batch and still end as it should."""
        return self.fails(stage) or self.failures < MOST_FAILURES

    def ends(self) -> set[str]:
        """How it may end if every process lives: the outcome's code, or ok."""
        if self.left_out:
            return {"gap"}
        found = {{"poison": "poison", "failing": "failed"}.get(self.flaw, "ok")}
        if self.cancelled:
            found.add("cancelled")
        if self.budget_ms is not None:
            found.add("expired")
            if self.failures:
                found.add("failed")  # the wait for the next try would end after the deadline
        return found

    def judge(self, outcome: Outcome, deaths: Counter[str], stopped: bool, cut_short: bool) -> str:
        """What is wrong with its outcome, or "". ``stopped``: somebody has stopped the node, which took nothing more
        then; ``cut_short``: and it had no time to end everything.
        """
        found = outcome.code or outcome.outcome
        if found == "ok" and outcome.audio is None and self.budget_ms is not None and self.on_deadline == "text":
            return "" if set(outcome.texts.values()) == {self.name} else "somebody else's text"
        if found == "ok" and "ok" in self.ends():
            mine = outcome.audio is not None and bytes(outcome.audio.tobytes()) == self.samples
            return "" if mine else "somebody else's samples"
        if found in self.ends() or (found == "shutting_down" and cut_short):
            return ""
        if found == "gap" and stopped and not self.accepted:
            return ""
        return "" if self._is_bad_luck(outcome, deaths) else f"{outcome.outcome} {outcome.code} {outcome.error}"

    def _is_bad_luck(self, outcome: Outcome, deaths: Counter[str]) -> bool:
        """An end that only deaths can bring about, and as many of them as it takes."""
        if outcome.error == GIVEN_UP:
            return deaths["gateway"] > 0
        if outcome.code == "poison":
            of = "scheduler" if outcome.error.startswith("the scheduler died") else "worker"
            return deaths[of] >= 3
        return False


def haste(wish: Wish, on_deadline: str, chance: random.Random) -> None:
    """Make it one of a session that says what it would rather lose than the whole: some of them have little time."""
    wish.on_deadline = on_deadline
    if not (wish.left_out or wish.flaw or wish.budget_ms) and chance.random() < 0.1:
        wish.budget_ms = chance.choice(BUDGETS_MS)


def manners(chance: random.Random) -> dict[str, Any]:
    """What a session asks for besides its languages."""
    return {
        "priority": chance.choice(("high", "normal", "low")),
        "weight": chance.randint(1, 5),
        "on_deadline": chance.choice(("fail", "skip_repair", "text")),
    }


def draw(chance: random.Random, index: int, is_last: bool, size: int, stages: tuple[str, ...]) -> Wish:
    """An utterance of ``size`` samples: mostly one that nothing is the matter with.

    The last one of a session is not left out in silence: the node would not miss it.
    """
    wish = Wish(index, chance.randbytes(NAME_BYTES) * (2 * size // NAME_BYTES))
    kind = chance.random()
    if kind < 0.04:
        wish.left_out = "skip" if is_last or kind < 0.02 else "gap"
    elif kind < 0.10:
        wish.flaw = ("poison", "failing", "flaky")[int((kind - 0.04) / 0.02)]
        wish.where = chance.choice(stages)
    elif kind < 0.16:
        wish.budget_ms = chance.choice(BUDGETS_MS)
    return wish
