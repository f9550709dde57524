"""A user's session with its own systemd and journal (`session` beside this file), held open for a
test to act in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("session")
TIMEOUT = 60.0


class UserSession:
    """Runs commands as the session's user. `home` is that user's home as the commands see it."""

    home = Path("/run/user/asrd-tester")
    runtime = Path("/run/user/4711")

    def __init__(self, process: subprocess.Popen[str], pid: int) -> None:
        self.process, self.pid = process, pid

    def run(
        self, *words: str | Path, timeout: float = TIMEOUT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its failure is for the caller to judge."""
        names = [f"{key}={value}" for key, value in environment.items()]
        command = [PROGRAM, "--join", str(self.pid), *(["env", *names] if names else []), *words]
        options = {
            "capture_output": True,
            "text": True,
            "stdin": subprocess.DEVNULL,
            "timeout": timeout,
        }
        return subprocess.run(list(map(str, command)), **options, check=False)

    def ok(self, *words: str | Path, **environment: str) -> str:
        """Run a command that has to succeed; return what it printed."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def inside(self, path: str | Path) -> Path:
        """Return how this process reaches a path of the session."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str | Path, text: str, mode: int = 0o644) -> Path:
        """Make a file of the user's below `home`; return its path in the session."""
        path = self.home / path
        for folder in reversed(path.parents):
            if not self.inside(folder).exists():
                self.inside(folder).mkdir()
                os.chown(self.inside(folder), 4711, 4711)
        self.inside(path).write_text(text)
        self.inside(path).chmod(mode)
        os.chown(self.inside(path), 4711, 4711)
        return path

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit."""
        text = self.ok("systemctl", "--user", "show", f"--property={','.join(properties)}", unit)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return the entries of the user's journal that match."""
        text = self.ok(
            "journalctl", "--user", "--quiet", "--no-pager", "--all", "--output=json", *matches
        )
        return [json.loads(line) for line in text.splitlines()]

    def journald(self) -> int:
        """Return journald's process, numbered as in this process's world."""
        wanted = int(self.inside("/run/session/journald").read_text())
        return next(
            pid for pid in descendants(self.process.pid) if namespace_numbers(pid)[-1] == wanted
        )


def until(true: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """Wait until a condition holds and return it; fail with `what` was waited for."""
    limit = time.monotonic() + timeout
    while not (value := true()):
        assert time.monotonic() < limit, f"in vain: {what}"
        time.sleep(0.02)
    return value


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below one, nearest first."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from descendants(int(child))


def namespace_numbers(pid: int) -> list[int]:
    """Return a process's numbers, from this process's pid namespace to its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


@contextlib.contextmanager
def user_session(*options: str) -> Iterator[UserSession]:
    """Open a session for as long as the block; skip the test, or in CI fail it, where this machine
    cannot."""
    process = subprocess.Popen(
        [PROGRAM, *options, "sh", "-c", "echo up; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    try:
        assert process.stdout
        if process.stdout.readline() != "up\n":
            process.wait(TIMEOUT)
            assert process.stderr
            reason = process.stderr.read().strip() or f"ended with {process.returncode}"
            if process.returncode == 77 and not os.environ.get("CI"):
                pytest.skip(reason)
            pytest.fail(reason)
        first = next(pid for pid in descendants(process.pid) if len(namespace_numbers(pid)) > 1)
        yield UserSession(process, first)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            process.communicate(timeout=TIMEOUT)  # closes its input, which ends it
        if process.poll() is None:
            process.terminate()
            process.wait(TIMEOUT)
