"""docs/protocol.md names every message, every field and every code, and its exchange is made of valid messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from ipc import errors, messages
from ipc.messages import ClientMessage, Limits, NodeMessage, StageRecord

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
KINDS = [*get_args(ClientMessage), *get_args(NodeMessage)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_message_and_field_is_described(kind: type) -> None:
    rows = re.split(r"^\| `(?=[A-Z])", PAGE, flags=re.MULTILINE)
    (section,) = [row for row in rows if row.startswith(f"{kind.__name__}` |")]
    section = section.split("\n\n")[0]
    for field in msgspec.structs.fields(kind):
        assert f"`{field.name}`" in section, field.name


@pytest.mark.parametrize("kind", [Limits, StageRecord], ids=lambda kind: kind.__name__)
def test_each_part_is_described(kind: type) -> None:
    assert [f.name for f in msgspec.structs.fields(kind) if f"`{f.name}`" not in PAGE] == []


@pytest.mark.parametrize(
    "codes",
    ["OUTCOMES", "ERROR_CODES", "SKIPPED_CODES", "REJECTED_CODES", "BUSY_REASONS", "CLOSED_REASONS"],
)
def test_each_code_is_explained(codes: str) -> None:
    assert [code for code in getattr(errors, codes) if code not in PAGE] == []


def test_defaults_of_open_and_submit_are_as_said() -> None:
    for default in ('"full"', '"normal"', "int, 64", "int, Hz, 16000"):
        assert default in PAGE
    opened, sent = messages.Open("t"), messages.Submit("s", 0)
    assert (opened.pipeline, opened.priority, opened.window, sent.sample_rate) == ("full", "normal", 64, 16000)


def test_the_exchange_is_made_of_valid_messages() -> None:
    """What the page leaves out with an ellipsis is filled in; the rest must decode."""
    text = PAGE.split("## An exchange")[1].split("## Rules")[0]
    joined = re.sub(r"\n {7,}(?=\S)", "", text)
    filled = re.sub(r"…", "", re.sub(r",…(?=[}\]])", "", joined))
    lines = [line.strip() for line in filled.splitlines() if line.startswith(("    →", "    ←"))]
    assert len(lines) >= 12
    for line in lines:
        batch = json.loads(re.sub(r"\]\s+(\+ \d+ bytes)?(\s*\(.*\))?$", "]", line[1:].strip()))
        for message in batch:
            if message["type"] == "Welcome":
                continue  # its limits are shown in part
            union = ClientMessage if line[0] == "→" else NodeMessage
            msgspec.convert(message, union)
