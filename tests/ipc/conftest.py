"""What the tests of links and of the door share."""

from __future__ import annotations

import pytest


@pytest.fixture
def opened():
    """Registers what the test opens, and closes it."""
    things = []
    yield lambda thing: things.append(thing) or thing
    for thing in things:
        thing.close()
