"""verb: the user service and its socket: install, uninstall, print, status.

Knows where systemd looks for a user's units and how asrd was started; writes two files and asks
`systemctl --user` for the rest. Where no user manager runs (a container, ssh without a session) the
files are written all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asrd import hints, paths
from asrd.config import loading
from asrd.config.settings import Settings
from asrd.daemon import control_socket
from asrd.errors import AsrdError, DiskError, UsageError
from asrd.models import choice
from asrd.terminal.output import one_line, tell
from asrd.text import filenames
from asrd.text.characters import readable
from asrd.text.wording import counted

UNITS = ("asrd.service", "asrd.socket")

HOME = Path(__file__).resolve().parents[1]

EXITS = {
    2: "a wrong word on its command line",
    65: "sound that cannot be read",
    66: "a model that is missing or broken",
    69: "something that is not available here",
    70: "an internal error",
    73: "a folder that cannot be written",
    75: "no worker that could answer",
    78: "a wrong setting; asrd config shows which",
}
"""Exit code of the daemon -> what it ended with, as asrd.errors has them."""

PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "UnitFileState", "StatusText"),
    *("NRestarts", "Result", "ExecMainCode", "ExecMainStatus"),
)
"""What is asked of systemctl about a unit."""


def service_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `asrd service` takes."""
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
    _tell_model(settings)
    return code


# -- the units
# --------------------------------------------------------------------------------------------------------


def units(program: Sequence[str], version: int, socket_path: str = "") -> dict[str, str]:
    """Return unit -> text, for a program, a version of systemd and a control socket ("": the usual
    one).

    Raises UsageError: a path that no unit can hold.
    """
    program, socket_path = [_for_unit(word) for word in program], _for_unit(socket_path)
    if re.search(
        r"[\"'\\]", program[0]
    ):  # systemd refuses such a name as a program, though not as an argument
        program = ["/usr/bin/env", *program]
    command = " ".join(map(quoted, program))
    line = os.path.expanduser(socket_path).replace("%", "%%") or "%t/asrd.sock"
    texts = {name: _for_version(_template(name), version) for name in UNITS}
    return {
        name: text.replace("@PROGRAM@", command).replace("%t/asrd.sock", line)
        for name, text in texts.items()
    }


def _for_unit(path: str) -> str:
    """Return a path as a unit spells it. Raises UsageError: systemd passes over a line that is not
    UTF-8."""
    spelt = filenames.in_utf8(path)
    if readable(spelt) != spelt:
        fix = "rename the folder, or install asrd elsewhere"
        raise UsageError(f"systemd takes no path that is not UTF-8: {path}", fix)
    return spelt


def _template(name: str) -> str:
    """Return a unit as it is shipped: inside the package, or beside it in a checkout."""
    path = paths.DATA_FOLDER / name
    if not path.exists():
        path = HOME.parent / "systemd" / name
    return path.read_text("utf-8")


def _for_version(text: str, version: int) -> str:
    def line(match: re.Match[str]) -> str:
        return match[2] if int(match[1]) <= version else ""

    heading = "# Written by asrd service install, and again by the next; changes of your own belong into a drop-in.\n"
    return heading + re.sub(
        r"^#(\d+)# (.*\n)", line, text[text.index("[Unit]") :], flags=re.MULTILINE
    )


def quoted(word: str) -> str:
    """Return a word as a unit's command line needs it (systemd.service(5), systemd.unit(5))."""
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def program() -> list[str]:
    """Return the words that start this very asrd from anywhere, whatever installed it.

    A script (of a venv, pipx or uv) is named as it was called: the link in ~/.local/bin outlives
    the folder behind it. `python -m asrd` gets its interpreter, and the checkout where the
    interpreter would not find asrd by itself.
    """
    called = Path(sys.argv[0])
    if called.name != "__main__.py":
        found = shutil.which(sys.argv[0])
        if found is None:
            raise UsageError(
                f"{sys.argv[0]} is no program that systemd could start",
                "use python -m asrd service ...",
            )
        return [os.path.abspath(found)]
    words = [sys.executable, "-P", "-m", "asrd"]
    if _finds_asrd(sys.executable):
        return words
    return ["/usr/bin/env", f"PYTHONPATH={HOME.parent}", *words]


def _finds_asrd(python: str) -> bool:
    """Whether an interpreter finds this asrd without the folder and the environment that it was
    started in."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [
        python,
        "-P",
        "-c",
        "import asrd, os, sys; sys.stdout.buffer.write(os.fsencode(asrd.__file__))",
    ]
    done = subprocess.run(words, cwd="/", env=environment, capture_output=True, check=False)
    return done.returncode == 0 and Path(os.fsdecode(done.stdout)).resolve().parent == HOME


def folder() -> Path:
    """Return where the user's own units are."""
    return paths.config_home() / "systemd" / "user"


