"""Where a user's files are, and how one is written. Imports little: a key press waits for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path


def config_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the user's configurations, of every program."""
    return Path(environment.get("XDG_CONFIG_HOME") or _home(environment) / ".config")


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where asrd's configuration is looked for."""
    return Path(environment.get("ASRD_CONFIG") or config_home(environment) / "asrd" / "config.toml")


def state(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what asrd keeps from run to run."""
    return Path(environment.get("XDG_STATE_HOME") or _home(environment) / ".local" / "state") / "asrd"


def write_whole(path: Path, data: bytes) -> None:
    """Make a file hold `data`, for the user alone: whole, or as it was. Raises OSError."""
    new = path.with_suffix(".new")
    try:
        with open(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as out:
            out.write(data)
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or "~").expanduser()
