"""Who takes more than was granted is named, and asks for what it took the next time: with that model, and no other."""

from __future__ import annotations

from typing import Any

from engine.arbiter.lease import Lease, LeaseState
from engine.arbiter.overuse import Overuse
from engine.arbiter.words import GIB

GPU = "cuda:0"


def lease(peer: str = "asr@cuda:0/0#1", gib: float = 1, peak: float = 0, **fields: Any) -> Lease:
    state = fields.pop("state", LeaseState.HELD)
    return Lease(peer, 1, GPU, int(gib * GIB), "m", state, 0.0, peak_bytes=int(peak * GIB), **fields)


def test_what_a_worker_took_it_asks_for_with_that_model_and_variant_and_not_for_growth() -> None:
    overuse = Overuse()
    (note,) = overuse.look([lease(peak=3)])
    assert "has 3.0 GiB on cuda:0, 1.0 GiB were granted" in note.text
    assert overuse.asks(lease()) == 3 * GIB
    assert overuse.asks(lease("asr@cuda:0/0#2", 4)) == 4 * GIB
    assert overuse.asks(lease(variant=1)) == GIB
    assert overuse.asks(lease(grows=True)) == GIB
    assert overuse.asks(lease("nmt@cuda:0/0#1")) == GIB


def test_a_program_is_named_and_gets_what_it_asks_for_all_the_same() -> None:
    overuse, program = Overuse(), lease("lease@7/1#5", peak=3)
    assert [*overuse.look([program])] and program.overused
    assert overuse.asks(lease("lease@7/1#5")) == GIB


def test_what_its_holder_has_given_back_and_what_others_have_does_not_count_as_granted() -> None:
    others = [lease(gib=3, state=state) for state in (LeaseState.DRAINING, LeaseState.LOST)]
    assert [*Overuse().look([lease(peak=3), *others])]
    assert [*Overuse().look([lease(peak=3), lease("nmt@cuda:0/0#1", 3)])]
    assert not [*Overuse().look([lease(peak=3), lease(gib=3)])]
