"""An installation of an older commit, made from the repository's history, and its journal.

The old code runs only in processes of its own, through its own verbs and its own daemon.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

COMMIT = "afe1719"
"""What an existing user may have installed."""

FAKES = ("__init__.py", "deaf_daemon.py", "fake_worker.py")
"""Of the commit's tests: a microphone that plays speech, and a worker that holds no model."""

PROGRAMS = Path(__file__).with_name("old_programs")
"""Programs for the old code; no Python files, as what renames or checks today's code would take
them for its own."""

WITH_JOURNAL = """
import runpy, sys
from asrd import journal
journal.JOURNAL_SOCKET = sys.argv.pop(1)
runpy.run_module("tests.fakes.deaf_daemon", run_name="__main__", alter_sys=True)
"""
"""Today's daemon with a journal that listens on the path that is its first argument."""

SHEBANG = """#!/bin/sh
'''exec' '{python}' -P "$0" "$@"
' '''
"""
"""As pip writes it for paths with spaces: a command to the shell, a text to Python."""

SCRIPT = """
import sys
sys.path.insert(0, {installed!r})
from {module} import {name}
sys.exit({name}())
"""
"""What pip writes into a bin folder."""

JOURNALCTL = """
import json, os, sys
wanted = {{word.partition("=")[2] for word in sys.argv if word.startswith("ASRD_EVENT=")}}
for line in open(os.environ.get("ENTRIES", {entries!r})):
    if json.loads(line).get("ASRD_EVENT") in wanted:
        print(line, end="")
"""
"""Prints entries as journalctl does: those of the file ENTRIES names, or all."""

MAX_DATAGRAM_BYTES = 1 << 18


def unavailable(reason: str) -> None:
    """Skip the test, or in CI fail it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Journal:
    """Listens where journald would, and keeps entries as `journalctl --output=json` prints them."""

    def __init__(self, path: Path, entries: Path) -> None:
        self.path, self.entries = path, entries
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        with self.entries.open("a") as file:
            while data := self._socket.recv(MAX_DATAGRAM_BYTES):
                file.write(
                    json.dumps(fields(data) | {"__REALTIME_TIMESTAMP": str(time.time_ns() // 1000)})
                    + "\n"
                )
                file.flush()

    def read(self, event: str = "") -> list[dict[str, str]]:
        """Return the entries so far, or those of one event."""
        found = [json.loads(line) for line in self.entries.read_text().splitlines()]
        return [entry for entry in found if not event or entry.get("ASRD_EVENT") == event]

    def close(self) -> None:
        """Take no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", os.fspath(self.path))
        self._thread.join()
        self._socket.close()


def fields(data: bytes) -> dict[str, str]:
    """Return the fields of an entry in journald's native protocol."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[9 + size :]
        found[name.decode()] = value.decode()
    return found


class OldRelease:
    """The old commit as a wheel installs it, below a folder whose name has a space.

    `bin/asrd` starts what is installed: the old code, and after `upgrade` today's. `old` holds the
    old code for good.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old, self.bin, self.installed = folder / "old", folder / "bin", folder / "installed"
        for each in (self.old / "tests", self.bin, self.installed):
            each.mkdir(parents=True)
        _unpack(folder / "source")
        with zipfile.ZipFile(_wheel(folder)) as archive:
            archive.extractall(self.old)
        for name in FAKES:
            (self.old / "tests" / name).write_bytes(
                (folder / "source" / "tests" / name).read_bytes()
            )
        (self.installed / "asrd").symlink_to(self.old / "asrd")
        self.program = self._write_script(folder / "source")
        self.entries = folder / "entries"
        self.entries.touch()
        self._executable("journalctl", JOURNALCTL, entries=os.fspath(self.entries))
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": os.fspath(folder),
            "XDG_STATE_HOME": os.fspath(folder / "state"),
            "XDG_RUNTIME_DIR": os.fspath(folder),
            "TMPDIR": os.fspath(folder),
            "ASRD_DEVICE": "cpu",
            "ASRD_NOTIFY": "false",
        }

    def _write_script(self, source: Path) -> Path:
        """Write the program as pip does for what a source's pyproject.toml names."""
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        module, _, name = project["scripts"]["asrd"].partition(":")
        installed = os.fspath(self.installed)
        return self._executable("asrd", SCRIPT, installed=installed, module=module, name=name)

    def _executable(self, file: str, text: str, **words: str) -> Path:
        path = self.bin / file
        path.write_text((SHEBANG + text).format(python=sys.executable, **words))
        path.chmod(0o755)
        return path

    def upgrade(self) -> None:
        """Put today's code where the old code was installed, with its own script."""
        (self.installed / "asrd").unlink()
        (self.installed / "asrd").symlink_to(ROOT / "asrd")
        self._write_script(ROOT)

    def run(self, *words: str | Path, given: str = "", **environment: str) -> str:
        """Run a program of the old code to its end; return what it printed.

        Args:
            words: of Python's command line.
            given: its standard input.
        """
        more = {"PYTHONPATH": os.fspath(self.old), **environment}
        return self._ok([sys.executable, *map(str, words)], self.old, given, more)

    def asrd(self, *words: str | Path, **environment: str) -> str:
        """Run a verb of what is installed; return what it printed."""
        return self._ok([os.fspath(self.program), *map(str, words)], self.folder, "", environment)

    def _ok(self, words: list[str], where: Path, given: str, more: dict[str, str]) -> str:
        environment = self.environment | more
        done = subprocess.run(
            words,
            cwd=where,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, name: str, given: Any = None) -> Any:
        """Run one of PROGRAMS that reads and prints JSON."""
        return json.loads(self.run("-P", "-c", program(name), given=json.dumps(given)))


def program(name: str) -> str:
    """Return the text of one of PROGRAMS."""
    return (PROGRAMS / f"{name}.txt").read_text()


def unit_words(unit: str, key: str) -> list[str]:
    """Return the words of a unit's line as systemd starts them."""
    line = next(line for line in unit.splitlines() if line.startswith(f"{key}="))
    return shlex.split(line.partition("=")[2].replace("%%", "%").replace("$$", "$"))


def _unpack(source: Path) -> None:
    packed = subprocess.run(
        ["git", "-C", ROOT, "archive", COMMIT], capture_output=True, check=False
    )
    if packed.returncode:
        unavailable(
            f"this checkout has no commit {COMMIT}: {packed.stderr.decode(errors='replace')}"
        )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(source, filter="data")


def _wheel(folder: Path) -> Path:
    """Build the wheel of the unpacked commit; return its path."""
    own = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    words = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1", *own]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--wheel-dir", folder, folder / "source"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        unavailable(f"pip cannot build the wheel of {COMMIT}: {done.stderr.strip()[-300:]}")
    return next(folder.glob("asrd-*.whl"))
