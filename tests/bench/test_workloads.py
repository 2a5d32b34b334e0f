"""The nodes of the benchmarks are made of simulated stages, and nothing of them is kept for real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import chaos, scaling, workloads
from engine.config import Config
from engine.corrections_file import OFF


@pytest.mark.parametrize(
    "config", [workloads.translation, workloads.passing, chaos.config, lambda: scaling.config(2, 0.5)]
)
def test_what_simulated_stages_take_is_no_estimate_of_the_users(config: Callable[[], Config]) -> None:
    made = config()
    assert {stage.kind for stage in made.stages.values()} == {"simulated"}
    assert made.devices.estimates_file == OFF
