"""Simulated histories of the whole node end well, and the recoveries that they are to test are really taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench import histories
from bench.simulation import World
from engine.gateway.catalog import Catalog
from engine.gateway.ingress import Ingress
from engine.scheduler.slots import SlotKey, Slots
from engine.scheduler.watchdog import Watchdog

HISTORIES = 300
# Seeds of plain histories that once did not end well, and what was wrong. When the simulation draws otherwise than it
# did, put each fault back, play histories until one shows it, and let its seed stand here.
FOUND = {
    227: "a result was being made again when the scheduler died too: the next epoch ran it on a freed input",
    34: "inputs kept until the acknowledgement filled the ring, and what they waited for found no room in it",
    494: "... and again: inputs that were kept after room had been asked for",
    264: "... and again: they filled their session's part of the ring, which asked for no room",
    16: "memory showed a death before it was told: it was put down to another worker, whose lease then counted twice",
    401: "Busy made a gap: what its client had held back meanwhile was given up as soon as the refused index had come",
    355: "a client held an index back for its share, though a skip above it had made it a gap at the node",
    14872: "a new gateway was told that an input is free before it was told of the input, and kept it for ever",
    1369: "an input was given up in a ring not known yet, a lost result was made again from it: the scheduler crashed",
    713: "a scheduler with nothing left to do shortened the time that the next one had to end what came after that",
    3904: "a stopping node did not wait for a client whose connection had just been lost, and which had more to fetch",
    34557: "suspects that waited for their turn were known to the gateway alone, and lost with it",
    1018004: "a Resume from a connection since broken came behind the next one and took the session from its client",
    1031128: "a Resume that came late brought all outcomes again, which passed for answers that nobody reads",
    1022049: "a session over its budget waited for an index that had no slot: its later ones kept them all",
    1051271: "a scheduler that had stood still acted on old news: a worker's silence that was over",
    1361635: "a stopping gateway stood still for the whole time in which clients could have fetched what had ended",
    527325: "a session over its budget waited for an index that came last to a node full of its later ones",
    10109: "a worker that had loaded did not say so first: a new epoch took its run for the load and freed its input",
}


# Likewise, where sessions have manners, and stages several models, of their own.
FOUND_MIXED = {
    11788: "an index that was held back shortened the time that the refused one had been told to wait: it was a gap",
    518298: "... and again",
}

DEAF = (59, 103, 469, 523)  # a deaf worker still reads what a new epoch might give away


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_stays_mended(seed: int) -> None:
    World(seed, plain=True).run()


@pytest.mark.parametrize("seed", FOUND_MIXED)
def test_what_was_found_among_sessions_of_all_kinds_stays_mended(seed: int) -> None:
    World(seed).run()


def test_every_history_ends_well_and_every_recovery_is_needed_now_and_then() -> None:
    paths: Counter[str] = Counter()
    failures = []
    for seed in range(10_000, 10_000 + HISTORIES):
        took, failure = histories.one(seed)
        paths.update(took)
        failures += [failure] * bool(failure)
    assert not failures
    rare = {"a run is dropped for a new epoch", "a dead scheduler's last words are heard"}  # see bench histories
    assert all(paths[path] for path in histories.PATHS if path not in rare), paths


def test_the_same_seed_is_the_same_history() -> None:
    first, again = World(77), World(77)
    first.run()
    again.run()
    assert (first.now, first.paths, first.memory.slots) == (again.now, again.paths, again.memory.slots)


def bad_end(seeds: Iterable[int], *, plain: bool = True) -> str:
    """How the first of these histories ends that does not end well."""
    ends = (histories.one(seed, plain=plain)[1] for seed in seeds)
    return next((failure for failure in ends if failure), "all end well")


def test_without_a_fault_these_histories_end_well() -> None:
    """Else the tests below would show nothing."""
    assert bad_end((*range(40), *DEAF)) == "all end well"


def test_a_new_epoch_that_is_not_told_which_input_slots_are_taken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ingress, "held", lambda self: iter(()))
    assert "the gateway's ring keeps" in bad_end(range(40))


def test_a_ring_that_a_deaf_worker_may_still_read_must_not_be_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def know_it_all(self: Slots, role: str) -> list[SlotKey]:
        self._unknown.clear()
        freed, self._settled = self._settled, []
        return freed

    monkeypatch.setattr(Slots, "heard", know_it_all)
    assert "was given away while somebody needed it" in bad_end(DEAF)


@pytest.mark.parametrize(
    ("rule", "seeds"), [("_settle", range(600, 1500)), ("grant", range(9, 6000, 10))], ids=["free", "grant"]
)
def test_a_ring_that_is_not_known_yet_is_neither_freed_nor_granted(
    rule: str, seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is deaf in a run of the epoch before still reads its input, in the gateway's ring or another
    worker's; without the rule somebody writes there meanwhile.
    """
    obeyed = getattr(Slots, rule)

    def broken(self: Slots, *given: object) -> object:
        unknown, self._unknown = self._unknown, {}
        try:
            return obeyed(self, *given)
        finally:
            self._unknown = unknown

    monkeypatch.setattr(Slots, rule, broken)
    assert bad_end(seeds) != "all end well"


def test_a_worker_that_is_condemned_in_a_long_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def condemn(self: Watchdog, role: str, incarnation: int, phase: str, now: float) -> None:
        worker = self.book.workers[role]
        if incarnation == worker.incarnation and not worker.condemned:
            self._condemn(worker, incarnation, "silent")

    monkeypatch.setattr(Watchdog, "silent", condemn)
    assert "is condemned for nothing" in bad_end(range(40))


def test_an_utterance_that_another_model_than_its_sessions_has_made_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalog, "models_of", lambda self, message: self.stages_of(message.pipeline))
    assert "has model 'b', and was given to" in bad_end(range(100), plain=False)


def test_the_benchmark_plays_them_in_parts(capsys: pytest.CaptureFixture) -> None:
    assert histories.main(["--count", "30", "--jobs", "2", "--json"]) == 0
    assert '"metric": "failed", "value": 0' in capsys.readouterr().out
    assert Path(histories.__file__).exists()
