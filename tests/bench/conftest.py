"""The stand-in driver, set up for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench.standin_driver import Driver, Gpu
from tests.bench.standin_program import Program


@pytest.fixture
def stage() -> Iterator[Callable[..., tuple[Driver, Callable[[], Program]]]]:
    """``stage(gpu, ..., lag_s=0)`` -> the driver, and what starts programs on it."""
    with ExitStack() as ends:

        def start(driver: Driver) -> Program:
            program = Program(driver)
            ends.callback(program.close)
            return program

        def make(*gpus: Gpu, **options: Any) -> tuple[Driver, Callable[[], Program]]:
            driver = ends.enter_context(Driver(gpus or (Gpu(),), **options))
            return driver, lambda: start(driver)

        yield make
