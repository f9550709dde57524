"""Which command starts, ends or explains the daemon here: a hint names only units that are
installed.

Asked only when there is an error to print, so a key press pays nothing. Imports little: a key press
waits for it.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from asrd import paths

SERVICE_UNIT, SOCKET_UNIT = "asrd.service", "asrd.socket"

MANAGER_SECONDS = 2.0
"""Within which the user manager has to report the state of a unit."""

SYSTEM_UNITS = (
    "/etc/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
    "/lib/systemd/user",
)
"""Where units lie that are for every user."""

INSTALL_HINT = "asrd service install --now makes a service of it"

INSTALL_COMMANDS = {
    "apt-get": "apt-get install",
    "dnf": "dnf install",
    "pacman": "pacman -S",
    "zypper": "zypper install",
}
"""Package manager -> its command that installs."""


def managed() -> bool:
    """Return whether the user's own service manager answers here: not for root in a container, nor
    without a login."""
    return _states() is not None


def installed(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the user's unit, or of everybody's; None where none is installed."""
    own = paths.config_home(environment) / "systemd" / "user"
    for folder in (own, *map(Path, SYSTEM_UNITS)):
        if os.path.exists(folder / SERVICE_UNIT):
            return folder
    return None


def start(where: Path | None = None) -> str:
    """Return what starts a daemon.

    Args:
        where: the socket that it is to listen on; None where any will do.
    """
    folder = installed()
    if folder is None:
        return f"in a terminal: {run_command(where)}; {INSTALL_HINT}"
    if where is not None and not _listens(folder, where):
        return f"in a terminal: {run_command(where)}; the service listens on another socket"
    states = _states()
    if states is None:
        return f"no user manager answers here, so in a terminal: {run_command(where)}"
    units = SERVICE_UNIT
    if os.path.exists(folder / SOCKET_UNIT):
        units = f"{SOCKET_UNIT} {SERVICE_UNIT}"
    begin = f"systemctl --user start {units}"
    if "failed" in states:
        return f"systemctl --user reset-failed {units}; {begin}; asrd service status says why it failed"
    return f"{begin}, or in a terminal: {run_command(where)}"


def restart(where: Path) -> str:
    """Return what starts a daemon anew that does not answer on a socket."""
    if serves(where):
        return f"systemctl --user restart {SERVICE_UNIT}"
    end = "end it in its terminal with Ctrl-C"
    if pid := listener(where):
        end = f"kill -KILL {pid}"
    return f"{end}; then: {run_command(where)}"


def stop(where: Path) -> str:
    """Return what ends the daemon that answers on a socket."""
    if serves(where):
        return f"systemctl --user stop {SOCKET_UNIT} {SERVICE_UNIT}"
    if pid := listener(where):
        return f"kill {pid}"
    return "Ctrl-C in its terminal"


def explain(where: Path) -> str:
    """Return where the daemon on a socket, or the one that was there, says what happened to it."""
    if serves(where):
        return f"journalctl --user -u {SERVICE_UNIT} -n 20 tells why"
    return "the terminal of asrd run tells why"


def again(environment: Mapping[str, str] = os.environ) -> str:
    """Return what starts this very daemon again once it has ended. Asks no other process: a daemon calls it
    on its loop."""
    if environment.get("NOTIFY_SOCKET"):
        return f"start it again: systemctl --user start {SERVICE_UNIT}"
    return "start it again: asrd run"


def serves(where: Path) -> bool:
    """Return whether the installed service listens on a socket, and runs or is to run."""
    folder = installed()
    return folder is not None and _listens(folder, where) and "active" in (_states() or ())


def run_command(where: Path | None) -> str:
    """Return the command that runs a daemon in a terminal, on a socket."""
    if where is None or where == Path(_runtime_folder()) / "asrd.sock":
        return "asrd run"
    if os.fspath(where) == os.environ.get("ASRD_SOCKET"):
        return "asrd run"
    return f"asrd run --socket {_quoted(os.fspath(where))}"


def _runtime_folder() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"


def listener(where: Path) -> int:
    """Return the process that listens on a socket; 0 where none does, or it is not known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(where))
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return 0
    return int(struct.unpack("3i", found)[0])


def install(package: str) -> str:
    """Return the command that installs a package here."""
    import shutil

    for program, command in INSTALL_COMMANDS.items():
        if shutil.which(program):
            return f"sudo {command} {package}"
    return f"sudo apt-get install {package}"


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def _listens(folder: Path, where: Path) -> bool:
    """Return whether the socket unit beside the service listens there; a service without one does
    by its settings."""
    try:
        text = (folder / SOCKET_UNIT).read_text("utf-8", errors="surrogateescape")
    except OSError:
        return True
    for line in re.findall(r"^ListenStream=(.+)$", text, re.MULTILINE):
        if line.replace("%t", _runtime_folder()).replace("%%", "%") == os.fspath(where):
            return True
    return False


def _states() -> tuple[str, ...] | None:
    """Return how the service and its socket are; None where no user manager answers."""
    import shutil  # a verb without an error needs neither
    import subprocess

    if shutil.which("systemctl") is None:
        return None
    command = [
        "systemctl",
        "--user",
        "show",
        "--property=ActiveState",
        "--value",
        SERVICE_UNIT,
        SOCKET_UNIT,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=MANAGER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return tuple(done.stdout.split())
