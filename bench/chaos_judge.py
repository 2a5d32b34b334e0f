"""The judge of bench chaos: reads what the clients logged, and nothing else.

Every utterance submitted has one outcome, in order, its own, and ``ok``, unless its client had asked for something
else: who cancels may get ``skipped(cancelled)``, who is in a hurry ``error(expired)`` (``may``), and what is left out
ends as ``skipped(gap)`` and in no other way (``must``).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Verdict:
    """What the logs say."""

    submitted: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    mixed_up: int = 0
    client_failures: int = 0
    ends: Counter[str] = field(default_factory=Counter)  # "ok", "skipped/gap", ... -> how many
    reasons: list[str] = field(default_factory=list)
    arrivals: list[list[float]] = field(default_factory=list)  # per client, when its outcomes came


def read_logs(logs: Sequence[Path]) -> Verdict:
    """Judge the clients' logs."""
    verdict = Verdict()
    for log in logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        judge_log(verdict, log.stem, lines)
    return verdict


def judge_log(verdict: Verdict, name: str, lines: Sequence[dict[str, Any]]) -> None:
    """One client."""
    submitted = {line["index"]: line for line in lines if line["kind"] == "submit"}
    outcomes = [line for line in lines if line["kind"] == "outcome"]
    ended = Counter(line["index"] for line in outcomes)
    order = [line["index"] for line in outcomes]
    bad = [line for line in outcomes if not _is_wished(line, submitted.get(line["index"], {}))]
    gave_up = [line["text"] for line in lines if line["kind"] == "error"]
    unfinished = not gave_up and not any(line["kind"] == "end" for line in lines)
    verdict.submitted += len(submitted)
    if not submitted:
        verdict.client_failures += 1
        verdict.reasons.append(f"{name}: submitted nothing")
    verdict.lost += len(submitted.keys() - ended.keys())
    verdict.duplicated += sum(count - 1 for count in ended.values())
    verdict.reordered += sum(b <= a for a, b in itertools.pairwise(order))
    verdict.mixed_up += sum(not line["right"] for line in outcomes) + len(ended.keys() - submitted.keys())
    judge_wire(verdict, lines)
    verdict.client_failures += len(bad) + len(gave_up) + unfinished
    verdict.ends.update(_end(line) for line in outcomes)
    verdict.reasons += [f"{name}: {line['index']} {_end(line)} {line['error']}" for line in bad]
    verdict.reasons += [f"{name}: {text}" for text in gave_up] + [f"{name}: did not end"] * unfinished
    verdict.arrivals.append([line["at"] for line in outcomes])


def judge_wire(verdict: Verdict, lines: Sequence[dict[str, Any]]) -> None:
    """What came over the wire: in order and once, but for what a client that has resumed is sent again."""
    last = -1
    for line in lines:
        if line["kind"] != "wire":
            continue
        if line["what"] == "Opened":
            last = -1
        elif line["index"] == last:
            verdict.duplicated += 1
        elif line["index"] < last:
            verdict.reordered += 1
        else:
            last = line["index"]


def _is_wished(outcome: dict[str, Any], submit: dict[str, Any]) -> bool:
    if "must" in submit:
        return bool(_end(outcome) == submit["must"])
    return _end(outcome) in ("ok", submit.get("may"))


def _end(outcome: dict[str, Any]) -> str:
    return outcome["outcome"] + (f"/{outcome['code']}" if outcome["code"] else "")
