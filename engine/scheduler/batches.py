"""How many utterances each stage may have in a run: what is asked for, and as far as that goes what runs have shown.

A stage's plan in the book has the number that holds now (``max_batch``); whoever fills a batch looks there. Pure.
"""

from __future__ import annotations

import msgspec

from engine.boot import StagePlan
from engine.scheduler.adapting import Limit, Tally
from engine.scheduler.book import Book


class Batches:
    """See the module's docstring."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self._asked = dict(book.stages)  # as configured, or as operators have it
        self._shown = {
            name: Limit(min(plan.start_batch or plan.max_batch, plan.max_batch)) for name, plan in book.stages.items()
        }  # fmt: skip
        for name in book.stages:
            self._settle(name)

    def ask(self, stage: str, plan: StagePlan) -> None:
        """From now on this is asked for."""
        self._asked[stage] = plan
        self._settle(stage)

    def ran(self, stage: str, tally: Tally, now: float) -> None:
        """A run is over: perhaps the next ones may have more utterances, or fewer."""
        if not self.book.boot.adaptive:
            return
        shown, asked, before = self._shown[stage], self._asked[stage], self.book.stages[stage].max_batch
        least = min(asked.min_batch, asked.max_batch)
        if shown.ran(tally, len(self.book.queues[stage]), least, asked.max_batch, now):
            self._settle(stage)
            self.book.note("info", f"{stage} runs up to {shown.n} at once, not {before}: {shown.why}")
            self.book.fleet_changed = True
            self.book.stir(stage)

    def why(self, stage: str) -> str:
        """Where the number comes from, in words."""
        return self._shown[stage].why if self.book.boot.adaptive else "as configured"

    def _settle(self, stage: str) -> None:
        book, asked, most = self.book, self._asked[stage], self._asked[stage].max_batch
        if book.boot.adaptive:
            most = self._shown[stage].within(min(asked.min_batch, most), most)
        book.stages[stage] = msgspec.structs.replace(asked, max_batch=most)
        for worker in book.workers_of(stage):
            worker.stage = book.stages[stage]
