"""The verb service: the user service and its socket, installed, removed, printed, or their status.

Writes two files and asks `systemctl --user` for the rest. Where no user manager runs (a container,
ssh without a session) the files are written all the same.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from asrd import hints, paths
from asrd.cli import systemctl, systemd_units
from asrd.cli.systemd_units import UNITS
from asrd.config import loading
from asrd.config.settings import Settings
from asrd.daemon import control_socket
from asrd.errors import DiskError, UsageError
from asrd.models import choice
from asrd.terminal.output import one_line, tell

LOG_HINT = "its log: journalctl --user -u asrd.service -n 20"


def service_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `asrd service`."""
    acts = ("install", "uninstall", "print", "status")
    parser.add_argument(
        "act", metavar="ACTION", choices=acts, help="install, uninstall, print or status"
    )
    parser.add_argument(
        "unit", metavar="UNIT", nargs="?", choices=UNITS, help=f"print: {' or '.join(UNITS)} alone"
    )
    parser.add_argument(
        "--now", action="store_true", help="install: also start it; restart it if its unit changed"
    )


def service(args: argparse.Namespace, settings: Settings) -> int:
    """Do `args.act`; return 0, or 3 from status when the service does not run."""
    if args.act == "print":
        return _print(args.unit, settings)
    if args.act == "status":
        return _status()
    if args.act == "uninstall":
        return _uninstall()
    code = _install(args.now, settings)
    _print_model_notes(settings)
    return code


def _unit_texts(settings: Settings) -> dict[str, str]:
    """Return unit -> text for this machine."""
    return systemd_units.units(systemd_units.program(), systemctl.version(), settings.socket)


# -- print
# --------------------------------------------------------------------------------------------------------


def _print(unit: str | None, settings: Settings) -> int:
    texts = _unit_texts(settings)
    parts: list[str] = []
    for name, text in texts.items():
        path = systemd_units.folder() / name
        parts.append(f"# {one_line(str(path))}\n{text}")
    shown = "\n".join(parts)
    if unit:
        shown = texts[unit]
    sys.stdout.buffer.write(shown.encode())  # a unit is UTF-8, whatever the locale
    return 0


# -- install
# --------------------------------------------------------------------------------------------------------


def _install(now: bool, settings: Settings) -> int:
    managed = systemctl.has_user_manager()
    if now and managed:
        _refuse_other_daemon(control_socket.path(settings))
    changed = _write_units(_unit_texts(settings))
    if not managed:
        return _explain_login(now)
    if changed:
        systemctl.systemctl("daemon-reload")
        _say("systemd has read the units")
    if systemctl.are_enabled():
        _say("already enabled")
    else:
        systemctl.systemctl("enable", "--quiet", *UNITS)
        _say("enabled: it starts with your session, and at the first toggle")
    if now:
        return _start(changed)
    active = systemctl.properties("asrd.service")["ActiveState"] == "active"
    if not active:
        _say(f"to start it now: {hints.start(control_socket.path(settings))}")
    elif changed:
        _say(
            "the running daemon is still the old one; to restart it: systemctl --user restart asrd.service"
        )
    return 0


def _explain_login(now: bool) -> int:
    """Say what to run once a user manager is there; return the exit code."""
    _say("no user manager answers here; once you are logged in, run:")
    _say(
        "  systemctl --user daemon-reload && systemctl --user enable --now asrd.socket asrd.service"
    )
    if not now:
        return 0
    _say("so it was not started; until then, in a terminal: asrd run")
    return 3


def _refuse_other_daemon(address: Path) -> None:
    """Raise UsageError when a daemon that systemd did not start answers on the control socket."""
    for unit in UNITS:
        if systemctl.properties(unit)["ActiveState"] == "active":
            return
    if control_socket.answers(address):
        raise UsageError(
            f"a daemon that is not the service answers on {address}",
            f"end it first: {hints.stop(address)}; or leave --now out",
        )


def _write_units(texts: dict[str, str]) -> bool:
    """Have the units in their folder; return whether one of them changed."""
    changed = False
    for name, text in texts.items():
        if _write(systemd_units.folder() / name, text):
            changed = True
    return changed


def _write(path: Path, text: str) -> bool:
    """Make a file hold a text, whole or not at all; return whether it changed."""
    try:
        existed = path.exists()
        if existed and path.read_text("utf-8", errors="surrogateescape") == text:
            _say(f"{path} is up to date")
            return False
        paths.make_folder(path.parent)
        content = text.encode(errors="surrogateescape")
        paths.write_whole(path, content, beside=f".{path.name}.{os.getpid()}")
    except OSError as error:
        raise DiskError(
            f"cannot write {path}: {error.strerror}",
            f"check who owns the folder: ls -ld {path.parent}",
        ) from error
    _say(f"{'replaced' if existed else 'wrote'} {path}")
    return True