# -- the verbs
# --------------------------------------------------------------------------------------------------------


def _print(unit: str | None, settings: Settings) -> int:
    texts = units(program(), _version(), settings.socket)
    if unit:
        text = texts[unit]
    else:
        text = "\n".join(
            f"# {one_line(str(folder() / name))}\n{text}" for name, text in texts.items()
        )
    sys.stdout.buffer.write(text.encode())  # a unit is UTF-8, whatever the locale
    return 0


def _install(now: bool, settings: Settings) -> int:
    managed = _managed()
    if now and managed:
        _refuse_a_stranger(control_socket.path(settings))
    texts = units(program(), _version(), settings.socket)
    changed = [_write(folder() / name, text) for name, text in texts.items()]
    if not managed:
        _say("no user manager answers here; once you are logged in, run:")
        _say(
            "  systemctl --user daemon-reload && systemctl --user enable --now asrd.socket asrd.service"
        )
        if now:
            _say("so it was not started; until then, in a terminal: asrd run")
        return 3 if now else 0
    if any(changed):
        _systemctl("daemon-reload")
        _say("systemd has read the units")
    if _enabled():
        _say("already enabled")
    else:
        _systemctl("enable", "--quiet", *UNITS)
        _say("enabled: it starts with your session, and at the first toggle")
    if not now:
        if any(changed) and _properties("asrd.service")["ActiveState"] == "active":
            _say(
                "the running daemon is still the old one; to restart it: systemctl --user restart asrd.service"
            )
        elif _properties("asrd.service")["ActiveState"] != "active":
            _say(f"to start it now: {hints.start(control_socket.path(settings))}")
        return 0
    return _start(any(changed))


def _start(anew: bool) -> int:
    if anew:  # a socket takes its new settings only while its service is down
        _systemctl("stop", *UNITS, check=False)
    _systemctl("reset-failed", *UNITS, check=False)
    done = _systemctl("start", "asrd.socket", "asrd.service", check=False)
    shown = _properties("asrd.service")
    if done.returncode == 0:
        _say(f"it runs: {shown['StatusText'] or shown['ActiveState']}")
        return 0
    _say(f"it does not start: {_why(shown)}", "its log: journalctl --user -u asrd.service -n 20")
    return 3


def _tell_model(settings: Settings) -> None:
    """Say where the service will have no model, or a demo: it sees neither the variables of a shell
    nor its flags."""
    seen = loading.load(environment=_environment()).settings
    if not seen.model and settings.model:
        _say(
            f"the service does not see --model, --config or ASRD_MODEL, which name {settings.model} here"
        )
    if note := choice.note(seen):
        _say(note)


