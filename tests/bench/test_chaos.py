"""The chaos benchmark's judge sees each kind of harm in the clients' logs, and a short storm does none."""

from __future__ import annotations

from typing import Any

import pytest

from bench import chaos
from bench.chaos import Kill, Verdict, judge_log, recovery_s


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
    chaos.judge_wire(verdict, arrivals)
    assert (verdict.duplicated, verdict.reordered) == (duplicated, reordered)


def test_recovery_ends_when_the_last_client_gets_outcomes_again() -> None:
    kill = Kill("gateway", 1, 10.0, "SIGKILL")
    assert recovery_s(kill, [[9.0, 10.05, 10.4, 10.5], [9.5, 11.0]]) == pytest.approx(1.0)


@pytest.mark.timeout(180)
def test_a_short_storm_harms_nobody() -> None:
    kills, verdict, _, restarts = chaos.storm(8.0, seed=5, quiet=True)
    assert len(kills) >= 3 and verdict.submitted > 50
    assert {name: getattr(verdict, name) for name in GOOD} == GOOD, verdict.reasons
    assert restarts == len(kills), "somebody restarted who was not killed"
