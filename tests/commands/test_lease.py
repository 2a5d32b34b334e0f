"""Which device ``lease --device`` means."""

from __future__ import annotations

from engine.commands.lease import named

DEVICES = {"cpu": {"uuid": ""}, "cuda:0": {"uuid": "GPU-aa-1"}, "cuda:1": {"uuid": "GPU-ab-1"}}


def test_a_device_is_named_as_the_node_does_or_by_its_uuid_or_by_how_that_alone_begins() -> None:
    for given, meant in {
        "cuda:1": "cuda:1", "GPU-aa-1": "cuda:0", "GPU-ab": "cuda:1", "cpu": "cpu",
        "GPU-a": "GPU-a", "GPU-c": "GPU-c", "": "",
    }.items():  # fmt: skip
        assert named(given, DEVICES) == meant
