"""systemctl --user: what it says of the units, and commands to it."""

from __future__ import annotations

import re
import shutil
import subprocess

from asrd.cli.systemd_units import UNITS
from asrd.errors import AsrdError
from asrd.text.wording import counted

TIMEOUT_SECONDS = 120
"""Seconds that a command may take."""

EXIT_MEANINGS = {
    2: "a wrong word on its command line",
    65: "audio that cannot be read",
    66: "a model that is missing or broken",
    69: "something that is not available here",
    70: "an internal error",
    73: "a folder that cannot be written",
    75: "no worker that could answer",
    78: "a wrong setting; asrd config shows which",
}
"""Exit code of the daemon -> what it ended with, as asrd.errors defines them."""

RESULT_MEANINGS = {"watchdog": "a hang that the watchdog ended", "oom-kill": "no memory left"}
"""Result of a unit, as systemd names it -> what the daemon ended with."""

CLD_EXITED = "1"
"""ExecMainCode of a process that ended by itself."""

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "StatusText",
    "NRestarts",
    "Result",
    "ExecMainCode",
    "ExecMainStatus",
)
"""Properties of a unit that systemctl is asked for."""


def has_user_manager() -> bool:
    """Return whether a user manager answers."""
    if shutil.which("systemctl") is None:
        return False
    return systemctl("show", "--property=Version", check=False).returncode == 0


def version() -> int:
    """Return systemd's version; 0 where there is none, so that no unit has a line that needs
    one."""
    if shutil.which("systemctl") is None:
        return 0
    match = re.match(r"systemd (\d+)", systemctl("--version", check=False).stdout)
    if match is None:
        return 0
    return int(match[1])


def are_enabled() -> bool:
    """Return whether every unit starts with the session."""
    return all(properties(name)["UnitFileState"] == "enabled" for name in UNITS)


def properties(unit: str) -> dict[str, str]:
    """Return PROPERTIES of a unit; "" for one that systemctl does not know."""
    shown = systemctl("show", f"--property={','.join(PROPERTIES)}", unit).stdout
    return dict.fromkeys(PROPERTIES, "") | assignments(shown.splitlines())


def assignments(lines: list[str]) -> dict[str, str]:
    """Return name -> value of the lines that are NAME=VALUE."""
    return dict(line.split("=", 1) for line in lines if "=" in line)


def failure(properties: dict[str, str]) -> str:
    """Return in words why a unit failed."""
    if properties["LoadState"] != "loaded":
        return f"systemd cannot load the unit ({properties['LoadState']})"
    text = _end(properties)
    restarts = int(properties["NRestarts"] or 0)
    if restarts:
        text += f", after {counted(restarts, 'restart')}"
    return text


def _end(properties: dict[str, str]) -> str:
    """Return in words what a unit's process ended with."""
    result, code = properties["Result"], properties["ExecMainStatus"]
    if properties["ExecMainCode"] == CLD_EXITED and code != "0":
        return f"ended with {EXIT_MEANINGS.get(int(code), f'exit code {code}')}"
    if result in RESULT_MEANINGS:
        return f"ended with {RESULT_MEANINGS[result]}"
    return result.replace("-", " ")


def systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run systemctl --user.

    Raises:
        AsrdError: it does not answer; or it failed, where `check` is set.
    """
    command = ["systemctl", "--user", *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise AsrdError(f"{' '.join(command)} does not answer") from error
    if check and done.returncode != 0:
        raise AsrdError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done
