"""What is asked for: the device that ``lease --device`` means, the bytes of ``engine.Lease`` and of the example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.commands.lease import named
from engine.leasing import Lease

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_lease.py"

DEVICES = {"cpu": {"uuid": ""}, "cuda:0": {"uuid": "GPU-aa-1"}, "cuda:1": {"uuid": "GPU-ab-1"}}


def test_a_device_is_named_as_the_node_does_or_by_its_uuid_or_by_how_that_alone_begins() -> None:
    for given, meant in {
        "cuda:1": "cuda:1", "GPU-aa-1": "cuda:0", "GPU-ab": "cuda:1", "cpu": "cpu",
        "GPU-a": "GPU-a", "GPU-c": "GPU-c", "": "",
    }.items():  # fmt: skip
        assert named(given, DEVICES) == meant


def test_bytes_may_be_a_float_that_is_whole() -> None:
    lease = Lease(1.5 * 2**30)
    assert (lease.nbytes, type(lease.nbytes)) == (3 * 2**29, int)


@pytest.mark.parametrize("nbytes", [1.5, "6GiB", None, float("nan"), float("inf"), 0, -1.0, 2**70])
def test_what_is_no_number_of_bytes_is_said_at_once_with_what_to_write(nbytes: Any) -> None:
    with pytest.raises(ValueError, match=r"give .*, such as 6 \* 2\*\*30"):
        Lease(nbytes)


@pytest.mark.parametrize("arguments", [[], ["1000000000"], ["1GB", "cpu"], ["-1", "cpu"]])
def test_the_example_says_how_it_is_called(arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert ended.stderr.startswith("usage: ")
