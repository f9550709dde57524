"""What every test may count on."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.screen"]


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """Give asrd's logger back as it was: a command line run in this process takes it over."""
    ours = logging.getLogger("asrd")
    level, propagate, handlers = ours.level, ours.propagate, ours.handlers[:]
    yield
    ours.propagate, ours.handlers[:] = propagate, handlers
    ours.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep takes and baselines of tests away from those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
