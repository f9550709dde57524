"""A home folder of its own for the daemons under test: what lies in it, and which processes belong
to it.

Every process that is started here, and whatever it starts, carries the home's mark in its
environment. So those that a killed daemon leaves behind are found by it, and nothing else is ever
ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MARK = "TORTURE_MARK"
"""The variable by which a process of a home is known; not ASRD_*, which the daemon reads as
settings."""

SINK = Path(__file__).with_name("sink.py")

HEADER_BYTES = 44
"""Of a recording, which is a WAV file: what stands before its float32 samples."""

SAMPLE_RATE = 16_000

LOCK_SECONDS = 3.0
"""For which a lock may outlast the daemon that held it: a child that was being started has its
files until it runs."""

CLEAR_SECONDS, QUIET_SECONDS = 30.0, 0.5
"""For which processes are ended at most, and for which none may be seen before that is over."""

SETTINGS = {
    "model": "demo-ctc",
    "strategy": "fp32",
    "device": "cpu",
    "idle": "never",
    "notify": False,
}
"""Of every daemon under test; a shipped model that loads fast, and nothing on the user's
desktop."""


class Home:
    """One user's folders. They lie in `folder`, whose name has a space in it, as a user's may."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.recordings = folder / ".local" / "state" / "asrd" / "takes"
        self.runtime, self.scratch = folder / "run", folder / "tmp"
        self.sinks = folder / "sinks"
        self.log = folder / "daemon.log"
        for part in (
            self.runtime,
            self.scratch,
            self.sinks,
            folder / "bin",
            folder / ".config" / "asrd",
        ):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)

    def environment(self, life: str, **more: str) -> dict[str, str]:
        """Return the environment of a program of this user's; nothing of the real user's session is
        in it."""
        dropped = (
            "ASRD_",
            "XDG_",
            "DBUS_",
            "NOTIFY_SOCKET",
            "WAYLAND_",
            "DISPLAY",
            "LISTEN_",
            "WATCHDOG_",
            MARK,
        )
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        bus = {
            f"DBUS_{kind}_BUS_ADDRESS": f"unix:path={self.runtime}/nobody"
            for kind in ("SESSION", "SYSTEM")
        }
        places = {"HOME": self.folder, "XDG_RUNTIME_DIR": self.runtime, "TMPDIR": self.scratch}
        places["MPLCONFIGDIR"] = (
            self.folder.parent / "matplotlib"
        )  # its list of fonts takes seconds to make
        own = {key: str(path) for key, path in places.items()}
        own["PATH"] = f"{self.folder / 'bin'}:{kept.get('PATH', '/usr/bin:/bin')}"
        own[MARK] = f"{self.mark}.{life}"
        return kept | bus | own | more

    def environment_of_server(self, name: str) -> dict[str, str]:
        """Return the environment of a program that outlives every daemon, as `end_all` spares it."""
        return self.environment(name) | {MARK: f"{self.mark}~{name}"}

    def configure(self, sinks: tuple[str, ...] = ("one",), **settings: Any) -> None:
        """Write the configuration file: the usual settings, others over them, and sinks by their
        names."""
        for name in sinks:
            self._write_sink(name)
        commands = [self.command(name) for name in sinks]
        lines = [f"{key} = {json.dumps(value)}" for key, value in (SETTINGS | settings).items()]
        file = self.folder / ".config" / "asrd" / "config.toml"
        new = file.with_suffix(".new")
        new.write_text("\n".join([*lines, f"sinks = {json.dumps(commands or ['none'])}", ""]))
        new.rename(file)

    def command(self, name: str) -> str:
        """Return a sink as the settings name it."""
        return f"command:sink-{name}"

    def _write_sink(self, name: str) -> None:
        """Put the program of a sink where its name is found."""
        script = self.folder / "bin" / f"sink-{name}"
        words = shlex.join([sys.executable, "-I", "-S", str(SINK), str(self.sinks), name])
        script.write_text(f"#!/bin/sh\nexec {words}\n")
        script.chmod(0o700)

    def mode(self, name: str, mode: str) -> None:
        """Say how a sink ends from now on."""
        new = self.sinks / f"{name}.new"
        new.write_text(mode)
        new.rename(self.sinks / f"{name}.mode")

    def entries(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """Return what a sink has logged, but for so many first entries.

        A reader sees the part of a line before a page's end (4096 bytes) earlier than the rest, so
        a line that has no end yet is not there yet.
        """
        with contextlib.suppress(FileNotFoundError):
            whole, _, _ = (self.sinks / f"{name}.log").read_text().rpartition("\n")
            return [json.loads(line) for line in whole.splitlines()[after:]]
        return []

    def kept(self) -> list[str]:
        """Return the names of the recordings on disk, the oldest first."""
        return sorted(path.stem for path in self.recordings.glob("*.wav"))

    def sound(self, name: str) -> np.ndarray:
        """Return the samples of a recording, also of one whose header was never finished."""
        data = (self.recordings / f"{name}.wav").read_bytes()[HEADER_BYTES:]
        return np.frombuffer(data[: len(data) // 4 * 4], np.float32)

    # -- what must not be left
    # ----------------------------------------------------------------------------------------

    def processes(self, life: str = "") -> list[int]:
        """Return the living processes that carry this home's mark, or those of one daemon's
        life."""
        return marked(f"{self.mark}.{life}", whole=bool(life))

    def end_all(self, life: str = "") -> int:
        """Kill what still lives of this home, or of one life; return how many there were."""
        return end_marked(f"{self.mark}.{life}", whole=bool(life))

    def clear(self) -> None:
        """Kill until nothing lives of any daemon: what is just being started shows no mark yet."""
        limit, quiet_since = time.monotonic() + CLEAR_SECONDS, time.monotonic()
        while time.monotonic() < min(limit, quiet_since + QUIET_SECONDS):
            if self.end_all():
                quiet_since = time.monotonic()
            time.sleep(0.05)

    def set_aside(self, folder: Path) -> list[str]:
        """Move every recording and the sinks' logs into another folder; return the recordings' names."""
        folder.mkdir(parents=True, exist_ok=True)
        names = self.kept()
        found = self.recordings.glob("*") if self.recordings.is_dir() else iter(())
        for path in (*found, *self.sinks.glob("*.log")):
            path.rename(folder / path.name)
        return names

    def locked(self, alone: bool = True) -> list[str]:
        """Return the files on which somebody holds a lock; asked while no daemon records or
        retries.

        Args:
            alone: no daemon lives at all, so that no scratch folder may be locked either.
        """
        places = [*self.recordings.glob("*"), *self.runtime.glob("*.lock")]
        places += self.scratch.glob("asrd-*") if alone else ()
        limit = time.monotonic() + LOCK_SECONDS
        while found := [path.name for path in sorted(places) if is_locked(path)]:
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        return found

    def strays(self) -> list[str]:
        """Return what lies beside recordings and belongs to none of them."""
        names = set(self.kept())
        found = self.recordings.glob("*") if self.recordings.is_dir() else iter(())
        return sorted(path.name for path in found if path.name.split(".")[0] not in names)

    def litter(self) -> list[str]:
        """Return the sockets and scratch folders; after an orderly end there are none."""
        return sorted(path.name for path in (*self.runtime.iterdir(), *self.scratch.glob("asrd-*")))

    def age(self) -> None:
        """Put scratch folders and strays two hours back, as if so much time had passed: then they
        may be swept."""
        old = time.time() - 7200
        strays = [self.recordings / name for name in self.strays()]
        for path in (*self.scratch.glob("asrd-*"), *strays):
            with contextlib.suppress(OSError):
                os.utime(path, (old, old))


@contextlib.contextmanager
def home(where: Path, name: str) -> Iterator[Home]:
    """Give a home for as long as the block; its processes and folders are gone afterwards."""
    one = Home(where / f"{name} home", f"{os.getpid()}-{name}")
    try:
        yield one
    finally:
        one.end_all()
        shutil.rmtree(one.folder, ignore_errors=True)


def marked(mark: str, whole: bool = False) -> list[int]:
    """Return the living processes whose mark begins so, or is that where it is `whole`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            names = path.read_bytes().split(b"\0")
            if any(name == wanted if whole else name.startswith(wanted) for name in names):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid() and not _is_over(pid)]


def end_marked(mark: str, whole: bool = False) -> int:
    """Kill the processes that `marked` returns; return how many there were."""
    found = marked(mark, whole)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def _is_over(pid: int) -> bool:
    """Whether a process has ended and only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_locked(path: Path) -> bool:
    """Return whether somebody holds a lock on a file or folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
