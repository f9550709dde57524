"""What every test may count on."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from asrd import paths
from asrd.precision import gpus
from tests.fakes.hub_server import Hub
from tests.hub_user import FILE, MODEL

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # a test that imports NeMo imports onnxruntime too, which else calls home
)

pytest_plugins = ["tests.integration.screen"]

# A shell ignores Ctrl-C for what it starts in the background, and so would every program that the
# tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logger(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Have logging as in a new process: a command line takes our logger over, and NeMo every
    handler of the root."""
    ours = logging.getLogger("asrd")
    handlers = ours.handlers[:]
    caplog.handler.setLevel(logging.NOTSET)
    yield
    ours.propagate, ours.handlers[:] = True, handlers
    ours.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def folders_of_libraries() -> Iterator[None]:
    """Take back where plots sent the libraries of this process: a program that a test starts would
    inherit it."""
    before = {name: os.environ.get(name) for name in paths.LIBRARY_FOLDERS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have cards that a test makes up be ones that the installed torch, which may be without CUDA,
    can use."""
    monkeypatch.setattr(gpus, "torch_problem", lambda card: ("", ""))


@pytest.fixture(autouse=True, scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep takes and baselines of tests away from those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Return a hub that serves one small model."""
    served = Hub()
    served.files = {FILE: MODEL}
    yield served
    served.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the tiny models of one file of tests lie."""
    return tmp_path_factory.mktemp("tiny")
