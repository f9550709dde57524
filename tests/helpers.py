"""What several files of tests do before they begin."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

TOOLS = ROOT / "tools"


def load_tool(name: str) -> ModuleType:
    """Import a program of tools/ that has no .py suffix."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(TOOLS / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def have_own_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing of this user's read or written: home, settings, state and sockets lie in a
    folder."""
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(variable, str(folder))
