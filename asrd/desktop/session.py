"""The graphical session around the daemon: its kind and its variables.

A user service starts before the compositor and outlives it, so nothing here is remembered: variables
are looked up each time. Runs in the daemon.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping

log = logging.getLogger("asrd.desktop")


def session(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables with which a program reaches the graphical session.

    The process's own, and where they name no display that lives, the user manager's over them: that
    is where a compositor announces itself after the service was started. Takes milliseconds, at
    most 2 s.
    """
    if environment is None:
        environment = os.environ
    own = dict(environment)
    if kind(own):
        return own
    return own | _managers(own)


def kind(environment: Mapping[str, str]) -> str:
    """Return "wayland", "x11" or, where no display is named or the named one is gone, ""."""
    wayland, x11 = _wayland_lives(environment), bool(environment.get("DISPLAY"))
    session_type = environment.get("XDG_SESSION_TYPE")
    if wayland and not (x11 and session_type == "x11"):
        return "wayland"
    if x11 and session_type != "wayland":  # else the display is XWayland's
        return "x11"
    return ""


def _wayland_lives(environment: Mapping[str, str]) -> bool:
    name = environment.get("WAYLAND_DISPLAY", "")
    return bool(name) and os.path.exists(
        os.path.join(environment.get("XDG_RUNTIME_DIR", "/"), name)
    )


def _managers(own: Mapping[str, str]) -> dict[str, str]:
    """Return the display's variables as the user manager knows them; {} without one."""
    try:
        shown = subprocess.run(
            ["systemctl", "--user", "show-environment"],
            env=own, capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=2, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("no variables from the user manager: %s", error)
        return {}
    wanted = (
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "XAUTHORITY",
        "XDG_SESSION_TYPE",
        "XDG_CURRENT_DESKTOP",
        "SWAYSOCK",
    )
    return {name: value for name, value in _assignments(shown) if name in wanted}


def _assignments(lines: str) -> Iterator[tuple[str, str]]:
    """Yield what `NAME=value` lines say, quoted as systemd quotes: bare, or $'...' with
    backslashes."""
    for line in lines.splitlines():
        name, _, value = line.partition("=")
        if value.startswith("$'"):
            value = value[2:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        elif value[:1] in ("'", '"'):
            value = "".join(shlex.split(value))
        yield name, value
