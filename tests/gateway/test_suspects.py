"""Whom a scheduler may have died of: only when it ended nothing, one at a time, and nobody else is charged."""

from __future__ import annotations

from engine.gateway.events import DrainNode, NewEpoch
from ipc.messages import Admit, Close, Ended, Held, JobAccepted, Outcome, Restored
from tests.gateway.stand import Stand


class Epochs:
    """A gateway, and schedulers that come and go."""

    def __init__(self, count: int) -> None:
        self.stand = Stand()
        self.stand.feed(NewEpoch())  # the first one
        self.id = self.stand.open().session
        for index in range(count):
            self.stand.submit(self.id, index)
            self.stand.feed(JobAccepted(self.id, index))

    def next(self) -> list[int]:
        """The scheduler dies and another comes; the indices that it may begin as long as nothing ends."""
        before = len(self.stand.posted)
        self.stand.feed(NewEpoch())
        return self.given(before)

    def given(self, since: int) -> list[int]:
        told = [message for message in self.stand.posted[since:] if isinstance(message, Admit)]
        for admit in told:
            self.stand.feed(JobAccepted(admit.session, admit.index))
        return [admit.index for admit in told if not admit.waiting]

    def end(self, index: int) -> list[int]:
        """It ends well; the indices that may begin then."""
        before = len(self.stand.posted)
        self.stand.finish(self.id, index)
        return self.given(before)

    def outcomes(self) -> dict[int, str]:
        return {outcome.index: outcome.code or outcome.outcome for outcome in self.stand.heard(Outcome)}


def test_an_epoch_that_had_ended_something_makes_nobody_suspect() -> None:
    epochs = Epochs(4)
    epochs.end(0)
    assert epochs.next() == [1, 2, 3]


def test_what_an_epoch_held_that_ended_nothing_is_begun_by_the_next_one_at_a_time() -> None:
    epochs = Epochs(3)
    assert epochs.next() == [0]
    assert epochs.end(0) == [1]
    assert epochs.end(1) == [2]
    epochs.end(2)
    assert epochs.outcomes() == {0: "ok", 1: "ok", 2: "ok"}


def test_the_one_that_three_epochs_die_with_is_poison_and_its_neighbours_are_not() -> None:
    epochs = Epochs(3)
    assert epochs.next() == [0]
    epochs.end(0)  # so 1 is on its own now, and it is guilty
    assert epochs.next() == [1] and epochs.next() == [1]
    assert epochs.next() == [2], "the third death was one too many"
    epochs.end(2)
    assert epochs.outcomes() == {0: "ok", 1: "poison", 2: "ok"}


def test_an_epoch_that_dies_before_it_has_accepted_anything_counts_too() -> None:
    """An utterance may kill it before it can say that it has it."""
    stand = Stand()
    stand.feed(NewEpoch())
    session = stand.open().session
    stand.submit(session, 0)
    for _ in range(4):
        stand.feed(NewEpoch())
    assert [outcome.code for outcome in stand.heard(Outcome)] == ["poison"]


def test_what_comes_meanwhile_is_no_suspect_and_need_not_wait() -> None:
    epochs = Epochs(2)
    assert epochs.next() == [0]
    before = len(epochs.stand.posted)
    epochs.stand.submit(epochs.id, 2)
    assert epochs.given(before) == [2]


def test_the_next_epoch_knows_all_of_them_from_the_start() -> None:
    """Else this gateway alone would, and its death would lose them."""
    epochs = Epochs(3)
    before = len(epochs.stand.posted)
    epochs.stand.feed(NewEpoch())
    told = epochs.stand.posted[before:]
    assert [message.index for message in told if isinstance(message, Held)] == [0, 1, 2]
    known = [(m.index, m.waiting) for m in told[: told.index(Restored())] if isinstance(m, Admit)]
    assert known == [(0, True), (1, True), (2, True)]
    assert [(m.index, m.waiting) for m in told[told.index(Restored()) :] if isinstance(m, Admit)] == [(0, False)]


def test_a_node_that_stops_has_no_time_for_one_after_the_other() -> None:
    epochs = Epochs(3)
    assert epochs.next() == [0]
    before = len(epochs.stand.posted)
    epochs.stand.feed(DrainNode(20.0))
    assert epochs.given(before) == [1, 2]


def test_a_session_that_is_over_takes_its_suspects_along() -> None:
    epochs = Epochs(3)
    other = epochs.stand.open(client=b"b", tag="t").session
    epochs.stand.submit(other, 0, client=b"b")
    assert epochs.next() == [0]
    before = len(epochs.stand.posted)
    epochs.stand.say(Close(epochs.id, "abort"))
    for index in range(3):
        epochs.stand.finish(epochs.id, index, outcome="skipped", code="cancelled")
    epochs.stand.wait(0.1)
    begun = [(m.session, m.index) for m in epochs.stand.posted[before:] if isinstance(m, Admit) and not m.waiting]
    assert begun[-1:] == [(other, 0)]


def test_a_suspect_that_has_ended_is_told_as_ended() -> None:
    epochs = Epochs(2)
    epochs.next()
    epochs.end(0)
    before = len(epochs.stand.posted)
    epochs.stand.feed(NewEpoch())
    assert [m.outcome.index for m in epochs.stand.posted[before:] if isinstance(m, Ended)] == [0]
