"""The chaos benchmark's judge sees each kind of harm in the clients' logs, and a short storm does none."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from bench import chaos
from bench.chaos import recovery_s
from bench.chaos_faults import DECK, KINDS, UNDER_LOAD, Kill, cards
from bench.chaos_judge import Verdict, judge_log, judge_wire


def log(*outcomes: int, submitted: int = 3, end: bool = True, **changes: Any) -> list[dict[str, Any]]:
    """A client's log: ``submitted`` utterances, then these outcomes; ``changes`` are of the last one."""
    lines: list[dict[str, Any]] = [{"kind": "submit", "at": 0.0, "index": index} for index in range(submitted)]
    for index in outcomes:
        lines.append(
            {"kind": "outcome", "at": 1.0, "index": index, "outcome": "ok", "code": "", "error": "", "right": True}
        )
    if outcomes:
        lines[-1] |= changes
    return [*lines, {"kind": "end", "at": 2.0}] if end else lines


GOOD = {"lost": 0, "duplicated": 0, "reordered": 0, "mixed_up": 0, "client_failures": 0}


@pytest.mark.parametrize(
    ("lines", "harm"),
    [
        (log(0, 1, 2), {}),
        (log(0, 1), {"lost": 1}),
        (log(0, 1, 1, 2), {"duplicated": 1, "reordered": 1}),
        (log(0, 2, 1), {"reordered": 1}),
        (log(0, 1, 2, right=False), {"mixed_up": 1}),
        (log(0, 1, 2, 3), {"mixed_up": 1}),
        (log(0, 1, 2, outcome="error", code="failed"), {"client_failures": 1}),
        (log(0, 1, 2, end=False), {"client_failures": 1}),
        ([*log(0, 1, 2, end=False), {"kind": "error", "at": 3.0, "text": "NodeGone"}], {"client_failures": 1}),
    ],
)
def test_the_judge_sees_every_harm(lines: list[dict[str, Any]], harm: dict[str, int]) -> None:
    verdict = Verdict()
    judge_log(verdict, "c", lines)
    assert {name: getattr(verdict, name) for name in GOOD} == GOOD | harm


def wire(*what: int | str) -> list[dict[str, Any]]:
    return [
        {"kind": "wire", "what": "Opened", "index": None} if one == "Opened"
        else {"kind": "wire", "what": "Outcome", "index": one}
        for one in what
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arrivals", "duplicated", "reordered"),
    [
        (wire("Opened", 0, 1, 2), 0, 0),
        (wire("Opened", 0, 1, "Opened", 1, 2), 0, 0),  # resumed
        (wire("Opened", 0, 1, 1, 2), 1, 0),
        (wire("Opened", 0, 2, 1), 0, 1),
    ],
)
def test_the_judge_sees_what_a_client_would_hide(arrivals: list, duplicated: int, reordered: int) -> None:
    verdict = Verdict()
    judge_wire(verdict, arrivals)
    assert (verdict.duplicated, verdict.reordered) == (duplicated, reordered)


def test_recovery_ends_when_the_last_client_gets_outcomes_again() -> None:
    kill = Kill("gateway", 1, 10.0, "SIGKILL")
    assert recovery_s(kill, [[9.0, 10.05, 10.4, 10.5], [9.5, 11.0]]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wish", "end", "good"),
    [
        ({"may": "skipped/cancelled"}, {"outcome": "skipped", "code": "cancelled"}, True),
        ({"may": "skipped/cancelled"}, {}, True),
        ({"may": "skipped/cancelled"}, {"outcome": "error", "code": "expired"}, False),
        ({}, {"outcome": "skipped", "code": "cancelled"}, False),
        ({"must": "skipped/gap"}, {"outcome": "skipped", "code": "gap"}, True),
        ({"must": "skipped/gap"}, {}, False),
    ],
)
def test_an_end_counts_as_good_only_for_who_asked_for_it(wish: dict, end: dict, good: bool) -> None:
    verdict, lines = Verdict(), log(0, 1, 2, **end)
    lines[2] |= wish
    judge_log(verdict, "c", lines)
    assert verdict.client_failures == (not good)


def test_a_deck_holds_every_way_for_every_kind_and_each_kind_has_points_to_die_at() -> None:
    deck = cards(random.Random(1))
    drawn = Counter(next(deck) for _ in range(len(KINDS) * sum(DECK.values())))
    assert drawn == {(kind, way): count for kind in KINDS for way, count in DECK.items()}
    assert all(UNDER_LOAD[kind] for kind in ("worker", "scheduler", "gateway"))


def test_every_arbiter_that_dies_in_a_load_is_followed_by_one_that_grants() -> None:
    times = chaos.next_grants(2)
    assert len(times) == 2 and min(times) > 0


@pytest.mark.timeout(240)
def test_a_short_storm_harms_nobody() -> None:
    found = chaos.storm(12.0, seed=5)
    kills = [kill for group in found.kills for kill in group]
    assert len(kills) >= 3 and found.verdict.submitted > 50
    assert {name: getattr(found.verdict, name) for name in GOOD} == GOOD, found.verdict.reasons
    assert found.restarts == len(kills), "somebody restarted who was not killed"
    assert not any("not reached" in kill.how for kill in kills)
