"""The units of asrd as text: the program that they start, the version of systemd, the control
socket.

Knows where systemd looks for a user's units and how asrd was started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asrd import paths
from asrd.errors import UsageError
from asrd.text import filenames
from asrd.text.characters import readable

UNITS = ("asrd.service", "asrd.socket")

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]

UNIT_HEADING = "# Written by asrd service install, and again by the next; changes of your own belong into a drop-in.\n"
"""First line of a unit."""


def folder() -> Path:
    """Return where the user's own units are."""
    return paths.config_home() / "systemd" / "user"


def units(program: Sequence[str], version: int, socket_path: str = "") -> dict[str, str]:
    """Return unit -> text, for a program, a version of systemd and a control socket ("": the usual
    one).

    Raises UsageError: a path that no unit can hold.
    """
    words, socket_path = list(map(_spelt, program)), _spelt(socket_path)
    # systemd refuses a name with quotes as a program, though not as an argument.
    if re.search(r"[\"'\\]", words[0]):
        words.insert(0, "/usr/bin/env")
    command = " ".join(map(quoted, words))
    address = os.path.expanduser(socket_path).replace("%", "%%") or "%t/asrd.sock"
    texts: dict[str, str] = {}
    for name in UNITS:
        text = _for_version(_template(name), version)
        texts[name] = text.replace("@PROGRAM@", command).replace("%t/asrd.sock", address)
    return texts


def _spelt(path: str) -> str:
    """Return a path as a unit spells it. Raises UsageError: systemd ignores a line that is not
    UTF-8."""
    spelt = filenames.in_utf8(path)
    if readable(spelt) != spelt:
        fix = "rename the folder, or install asrd elsewhere"
        raise UsageError(f"systemd accepts only UTF-8 paths, not {path}", fix)
    return spelt


def _template(name: str) -> str:
    """Return a unit as it is shipped: inside the package, or beside it in a checkout."""
    path = paths.DATA_FOLDER / name
    if not path.exists():
        path = PACKAGE_FOLDER.parent / "systemd" / name
    return path.read_text("utf-8")


def _for_version(text: str, version: int) -> str:
    """Return a unit with those lines that a version of systemd knows."""

    def line(match: re.Match[str]) -> str:
        if int(match[1]) > version:
            return ""
        return match[2]

    body = text[text.index("[Unit]") :]
    return UNIT_HEADING + re.sub(r"^#(\d+)# (.*\n)", line, body, flags=re.MULTILINE)


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
                f"systemd cannot start {sys.argv[0]}: it is not a program",
                "use python -m asrd service ...",
            )
        return [os.path.abspath(found)]
    words = [sys.executable, "-P", "-m", "asrd"]
    if _finds_asrd(sys.executable):
        return words
    return ["/usr/bin/env", f"PYTHONPATH={PACKAGE_FOLDER.parent}", *words]


def _finds_asrd(python: str) -> bool:
    """Return whether an interpreter finds this asrd from another folder and environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [
        python,
        "-P",
        "-c",
        "import asrd, os, sys; sys.stdout.buffer.write(os.fsencode(asrd.__file__))",
    ]
    done = subprocess.run(words, cwd="/", env=environment, capture_output=True, check=False)
    if done.returncode != 0:
        return False
    return Path(os.fsdecode(done.stdout)).resolve().parent == PACKAGE_FOLDER


def missing_program() -> str | None:
    """Return the program that the installed unit names and that does not exist; None where it
    exists."""
    try:
        text = (folder() / "asrd.service").read_text("utf-8", errors="surrogateescape")
    except OSError:
        return None
    match = re.search(r'^ExecStart=(?:"((?:\\.|[^"])+)"|(\S+))', text, re.MULTILINE)
    if match is None:
        return None
    path = re.sub(r"\\(.)", r"\1", match[1] or match[2]).replace("%%", "%").replace("$$", "$")
    if os.access(path, os.X_OK):
        return None
    return path
