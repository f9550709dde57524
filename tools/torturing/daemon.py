"""One life of the daemon under test, from `asrd run` to its end, asked over its control socket as
any program may."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .home import SAMPLE_RATE, Home

PATIENCE_SECONDS = 120.0
"""That anything may take before the harness itself gives up."""

PIECE_SAMPLES = SAMPLE_RATE // 50
"""What the feeder writes at once: 20 ms."""

FIRST_SAMPLES = SAMPLE_RATE // 10
"""Silence after which a daemon on a pipe loads its model."""

POLL_SECONDS = 0.02

WORKERS = ("asrd.worker",)
"""Modules whose process is a worker."""


class BrokenError(Exception):
    """The daemon did something that no round foresees; the sentence says what."""


class Feeder:
    """Writes a sound into a pipe, `pace` times as fast as it was spoken, on a clock of its own."""

    def __init__(
        self, descriptor: int, sound: np.ndarray, pace: float = 1.0, written: int = 0
    ) -> None:
        self.sound = sound
        self.samples = self._first = written
        """How many have been written."""
        self.at_the_kill = 0
        """How many had been written when `kill` was called."""
        self.pace, self._descriptor = pace, descriptor
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        began = time.monotonic()
        for start in range(self._first, len(self.sound), PIECE_SAMPLES):
            piece = self.sound[start : start + PIECE_SAMPLES]
            due = began + (start + len(piece) - self._first) / SAMPLE_RATE / self.pace
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            try:
                os.write(self._descriptor, piece.tobytes())
            except OSError:  # nobody reads it any more
                return
            self.samples = start + len(piece)

    def wait(self) -> None:
        """Wait until all of it is written."""
        self._thread.join(PATIENCE_SECONDS)

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()
        self._thread.join(PATIENCE_SECONDS)


class Daemon:
    """A daemon in a process of its own. `life` tells its processes from those of the daemons
    before."""

    def __init__(
        self,
        home: Home,
        life: str,
        source: str,
        flags: tuple[str, ...],
        environment: dict[str, str],
    ) -> None:
        self.home, self.life = home, life
        self.socket = Path(environment.pop("ASRD_SOCKET", home.runtime / "asrd.sock"))
        self.before = set(home.kept())
        self.feeder: Feeder | None = None
        """The last that spoke into it."""
        self._status: dict[str, Any] = {}
        """Its last answer to `status`."""
        self._first = np.zeros(0, np.int16)
        """What was written into its pipe before anybody spoke."""
        words = [
            sys.executable,
            "-m",
            "asrd",
            "run",
            "--source",
            source,
            "--socket",
            str(self.socket),
            *flags,
        ]
        with home.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                cwd=home.folder,
                env=home.environment(life, **environment),
                stdin=subprocess.PIPE if source == "pipe" else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                bufsize=0,
            )
        self.began = time.monotonic()

    # -- asking
    # -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def asked(self, **request: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Send one request and give the replies. Raises OSError where nobody listens, BrokenError
        for a refusal."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(PATIENCE_SECONDS)
            line.connect(os.fspath(self.socket))
            with line.makefile("rb") as replies:
                line.sendall(json.dumps(request).encode() + b"\n")
                yield _answers(replies)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request; return its last answer. Raises OSError, BrokenError."""
        with self.asked(**request) as replies:
            return list(replies)[-1]

    def until(
        self, holds: Callable[[dict[str, Any]], bool], what: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        """Wait until a status of the daemon is as wanted. Raises BrokenError."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise BrokenError(
                    f"the daemon ended with {self.process.returncode} before {what}: {self.last_words()}"
                )
            with contextlib.suppress(OSError, ValueError):
                self._status = self.ask(verb="status")
                if holds(self._status):
                    return
            time.sleep(POLL_SECONDS)
        told = f"in {seconds:.0f} s there was no {what} ({self.doing()}): {self.last_words()}"
        raise BrokenError(told)

    def doing(self) -> str:
        """Return what the daemon did at its last status: its state, what loads, and what waits."""
        status = self._status
        if not status:
            return "no status was answered"
        parts = [status["state"], *filter(None, [status["loading"], status["trouble"]])]
        parts += [f"{status['pending']} pending"] * bool(status["pending"])
        return ", ".join([*parts, f"{status['strategy'] or 'no worker'} in service"])

    def up(self) -> None:
        """Wait until it records."""
        self.until(lambda status: True, "daemon that answers")

    def ready(self) -> None:
        """Wait until its model is loaded, which a pipe without sound does not have done."""
        if self.process.stdin is not None and not len(self._first) and self.feeder is None:
            self._first = np.zeros(FIRST_SAMPLES, np.int16)
            self.process.stdin.write(self._first.tobytes())
        self.until(
            lambda status: bool(status["strategy"]) and not status["loading"], "loaded model"
        )

    def until_recorded(self, seconds: float) -> None:
        """Wait until so much sound has been taken in. Raises BrokenError."""
        self.until(
            lambda status: (status["take"] or {}).get("seconds", 0.0) >= seconds - 0.02, "recording"
        )

    def last_words(self) -> str:
        """Return the end of what daemons of this home have said."""
        with contextlib.suppress(OSError):
            return " | ".join(self.home.log.read_text(errors="replace").splitlines()[-4:])
        return "it said nothing"

    # -- sound
    # --------------------------------------------------------------------------------------------------------

    def feed(self, sound: np.ndarray, pace: float = 1.0) -> Feeder:
        """Speak a sound (int16) into it."""
        assert self.process.stdin is not None
        whole, first = np.concatenate([self._first, sound]), len(self._first)
        self.feeder = Feeder(self.process.stdin.fileno(), whole, pace, first)
        return self.feeder

    def end_sound(self) -> None:
        """Close the pipe: the recording ends, and the daemon when its text is delivered."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    # -- the end
    # ------------------------------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Return its workers' processes."""
        found = []
        for pid in self.home.processes(self.life):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(name.encode() in words for name in WORKERS):
                    found.append(pid)
        return found

    def kill(self, target: str, feeder: Feeder | None = None) -> None:
        """Send SIGKILL to the daemon, to its workers or to both; the feeder notes how far it had
        come."""
        workers = self.workers() if target in ("worker", "both") else []
        if feeder is not None:
            feeder.at_the_kill = feeder.samples
        if target in ("daemon", "both"):
            self.process.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if target != "worker":
            self.process.wait(PATIENCE_SECONDS)
            if feeder is not None:
                feeder.stop()
            self.end_sound()

    def stop(self) -> int:
        """End it in order; return its exit code. Raises BrokenError where it does not end."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit code. Raises BrokenError."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise BrokenError(f"the daemon does not end: {self.last_words()}") from None
        self.end_sound()
        return code

    def recording(self) -> str:
        """Return the name of the recording that this life began; "" where it came to none."""
        new = sorted(set(self.home.kept()) - self.before)
        return new[-1] if new else ""


def _answers(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield replies up to the last one. Raises BrokenError for a refusal."""
    for line in lines:
        reply = dict(json.loads(line))
        if not reply["ok"]:
            raise BrokenError(f"the daemon refused: {reply['error']}")
        yield reply
        if not reply.get("more"):
            return
    raise BrokenError("the daemon's answer broke off")