def _environment() -> dict[str, str]:
    """Return the variables that the service will start with, as far as settings come from them."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("ASRD_")}
    if not _managed():
        return own
    lines = _systemctl("show-environment", check=False).stdout.splitlines()
    words = shlex.split(
        _systemctl("show", "--property=Environment", "--value", "asrd.service", check=False).stdout
    )
    given = dict(line.split("=", 1) for line in [*lines, *words] if "=" in line)
    return own | {key: value for key, value in given.items() if key.startswith("ASRD_")}


def _uninstall() -> int:
    present = [folder() / name for name in UNITS if (folder() / name).exists()]
    if _managed():
        loaded = [name for name in UNITS if _properties(name)["LoadState"] == "loaded"]
        if loaded:
            _systemctl("disable", "--quiet", "--now", *loaded)
            _say("stopped and disabled")
    elif present and shutil.which("systemctl"):
        _systemctl("disable", "--quiet", *(path.name for path in present), check=False)
    for path in present:
        try:
            path.unlink()
        except OSError as error:
            raise DiskError(f"cannot remove {path}: {error.strerror}") from error
        _say(f"removed {path}")
    if not present:
        _say(f"nothing is installed in {folder()}")
    elif _managed():
        _systemctl("daemon-reload")
        _systemctl("reset-failed", *UNITS, check=False)
        _say("systemd no longer knows the units; settings, drop-ins and recordings are still there")
    return 0


def _status() -> int:
    for path in (folder() / name for name in UNITS):
        _say(
            f"{path.name}: {'installed in' if path.exists() else 'not installed in'} {path.parent}"
        )
    if not _managed():
        _say("no user manager answers here, so nothing is started by it")
        return 3
    shown, listening = _properties("asrd.service"), _properties("asrd.socket")
    _say(
        f"enabled: {'yes' if _enabled() else 'no'}",
        f"socket: {_why(listening) if listening['ActiveState'] == 'failed' else listening['SubState']}",
        f"service: {shown['ActiveState']} ({shown['SubState']})",
    )
    if shown["ActiveState"] == "active":
        _say(f"status: {shown['StatusText'] or 'no status yet'}", f"restarts: {shown['NRestarts']}")
    if "failed" in (shown["ActiveState"], listening["ActiveState"]):
        _say(f"why: {_why(shown)}", "its log: journalctl --user -u asrd.service -n 20")
        _say("when that is fixed: asrd service install --now")
    if (missing := _missing_program()) is not None:
        _say(f"the unit starts {missing}, which is not there: asrd service install")
    return 0 if shown["ActiveState"] == "active" else 3


def _why(shown: dict[str, str]) -> str:
    """Return in words why a unit failed."""
    result, code = shown["Result"], shown["ExecMainStatus"]
    if shown["LoadState"] != "loaded":
        return f"systemd cannot load the unit ({shown['LoadState']})"
    if shown["ExecMainCode"] == "1" and code != "0":  # CLD_EXITED
        ended = EXITS.get(int(code), f"exit code {code}")
    else:
        ended = {"watchdog": "a hang that the watchdog ended", "oom-kill": "no memory left"}.get(
            result, ""
        )
    restarts = int(shown["NRestarts"] or 0)
    again = f", after {counted(restarts, 'restart')}" if restarts else ""
    return (f"ended with {ended}" if ended else result.replace("-", " ")) + again


def _missing_program() -> str | None:
    """Return the program that the installed unit names and that does not exist; None when all is
    well."""
    try:
        text = (folder() / "asrd.service").read_text("utf-8", errors="surrogateescape")
    except OSError:
        return None
    match = re.search(r'^ExecStart=(?:"((?:\\.|[^"])+)"|(\S+))', text, re.MULTILINE)
    path = (
        re.sub(r"\\(.)", r"\1", match[1] or match[2]).replace("%%", "%").replace("$$", "$")
        if match
        else ""
    )
    return path if path and not os.access(path, os.X_OK) else None


# -- files and systemctl
# ----------------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> bool:
    """Make a file hold a text, whole or not at all; return whether it changed."""
    try:
        before = path.read_text("utf-8", errors="surrogateescape") if path.exists() else None
        if before == text:
            _say(f"{path} is up to date")
            return False
        paths.make_folder(path.parent)
        content = text.encode(errors="surrogateescape")
        paths.write_whole(path, content, beside=f".{path.name}.{os.getpid()}")
    except OSError as error:
        raise DiskError(
            f"cannot write {path}: {error.strerror}", "the folder has to be yours"
        ) from error
    _say(f"{'wrote' if before is None else 'replaced'} {path}")
    return True


def _refuse_a_stranger(line: Path) -> None:
    """Raise UsageError when a daemon that systemd does not know answers on the socket that the unit
    would take over."""
    if "active" in (
        _properties("asrd.socket")["ActiveState"],
        _properties("asrd.service")["ActiveState"],
    ):
        return
    if control_socket.answers(line):
        raise UsageError(
            f"a daemon that is no service answers on {line}",
            f"end it first: {hints.stop(line)}; or leave --now out",
        )


def _managed() -> bool:
    """Whether a user manager answers."""
    if shutil.which("systemctl") is None:
        return False
    return _systemctl("show", "--property=Version", check=False).returncode == 0


def _version() -> int:
    """Return systemd's version; 0 where there is none, which leaves out every line that needs
    one."""
    if shutil.which("systemctl") is None:
        return 0
    match = re.match(r"systemd (\d+)", _systemctl("--version", check=False).stdout)
    return int(match[1]) if match else 0


def _enabled() -> bool:
    return all(_properties(name)["UnitFileState"] == "enabled" for name in UNITS)


def _properties(unit: str) -> dict[str, str]:
    lines = _systemctl("show", f"--property={','.join(PROPERTIES)}", unit).stdout.splitlines()
    return dict.fromkeys(PROPERTIES, "") | dict(line.split("=", 1) for line in lines if "=" in line)


def _systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--user", *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=120,
        )
    except subprocess.TimeoutExpired as error:
        raise AsrdError(f"{' '.join(command)} does not answer") from error
    if check and done.returncode != 0:
        raise AsrdError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done


def _say(*lines: str) -> None:
    tell("\n".join(map(one_line, lines)))
