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


class Pairs:
    """Names no roles, but lists, which are found in no table."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        return [[worker.role, worker.items] for worker in workers]  # type: ignore[misc]


class Generous:
    """Names workers that it was not asked about, too."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        return ["b@cpu/0", *(worker.role for worker in workers), ""]


class Reluctant:
    """Leaves out all workers, the first time."""

    asked = 0

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        self.asked += 1
        return [worker.role for worker in workers] if self.asked > 1 else []


class Silent:
    """Leaves out all workers, always."""

    def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
        return []


def world(policy: Policy, notes: list[str] | None = None) -> World:
    found = World(text_stage("a", 2))
    found.on_note = (notes if notes is not None else []).append
    found.core.dispatch.policy = policy
    found.start_all()
    found.open()
    found.admit(0)
    return found


def test_whom_it_was_not_asked_about_it_cannot_choose() -> None:
    found = world(Generous())
    assert isinstance(found.core.dispatch.policy, Generous)
    found.run_everything()
    assert found.ended() == {("s", 0): "ok"}


@pytest.mark.parametrize("policy", [Forgetful(), Breaking(), Pairs()])
def test_one_that_answers_nothing_or_no_roles_or_breaks_half_way_is_replaced(policy: Policy) -> None:
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


def test_one_that_never_names_anybody_is_replaced_after_a_few_seconds_and_that_is_said_once() -> None:
    notes: list[str] = []
    found = world(Silent(), notes)
    for index in range(1, 20):
        found.admit(index)
    assert not any(found.board.values()), "events that follow each other at once are no tries"
    found.advance(5.0)
    found.run_everything()
    assert set(found.ended().values()) == {"ok"} and len(found.outcomes) == 20
    assert sum("earliest from now on" in note for note in notes) == 1


def test_one_that_waits_for_a_worker_that_is_busy_may_go_on_to() -> None:
    class Faithful:
        def order(self, stage: str, workers: Sequence[Candidate]) -> Sequence[str]:
            return [worker.role for worker in workers if worker.role == "a@cpu/0" and not worker.batches]

    found = World(text_stage("a", 3), send_ahead=0)
    found.core.dispatch.policy = Faithful()
    found.start_all()
    found.open()
    for index in range(3):
        found.admit(index)
    found.advance(10.0)
    assert [len(found.board[found.peer(f"a@cpu/{n}")]) for n in range(3)] == [1, 0, 0]
    found.run_everything()
    assert found.core.book.workers["a@cpu/0"].items == 3
