"""What every test may count on."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """Give asrd's logger back as it was: a command line run in this process takes it over."""
    ours = logging.getLogger("asrd")
    level, propagate, handlers = ours.level, ours.propagate, ours.handlers[:]
    yield
    ours.propagate, ours.handlers[:] = propagate, handlers
    ours.setLevel(level)
