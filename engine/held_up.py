"""Why nothing comes out of a node that has work: the same words for whoever waits for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def mended(reason: str) -> str:
    """The node's reason, with the order that ends it where one does."""
    device, drained, _ = reason.partition(" is drained")
    order = drained and "ctl resume" not in reason
    return f"{reason} (run_node.py ctl resume {device} lets it be used)" if order else reason


def words(stage: str, reason: str) -> str:
    """A line for people: which stage waits, and for what."""
    return f"stage {stage} waits: {mended(reason)}"


def stages(stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each stage that work waits for while none of its workers has its model, and its row in the statistics."""
    for stage, row in ((stats.get("scheduler") or {}).get("stages") or {}).items():
        if row["waiting"] and not row["loaded"]:
            yield stage, row


def lines(stats: Mapping[str, Any]) -> Iterator[str]:
    """A line for each of them of which it is known why."""
    return (words(stage, row["why"]) for stage, row in stages(stats) if row["why"])
