"""A stranger's placement policy may do what it likes: the scheduler goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from engine.policies import Candidate, Earliest, Policy
from tests.scheduler.world import World, text_stage


class Forgetful:
    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        return None  # type: ignore[return-value]


class Breaking:
    def order(self, stage: str, workers: Sequence[Candidate]) -> Iterator[str]:
        yield workers[0].role
        raise RuntimeError("no idea")


class Reluctant:
    """Leaves out all workers, the first time."""

    asked = 0

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        self.asked += 1
        return [worker.role for worker in workers] if self.asked > 1 else []


def world(policy: Policy, notes: list[str] | None = None) -> World:
    found = World(text_stage("a", 2))
    found.on_note = (notes if notes is not None else []).append
    found.core.dispatch.policy = policy
    found.start_all()
    found.open()
    found.admit(0)
    return found


@pytest.mark.parametrize("policy", [Forgetful(), Breaking()])
def test_one_that_answers_nothing_or_breaks_half_way_is_replaced(policy: Policy) -> None:
    found = world(policy)
    assert isinstance(found.core.dispatch.policy, Earliest)
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"}


def test_one_that_leaves_out_all_is_asked_again_and_named_once() -> None:
    notes: list[str] = []
    found = world(Reluctant(), notes)
    found.advance(1.1)
    assert sum("names no worker of stage a" in note for note in notes) == 1
    assert any(found.board.values()), "though nothing else has happened"