def _start(changed: bool) -> int:
    """Start the service; return 0, or 3 where it does not start.

    Args:
        changed: a unit is another one than the running service has.
    """
    if changed:  # a socket takes its new settings only while its service is down
        systemctl.systemctl("stop", *UNITS, check=False)
    systemctl.systemctl("reset-failed", *UNITS, check=False)
    done = systemctl.systemctl("start", "asrd.socket", "asrd.service", check=False)
    found = systemctl.properties("asrd.service")
    if done.returncode == 0:
        _say(f"it runs: {found['StatusText'] or found['ActiveState']}")
        return 0
    _say(f"it does not start: {systemctl.failure(found)}", LOG_HINT)
    return 3


def _print_model_notes(settings: Settings) -> None:
    """Print where the service will have no model, or a demo.

    The service sees neither the variables of a shell nor its flags.
    """
    seen = loading.load(environment=_service_environment()).settings
    if not seen.model and settings.model:
        _say(
            f"the service does not see --model, --config or ASRD_MODEL, which name {settings.model} here"
        )
    if note := choice.note(seen):
        _say(note)


def _service_environment() -> dict[str, str]:
    """Return the variables that the service will start with, as far as settings come from them."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("ASRD_")}
    if not systemctl.has_user_manager():
        return own
    manager = systemctl.systemctl("show-environment", check=False).stdout.splitlines()
    unit = systemctl.systemctl(
        "show", "--property=Environment", "--value", "asrd.service", check=False
    )
    given = systemctl.assignments([*manager, *shlex.split(unit.stdout)])
    return own | {key: value for key, value in given.items() if key.startswith("ASRD_")}


# -- uninstall
# --------------------------------------------------------------------------------------------------------


def _uninstall() -> int:
    folder = systemd_units.folder()
    present = [name for name in UNITS if (folder / name).exists()]
    managed = systemctl.has_user_manager()
    if managed:
        _stop_units()
    elif present and shutil.which("systemctl"):
        systemctl.systemctl("disable", "--quiet", *present, check=False)
    for name in present:
        _remove(folder / name)
    if not present:
        _say(f"nothing is installed in {folder}")
    elif managed:
        systemctl.systemctl("daemon-reload")
        systemctl.systemctl("reset-failed", *UNITS, check=False)
        _say("systemd no longer has the units; settings, drop-ins and recordings are still there")
    return 0


def _stop_units() -> None:
    loaded = [name for name in UNITS if systemctl.properties(name)["LoadState"] == "loaded"]
    if loaded:
        systemctl.systemctl("disable", "--quiet", "--now", *loaded)
        _say("stopped and disabled")


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise DiskError(f"cannot remove {path}: {error.strerror}") from error
    _say(f"removed {path}")


# -- status
# --------------------------------------------------------------------------------------------------------


def _status() -> int:
    folder = systemd_units.folder()
    for name in UNITS:
        state = "installed" if (folder / name).exists() else "not installed"
        _say(f"{name}: {state} in {folder}")
    if not systemctl.has_user_manager():
        _say("no user manager answers here, so it starts nothing")
        return 3
    service, listening = systemctl.properties("asrd.service"), systemctl.properties("asrd.socket")
    active = service["ActiveState"] == "active"
    _say(
        f"enabled: {'yes' if systemctl.are_enabled() else 'no'}",
        f"socket: {_socket_state(listening)}",
        f"service: {service['ActiveState']} ({service['SubState']})",
    )
    if active:
        _say(
            f"status: {service['StatusText'] or 'no status yet'}",
            f"restarts: {service['NRestarts']}",
        )
    if "failed" in (service["ActiveState"], listening["ActiveState"]):
        _say(f"why: {systemctl.failure(service)}", LOG_HINT)
        _say("when that is fixed: asrd service install --now")
    if (missing := systemd_units.missing_program()) is not None:
        _say(f"the unit starts {missing}, which does not exist: asrd service install")
    return 0 if active else 3


def _socket_state(listening: dict[str, str]) -> str:
    if listening["ActiveState"] == "failed":
        return systemctl.failure(listening)
    return listening["SubState"]


def _say(*lines: str) -> None:
    tell("\n".join(map(one_line, lines)))
