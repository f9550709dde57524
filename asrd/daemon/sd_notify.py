"""The notify protocol of systemd: readiness, status, watchdog, and inherited sockets."""

from __future__ import annotations

import os
import socket
import time

from asrd.journal import logger
from asrd.text.characters import printable

_PATIENCE = 0.2
"""Seconds that the manager gets to take one notification."""


# -- the manager
# ------------------------------------------------------------------------------------------------------


def ready(status: str = "") -> bool:
    """Report that a toggle works from now on, after start and after reload; return whether a manager
    received it."""
    if not status:
        return _notify("READY=1")
    return _notify("READY=1", f"STATUS={_line(status)}")


def status(text: str) -> bool:
    """Set the line that `systemctl status` shows."""
    return _notify(f"STATUS={_line(text)}")


def reloading() -> bool:
    """Say that the configuration is being read again; `ready` ends it."""
    return _notify(
        "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    )


def stopping() -> bool:
    """Say that the daemon is on its way out."""
    return _notify("STOPPING=1")


def watchdog() -> bool:
    """Say that the daemon is alive; due at least every `watchdog_seconds()`, better twice as
    often."""
    return _notify("WATCHDOG=1")


def extend(seconds: float) -> bool:
    """Ask for `seconds` from now before the present start or stop counts as hung."""
    return _notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def watchdog_seconds() -> float | None:
    """Return within how many seconds the manager expects each `watchdog()`; None when it does not
    watch."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if (
        os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
        or not period.isdecimal()
    ):
        return None
    return int(period) / 1e6 or None


def inherited() -> dict[str, socket.socket]:
    """Return the sockets that the manager opened for this process, by name, and forget them for
    child processes."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    from systemd import daemon

    found: dict[str, socket.socket] = {}
    for descriptor, name in daemon.listen_fds_with_names().items():
        found.setdefault(name, socket.socket(fileno=descriptor))
    for variable in (
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ):  # the library forgets them for C alone
        os.environ.pop(variable, None)
    return found


def inherited_control() -> socket.socket | None:
    """Return the control socket that the manager opened: the one of that name, or the only one."""
    found = inherited()
    only = next(iter(found.values()), None) if len(found) == 1 else None
    return found.get("control", only)


def _notify(*lines: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(_PATIENCE)
            manager.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        logger.debug("the service manager did not take %s: %s", lines[0], error)
        return False
    return True


def _line(text: str) -> str:
    return printable(" ".join(text.split()), breaks=False)
