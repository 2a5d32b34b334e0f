"""Profiles: how much a node takes on, in one word, for the fields that nobody set. Pure.

``node.profile`` chooses one. It fills in what the configuration leaves open and nothing else: a field that the file,
the environment or a caller has set stays as it is set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ASR = "asr"  # the kind of stage whose batches a profile sizes


@dataclass(frozen=True)
class Profile:
    """What a profile sets, and what that buys and costs."""

    concurrency: int  # utterances in one run of a recogniser: ``max_batch`` of stages of kind asr
    max_retries: int  # node.max_retries
    retry_delay_s: float  # deadlines.retry_delay_s
    budget_max_s: float  # deadlines.budget_max_s
    trade_off: str


PROFILES: dict[str, Profile] = {
    "conservative": Profile(
        1, 3, 10.0, 300.0,
        "each utterance is recognised by itself and its transcript goes on at once; fewest are taken in, so that a "
        "backlog waits with its clients. For a first start, and for a card that is just large enough",
    ),
    "balanced": Profile(
        2, 3, 10.0, 300.0,
        "where recognition is the slowest stage twice as many utterances are taken in; under load the first transcript "
        "of a pair waits for the second. For most nodes",
    ),
    "aggressive": Profile(
        3, 5, 15.0, 300.0,
        "most utterances are taken in, and more and longer tries made before one is given up; the longest waits, for "
        "single transcripts and for bad news. For batches of recordings on a card with room to spare",
    ),
}  # fmt: skip
WHOLE = ("node.max_retries", "deadlines.retry_delay_s", "deadlines.budget_max_s")  # fields of the whole node
BATCH = "max_batch"


def fill(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tree with the fields of its profile where it has none of its own; the argument stays as it is.

    What is no table, or no profile, is left to the check that follows.
    """
    node = tree.get("node", {})
    name = node.get("profile", "balanced") if isinstance(node, Mapping) else ""
    profile = PROFILES.get(name) if isinstance(name, str) else None
    if profile is None:
        return dict(tree)
    filled = dict(tree)
    for field in WHOLE:
        section, _, knob = field.partition(".")
        _put(filled, section, knob, getattr(profile, knob))
    if isinstance(stages := filled.get("stages"), Mapping):
        filled["stages"] = dict(stages)
        for stage in _recognisers(stages):
            _put(filled["stages"], stage, BATCH, profile.concurrency)
    return filled


def forget(tree: dict[str, Any], but: Collection[str]) -> None:
    """Take the fields of profiles out of a tree that has them all, except the dotted ones in ``but``."""
    stages = [f"stages.{name}.{BATCH}" for name in _recognisers(tree.get("stages", {}))]
    for field in (*WHOLE, *stages):
        if field not in but:
            *path, last = field.split(".")
            table = tree
            for name in path:
                table = table[name]
            table.pop(last, None)


def _put(tree: dict[str, Any], section: str, knob: str, value: Any) -> None:
    table = tree.get(section, {})
    if isinstance(table, Mapping):
        tree[section] = {knob: value, **table}


def _recognisers(stages: Mapping[str, Any]) -> Iterator[str]:
    for name, section in stages.items():
        if isinstance(section, Mapping) and (section.get("kind") or name) == ASR:
            yield name
