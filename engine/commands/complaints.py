"""What a run's user is told of the utterances that did not end well: few lines, however many they are.

Utterances that failed for word for word the same reason share one line with their number. Where many failed with one
code for reasons that differ in detail only (a name, a length), the first three are told and the rest counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

GONE = "node_gone"
SHOWN = 3  # lines of one code
BY_WISH = ("requested", "nothing was said", "takes ")  # other reasons of the node's for going past a stage


def lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each row that is not ok, alike ones together, in the order they first came."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["outcome"] != "ok":
            reasons = groups.setdefault((row["outcome"], row["code"] or ""), {})
            reasons.setdefault(row["error"] or "", []).append(row["input"])
    for (outcome, code), reasons in groups.items():
        told = list(reasons.items())
        for error, inputs in told[:SHOWN]:
            who = inputs[0] if len(inputs) == 1 else f"{inputs[0]} and {len(inputs) - 1} more"
            yield f"{who}: {outcome} ({code}) {error}".rstrip()
        if rest := sum(len(inputs) for _, inputs in told[SHOWN:]):
            yield f"and {rest} more: {outcome} ({code}); see results.jsonl"


def gone(rows: Sequence[Mapping[str, Any]], folder: object) -> str:
    """What there is of a run whose node ended under it, and what to do; "" when it did not."""
    left = sum(row["code"] == GONE for row in rows)
    if not left:
        return ""
    return (
        f"the node is gone: {len(rows) - left} of {len(rows)} utterances have their outcome in {folder}/results.jsonl, "
        f"{left} have none (code {GONE}); start one again (run_node.py serve) and give these again, with another --out"
    )


def left_out(rows: Iterable[Mapping[str, Any]]) -> str:
    """Stages that this node does without, and why: ``without repair (not installed: llama_cpp)``; "" when none."""
    found: dict[str, str] = {}
    for row in rows:
        for record in row["stages"]:
            reason = record["reason"] or ""
            if record["state"] == "skipped" and not record["worker"] and reason and not reason.startswith(BY_WISH):
                found.setdefault(record["stage"], reason)
    return "; ".join(f"without {stage} ({reason})" for stage, reason in found.items())
