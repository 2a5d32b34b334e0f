"""A shortage is the outsiders' doing only where what was granted fits without them, and not with them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.vram_grants import Sample
from bench.vram_shortages import Shortages

GIB = 2**30


def lease(gib: float, *, granted_s: float = 1.0, left_s: float = 0.0, **other: str) -> dict[str, Any]:
    known = {"device": "cuda:0", "state": "held", "pid": 7, "nbytes": int(gib * GIB)}
    return {**known, "granted_s": granted_s, "left_s": left_s, **other}


def snatched(leases: list[dict[str, Any]], *, held: float = 2, lagging: float = 0, foreign: float = 5) -> int:
    """Of one shortage at 3 s on a GPU of 8 GiB, told by a report of 4 s."""
    shortages = Shortages([8 * GIB])
    shortages.add(0, Sample(3.0, {7: int(held * GIB)}, int(lagging * GIB), int(foreign * GIB)), 1)
    shortages.judge([], 2.0)
    assert not shortages.snatched, "nothing is known yet"
    shortages.judge(leases, 4.0)
    shortages.judge(leases, 5.0)
    return shortages.snatched


def test_who_took_what_was_promised_has_snatched_it() -> None:
    assert snatched([lease(4)]) == 1
    assert snatched([lease(3)], lagging=1) == 1
    assert snatched([lease(4, state="released", left_s=3.2)]) == 1, "its load failed for that, so it was over when told"


@pytest.mark.parametrize(
    ("leases", "more"),
    [
        ([lease(3)], {}),  # there was room for all of it: the model took more than its lease
        ([lease(4)], {"foreign": 0}),  # nobody else is there
        ([lease(9)], {}),  # too much was granted, outsiders or not
        ([lease(4, granted_s=3.5)], {}),  # granted afterwards
        ([lease(4, state="released", left_s=2.9)], {}),  # ... or over before
        ([lease(4, device="cuda:1")], {}),
        ([lease(4, state="deficit")], {}),
    ],
)
def test_any_other_shortage_is_the_nodes_own(leases: list[dict[str, Any]], more: dict[str, float]) -> None:
    assert snatched(leases, **more) == 0
